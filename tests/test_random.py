"""Random numbers: the same for the same seed, their own for each draw, spread as they should be, and savable."""

import json
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.random import default_generator

N = 20_000
DRAWS: dict[str, Any] = {
    "uniform": lambda g: g.uniform(50),
    "normal": lambda g: g.normal((5, 10)),
    "integers": lambda g: g.integers(0, 1000, 50),
    "permutation": lambda g: g.permutation(50),
    "keep_mask": lambda g: g.keep_mask(0.5, tg.zeros(50)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_gives_the_same_numbers(backend: str, draw: Any) -> None:
    first = draw(tg.Generator(3)).numpy()
    np.testing.assert_array_equal(draw(tg.Generator(3)).numpy(), first)
    assert (draw(tg.Generator(4)).numpy() != first).any()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_draw_is_its_own(backend: str, draw: Any) -> None:
    generator = tg.Generator(3)
    assert (draw(generator).numpy() != draw(generator).numpy()).any()


def test_draws_are_independent(backend: str) -> None:
    """Neighbouring draws and neighbouring seeds are uncorrelated, and none contains another shifted."""
    generators = [tg.Generator(seed) for seed in (0, 1, 2, 2**62)]
    rows = np.array([g.normal(N, dtype=np.float64).numpy() for g in generators for _ in range(4)])
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlations).max() < 5 / np.sqrt(N)
    assert len(np.unique(rows)) == rows.size


def test_a_longer_draw_begins_as_a_shorter_one_and_a_shape_does_not_matter(backend: str) -> None:
    whole = tg.Generator(0).uniform((6, 5)).numpy()
    np.testing.assert_array_equal(tg.Generator(0).uniform(30).numpy(), whole.ravel())
    np.testing.assert_array_equal(tg.Generator(0).uniform(10).numpy(), whole.ravel()[:10])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform(backend: str, dtype: Any) -> None:
    x = tg.Generator(0).uniform((N,), -2.0, 3.0, dtype)
    assert x.dtype == dtype
    assert x.backend == backend
    values = np.sort((x.numpy() + 2) / 5)
    assert values[0] >= 0
    assert values[-1] <= 1
    assert np.abs(values - (np.arange(N) + 0.5) / N).max() < 1.95 / np.sqrt(N)  # Kolmogorov-Smirnov, p = 0.001


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal(backend: str, dtype: Any) -> None:
    x = tg.Generator(0).normal((N,), 3.0, 2.0, dtype)
    assert x.dtype == dtype
    values = (x.numpy().astype(np.float64) - 3) / 2
    assert abs(values.mean()) < 4 / np.sqrt(N)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs((values**3).mean()) < 4 * np.sqrt(15 / N)
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / N)


def test_integers(backend: str) -> None:
    x = tg.Generator(0).integers(-2, 5, (N,))
    assert x.dtype == np.int64
    values, counts = np.unique(x.numpy(), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-2, 5))
    assert ((counts - N / 7) ** 2 / (N / 7)).sum() < 22.5  # chi squared of 6 degrees, p = 0.001


def test_permutation(backend: str) -> None:
    generator = tg.Generator(0)
    orders = np.array([generator.permutation(4).numpy() for _ in range(1200)])
    assert (np.sort(orders) == np.arange(4)).all()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert counts.size == 24
    assert ((counts - 50) ** 2 / 50).sum() < 49.8  # chi squared of 23 degrees, p = 0.001
    assert generator.permutation(0).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keep", [0.1, 0.9])
def test_keep_mask(backend: str, keep: float, dtype: Any) -> None:
    mask = tg.Generator(0).keep_mask(keep, tg.zeros((N // 10, 10), dtype))
    assert (mask.dtype, mask.backend, mask.shape) == (dtype, backend, (N // 10, 10))
    assert set(np.unique(mask.numpy())) == {0, 1}
    assert abs(mask.numpy().mean() - keep) < 4 * np.sqrt(keep * (1 - keep) / N)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_number(backend: str, dtype: Any) -> None:
    for x in (tg.Generator(0).uniform(dtype=dtype), tg.Generator(0).normal(dtype=dtype)):
        assert (x.shape, x.dtype, x.backend) == ((), dtype, backend)
    whole = tg.Generator(0).integers(0, 9)
    assert (whole.shape, whole.dtype, whole.backend) == ((), np.int64, backend)


def test_a_generator_goes_on_from_its_state(backend: str) -> None:
    generator = tg.Generator(2**63 - 1)
    generator.normal(3)
    state = json.loads(json.dumps(generator.state_dict()))
    after = generator.uniform(20).numpy()
    other = tg.Generator(0)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.uniform(20).numpy(), after)
    assert other.state_dict() == generator.state_dict()
    assert repr(other) == f"Generator(seed={2**63 - 1}, counter=2)"


@pytest.mark.parametrize(
    "state", [{"seed": -1, "counter": 0}, {"seed": 1, "counter": -1}, {"seed": "1", "counter": 0}, {"seed": 1}], ids=str
)
def test_a_wrong_state_changes_nothing(state: Any) -> None:
    generator = tg.Generator(7)
    with pytest.raises((TypeError, ValueError, KeyError)):
        generator.load_state_dict(state)
    assert generator.state_dict() == {"seed": 7, "counter": 0}


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed must be from 0 to 2.*63 - 1, got -1"),
        (2**63, ValueError, "got 9223372036854775808"),
        (1.0, TypeError, "seed must be an int, got float"),
        (True, TypeError, "seed must be an int, got bool"),
        (None, TypeError, "seed must be an int, got NoneType"),
    ],
)
def test_wrong_seeds(seed: Any, error: type[Exception], message: str) -> None:
    before = default_generator().state_dict()
    for make in (tg.Generator, tg.manual_seed):
        with pytest.raises(error, match=message):
            make(seed)
    assert default_generator().state_dict() == before


def test_wrong_bounds() -> None:
    with pytest.raises(ValueError, match="low < high, got 3 and 3"):
        tg.Generator(0).integers(3, 3)


def test_manual_seed(backend: str) -> None:
    assert tg.manual_seed(np.int64(11)) is default_generator()
    first, then = nn.Linear(3, 4).weight.numpy(), nn.Linear(3, 4).weight.numpy()
    assert (first != then).any()
    tg.manual_seed(11)
    np.testing.assert_array_equal(nn.Linear(3, 4).weight.numpy(), first)
    own = tg.Generator(5)
    assert default_generator(own) is own


def test_a_given_generator_leaves_the_default_alone(backend: str) -> None:
    before = default_generator().state_dict()
    nn.LSTMCell(3, 4, generator=tg.Generator(0))
    nn.Dropout(0.5, tg.Generator(0))(tg.ones(5))
    assert default_generator().state_dict() == before
