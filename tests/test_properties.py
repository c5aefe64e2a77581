"""Operations on arrays of any shape, dtype and content that Hypothesis thinks of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_rnn as tg

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
FLOATS = st.sampled_from([np.float32, np.float64])


def numbers(shape, dtype=np.float64, low=-4, high=4):
    """Multiples of 1/8: sums and products of a few are exact, so that order cannot matter."""
    return hnp.arrays(np.int64, shape, elements=st.integers(low * 8, high * 8)).map(lambda a: np.asarray(a / 8, dtype))


def leaf(array):
    return tg.Tensor(array, requires_grad=True)


def adjoint(f, x, y):
    """<f(x), y> through f and its VJP: for a linear f both sides are equal."""
    out = f(x)
    (pulled,) = tg.grad(out, [x], grad_outputs=tg.Tensor(y))
    assert pulled.shape == x.shape
    assert pulled.dtype == x.dtype
    np.testing.assert_allclose((out.numpy() * y).sum(), (x.numpy() * pulled.numpy()).sum(), rtol=1e-9, atol=1e-9)


@st.composite
def pairs(draw):
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4))
    return [draw(numbers(shape, draw(FLOATS))) for shape in shapes.input_shapes]


@given(pairs())
def test_binary_operations_broadcast_and_promote_as_numpy(operands):
    a, b = operands
    x, y = leaf(a), leaf(b)
    for name in ("add", "subtract", "multiply", "maximum", "minimum"):
        out = getattr(tg, name)(x, y)
        expected = getattr(np, name)(a, b)
        np.testing.assert_array_equal(out.numpy(), expected)
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        left, right = tg.grad(out, [x, y], grad_outputs=tg.ones_like(out))
        assert (left.shape, left.dtype, right.shape, right.dtype) == (x.shape, x.dtype, y.shape, y.dtype)
    # The gradient of a product by one operand is the other, summed over what was broadcast.
    left, right = tg.grad(tg.multiply(x, y).sum(), [x, y])
    spread = np.ones(np.broadcast_shapes(a.shape, b.shape))
    for ours, other, own in ((left, b, a), (right, a, b)):
        full = spread * other
        extra = full.ndim - own.ndim
        axes = (*range(extra), *[extra + i for i, n in enumerate(own.shape) if n == 1 and full.shape[extra + i] != 1])
        np.testing.assert_allclose(ours.numpy(), full.sum(axis=axes).reshape(own.shape), rtol=1e-5)


@given(st.data(), SHAPES, st.booleans())
def test_reductions_over_any_axes(data, shape, keepdims):
    a = data.draw(numbers(shape))
    axis = (
        data.draw(st.none() | st.sets(st.integers(0, max(a.ndim - 1, 0)), max_size=a.ndim).map(tuple))
        if a.ndim
        else None
    )
    x = leaf(a)
    out = tg.sum(x, axis, keepdims)
    np.testing.assert_allclose(out.numpy(), a.sum(axis=axis, keepdims=keepdims))
    adjoint(lambda x: tg.sum(x, axis, keepdims), x, data.draw(numbers(out.shape)))
    if a.size:
        np.testing.assert_allclose(tg.mean(x, axis, keepdims).numpy(), a.mean(axis=axis, keepdims=keepdims))
        largest = tg.max(x, axis, keepdims)
        np.testing.assert_array_equal(largest.numpy(), a.max(axis=axis, keepdims=keepdims))
        (shares,) = tg.grad(largest.sum(), [x])
        np.testing.assert_allclose(shares.numpy().sum(), largest.size)  # ties share what one would get
        total = np.log(np.exp(a).sum(axis=axis, keepdims=keepdims))
        np.testing.assert_allclose(tg.logsumexp(x, axis, keepdims).numpy(), total, rtol=1e-9, atol=1e-9)


@given(st.data(), SHAPES)
def test_rearranging_is_linear_and_loses_nothing(data, shape):
    a = data.draw(numbers(shape))
    x = leaf(a)
    order = tuple(data.draw(st.permutations(range(a.ndim))))
    y = data.draw(numbers(tuple(a.shape[i] for i in order)))
    adjoint(lambda x: tg.transpose(x, order), x, y)
    adjoint(lambda x: tg.reshape(x, (a.size,)), x, y.reshape(-1))
    adjoint(lambda x: tg.expand_dims(x, 0), x, y.reshape((1, *a.shape)))
    if a.ndim:
        axis = data.draw(st.integers(-a.ndim, a.ndim - 1))
        adjoint(lambda x: tg.flip(x, axis), x, y.reshape(a.shape))
        adjoint(lambda x: tg.roll(x, 2, axis), x, y.reshape(a.shape))
        adjoint(lambda x: tg.cumsum(x, axis), x, y.reshape(a.shape))
        cut = data.draw(st.integers(0, a.shape[axis]))
        adjoint(lambda x: tg.concatenate(tg.split(x, [cut], axis)[::-1], axis), x, y.reshape(a.shape))
        if a.shape[axis]:
            adjoint(lambda x: tg.stack(tg.unstack(x, axis)[::-1], axis), x, y.reshape(a.shape))


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
def test_indexing_and_its_transpose(data, shape):
    a = data.draw(numbers(shape))
    basic = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    rows = data.draw(
        hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=4), elements=st.integers(-shape[0], shape[0] - 1))
    )
    mask = data.draw(hnp.arrays(bool, shape))
    for index in (basic, rows, mask, (rows, ..., None)):
        x = leaf(a)
        expected = a[index]
        np.testing.assert_array_equal(x[index].numpy(), expected)
        y = data.draw(numbers(np.shape(expected)))
        adjoint(lambda x, index=index: x[index], x, y)
        scattered = a.copy()
        np.add.at(scattered, index, y)
        np.testing.assert_allclose(tg.scatter_add(x, index, tg.Tensor(y)).numpy(), scattered)


@given(st.data(), hnp.mutually_broadcastable_shapes(signature="(m?,n),(n,p?)->(m?,p?)", max_dims=2, max_side=3))
def test_matmul_of_any_dimensions(data, shapes):
    a, b = (data.draw(numbers(shape)) for shape in shapes.input_shapes)
    x, w = leaf(a), leaf(b)
    np.testing.assert_allclose((x @ w).numpy(), np.matmul(a, b))
    y = data.draw(numbers(shapes.result_shape))
    adjoint(lambda x: x @ w, x, y)
    adjoint(lambda w: x @ w, w, y)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "sin", "exp", "erf", "softplus", "silu", "gelu"])
@given(data=st.data(), shape=SHAPES)
def test_smooth_functions_against_differences(name, data, shape):
    f = getattr(tg, name, None) or getattr(tg.functional, name)
    x = leaf(data.draw(numbers(shape, low=-3, high=3)))
    assert f(x).shape == x.shape
    assert tg.gradcheck(f, [x])
    assert tg.gradgradcheck(f, [x])
    single = leaf(x.numpy().astype(np.float32))
    f(single).sum().backward()
    f(x).sum().backward()
    assert single.grad.dtype == np.float32
    np.testing.assert_allclose(single.grad.numpy(), x.grad.numpy(), rtol=1e-4, atol=1e-6)
