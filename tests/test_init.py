"""Initial values: their distributions by statistics, their structure exactly."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nn import init


def empty(*shape, dtype=np.float32):
    return nn.Parameter(tg.zeros(shape, dtype))


def generator(seed=0):
    return tg.Generator(seed)


UNIFORM, NORMAL = 3**-0.5, None
SPREADS = {
    "xavier_uniform_": (lambda t: init.xavier_uniform_(t, 2.0, generator=generator()), 2 * (6 / 700) ** 0.5, UNIFORM),
    "xavier_normal_": (lambda t: init.xavier_normal_(t, 2.0, generator=generator()), 2 * (2 / 700) ** 0.5, NORMAL),
    "blocks": (lambda t: init.xavier_uniform_(t, blocks=4, generator=generator()), (6 / 400) ** 0.5, UNIFORM),
    "normal blocks": (lambda t: init.xavier_normal_(t, blocks=4, generator=generator()), (2 / 400) ** 0.5, NORMAL),
    "kaiming_uniform_": (lambda t: init.kaiming_uniform_(t, generator=generator()), (6 / 300) ** 0.5, UNIFORM),
    "kaiming_normal_": (lambda t: init.kaiming_normal_(t, 0.5, generator=generator()), (1.6 / 300) ** 0.5, NORMAL),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPREADS)
def test_spreads(name, dtype, backend):
    fill, size, kind = SPREADS[name]
    tensor = empty(400, 300, dtype=dtype)
    assert fill(tensor) is tensor
    values = tensor.numpy()
    assert abs(values.mean()) < 0.02 * size
    np.testing.assert_allclose(values.std(), size * (kind or 1), rtol=0.01)
    if kind:
        np.testing.assert_allclose([values.min(), values.max()], [-size, size], rtol=0.001)
    else:
        assert np.abs(values).max() > 3 * size


def test_identity(backend):
    np.testing.assert_array_equal(init.eye_(empty(3, 3), 0.5).numpy(), 0.5 * np.eye(3))
    np.testing.assert_array_equal(init.eye_(empty(6, 2), blocks=3).numpy(), np.tile(np.eye(2), (3, 1)))
    np.testing.assert_array_equal(init.eye_(empty(2, 3)).numpy(), np.eye(2, 3))


def test_forget_bias(backend):
    bias = nn.Parameter(tg.ones(8) * 7)
    np.testing.assert_array_equal(init.forget_bias_(bias, 2.0).numpy(), [0, 0, 2, 2, 0, 0, 0, 0])


def test_chrono(backend):
    values = init.chrono_(empty(4 * 5000, dtype=np.float64), 102, generator()).numpy().reshape(4, 5000)
    np.testing.assert_array_equal(values[0], -values[1])
    assert not values[2:].any()
    times = np.exp(values[1])
    assert times.min() >= 1
    assert times.max() <= 101
    np.testing.assert_allclose([times.mean(), times.std()], [51, 100 / 12**0.5], rtol=0.03)


@pytest.mark.parametrize("rows", [2, 3])
def test_orthogonal_blocks_have_no_preferred_sign(rows, backend):
    """QR alone would make R's diagonal, and with it the first row's sign, anything but fair (Mezzadri 2007)."""
    firsts = [init.orthogonal_(empty(rows, 2), generator=generator(seed)).numpy()[0, 0] for seed in range(200)]
    assert 60 < sum(first > 0 for first in firsts) < 140


def test_what_init_refuses(backend):
    with pytest.raises(ValueError, match=r"eye_ needs a matrix of 2 stacked blocks, got shape \(3, 3\)"):
        init.eye_(empty(3, 3), blocks=2)
    with pytest.raises(ValueError, match=r"xavier_uniform_ needs a matrix of 1 stacked blocks, got shape \(3,\)"):
        init.xavier_uniform_(empty(3))
    with pytest.raises(ValueError, match=r"forget_bias_ needs the bias of 4 stacked gates, got shape \(6,\)"):
        init.forget_bias_(empty(6))
    with pytest.raises(ValueError, match="max_steps must be at least 3, got 2"):
        init.chrono_(empty(8), 2)


def test_a_changed_initial_value_is_seen_by_the_graph(backend):
    cell = nn.LSTMCell(2, 3)
    y, _ = cell(tg.ones((1, 2)))
    init.chrono_(cell.bias_ih, 50)
    init.eye_(cell.weight_hh, blocks=4)
    z, _ = cell(tg.ones((1, 2)))
    assert np.abs(y.numpy() - z.numpy()).max() > 1e-3
