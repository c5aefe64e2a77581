"""Operations whose gradient is not the derivative on purpose: held against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import leaf, on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import tape
from tinygrad_rnn.ops import altered
from tinygrad_rnn.ops.declare import REGISTRY

CASES = {
    "norm": (lambda x: tg.clip_gradient(x, max_norm=1.0), lambda g: g * np.minimum(1, 1 / norms(g))),
    "value": (lambda x: tg.clip_gradient(x, max_value=0.5), lambda g: np.clip(g, -0.5, 0.5)),
    "both": (
        lambda x: tg.clip_gradient(x, max_norm=0.7, max_value=0.5),
        lambda g: np.clip(g, -0.5, 0.5) * np.minimum(1, 0.7 / norms(np.clip(g, -0.5, 0.5))),
    ),
    "scale": (lambda x: tg.scale_gradient(x, -2.5), lambda g: -2.5 * g),
}


def norms(g):
    return np.maximum(np.sqrt((g * g).sum(-1, keepdims=True)), 1e-30) if g.ndim else np.maximum(abs(g), 1e-30)


def test_every_such_operation_is_here():
    assert set(altered.__all__) == {"clip_gradient", "scale_gradient", "stop_gradient"}
    assert {"clip_gradient", "scale_gradient", "stop_gradient"} <= REGISTRY.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 4, 3), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_as_defined(name, shape, dtype, backend):
    f, define = CASES[name]
    rng = np.random.default_rng(0)
    x, g = leaf(rng.standard_normal(shape), dtype), rng.standard_normal(shape).astype(dtype) * 2
    if shape and shape[0]:
        g[0] = 0.0
    y = f(x)
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    y.backward(on_backend(g))
    assert x.grad.dtype == dtype
    np.testing.assert_allclose(x.grad.numpy(), define(g), rtol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("name", CASES)
def test_what_happened_to_the_gradient_can_be_differentiated(name, backend):
    f, _ = CASES[name]
    g = leaf([[0.3, -0.2], [2.0, 1.0], [0.1, 3.0]])
    x = leaf(np.ones((3, 2)))

    def clipped(g):
        return tg.grad(f(x), x, g, create_graph=True)

    assert tg.gradcheck(clipped, [g])
    zero = leaf(np.zeros((3, 2)))
    assert np.isfinite(tg.grad(clipped(zero).sum(), zero).numpy()).all()


def test_stop_gradient_is_heard_and_passes_nothing(backend):
    x = leaf([1.0, 2.0])
    heard = []
    with tape.listen(lambda rule, operands, params, results: heard.append(rule.name)):
        y = tg.stop_gradient(x)
        z = x.detach()
    assert heard == ["stop_gradient", "stop_gradient"]
    assert not y.requires_grad
    assert not z.requires_grad
    assert y.data is x.data
    (y * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 2.0])


def test_clipping_at_every_step_of_a_recurrence(backend):
    """Each row of the state's gradient is clipped at each step: the definition, unrolled by hand."""
    w = 3.0

    def cell(x, h):
        h = tg.clip_gradient(h, max_norm=2.0) * w + x
        return h, h

    xs = leaf(np.zeros((4, 2, 1)))
    ys, _ = tg.scan(cell, xs, on_backend(np.zeros((2, 1))))
    ys[-1].backward(on_backend([[1.0], [0.01]]))
    expected, g = [], np.array([[1.0], [0.01]])
    for _ in range(4):
        expected.append(g)
        g = g * w
        g = g * np.minimum(1, 2.0 / abs(g))
    np.testing.assert_allclose(xs.grad.numpy(), expected[::-1])


def test_refusals(backend):
    x = leaf([1.0])
    with pytest.raises(ValueError, match="needs max_norm, max_value or both"):
        tg.clip_gradient(x)
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        tg.clip_gradient(x, max_norm=0)
    with pytest.raises(ValueError, match=r"max_value must be positive, got -1\.0"):
        tg.clip_gradient(x, max_value=-1.0)
