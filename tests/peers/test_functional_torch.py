"""Values, gradients and second gradients of `functional` against PyTorch, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as TF

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F

rng = np.random.default_rng(20)
X = rng.standard_normal((4, 5))
X[0, 0] = 25.0  # beyond softplus's threshold
SCORES = {"C": (5,), "NC": (4, 5), "NCd": (3, 5, 2), "NCdd": (2, 5, 3, 2)}


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def same(ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Hold a function of float64 arrays against another: values, gradients, and gradients of these.

    The second gradients are those of the gradients times random weights, by the arrays and by the cotangent.
    """
    draw = np.random.default_rng(0)
    xs = [tg.Tensor(a, requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, t = ours(*xs), theirs(*ts)
    assert y.shape == tuple(t.shape)
    assert y.dtype == np.float64
    close(y.numpy(), t.detach().numpy())

    cotangent = draw.standard_normal(y.shape)
    xs.append(tg.Tensor(cotangent, requires_grad=True))
    ts.append(torch.tensor(cotangent, requires_grad=True))
    first = tg.grad((y * xs[-1]).sum(), xs[:-1], create_graph=True)
    first_t = torch.autograd.grad((t * ts[-1]).sum(), ts[:-1], create_graph=True)
    for a, b in zip(first, first_t, strict=True):
        close(a.numpy(), b.detach().numpy())

    weights = [draw.standard_normal(a.shape) for a in arrays]
    whole = sum((g * tg.Tensor(w)).sum() for g, w in zip(first, weights, strict=True))
    whole_t = sum((g * torch.tensor(w)).sum() for g, w in zip(first_t, weights, strict=True))
    second = tg.grad(whole, xs, allow_unused=True)
    second_t = torch.autograd.grad(whole_t, ts, allow_unused=True)
    for a, b, x in zip(second, second_t, xs, strict=True):
        close(np.zeros(x.shape) if a is None else a.numpy(), np.zeros(x.shape) if b is None else b.numpy(force=True))


ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.2}),
    ("elu", {}),
    ("elu", {"alpha": 1.7}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("softplus", {}),
    ("softplus", {"beta": 2.5, "threshold": 1.5}),
]


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS, ids=str)
def test_activation(name: str, options: dict[str, Any]) -> None:
    same(lambda x: getattr(F, name)(x, **options), lambda x: getattr(TF, name)(x, **options), X)


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS, ids=str)
def test_activation_far_out_and_at_its_kink(name: str, options: dict[str, Any]) -> None:
    x = np.array([-np.inf, -1e4, -800.0, -40.0, -0.0, 0.0, 40.0, 800.0, 1e4, np.inf])
    for part in (x[1:-1], x[[0, -1]] if name in ("relu", "leaky_relu", "elu", "softplus") else x[:0]):
        ours, theirs = tg.Tensor(part, requires_grad=True), torch.tensor(part, requires_grad=True)
        y, t = getattr(F, name)(ours, **options), getattr(TF, name)(theirs, **options)
        close(y.numpy(), t.detach().numpy())
        y.backward(tg.ones_like(y))
        t.sum().backward()
        assert ours.grad is not None
        close(ours.grad.numpy(), theirs.grad.numpy())


@pytest.mark.parametrize(
    ("shape", "slopes"), [((4, 5), 5), ((4, 5), 1), ((6,), 1), ((2, 5, 3), 5), ((2, 5, 3, 2), 5), ((2, 5, 3), 1)]
)
def test_prelu(shape: tuple[int, ...], slopes: int) -> None:
    same(F.prelu, TF.prelu, rng.standard_normal(shape), rng.uniform(0.1, 0.5, slopes))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name: str, axis: int) -> None:
    same(lambda x: getattr(F, name)(x, axis), lambda x: getattr(TF, name)(x, axis), X)
    same(lambda x: getattr(F, name)(x, axis), lambda x: getattr(TF, name)(x, axis), X.reshape(2, 2, 5))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    "row",
    [
        [1e4, -1e4, 0.0],
        [1e4, 1e4 - 1, 1e4 + 0.5],
        [-np.inf, 0.0, 1.0],
        [-np.inf, -np.inf, 1e4],
        [-np.inf, -np.inf, -np.inf],
        [np.inf, 0.0, 1.0],
        [np.nan, 0.0, 1.0],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_extremes(name: str, row: list[float], dtype: str) -> None:
    x = tg.Tensor(np.array(row, dtype), requires_grad=True)
    t = torch.tensor(np.array(row, dtype), requires_grad=True)
    weights = np.array([0.5, -1.0, 2.0], dtype)
    with np.errstate(invalid="ignore"):  # where PyTorch says NaN too
        y = getattr(F, name)(x, -1)
    z = getattr(TF, name)(t, -1)
    y.backward(weights)
    z.backward(torch.tensor(weights))
    bound = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), bound, bound)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), bound, bound)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3), (0, 3)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    arrays = [rng.standard_normal(shape), rng.standard_normal((2, 3)), rng.standard_normal(2)]
    same(F.linear, TF.linear, *arrays[: 2 + bias])


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("indices", [2, [0, 2, 2, 5], [[1, 5], [2, 1]]], ids=str)
def test_embedding(indices: Any, padding_idx: int | None) -> None:
    weight = rng.standard_normal((6, 3))
    picked = np.array(indices)
    same(
        lambda w: F.embedding(tg.Tensor(picked), w, padding_idx),
        lambda w: TF.embedding(torch.tensor(picked), w, padding_idx),
        weight,
    )


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_layer_norm(shape: tuple[int, ...], affine: int) -> None:
    x = rng.standard_normal((3, 4, 5))
    factors = [rng.standard_normal(shape), rng.standard_normal(shape)][:affine]
    same(
        lambda x, *factors: F.layer_norm(x, shape, *factors, eps=1e-3),
        lambda x, *factors: TF.layer_norm(x, shape, *factors, eps=1e-3),
        x,
        *factors,
    )


REDUCTIONS = ["none", "mean", "sum"]


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SCORES.values(), ids=SCORES)
def test_cross_entropy_of_indices(
    shape: tuple[int, ...], reduction: Any, ignored: bool, weighted: bool, smoothing: float
) -> None:
    scores = 3 * rng.standard_normal(shape)
    target = rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    ignore_index = int(target.flat[-1]) if ignored and target.size > 1 else -100
    if ignore_index >= 0:
        target.flat[0] = (ignore_index + 1) % 5  # so that one is left
    weight = rng.uniform(0.2, 2.0, 5) if weighted else None
    ours = None if weight is None else tg.Tensor(weight)
    theirs = None if weight is None else torch.tensor(weight)
    same(
        lambda x: F.cross_entropy(x, tg.Tensor(target), ours, ignore_index, reduction, smoothing),
        lambda x: TF.cross_entropy(
            x,
            torch.tensor(target),
            theirs,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=smoothing,
        ),
        scores,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SCORES.values(), ids=SCORES)
def test_cross_entropy_of_probabilities(
    shape: tuple[int, ...], reduction: Any, weighted: bool, smoothing: float
) -> None:
    target = np.random.default_rng(1).uniform(0.0, 1.0, shape)
    target /= target.sum(axis=min(1, len(shape) - 1), keepdims=True)
    weight = rng.uniform(0.2, 2.0, 5) if weighted else None
    ours = None if weight is None else tg.Tensor(weight)
    theirs = None if weight is None else torch.tensor(weight)
    same(
        lambda x, p: F.cross_entropy(x, p, ours, reduction=reduction, label_smoothing=smoothing),
        lambda x, p: TF.cross_entropy(x, p, theirs, reduction=reduction, label_smoothing=smoothing),
        3 * rng.standard_normal(shape),
        target,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SCORES.values(), ids=SCORES)
def test_nll_loss(shape: tuple[int, ...], reduction: Any, weighted: bool) -> None:
    target = rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if target.size > 1:
        target.flat[1] = -7
    weight = rng.uniform(0.2, 2.0, 5) if weighted else None
    ours = None if weight is None else tg.Tensor(weight)
    theirs = None if weight is None else torch.tensor(weight)
    same(
        lambda x: F.nll_loss(x, tg.Tensor(target), ours, -7, reduction),
        lambda x: TF.nll_loss(x, torch.tensor(target), theirs, ignore_index=-7, reduction=reduction),
        rng.standard_normal(shape),
    )


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_targets_ignored(name: str, reduction: Any) -> None:
    x, t = tg.Tensor(X, requires_grad=True), torch.tensor(X, requires_grad=True)
    with np.errstate(invalid="ignore"):  # the mean of nothing: NaN in both
        y = getattr(F, name)(x, tg.Tensor([-100] * 4), reduction=reduction)
    z = getattr(TF, name)(t, torch.tensor([-100] * 4), reduction=reduction)
    np.testing.assert_array_equal(y.numpy(), z.detach().numpy())
    y.sum().backward()
    z.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), t.grad.numpy())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weighted", [False, True])
def test_binary_cross_entropy_with_logits(pos_weighted: bool, weighted: bool, reduction: Any) -> None:
    scores = 3 * rng.standard_normal((4, 5))
    scores[0, :3] = 0.0, 300.0, -300.0
    target = np.random.default_rng(1).uniform(0.0, 1.0, (4, 5))
    target[0] = 0, 1, 0, 1, 1
    weight = rng.uniform(0.2, 2.0, (4, 5)) if weighted else None
    pos_weight = rng.uniform(0.2, 2.0, 5) if pos_weighted else None

    def call(loss: Any, tensor: Any) -> Any:
        factors = {"weight": weight, "pos_weight": pos_weight}
        named = {name: None if factor is None else tensor(factor) for name, factor in factors.items()}
        return lambda x, p: loss(x, p, reduction=reduction, **named)

    same(
        call(F.binary_cross_entropy_with_logits, tg.Tensor),
        call(TF.binary_cross_entropy_with_logits, torch.tensor),
        scores,
        target,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("mse_loss", {}), ("l1_loss", {}), ("huber_loss", {}), ("huber_loss", {"delta": 0.4})],
    ids=str,
)
def test_regression(name: str, options: dict[str, float], reduction: Any) -> None:
    prediction, target = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    prediction[0, 0] = target[0, 0]  # where an error is 0
    same(
        lambda x, y: getattr(F, name)(x, y, reduction=reduction, **options),
        lambda x, y: getattr(TF, name)(x, y, reduction=reduction, **options),
        prediction,
        target,
    )
