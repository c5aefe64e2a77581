"""The example's cell and its twin in PyTorch: the same outputs and gradients."""

import custom_cell
import numpy as np

import tinygrad_rnn as tg


def test_both_sides_of_the_race_agree(engine):
    generator = tg.Generator(0)
    cell = custom_cell.TwoMemories(3, 5, generator)
    xs, cotangent = generator.normal((6, 2, 3)).numpy(), generator.normal((6, 2, 5)).numpy()
    own = custom_cell.ours(cell, "auto", xs, cotangent)()
    peer = custom_cell.theirs(cell, xs, cotangent)()
    assert own.keys() == peer.keys()
    assert len(own) == 1 + len(list(cell.parameters()))
    for name, expected in peer.items():
        np.testing.assert_allclose(own[name], expected, rtol=1e-4, atol=1e-5)
