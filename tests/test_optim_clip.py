"""Clipping of gradients, against its definition and on bad input."""

import math
from typing import Any

import numpy as np
import pytest
import strict

import tinygrad_rnn as tg
from tinygrad_rnn import optim

P0 = np.array([[1.0, -2.0, 0.5], [3.0, -0.25, 4.0]])
G0 = np.array([[0.5, -0.1, 2.0], [-3.0, 1e-3, 0.25]])


def parameter(values: Any, dtype: Any = np.float64) -> tg.Tensor:
    return tg.Tensor(tg.get_backend().asarray(np.array(values, dtype)), requires_grad=True)


def set_gradient(p: tg.Tensor, values: Any) -> None:
    p.grad = tg.Tensor(tg.get_backend().asarray(np.array(values, p.dtype)))


def gradient_of(p: tg.Tensor) -> np.ndarray[Any, Any]:
    assert p.grad is not None
    return p.grad.numpy()


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("bound", [0.5, 1000.0, math.inf])
def test_clipping_by_norm(order: float, bound: float, backend: str) -> None:
    p, q, r, empty = parameter(P0), parameter([1.0, 1.0]), parameter([1.0]), parameter(np.zeros((0, 2)))
    set_gradient(p, G0)
    set_gradient(q, [1.5, -2.5])
    set_gradient(empty, np.zeros((0, 2)))
    norm = np.linalg.norm(np.concatenate([G0.reshape(-1), [1.5, -2.5]]), order)
    total = optim.clip_grad_norm_(iter([p, q, r, empty]), bound, order)
    assert total.shape == ()
    assert total.backend == backend
    assert not total.requires_grad
    close(total.numpy(), norm)
    factor = 0.5 / (norm + 1e-6) if bound == 0.5 else 1.0
    close(gradient_of(p), factor * G0)
    close(gradient_of(q), factor * np.array([1.5, -2.5]))
    assert r.grad is None
    assert empty.grad is not None


def test_clipping_by_value(backend: str) -> None:
    p, q = parameter(P0, np.float32), parameter([1.0])
    set_gradient(p, G0)
    optim.clip_grad_value_([p, q], 0.3)
    np.testing.assert_array_equal(gradient_of(p), np.clip(G0, -0.3, 0.3).astype(np.float32))
    assert q.grad is None
    set_gradient(q, [-5.0])
    optim.clip_grad_value_(q, 2)
    assert gradient_of(q) == [-2.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_in_place_in_the_own_dtype(dtype: Any, backend: str) -> None:
    p, scalar = parameter(P0, dtype), parameter(2.0, dtype)
    set_gradient(p, G0)
    set_gradient(scalar, 3.0)
    before = [q.grad.data for q in (p, scalar) if q.grad is not None]
    assert optim.clip_grad_norm_([p, scalar], 0.1).dtype == dtype
    optim.clip_grad_value_([p, scalar], 0.01)
    assert all(q.grad is not None and q.grad.data is array for q, array in zip((p, scalar), before, strict=True))
    assert gradient_of(p).dtype == gradient_of(scalar).dtype == dtype


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_a_norm_that_is_not_finite(bad: float, order: float, backend: str) -> None:
    p, q = parameter([1.0, 2.0]), parameter([3.0])
    set_gradient(p, [1.0, bad])
    set_gradient(q, [-4.0])
    with pytest.raises(RuntimeError, match=f"gradients is {bad}, not finite"):
        optim.clip_grad_norm_([p, q], 1.0, order, error_if_nonfinite=True)
    np.testing.assert_array_equal(gradient_of(p), [1.0, bad])
    np.testing.assert_array_equal(gradient_of(q), [-4.0])
    np.testing.assert_equal(optim.clip_grad_norm_([p, q], 1.0, order).item(), bad)
    np.testing.assert_array_equal(gradient_of(q), [math.nan if math.isnan(bad) else 0.0])


def test_asking_for_an_error_waits_for_the_device_once() -> None:
    with tg.use_backend("strict"):
        p, q = parameter(P0), parameter([1.0])
        set_gradient(p, G0)
        set_gradient(q, [1.0])
        before = strict.synchronizations
        optim.clip_grad_norm_([p, q], 1.0, error_if_nonfinite=True)
        assert strict.synchronizations == before + 1


def test_clipping_leaves_the_graph_of_a_gradient_right(backend: str) -> None:
    p = parameter([1.0, 2.0])
    tg.exp(p).sum().backward(create_graph=True)
    recorded = p.grad
    assert recorded is not None
    optim.clip_grad_norm_(p, 0.5)
    assert np.linalg.norm(gradient_of(p)) == pytest.approx(0.5, rel=1e-5)
    close(recorded.numpy(), np.exp([1.0, 2.0]))
    close(tg.grad(recorded.sum(), p).numpy(), np.exp([1.0, 2.0]))


def test_a_graph_that_used_a_gradient_notices_the_clipping(backend: str) -> None:
    for clip in (optim.clip_grad_norm_, optim.clip_grad_value_):
        p, x = parameter([1.0]), parameter([2.0])
        set_gradient(p, [3.0])
        assert p.grad is not None
        product = x * p.grad
        clip(p, 0.5)
        with pytest.raises(RuntimeError, match="changed in place"):
            product.backward()


def test_a_bound_of_zero_leaves_nothing(backend: str) -> None:
    for clip in (optim.clip_grad_norm_, optim.clip_grad_value_):
        p = parameter([1.0, 2.0])
        set_gradient(p, [3.0, -4.0])
        clip(p, 0.0)
        np.testing.assert_array_equal(gradient_of(p), [0.0, 0.0])


def test_no_gradients_have_no_norm(backend: str) -> None:
    total = optim.clip_grad_norm_([parameter([1.0])], 1.0)
    assert total.item() == 0.0
    assert total.backend == backend
    optim.clip_grad_value_([], 1.0)


def test_bad_arguments_of_clipping(backend: str) -> None:
    p = parameter([1.0])
    set_gradient(p, [3.0])
    for bound in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_norm must be at least 0, got {bound}"):
            optim.clip_grad_norm_(p, bound)
        with pytest.raises(ValueError, match=f"clip_value must be at least 0, got {bound}"):
            optim.clip_grad_value_(p, bound)
    for order in (0, -1, math.nan):
        with pytest.raises(ValueError, match="norm_type must be above 0"):
            optim.clip_grad_norm_(p, 1.0, order)
    with pytest.raises(TypeError, match=r"parameters\[1\] must be a Tensor, got str"):
        optim.clip_grad_norm_([p, "q"], 1.0)  # type: ignore[list-item]
    assert gradient_of(p) == [3.0]
