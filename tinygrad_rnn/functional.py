"""What is composed of operations: activations, layers without state, losses. Arguments and values are PyTorch's.

Where PyTorch says ``dim``, these say ``axis``, as all array functions here do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tinygrad_rnn import ops
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tape import MODE, no_grad
from tinygrad_rnn.tensor import Tensor, _backend, _name, as_tensor

Reduction: TypeAlias = Literal["none", "mean", "sum"]

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "prelu",
    "relu",
    "silu",
    "softmax",
    "softplus",
]


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``; the gradient at 0 is 0."""
    return ops.where(x <= 0, 0.0, x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``x`` where it is positive, elsewhere ``negative_slope * x``; the gradient at 0 is the slope."""
    return ops.where(x > 0, x, negative_slope * x)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """`leaky_relu` with a learned slope (He et al. 2015).

    Parameters
    ----------
    x
        Shape (N, C, ...), or (C,).
    weight
        Shape (1,) or (C,): one slope, or one a channel.
    """
    channels = x.shape[min(1, x.ndim - 1)] if x.ndim else 1
    if weight.shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"prelu: weight must have shape (1,) or ({channels},) for x of shape {x.shape}, got {weight.shape}"
        )
    _check_dtype(x, weight)
    if x.ndim > 2 and weight.size > 1:
        weight = weight.reshape((channels, *[1] * (x.ndim - 2)))
    return ops.where(x > 0, x, weight * x)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """``x`` where it is positive, elsewhere ``alpha * (exp(x) - 1)`` (Clevert et al. 2016)."""
    return ops.where(x > 0, x, alpha * ops.expm1(ops.where(x > 0, 0.0, x)))


def gelu(x: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """``x`` times the normal distribution function at ``x`` (Hendrycks & Gimpel 2016), or its approximation by tanh."""
    if approximate == "none":
        return 0.5 * x * (1 + ops.erf(x * 0.7071067811865476))
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return 0.5 * x * (1 + ops.tanh(0.7978845608028654 * (x + 0.044715 * (x * x * x))))


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return x * ops.sigmoid(x)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * x)) / beta``, and ``x`` itself where ``beta * x`` is above ``threshold``."""
    large = x * beta > threshold
    return ops.where(large, x, ops.log1p(ops.exp(ops.where(large, 0.0, x * beta))) / beta)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """``exp(x)``, scaled to sum to 1 along ``axis``."""
    return ops.exp(log_softmax(x, axis))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Logarithm of `softmax`."""
    x = _shifted(x, axis)
    return x - ops.logsumexp(x, axis, True)


def _shifted(x: Tensor, axis: int) -> Tensor:
    """``x`` less its maximum along ``axis``: of large scores the differences count, and rounding would eat them."""
    with no_grad():  # a softmax does not change with the shift, so no gradient need pass through it
        largest = ops.max(x, axis, True)
    return x - largest


def dropout(x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Tensor:
    """In training, set each element to 0 with probability ``p`` and divide the others by ``1 - p``."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be from 0 to 1, got {p}")
    if not training or p == 0:
        return x
    mask = default_generator(generator).keep_mask(1 - p, like=x)
    return x * (mask if p == 1 else mask * (1 / (1 - p)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x
        Shape (..., inputs).
    weight
        Shape (outputs, inputs).
    bias
        Shape (outputs,).

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        If ``x``, ``weight`` and ``bias`` differ in dtype: nothing is widened or narrowed in silence.
    """
    x = as_tensor(x)
    if not x.ndim or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{_name(weight)} takes inputs of {weight.shape[-1]} features, got an input of shape {x.shape}"
        )
    _check_dtype(x, weight)
    product = x @ weight.T
    if bias is None:
        return product
    if bias.shape != weight.shape[:-1]:
        raise ValueError(f"bias must have shape {weight.shape[:-1]} beside {_name(weight)}, got {bias.shape}")
    if bias.dtype != weight.dtype:
        raise TypeError(f"bias must be {weight.dtype} as {_name(weight)}, got {bias.dtype}")
    return product + bias


def _check_dtype(x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype:
        module = f", or the module, module.to(dtype={str(x.dtype)!r})" if x.dtype.kind == "f" else ""
        raise TypeError(
            f"{_name(weight)} is {weight.dtype} and the input is {x.dtype}: "
            f"convert the input, x.astype({str(weight.dtype)!r}){module}"
        )


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight``, shape (num_embeddings, embedding_dim), at ``indices``, of any shape.

    Rows at ``padding_idx`` get no gradient.
    """
    indices = as_tensor(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices must be ints, got dtype {indices.dtype}")
    count = weight.shape[0]
    _check_range(indices, count, "embedding: indices")
    rows = weight[indices]
    if padding_idx is None:
        return rows
    if not -count <= padding_idx < count:
        raise ValueError(f"embedding: padding_idx must be from {-count} to {count - 1}, got {padding_idx}")
    with no_grad():
        constant = weight[indices]
    return ops.where(ops.expand_dims(indices == padding_idx % count, -1), constant, rows)


def layer_norm(
    x: Tensor,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Shift and scale the last axes, of shape ``normalized_shape``, to mean 0 and variance 1 (Ba et al. 2016)."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(f"layer_norm: x must end in shape {shape}, got {x.shape}")
    for name, factor in (("weight", weight), ("bias", bias)):
        if factor is not None:
            if factor.shape != shape:
                raise ValueError(f"layer_norm: {name} must have shape {shape}, got {factor.shape}")
            _check_dtype(x, factor)
    axes = tuple(range(-len(shape), 0))
    centred = x - ops.mean(x, axes, True)
    out = centred * ops.reciprocal(ops.sqrt(ops.mean(ops.square(centred), axes, True) + eps))
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of classes under the softmax of their scores, in nats.

    Parameters
    ----------
    input
        Scores, shape (N, C, ...), or (C,).
    target
        Class indices, shape (N, ...) or (), or class probabilities, of the shape of ``input``.
    weight
        A weight for each class, shape (C,). With class indices the mean is over these weights.
    ignore_index
        Targets of this index count for nothing.
    reduction
        ``"mean"``, ``"sum"``, or ``"none"`` for a loss for each target.
    label_smoothing
        The share of each target that is spread evenly over all classes (Szegedy et al. 2016), from 0 to 1.
    """
    _check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing}")
    target = as_tensor(target)
    axis = _class_axis("cross_entropy", input, weight)
    classes = input.shape[axis]
    if target.dtype.kind == "f":
        if target.shape != input.shape:
            raise ValueError(
                f"cross_entropy: target must hold class indices, ints, or probabilities of all classes, of shape "
                f"{input.shape}; got {target.dtype} of shape {target.shape}"
            )
        _same_dtype("cross_entropy", input, target)
        if label_smoothing:
            target = target * (1 - label_smoothing) + label_smoothing / classes
        if weight is not None:
            target = target * _along(weight, axis, input.ndim)
        return _reduce(-ops.sum(target * log_softmax(input, axis), axis), reduction)
    input = _shifted(input, axis)
    total = ops.logsumexp(input, axis)
    losses, weights = _picked("cross_entropy", total, input, target, weight, ignore_index, axis)
    if label_smoothing:
        if weight is None:
            spread = total - ops.mean(input, axis)
        else:
            per_class = _along(weight, axis, input.ndim)
            spread = ops.mean(per_class * (ops.expand_dims(total, axis) - input), axis)
        spread = ops.where(target == ignore_index, 0.0, spread)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    return _reduce(losses, reduction, weights)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """`cross_entropy` of log-probabilities, as `log_softmax` gives them, and class indices."""
    _check_reduction("nll_loss", reduction)
    target = as_tensor(target)
    axis = _class_axis("nll_loss", input, weight)
    losses, weights = _picked("nll_loss", 0.0, input, target, weight, ignore_index, axis)
    return _reduce(losses, reduction, weights)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of ``target``, from 0 to 1, under ``sigmoid(input)``, element by element, in nats.

    ``weight`` scales every loss, ``pos_weight`` the part of it that belongs to a target of 1; both broadcast.
    """
    _same_shape("binary_cross_entropy_with_logits", input, target, reduction)
    # By cases rather than by maximum and abs, whose second derivatives at 0 are not those of their smooth sum.
    positive = input > 0
    minus_log_sigmoid = ops.where(positive, 0.0, -input) + ops.log1p(ops.exp(ops.where(positive, -input, input)))
    if pos_weight is not None:
        minus_log_sigmoid = (1 + (pos_weight - 1) * target) * minus_log_sigmoid
    losses = (1 - target) * input + minus_log_sigmoid
    return _reduce(losses if weight is None else losses * weight, reduction)


def mse_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared error."""
    _same_shape("mse_loss", input, target, reduction)
    return _reduce(ops.square(input - target), reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Absolute error."""
    _same_shape("l1_loss", input, target, reduction)
    return _reduce(ops.abs(input - target), reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean", delta: float = 1.0) -> Tensor:
    """Half the squared error, and beyond an error of ``delta`` the line that continues it (Huber 1964)."""
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}")
    _same_shape("huber_loss", input, target, reduction)
    error = input - target
    size = ops.abs(error)
    return _reduce(ops.where(size <= delta, 0.5 * ops.square(error), delta * (size - 0.5 * delta)), reduction)


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def _same_shape(name: str, input: Tensor, target: Tensor, reduction: str) -> None:
    _check_reduction(name, reduction)
    if input.shape != target.shape:
        raise ValueError(f"{name}: input and target must have one shape, got {input.shape} and {target.shape}")
    _same_dtype(name, input, target)


def _same_dtype(name: str, input: Tensor, target: Tensor) -> None:
    if target.dtype.kind == "f" and target.dtype != input.dtype:
        raise TypeError(
            f"{name}: input is {input.dtype} and target is {target.dtype}: "
            f"convert one, target.astype({str(input.dtype)!r})"
        )


def _check_range(indices: Tensor, limit: int, what: str) -> None:
    """Raise IndexError unless all indices are in [0, limit): now, or in a scan when they are known for all steps."""
    listener = MODE.get().listener
    if hasattr(listener, "hear_check"):
        listener.hear_check(indices, limit, what)  # type: ignore[union-attr]
    else:
        _backend(indices).check_range(indices._data, limit, what)


def _reduce(losses: Tensor, reduction: str, weights: Tensor | None = None) -> Tensor:
    if reduction == "mean":
        return ops.mean(losses) if weights is None else ops.sum(losses) / ops.sum(weights)
    return ops.sum(losses) if reduction == "sum" else losses


def _class_axis(name: str, input: Tensor, weight: Tensor | None) -> int:
    if not input.ndim:
        raise ValueError(f"{name}: input must have shape (N, C, ...) or (C,), got a 0-d tensor")
    axis = min(1, input.ndim - 1)
    if weight is not None and weight.shape != (input.shape[axis],):
        raise ValueError(f"{name}: weight must have shape ({input.shape[axis]},), got {weight.shape}")
    return axis


def _along(weight: Tensor, axis: int, ndim: int) -> Tensor:
    return weight.reshape(tuple(-1 if a == axis else 1 for a in range(ndim)))


def _picked(
    name: str,
    total: Tensor | float,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    axis: int,
) -> tuple[Tensor, Tensor]:
    """``total`` less each target's score, weighted, and the weights; both 0 where the target is ignored."""
    expected = input.shape[:axis] + input.shape[axis + 1 :]
    if target.dtype.kind not in "iu":
        raise TypeError(f"{name}: target must hold class indices, ints, got dtype {target.dtype}")
    if target.shape != expected:
        raise ValueError(
            f"{name}: input of shape {input.shape}, with the classes along axis {axis}, takes class indices of shape "
            f"{expected}, got shape {target.shape}"
        )
    counted = target != ignore_index
    target = ops.where(counted, target, 0)
    _check_range(target, input.shape[axis], f"{name}: target")
    scores = ops.squeeze(ops.take_along_axis(input, ops.expand_dims(target, axis), axis), axis)
    weights = counted.astype(input.dtype) if weight is None else ops.where(counted, weight[target], 0.0)
    return ops.where(counted, total - scores, 0.0) * weights, weights


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from tinygrad_rnn.elsewhere import missing

        raise missing(__name__, name)
