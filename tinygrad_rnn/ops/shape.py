"""Operations that rearrange, repeat, join and part tensors without computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinygrad_rnn.backend import Array
from tinygrad_rnn.ops.declare import Operand, operation, operation_with_results, over_time, sum_to
from tinygrad_rnn.ops.over_time import shifted, spread
from tinygrad_rnn.ops.reduction import Axis, axes_of
from tinygrad_rnn.tensor import Tensor, as_tensor

__all__ = [
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "flip",
    "moveaxis",
    "pad",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "tile",
    "transpose",
    "unstack",
]


def _to_shape_of_x(F: Any, g: Any, x_shape: tuple[int, ...]) -> Any:
    return F.reshape(g, x_shape)


@over_time(shifted, jointly=True, view=True)
@operation(x=_to_shape_of_x)
def reshape(F: Any, x: Operand, /, shape: int | tuple[int, ...]) -> Array:
    """``x`` with another shape; one length may be -1, to be worked out."""
    return F.reshape(x, shape)


@over_time(shifted, jointly=True, view=True)
@operation(x=_to_shape_of_x)
def expand_dims(F: Any, x: Operand, /, axis: int | tuple[int, ...]) -> Array:
    """``x`` with new axes of length 1 at the positions ``axis`` of the result."""
    return F.expand_dims(x, axis)


@over_time(shifted, jointly=True, view=True)
@operation(x=_to_shape_of_x)
def squeeze(F: Any, x: Operand, /, axis: Axis = None) -> Array:
    """``x`` without those of its axes of length 1 that ``axis`` names; None: all of them."""
    return F.squeeze(x, axis)


def _inverse(axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if axes is None:
        return None
    positions = [a % len(axes) for a in axes]
    return tuple(positions.index(a) for a in range(len(axes)))


@over_time(shifted, jointly=True, view=True)
@operation(x=lambda F, g, axes: F.transpose(g, _inverse(axes)))
def transpose(F: Any, x: Operand, /, axes: tuple[int, ...] | None = None) -> Array:
    """``x`` with its axes in the order ``axes``; None: reversed."""
    return F.transpose(x, axes)


def moveaxis(x: Tensor, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Tensor:
    """``x`` with the axes ``source`` moved to the positions ``destination``."""
    x = as_tensor(x)
    sources, destinations = axes_of(source, x.ndim), axes_of(destination, x.ndim)
    if len(sources) != len(destinations):
        raise ValueError(f"moveaxis needs as many destinations as sources, got {destination} and {source}")
    order = [a for a in range(x.ndim) if a not in sources]
    for to, a in sorted(zip(destinations, sources, strict=True)):
        order.insert(to, a)
    return transpose(x, tuple(order))


def swapaxes(x: Tensor, axis1: int, axis2: int) -> Tensor:
    """``x`` with two axes exchanged."""
    x = as_tensor(x)
    (first,), (second,) = axes_of(axis1, x.ndim), axes_of(axis2, x.ndim)
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return transpose(x, tuple(order))


@over_time(spread, jointly=True, view=True)
@operation(x=lambda F, g, x_shape: sum_to(F, g, x_shape))
def broadcast_to(F: Any, x: Operand, /, shape: tuple[int, ...]) -> Array:
    """``x`` repeated along new axes and axes of length 1 until it has ``shape``."""
    return F.broadcast_to(x, shape)


@over_time(shifted, jointly=True, view=True)
@operation(x=lambda F, g, axis: F.flip(g, axis))
def flip(F: Any, x: Operand, /, axis: Axis = None) -> Array:
    """``x`` in reverse order along ``axis``; None: along all."""
    return F.flip(x, axis) if x.ndim else x


def _negated(shift: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return tuple(-s for s in shift) if isinstance(shift, tuple) else -shift


def _rolled(rule: Any, params: Any, ndims: Any, timed: Any) -> Any:
    return None if params[1] is None else shifted(rule, params, ndims, timed)


@over_time(_rolled, jointly=True)
@operation(x=lambda F, g, shift, axis: F.roll(g, _negated(shift), axis))
def roll(F: Any, x: Operand, /, shift: int | tuple[int, ...], axis: Axis = None) -> Array:
    """``x`` moved on by ``shift`` along ``axis``; what leaves at the end comes in at the start."""
    return F.roll(x, shift, axis)


def _pad_x(F: Any, g: Any, x_shape: tuple[int, ...], pad_width: Any) -> Any:
    return F.getitem(g, tuple(slice(before, before + n) for (before, _), n in zip(pad_width, x_shape, strict=True)))


@over_time(shifted)
@operation(x=_pad_x)
def _pad(F: Any, x: Operand, /, pad_width: tuple[tuple[int, int], ...], constant_values: float) -> Array:
    return F.pad(x, pad_width, constant_values=constant_values)


def pad(x: Tensor, pad_width: Any, constant_values: float = 0) -> Tensor:
    """``x`` with a border of a constant.

    Parameters
    ----------
    pad_width
        How many elements to put before and after: an int for all axes, a pair for all axes, or a pair for each axis.
    """
    x = as_tensor(x)
    if isinstance(pad_width, int):
        pad_width = (pad_width, pad_width)
    if len(pad_width) == 2 and isinstance(pad_width[0], int):
        pad_width = (tuple(pad_width),) * x.ndim
    if len(pad_width) != x.ndim or any(len(pair) != 2 or min(pair) < 0 for pair in pad_width):
        raise ValueError(f"pad_width must be a pair of ints >= 0 for each of {x.ndim} axes, got {pad_width}")
    return _pad(x, tuple(tuple(pair) for pair in pad_width), constant_values)


def tile(x: Tensor, reps: int | tuple[int, ...]) -> Tensor:
    """``x`` repeated ``reps`` times along each axis."""
    x = as_tensor(x)
    times = (reps,) if isinstance(reps, int) else tuple(reps)
    ndim = max(x.ndim, len(times))
    times = (1,) * (ndim - len(times)) + times
    shape = (1,) * (ndim - x.ndim) + x.shape
    spread = reshape(x, tuple(n for length in shape for n in (1, length)))
    spread = broadcast_to(spread, tuple(n for pair in zip(times, shape, strict=True) for n in pair))
    return reshape(spread, tuple(t * length for t, length in zip(times, shape, strict=True)))


def _concatenate_parts(F: Any, g: Any, parts_shape: list[tuple[int, ...]], axis: int) -> Any:
    ends = [0]
    for shape in parts_shape:
        ends.append(ends[-1] + shape[axis])
    return F.split(g, ends[1:-1], axis)


@over_time(shifted, jointly=True)
@operation(parts=_concatenate_parts)
def _concatenate(F: Any, /, *parts: Operand, axis: int) -> Array:
    return F.concatenate(parts, axis=axis)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors joined along an axis that they have."""
    return _concatenate(*tensors, axis=axis)


@over_time(shifted, jointly=True)
@operation(parts=lambda F, g, axis: F.unstack(g, axis))
def _stack(F: Any, /, *parts: Operand, axis: int) -> Array:
    return F.stack(parts, axis=axis)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    return _stack(*tensors, axis=axis)


@over_time(shifted, jointly=True, view=True)
@operation_with_results(x=lambda F, g, axis: F.stack(_filled(F, g), axis))
def unstack(F: Any, x: Operand, /, axis: int = 0) -> list[Array]:
    """The slices of ``x`` along ``axis``, as a list.

    For a loop over time this is the way in: backward puts the slices together once, where indexing at each step
    would make an array of the whole sequence for each.
    """
    return F.unstack(x, axis)  # type: ignore[no-any-return]


def _filled(F: Any, cotangents: list[Any]) -> list[Any]:
    if all(g is not None for g in cotangents):
        return cotangents
    zero = next(F.zeros_like(g) for g in cotangents if g is not None)
    return [zero if g is None else g for g in cotangents]


def _split_x(F: Any, g: list[Any], x_shape: tuple[int, ...], sections: int | tuple[int, ...], axis: int) -> Any:
    axis = axis % len(x_shape)
    if isinstance(sections, int):
        return F.concatenate(_filled(F, g), axis)
    ends = [*sections, x_shape[axis]]
    starts = [0, *sections]
    some = next(part for part in g if part is not None)
    parts = []
    for part, start, end in zip(g, starts, ends, strict=True):
        if part is None:
            shape = (*x_shape[:axis], end - start, *x_shape[axis + 1 :])
            part = F.broadcast_to(F.sum(F.zeros_like(some)), shape)
        parts.append(part)
    return F.concatenate(parts, axis)


@over_time(shifted, jointly=True, view=True)
@operation_with_results(x=_split_x)
def _split(F: Any, x: Operand, /, sections: int | tuple[int, ...], axis: int) -> list[Array]:
    return F.split(x, sections, axis)  # type: ignore[no-any-return]


def split(x: Tensor, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """``x`` cut along ``axis`` into equal parts, or at the given indices, as a list.

    Raises
    ------
    ValueError
        If the axis cannot be cut into that many equal parts, or the indices are not in order within it.
    """
    x = as_tensor(x)
    (axis,) = axes_of(axis, x.ndim)
    length = x.shape[axis]
    if isinstance(indices_or_sections, int):
        if indices_or_sections < 1 or length % indices_or_sections:
            raise ValueError(
                f"split: axis {axis} of shape {x.shape} cannot be cut into {indices_or_sections} equal parts"
            )
        return _split(x, indices_or_sections, axis)
    cuts = tuple(int(i) for i in indices_or_sections)
    if any(not 0 <= a <= b <= length for a, b in zip((0, *cuts), (*cuts, length), strict=True)):
        raise ValueError(f"split: the indices must rise from 0 to {length}, got {cuts}")
    return _split(x, cuts, axis)
