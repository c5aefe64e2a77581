"""Random numbers: the same for a seed, saved as two integers, spread as they should be."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_rnn as tg


def draws(generator):
    return [
        generator.uniform((3, 2)).numpy(),
        generator.normal(4, dtype=np.float64).numpy(),
        generator.integers(0, 9, (5,)).numpy(),
        generator.permutation(6).numpy(),
    ]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_seed_gives_the_same_numbers(backend):
    assert same(draws(tg.Generator(3)), draws(tg.Generator(3)))
    assert not same(draws(tg.Generator(3)), draws(tg.Generator(4)))
    generator = tg.Generator(3)
    assert not same(draws(generator), draws(generator))


def test_going_on_from_a_saved_state(backend):
    generator = tg.Generator(7)
    draws(generator)
    saved = generator.state_dict()
    assert saved == {"seed": 7, "counter": 4}
    expected = draws(generator)
    other = tg.Generator(0)
    other.load_state_dict(saved)
    assert same(draws(other), expected)


def test_the_default_generator(backend):
    tg.manual_seed(5)
    a = tg.functional.dropout(tg.ones(50)).numpy()
    tg.manual_seed(5)
    np.testing.assert_array_equal(a, tg.functional.dropout(tg.ones(50)).numpy())


def test_distributions(backend):
    generator = tg.Generator(0)
    uniform = generator.uniform(40000, -1, 3)
    assert uniform.dtype == np.float32
    assert uniform.backend == backend
    values = uniform.numpy()
    assert values.min() >= -1
    assert values.max() <= 3
    assert abs(values.mean() - 1) < 0.03
    assert abs(values.var() - 16 / 12) < 0.03
    normal = generator.normal(40000, 2, 0.5, np.float64).numpy()
    assert abs(normal.mean() - 2) < 0.02
    assert abs(normal.std() - 0.5) < 0.01
    counts = np.bincount(generator.integers(2, 5, 30000).numpy())
    assert len(counts) == 5
    assert counts[:2].sum() == 0
    assert (abs(counts[2:] - 10000) < 400).all()
    assert sorted(generator.permutation(100).numpy().tolist()) == list(range(100))
    assert abs(np.corrcoef(generator.uniform(20000).numpy(), generator.uniform(20000).numpy())[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**63, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_seeds(seed, error):
    with pytest.raises(error, match="seed must be"):
        tg.Generator(seed)


def test_a_bad_state_changes_nothing():
    generator = tg.Generator(1)
    for state in ({"seed": -1, "counter": 0}, {"seed": 2, "counter": -5}):
        with pytest.raises(ValueError, match=r"seed|counter"):
            generator.load_state_dict(state)
    assert generator.state_dict() == {"seed": 1, "counter": 0}
    with pytest.raises(ValueError, match="low < high"):
        generator.integers(3, 3)
