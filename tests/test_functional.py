"""What is composed of operations: gradients to second order, safety far out, values by definition, refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F

rng = np.random.default_rng(5)
SCORES = rng.standard_normal((4, 3, 2))
CLASSES = np.array([[0, 2], [1, 1], [2, -100], [0, 1]])
SHARES = rng.random((4, 3, 2)) + 0.1
WEIGHT = np.array([0.5, 2.0, 1.0])
X = np.array([[-2.3, -0.4, 0.7], [1.9, -1.2, 3.1]])
Y = rng.standard_normal((2, 3))

# For each function: calls, with the operands that get gradients.
CALLS = {
    "relu": [(lambda x: F.relu(x), X)],
    "leaky_relu": [(lambda x: F.leaky_relu(x, 0.2), X)],
    "prelu": [(F.prelu, X, np.array([0.1, 0.2, 0.3])), (F.prelu, X, np.array([0.3]))],
    "elu": [(lambda x: F.elu(x, 0.7), X)],
    "gelu": [(lambda x: F.gelu(x), X), (lambda x: F.gelu(x, "tanh"), X)],
    "silu": [(lambda x: F.silu(x), X)],
    "softplus": [(lambda x: F.softplus(x), X), (lambda x: F.softplus(x, 2.0, 3.0), X)],
    "softmax": [(lambda x: F.softmax(x), X), (lambda x: F.softmax(x, 0), X)],
    "log_softmax": [(lambda x: F.log_softmax(x), X), (lambda x: F.log_softmax(x, 0), X)],
    "dropout": [(lambda x: F.dropout(x, 0.4, generator=tg.Generator(1)), X)],
    "linear": [
        (lambda x, w, b: F.linear(x, w, b), X, Y, np.array([0.1, 0.2])),
        (lambda x, w: F.linear(x, w), SCORES[..., 0], Y),
    ],
    "embedding": [(lambda w: F.embedding(on_backend([[0, 1], [1, 1]]), w), Y)],
    "layer_norm": [
        (lambda x, w, b: F.layer_norm(x, 3, w, b), X, WEIGHT, Y[0]),
        (lambda x: F.layer_norm(x, (3, 2)), SCORES),
    ],
    "cross_entropy": [
        (lambda x: F.cross_entropy(x, on_backend(CLASSES)), SCORES),
        (lambda x, w: F.cross_entropy(x, on_backend(CLASSES), weight=w, label_smoothing=0.2), SCORES, WEIGHT),
        (lambda x, p: F.cross_entropy(x, p, label_smoothing=0.1, reduction="none"), SCORES, SHARES),
        (lambda x: F.cross_entropy(x, on_backend(1)), X[0]),
    ],
    "nll_loss": [(lambda x: F.nll_loss(F.log_softmax(x, 1), on_backend(CLASSES), reduction="none"), SCORES)],
    "binary_cross_entropy_with_logits": [
        (lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=on_backend(WEIGHT)), X, SHARES[:2, :, 0]),
    ],
    "mse_loss": [(lambda x, y: F.mse_loss(x, y), X, Y)],
    "l1_loss": [(lambda x, y: F.l1_loss(x, y, "sum"), X, Y)],
    "huber_loss": [(lambda x, y: F.huber_loss(x, y, delta=0.8), X, Y)],
}  # fmt: skip


def test_every_function_has_a_call():
    assert set(CALLS) == set(F.__all__)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, calls in CALLS.items() for k in range(len(calls))])
def test_gradients(name, k, backend):
    f, *operands = CALLS[name][k]
    inputs = [tg.Tensor(on_backend(x), requires_grad=True) for x in operands]
    assert tg.gradcheck(f, inputs)
    assert tg.gradgradcheck(f, inputs)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu", "softplus"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out(name, dtype, backend):
    f = getattr(F, name)
    x = tg.Tensor(on_backend(np.array([-1e4, 1e4, 0.0], dtype)), requires_grad=True)
    y = f(x)
    y.backward(tg.ones_like(y))
    assert y.dtype == dtype
    low, high, _ = y.numpy()
    assert high == 1e4
    assert low == {"leaky_relu": dtype(-100), "elu": -1}.get(name, 0)
    slope_low, slope_high, _ = x.grad.numpy()
    assert slope_high == 1
    assert slope_low == {"leaky_relu": dtype(0.01)}.get(name, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(f(on_backend(np.array([np.nan], dtype))).numpy()).all()


def test_softmax_of_large_scores(backend):
    large = on_backend(np.array([1e4, 1e4 - 1, -1e4], np.float32))
    np.testing.assert_allclose(F.softmax(large).numpy(), [0.7310586, 0.26894143, 0], rtol=1e-5)
    np.testing.assert_allclose(F.log_softmax(large).numpy(), [-0.3132617, -1.3132617, -20000.313], rtol=1e-5)


def test_cross_entropy_by_definition(backend):
    logp = SCORES - np.log(np.exp(SCORES).sum(axis=1, keepdims=True))
    counted = CLASSES != -100
    rows, columns = np.nonzero(counted)
    picked = -logp[rows, CLASSES[counted], columns]
    x = on_backend(SCORES)
    np.testing.assert_allclose(F.cross_entropy(x, on_backend(CLASSES)).item(), picked.mean())
    np.testing.assert_allclose(F.cross_entropy(x, on_backend(CLASSES), reduction="sum").item(), picked.sum())
    weights = WEIGHT[CLASSES[counted]]
    weighted = F.cross_entropy(x, on_backend(CLASSES), weight=on_backend(WEIGHT)).item()
    np.testing.assert_allclose(weighted, (weights * picked).sum() / weights.sum())
    np.testing.assert_allclose(F.cross_entropy(x, on_backend(SHARES)).item(), -(SHARES * logp).sum() / 8)
    each = F.cross_entropy(x, on_backend(CLASSES), reduction="none").numpy()
    assert each.shape == CLASSES.shape
    assert each[2, 1] == 0


def test_regression_losses_by_definition(backend):
    x, y, error = on_backend(X), on_backend(Y), np.abs(X - Y)
    np.testing.assert_allclose(F.mse_loss(x, y).item(), (error**2).mean())
    np.testing.assert_allclose(F.l1_loss(x, y, "none").numpy(), error)
    huber = np.where(error < 1.5, error**2 / 2, 1.5 * (error - 0.75))
    np.testing.assert_allclose(F.huber_loss(x, y, "sum", delta=1.5).item(), huber.sum())
    p = 1 / (1 + np.exp(-X))
    t = SHARES[:2, :, 0]
    bce = F.binary_cross_entropy_with_logits(x, on_backend(t)).item()
    np.testing.assert_allclose(bce, -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())


def test_dropout(backend):
    x = on_backend(np.ones(20000, np.float32))
    kept = F.dropout(x, 0.3, generator=tg.Generator(0)).numpy()
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((kept > 0).mean() - 0.7) < 0.01
    np.testing.assert_array_equal(kept, F.dropout(x, 0.3, generator=tg.Generator(0)).numpy())
    assert (kept != F.dropout(x, 0.3, generator=tg.Generator(1)).numpy()).any()
    assert F.dropout(x, 0.3, training=False) is x
    assert not F.dropout(x, 1.0).numpy().any()


def test_padding_gets_no_gradient(backend):
    w = tg.Tensor(on_backend(np.ones((3, 2))), requires_grad=True)
    F.embedding(on_backend([0, 2, 2, 1]), w, padding_idx=-1).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [[1, 1], [1, 1], [0, 0]])


def f32(*shape):
    return tg.Tensor(np.zeros(shape, np.float32))


def test_class_indices_out_of_range():
    with pytest.raises(IndexError, match=r"cross_entropy: target must be from 0 to 2, got 3"):
        F.cross_entropy(f32(2, 3), [0, 3])
    with pytest.raises(IndexError, match=r"embedding: indices must be from 0 to 3, got -1"):
        F.embedding([0, -1], f32(4, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.cross_entropy(f32(2, 3), [[0, 1]]), ValueError, r"shape \(2,\), got shape \(1, 2\)"),
        (lambda: F.cross_entropy(f32(2, 3), f32(3)), ValueError, r"shape \(2, 3\), got \(3,\)"),
        (lambda: F.cross_entropy(f32(2, 3), [0, 1], weight=f32(2)), ValueError, r"weight must have shape \(3,\)"),
        (lambda: F.cross_entropy(f32(2, 3), [0, 1], reduction="avg"), ValueError, "reduction must be .*'avg'"),
        (lambda: F.cross_entropy(f32(2, 3), [0, 1], label_smoothing=2), ValueError, "label_smoothing must be"),
        (lambda: F.mse_loss(f32(3), f32(3, 1)), ValueError, r"one shape, got \(3,\) and \(3, 1\)"),
        (lambda: F.huber_loss(f32(3), f32(3), delta=0), ValueError, "delta must be positive"),
        (lambda: F.dropout(f32(3), 1.5), ValueError, "p must be from 0 to 1"),
        (lambda: F.linear(f32(2, 3), f32(4, 2)), ValueError, r"takes inputs of 2 features, got .*\(2, 3\)"),
        (lambda: F.linear(f32(2, 3).astype(np.float64), f32(4, 3)), TypeError, "float32.*float64.*astype"),
        (lambda: F.layer_norm(f32(2, 3), 2), ValueError, r"end in shape \(2,\), got \(2, 3\)"),
        (lambda: F.prelu(f32(2, 3), f32(2)), ValueError, r"weight must have shape \(1,\) or \(3,\)"),
        (lambda: F.embedding(f32(2), f32(4, 2)), TypeError, "must be ints, got dtype float32"),
        (lambda: F.gelu(f32(2), "fast"), ValueError, "'none' or 'tanh', got 'fast'"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
