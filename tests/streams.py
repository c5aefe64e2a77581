"""How a compiled step is held against the cell itself."""

from __future__ import annotations

import numpy as np
from cell_cases import BATCH, INPUT
from helpers import on_backend
from scan_ways import values

import tinygrad_rnn as tg
from tinygrad_rnn.nest import leaves

STEPS = 5
F64 = {"dtype": np.float64}


def inputs(*shape):
    return [on_backend(values(*(shape or (BATCH, INPUT)), seed=t)) for t in range(STEPS)]


def settled(module):
    """In eval mode, all parameters random."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = on_backend(values(*parameter.shape, seed=i)).data
    return module.eval()


def same(found, expected):
    pairs = zip(leaves(found), leaves(expected), strict=True)
    for (place, a), (other, b) in pairs:
        assert place == other
        assert (a.shape, a.dtype, a.backend) == (b.shape, b.dtype, b.backend)
        assert a._node is None
        assert not a.requires_grad
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-10, atol=1e-12)


def follows(step, cell, xs, state):
    """Whether a compiled step goes on as the cell does from ``state``; returns the last state."""
    for x in xs:
        y, state = cell(x, state)
        same(step(x), y)
        same(step.state, state)
    return state


def of_one_step(layer, x, state):
    y, state = layer(tg.stack([x]), state)
    return y[0], state
