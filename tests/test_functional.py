"""Activations, layers without state and losses: their definitions, their gradients, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn.checks import gradcheck, gradgradcheck

X = np.array([[-2.3, -0.4, 0.7, 1.9], [0.3, -1.1, 2.6, -0.2], [0.9, 1.4, -3.1, 0.1]])
TARGET = np.array([[0.5, -0.9, 1.2, 0.4], [0.1, 0.8, 2.1, -1.7], [-0.6, 1.1, -2.2, 0.6]])
SHARES = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
WEIGHT = np.array([0.5, 1.0, 2.0, 0.25])
INDICES = [3, 0, 2]

ACTIVATIONS: dict[str, Callable[[tg.Tensor], tg.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, "tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, 3.0),
}


def tensor(values: Any, dtype: Any = np.float64, requires_grad: bool = False) -> tg.Tensor:
    """A tensor on the backend of the test; ints and bools keep their kind."""
    array = np.asarray(values)
    made = tg.Tensor(tg.get_backend().asarray(array.astype(dtype) if array.dtype.kind == "f" else array))
    made.requires_grad = requires_grad
    return made


def close(ours: Any, expected: Any, bound: float = 1e-12) -> None:
    np.testing.assert_allclose(ours.numpy() if isinstance(ours, tg.Tensor) else ours, expected, bound, bound)


def slope(f: Callable[[tg.Tensor], tg.Tensor], x: Any, dtype: Any = np.float64) -> np.ndarray:
    source = tensor(x, dtype, requires_grad=True)
    gradient: tg.Tensor = tg.grad(f(source).sum(), source)
    return gradient.numpy()


CALLS: dict[str, list[tuple[Callable[..., tg.Tensor], list[Any]]]] = {  # each with the operands that get gradients
    "relu": [(F.relu, [X])],
    "leaky_relu": [(F.leaky_relu, [X])],
    "prelu": [(F.prelu, [X, WEIGHT]), (F.prelu, [X, [0.3]]), (F.prelu, [X.reshape(2, 3, 2), [0.3, 0.2, 0.1]])],
    "elu": [(lambda x: F.elu(x, 0.7), [X])],
    "gelu": [(F.gelu, [X]), (lambda x: F.gelu(x, "tanh"), [X])],
    "silu": [(F.silu, [X])],
    "softplus": [(F.softplus, [X]), (lambda x: F.softplus(x, 2.0, 3.0), [X])],
    "softmax": [(F.softmax, [X]), (lambda x: F.softmax(x, 0), [X])],
    "log_softmax": [(F.log_softmax, [X]), (lambda x: F.log_softmax(x, 0), [X])],
    "dropout": [(lambda x: F.dropout(x, 0.4, generator=tg.Generator(1)), [X])],
    "linear": [(F.linear, [X, TARGET, [0.1, 0.2, 0.3]]), (F.linear, [X.reshape(3, 2, 2), TARGET[:, :2]])],
    "embedding": [(lambda w: F.embedding(tensor([[1, 2], [2, 2]]), w), [X])],
    "layer_norm": [
        (lambda x, w, b: F.layer_norm(x, 4, w, b), [X, WEIGHT, WEIGHT]),
        (lambda x: F.layer_norm(x, (3, 4)), [X]),
    ],
    "cross_entropy": [
        (lambda x: F.cross_entropy(x, tensor(INDICES), tensor(WEIGHT), 0, label_smoothing=0.2), [X]),
        (lambda x, p: F.cross_entropy(x, p, tensor(WEIGHT), label_smoothing=0.2), [X, SHARES]),
        (lambda x, w: F.cross_entropy(x, tensor(INDICES), w, label_smoothing=0.2), [X, WEIGHT]),
        (lambda x: F.cross_entropy(x, tensor(1)), [X[0]]),
    ],
    "nll_loss": [(lambda x: F.nll_loss(x, tensor(INDICES), tensor(WEIGHT), reduction="none"), [X])],
    "binary_cross_entropy_with_logits": [
        (lambda x, p, w: F.binary_cross_entropy_with_logits(x, p, w, pos_weight=w), [X, SHARES, WEIGHT]),
        (F.binary_cross_entropy_with_logits, [np.zeros((3, 4)), SHARES]),
    ],
    "mse_loss": [(F.mse_loss, [X, TARGET])],
    "l1_loss": [(lambda x, y: F.l1_loss(x, y, "sum"), [X, TARGET])],
    "huber_loss": [(lambda x, y: F.huber_loss(x, y, delta=0.7), [X, TARGET]), (F.huber_loss, [X, X])],
}


def test_every_function_has_a_call() -> None:
    assert set(CALLS) == set(F.__all__)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, calls in CALLS.items() for k in range(len(calls))])
def test_gradients_against_differences(backend: str, name: str, k: int) -> None:
    f, arrays = CALLS[name][k]
    sources = [tensor(a, requires_grad=True) for a in arrays]
    assert gradcheck(f, sources)
    assert gradgradcheck(f, sources)


def test_activations_by_their_definitions(backend: str) -> None:
    close(F.relu(tensor(X)), np.maximum(X, 0))
    close(F.leaky_relu(tensor(X), 0.2), np.where(X > 0, X, 0.2 * X))
    close(F.elu(tensor(X), 1.5), np.where(X > 0, X, 1.5 * (np.exp(X) - 1)))
    close(F.silu(tensor(X)), X / (1 + np.exp(-X)))
    close(F.softplus(tensor(X), 2.0), np.log(1 + np.exp(2 * X)) / 2)
    close(F.softplus(tensor([25.0])), [25.0])
    close(F.gelu(tensor([0.0, 1.0, -1.0])), [0.0, 0.841344746068543, -0.158655253931457])
    close(F.gelu(tensor([1.0]), "tanh"), 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * 1.044715)))
    close(F.softmax(tensor(X)), np.exp(X) / np.exp(X).sum(-1, keepdims=True))
    close(F.log_softmax(tensor(X), 0), X - np.log(np.exp(X).sum(0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(backend: str, name: str, dtype: Any) -> None:
    f = ACTIVATIONS[name]
    x = [-1e4, -1e4 + 1, 1e4]
    left = {"leaky_relu": [-100.0, -99.99], "elu": [-1.0, -1.0]}.get(name, [0.0, 0.0])
    y = f(tensor(x, dtype))
    assert y.dtype == dtype
    close(y, [*left, 1e4], 1e-5)
    close(slope(f, x, dtype), [*[0.01 if name == "leaky_relu" else 0.0] * 2, 1.0], 1e-6)
    source = tensor(x, dtype, requires_grad=True)
    first = tg.grad(f(source).sum(), source, create_graph=True)
    curvature = tg.grad((first * source).sum(), source, allow_unused=True) if first.requires_grad else first
    assert np.isfinite(curvature.numpy()).all()


def test_gradients_at_kinks(backend: str) -> None:
    close(slope(F.relu, [0.0, -0.0]), [0, 0])
    close(slope(lambda x: F.leaky_relu(x, 0.2), [0.0]), [0.2])
    close(slope(lambda x: F.elu(x, 2.0), [0.0]), [2.0])
    close(slope(lambda x: F.l1_loss(x, tensor([0.0])), [0.0]), [0.0])
    for sign in (1.0, -1.0):
        close(slope(lambda x: F.huber_loss(x, tensor([0.0]), delta=0.5), [0.5 * sign]), [0.5 * sign])


@pytest.mark.parametrize("f", [F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.softmax])
def test_nan_stays_nan(backend: str, f: Any) -> None:
    assert np.isnan(f(tensor([np.nan])).numpy()).all()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_keep_their_differences(backend: str, dtype: Any, offset: float) -> None:
    differences = np.array([[1.0, 0.0, -2.5, -30.0]])
    scores = tensor(differences + offset, dtype, requires_grad=True)
    shares = np.exp(differences) / np.exp(differences).sum()
    bound = 1e-6 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(F.softmax(scores).numpy(), shares, 3e-6 if dtype is np.float32 else 1e-12)
    close(F.log_softmax(scores), np.log(shares), bound)
    loss = F.cross_entropy(scores, tensor([1]))
    close(loss, -np.log(shares[0, 1]), bound)
    loss.backward()
    close(scores.grad, shares - [[0, 1, 0, 0]], bound)
    assert loss.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_far_out(backend: str, dtype: Any) -> None:
    scores = tensor([[1e4, -1e4], [-1e4, 1e4]], dtype, requires_grad=True)
    loss = F.cross_entropy(scores, tensor([0, 0]), reduction="none")
    close(loss, [0, 2e4])
    loss.sum().backward()
    close(scores.grad, [[0, 0], [-1, 1]])
    logits = tensor([1e4, -1e4, 1e4, -1e4], dtype, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logits, tensor([1.0, 1.0, 0.0, 0.0], dtype), reduction="none")
    close(loss, [0, 1e4, 1e4, 0])
    loss.sum().backward()
    close(logits.grad, [0, -1, 1, 0])


def test_a_class_ruled_out_has_no_share_and_no_gradient(backend: str) -> None:
    scores = tensor([[1.0, -np.inf, 2.0]], requires_grad=True)
    close(F.softmax(scores).numpy()[0, 1], 0)
    F.cross_entropy(scores, tensor([2])).backward()
    close(scores.grad, [[1 / (1 + np.e), 0, -1 / (1 + np.e)]])


def test_cross_entropy_by_its_definition(backend: str) -> None:
    logs = X - np.log(np.exp(X).sum(1, keepdims=True))
    picked = -logs[range(3), INDICES]
    factors = WEIGHT[INDICES]
    scores, target, weight = tensor(X), tensor(INDICES), tensor(WEIGHT)
    close(F.cross_entropy(scores, target), picked.mean())
    close(F.cross_entropy(scores, target, reduction="none"), picked)
    close(F.cross_entropy(scores, target, weight), (picked * factors).sum() / factors.sum())
    close(F.cross_entropy(scores, target, weight, reduction="sum"), (picked * factors).sum())
    close(F.cross_entropy(scores, target, ignore_index=0), picked[[0, 2]].mean())
    close(F.cross_entropy(scores, target, ignore_index=0, reduction="none"), picked * [1, 0, 1])
    close(F.cross_entropy(scores, target, label_smoothing=1.0), -logs.mean())
    close(F.cross_entropy(scores, tensor(SHARES)), -(logs * SHARES).sum(1).mean())
    close(F.nll_loss(tensor(logs), target), picked.mean())
    close(F.cross_entropy(tensor(X[0]), tensor(3)), picked[0])


def test_cross_entropy_over_positions(backend: str) -> None:
    scores, target = X.T.reshape(1, 4, 3), np.array([INDICES])
    close(F.cross_entropy(tensor(scores), tensor(target)), F.cross_entropy(tensor(X), tensor(INDICES)).item())
    assert F.cross_entropy(tensor(scores), tensor(target), reduction="none").shape == (1, 3)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_all_targets_ignored(backend: str, loss: Any) -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(loss(tensor(X), tensor([-100] * 3)).item())
    assert loss(tensor(X), tensor([-100] * 3), reduction="sum").item() == 0


def test_regression_losses_by_their_definitions(backend: str) -> None:
    error = X - TARGET
    close(F.mse_loss(tensor(X), tensor(TARGET)), (error**2).mean())
    close(F.l1_loss(tensor(X), tensor(TARGET), reduction="sum"), np.abs(error).sum())
    huber = np.where(np.abs(error) <= 0.7, error**2 / 2, 0.7 * (np.abs(error) - 0.35))
    close(F.huber_loss(tensor(X), tensor(TARGET), "none", 0.7), huber)
    share = 1 / (1 + np.exp(-X))
    entropy = -(2 * SHARES * np.log(share) + (1 - SHARES) * np.log(1 - share))
    close(
        F.binary_cross_entropy_with_logits(tensor(X), tensor(SHARES), reduction="none", pos_weight=tensor(2.0)), entropy
    )


def test_layers_by_their_definitions(backend: str) -> None:
    close(F.linear(tensor(X), tensor(TARGET), tensor([1.0, 2.0, 3.0])), X @ TARGET.T + [1, 2, 3])
    close(F.embedding(tensor([[0, 2]]), tensor(X)), X[[[0, 2]]])
    normal = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    close(F.layer_norm(tensor(X), 4, tensor(WEIGHT), tensor(WEIGHT)), normal * WEIGHT + WEIGHT)
    close(F.layer_norm(tensor(np.full((2, 3), 7.0)), 3), np.zeros((2, 3)))


def test_padding_gets_no_gradient(backend: str) -> None:
    weight = tensor(X, requires_grad=True)
    rows = F.embedding(tensor([1, 0, 1, 2]), weight, padding_idx=-2)
    close(rows, X[[1, 0, 1, 2]])
    rows.sum().backward()
    close(weight.grad, np.array([1, 0, 1])[:, None] * np.ones(4))


def test_an_embedding_is_heard_by_a_listener_as_a_whole(backend: str) -> None:
    """Whoever records a step must hear of each tensor before it is used, or it would be taken for a constant."""
    known: set[int] = set()
    kept: list[Any] = []  # so that no id is used again
    indices, weight = tensor([0, 1]), tensor(X, requires_grad=True)

    def hear(rule: Any, operands: Any, params: Any, results: Any) -> None:
        kept.append((operands, results))
        for operand in operands:
            assert not isinstance(operand, tg.Tensor) or id(operand) in known or operand.dtype.kind != "f", rule
        known.update(map(id, results))

    known.update((id(indices), id(weight)))
    with tg.tape.listen(hear):
        F.embedding(indices, weight, padding_idx=1)
    assert kept


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout(backend: str, p: float, dtype: Any) -> None:
    x = tensor(np.full((200, 100), 3.0), dtype, requires_grad=True)
    y = F.dropout(x, p, generator=tg.Generator(5))
    assert y.dtype == dtype
    kept = y.numpy() != 0
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / kept.size)
    close(y.numpy()[kept], 3 / (1 - p), 1e-6)
    y.sum().backward()
    close(x.grad, kept / (1 - p), 1e-6)
    for axis in (0, 1):  # no row and no column is favoured
        rates = kept.mean(axis)
        assert np.abs(rates - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / kept.shape[axis])


def test_dropout_at_its_ends_and_out_of_training(backend: str) -> None:
    x = tensor(X)
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.5, training=False) is x
    close(F.dropout(x, 1.0), np.zeros_like(X))


def test_dropout_is_drawn_from_its_generator(backend: str) -> None:
    x = tensor(np.ones(1000))
    generator = tg.Generator(1)
    first, second = (F.dropout(x, 0.5, generator=generator).numpy() for _ in range(2))
    assert 400 < (first != second).sum() < 600
    np.testing.assert_array_equal(F.dropout(x, 0.5, generator=tg.Generator(1)).numpy(), first)
    tg.manual_seed(1)
    np.testing.assert_array_equal(F.dropout(x, 0.5).numpy(), first)


LOSSES = [F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_refuse_to_broadcast(backend: str, loss: Any) -> None:
    with pytest.raises(ValueError, match=rf"{loss.__name__}: .* one shape, got \(3, 1\) and \(3,\)"):
        loss(tensor(np.ones((3, 1))), tensor(np.ones(3)))


@pytest.mark.parametrize("loss", [*LOSSES, F.cross_entropy, F.nll_loss])
def test_losses_refuse_an_unknown_reduction(backend: str, loss: Any) -> None:
    with pytest.raises(ValueError, match=rf"{loss.__name__}: reduction must be .* got 'average'"):
        loss(tensor(X), tensor(X), reduction="average")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.cross_entropy(tensor(X), tensor([0, 1])), ValueError, r"indices of shape \(3,\), got shape \(2,\)"),
        (lambda: F.cross_entropy(tensor(X), tensor([[0], [1], [2]])), ValueError, r"\(3,\), got shape \(3, 1\)"),
        (lambda: F.cross_entropy(tensor(X), tensor(X[:, :3])), ValueError, r"\(3, 4\); got float\d+ of shape \(3, 3\)"),
        (lambda: F.cross_entropy(tensor(X), tensor([True, False, True])), TypeError, "target must .* got dtype bool"),
        (lambda: F.cross_entropy(tensor(1.0), tensor(0)), ValueError, "got a 0-d tensor"),
        (
            lambda: F.cross_entropy(tensor(X), tensor(INDICES), tensor([1.0])),
            ValueError,
            r"weight .* \(4,\), got \(1,\)",
        ),
        (lambda: F.cross_entropy(tensor(X), tensor(INDICES), label_smoothing=1.5), ValueError, "label_smoothing.*1.5"),
        (lambda: F.nll_loss(tensor(X), tensor([0.0, 1.0, 2.0])), TypeError, "nll_loss: target .* got dtype float64"),
        (lambda: F.huber_loss(tensor(X), tensor(X), delta=0.0), ValueError, "delta must be positive, got 0"),
        (lambda: F.embedding(tensor([0.0]), tensor(X)), TypeError, "indices must be ints, got dtype float64"),
        (lambda: F.embedding(tensor([0]), tensor(X), 3), ValueError, "padding_idx must be from -3 to 2, got 3"),
        (lambda: F.dropout(tensor(X), 1.5), ValueError, "p must be from 0 to 1, got 1.5"),
        (lambda: F.gelu(tensor(X), "fast"), ValueError, "approximate must be .* got 'fast'"),  # type: ignore[arg-type]
        (lambda: F.layer_norm(tensor(X), 3), ValueError, r"x must end in shape \(3,\), got \(3, 4\)"),
        (lambda: F.layer_norm(tensor(X), (2, 3, 4)), ValueError, r"x must end in shape \(2, 3, 4\), got \(3, 4\)"),
        (lambda: F.layer_norm(tensor(X), 4, tensor([1.0])), ValueError, r"weight must have shape \(4,\), got \(1,\)"),
        (lambda: F.layer_norm(tensor(X), 4, None, tensor([1.0])), ValueError, r"bias must have shape \(4,\)"),
        (lambda: F.prelu(tensor(X), tensor([1.0, 2.0])), ValueError, r"weight must have shape .* got \(2,\)"),
        (lambda: F.linear(tensor(X), tensor(X[:, :2])), ValueError, r"2 features, got an input of shape \(3, 4\)"),
        (lambda: F.linear(tensor(X), tensor(X), tensor(X[:, :1])), ValueError, r"shape \(3,\) beside .*, got \(3, 1\)"),
        (lambda: F.linear(tensor(X), tensor(X), tensor([1.0, 2.0, 3.0], np.float32)), TypeError, "must be float64 as"),
        (
            lambda: F.mse_loss(tensor(X, np.float32), tensor(X)),
            TypeError,
            r"float32 and target is float64: .*'float32'",
        ),
        (lambda: F.cross_entropy(tensor(X, np.float32), tensor(X)), TypeError, "float32 and target is float64"),
        (lambda: F.linear(tensor(1.0), tensor(X)), ValueError, r"4 features, got an input of shape \(\)"),
        (lambda: F.linear(tensor(X), tensor(X, np.float32)), TypeError, r"float32 .* float64.*x.astype\('float32'\)"),
        (lambda: F.linear(tensor([[1, 2, 3, 4]]), tensor(X)), TypeError, r"float64 .* int64.*x.astype\('float64'\)$"),
        (lambda: F.prelu(tensor(X), tensor([0.5], np.float32)), TypeError, "float32 and the input is float64"),
        (lambda: F.layer_norm(tensor(X), 4, tensor(WEIGHT, np.float32)), TypeError, "float32 and the input is float64"),
    ],
)
def test_bad_input(backend: str, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("target", "wrong"), [([0, 4, 1], 4), ([0, -1, 1], -1)])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_classes_out_of_range(loss: Any, target: list[int], wrong: int) -> None:
    with pytest.raises(IndexError, match=rf"{loss.__name__}: target must be from 0 to 3, got {wrong}"):
        loss(tg.Tensor(X), tg.Tensor(target))


@pytest.mark.parametrize("wrong", [3, -1])
def test_embedding_indices_out_of_range(wrong: int) -> None:
    with pytest.raises(IndexError, match=f"embedding: indices must be from 0 to 2, got {wrong}"):
        F.embedding(tg.Tensor([[0, wrong]]), tg.Tensor(X))
