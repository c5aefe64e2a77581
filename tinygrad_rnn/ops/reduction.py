"""Operations that reduce axes; ``axis`` is an int, a tuple of ints, or None for all, as in NumPy."""

from __future__ import annotations

from math import prod as product
from typing import Any, TypeAlias

from tinygrad_rnn.backend import Array
from tinygrad_rnn.ops.declare import Operand, operation, over_time
from tinygrad_rnn.ops.over_time import flattened, shifted

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "cumsum",
    "logsumexp",
    "max",
    "mean",
    "min",
    "std",
    "sum",
    "var",
]

Axis: TypeAlias = int | tuple[int, ...] | None


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """``axis`` as a tuple of ints from 0 to ``ndim - 1``."""
    if axis is None:
        return tuple(range(ndim))
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of bounds for a tensor of {ndim} axes")
    positive = tuple(a % ndim for a in axes)
    if len(set(positive)) < len(positive):
        raise ValueError(f"the axes {axes} name one twice")
    return positive


def count(shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements a reduction of ``axis`` makes into one."""
    return product(shape[a] for a in axes_of(axis, len(shape)))


def kept(F: Any, reduced: Any, shape: tuple[int, ...], axis: Axis) -> Any:
    """A reduced result with the reduced axes of ``shape`` put back, of length 1."""
    axes = axes_of(axis, len(shape))
    return F.reshape(reduced, tuple(1 if a in axes else n for a, n in enumerate(shape)))


def _spread(F: Any, g: Any, x_shape: tuple[int, ...], axis: Axis) -> Any:
    return F.broadcast_to(g if axis is None else kept(F, g, x_shape, axis), x_shape)


@over_time(shifted, jointly=True)
@operation(x=_spread)
def sum(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum over ``axis``."""
    return F.sum(x, axis=axis, keepdims=keepdims)


@over_time(shifted, jointly=True)
@operation(x=lambda F, g, x_shape, axis: _spread(F, g / (count(x_shape, axis) or 1), x_shape, axis))
def mean(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean over ``axis``."""
    return F.mean(x, axis=axis, keepdims=keepdims)


def _var_x(F: Any, g: Any, x: Any, axis: Axis, ddof: int) -> Any:
    centred = x - F.mean(x, axis=axis, keepdims=True)
    divisor = count(x.shape, axis) - ddof
    return kept(F, g, x.shape, axis) * centred * (2 / divisor if divisor > 0 else float("inf"))


def _variance(F: Any, x: Any, axis: Axis, ddof: int, keepdims: bool) -> Any:
    centred = x - F.mean(x, axis=axis, keepdims=True)
    divisor = count(x.shape, axis) - ddof
    return F.sum(F.square(centred), axis=axis, keepdims=keepdims) * (1 / divisor if divisor > 0 else float("inf"))


@over_time(shifted)
@operation(x=_var_x)
def var(F: Any, x: Operand, /, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """Variance over ``axis``: the sum of squares about the mean, over the number of elements less ``ddof``."""
    return _variance(F, x, axis, ddof, keepdims)


def _std_x(F: Any, g: Any, out: Any, x: Any, axis: Axis, ddof: int) -> Any:
    flat = out == 0
    return _var_x(F, F.where(flat, 0, g / (2 * F.where(flat, 1, out))), x, axis, ddof)


@over_time(shifted)
@operation(x=_std_x)
def std(F: Any, x: Operand, /, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """Square root of `var`; its gradient is 0 where all elements are equal."""
    return F.sqrt(_variance(F, x, axis, ddof, keepdims))


# Several elements that share the extreme share its gradient evenly.
def _extreme_x(F: Any, g: Any, out: Any, x: Any, axis: Axis) -> Any:
    chosen = F.astype(x == kept(F, out, x.shape, axis), g.dtype)
    share = kept(F, g, x.shape, axis) / F.sum(chosen, axis=axis, keepdims=True)
    return chosen * share


@over_time(shifted)
@operation(x=_extreme_x)
def max(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest element over ``axis``; elements that share it share its gradient evenly."""
    return F.max(x, axis=axis, keepdims=keepdims)


@over_time(shifted)
@operation(x=_extreme_x)
def min(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Smallest element over ``axis``; elements that share it share its gradient evenly."""
    return F.min(x, axis=axis, keepdims=keepdims)


@over_time(shifted, jointly=True)
@operation(x=lambda F, g, axis: F.flip(F.cumsum(F.flip(g, axis), axis), axis))
def cumsum(F: Any, x: Operand, /, axis: int) -> Array:
    """Running sum along ``axis``."""
    return F.cumsum(x, axis=axis)


@over_time(shifted)
@operation(x=lambda F, g, out, x, axis: kept(F, g, x.shape, axis) * F.exp(x - kept(F, out, x.shape, axis)))
def logsumexp(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` over ``axis``, without overflow."""
    shift = F.max(x, axis=axis, keepdims=True)
    shift = F.where(F.isfinite(shift), shift, 0)
    result = F.log(F.sum(F.exp(x - shift), axis=axis, keepdims=True)) + shift
    return result if keepdims else F.squeeze(result, axis=axes_of(axis, x.ndim))


@over_time(flattened)
@operation()
def argmax(F: Any, x: Operand, /, axis: int | None = None) -> Array:
    """Index of the largest element along ``axis``; has no gradient."""
    return F.argmax(x, axis=axis)


@over_time(flattened)
@operation()
def argmin(F: Any, x: Operand, /, axis: int | None = None) -> Array:
    """Index of the smallest element along ``axis``; has no gradient."""
    return F.argmin(x, axis=axis)


@over_time(flattened)
@operation()
def argsort(F: Any, x: Operand, /, axis: int = -1) -> Array:
    """Indices that sort ``x`` along ``axis``; has no gradient."""
    return F.argsort(x, axis=axis)


@over_time(shifted)
@operation()
def all(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether every element over ``axis`` holds."""
    return F.all(x, axis=axis, keepdims=keepdims)


@over_time(shifted)
@operation()
def any(F: Any, x: Operand, /, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether an element over ``axis`` holds."""
    return F.any(x, axis=axis, keepdims=keepdims)
