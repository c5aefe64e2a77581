"""Picking elements, and its transpose, putting them back.

An index is split into what is static (slices, ints, None, ...) and the arrays in it, which are operands: an index
may be computed like any other tensor. ``place`` is the transpose of ``getitem``, and each is the other's VJP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.backend import HOLE, Array, fill
from tinygrad_rnn.ops.creation import arange
from tinygrad_rnn.ops.declare import Operand, operation, over_time
from tinygrad_rnn.ops.elementwise import add
from tinygrad_rnn.ops.over_time import shifted
from tinygrad_rnn.ops.reduction import axes_of
from tinygrad_rnn.ops.rule import Rule
from tinygrad_rnn.ops.shape import reshape
from tinygrad_rnn.tensor import Tensor, as_tensor

__all__ = [
    "getitem",
    "place",
    "scatter_add",
    "take",
    "take_along_axis",
]


def _gathered(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Any:
    (index,) = params
    kinds = _kinds(index)
    if not any(timed[1:]):
        if "-a" in kinds.lstrip("-"):  # then the axes that the arrays make would come before time
            return None
        return lambda F, steps, x, *arrays: rule.forward(F, x, *arrays, index=(slice(None), *index))
    if not _arrays_first(kinds, operands[1:]):
        return None
    if not timed[0]:
        return lambda F, steps, x, *arrays: rule.forward(F, x, *arrays, index=index)
    return lambda F, steps, x, *arrays: rule.forward(
        F, x, _steps(F, steps, operands[1].ndim), *arrays, index=(HOLE, *index)
    )


def _placed(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Any:
    shape, index = params
    kinds = _kinds(index)
    if not any(timed[1:]):
        if len(operands) > 1 and "-a" in kinds.lstrip("-"):
            return None
        return lambda F, steps, values, *arrays: rule.forward(
            F, values, *arrays, shape=(steps, *shape), index=(slice(None), *index)
        )
    if not _arrays_first(kinds, operands[1:]):
        return None

    def run(F: Any, steps: int, values: Any, *arrays: Any) -> Any:
        values = values if timed[0] else F.broadcast_to(values, (steps, *values.shape))
        return rule.forward(
            F, values, _steps(F, steps, operands[1].ndim), *arrays, shape=(steps, *shape), index=(HOLE, *index)
        )

    return run


def _summed_places(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Any:
    """The sum over time of values put in their places: all values put there at once."""
    if len(operands) == 1 or not all(timed) or _placed(rule, params, operands, timed) is None:
        return None
    shape, index = params
    return lambda F, steps, values, *arrays: rule.forward(F, values, *arrays, shape=shape, index=index)


def _kinds(index: Sequence[Any]) -> str:
    """An index with "a" for each array or int, which goes along with the arrays, and "-" for all else."""
    return "".join("a" if item is HOLE or isinstance(item, int) else "-" for item in index)


def _arrays_first(kinds: str, arrays: Sequence[Any]) -> bool:
    """Whether the axes that index arrays make come first in the result, and are the same for all of them."""
    alike = len({array.ndim for array in arrays}) == 1 and all(array.dtype.kind != "b" for array in arrays)
    return alike and kinds.startswith("a") and "-a" not in kinds


def _steps(F: Any, steps: int, ndim: int) -> Any:
    """0, 1, … along time, to stand in an index before arrays of ``ndim`` axes within a step."""
    return F.reshape(F.arange(steps), (steps,) + (1,) * ndim)


@over_time(shifted, jointly=True, view=True)
@operation(x=lambda F, g, x_shape, index: F.place(g, shape=x_shape, index=index))
def _slice(F: Any, x: Operand, /, index: tuple[Any, ...]) -> Array:
    return x[index if ... in index else (*index, ...)]  # with ... an element stays an array


@over_time(_gathered, each=("x",))
@operation(x=lambda F, g, arrays, x_shape, index: F.place(g, *arrays, shape=x_shape, index=index))
def _gather(F: Any, x: Operand, /, *arrays: Operand, index: tuple[Any, ...]) -> Array:
    return x[fill(index, arrays)]


@over_time(_placed, total=_summed_places, each=("values",))
@operation(
    values=lambda F, g, arrays, index: F.getitem(g, fill(index, arrays)),
)
def place(F: Any, values: Operand, /, *arrays: Operand, shape: tuple[int, ...], index: tuple[Any, ...]) -> Array:
    """Zeros of ``shape`` with ``values`` added at ``index``, whose holes ``arrays`` fill."""
    return F.place(values, *arrays, shape=shape, index=index)


_BASIC = frozenset({int, slice, type(None), type(Ellipsis)})


def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]``: ints, slices, None, ..., and arrays or tensors of ints or bools, as in NumPy."""
    if type(index) in _BASIC:
        return _slice(x, (index,))
    if type(index) is tuple and all(type(item) in _BASIC for item in index):
        return _slice(x, index)
    static, arrays = _parted(index)
    return _gather(x, *arrays, index=static) if arrays else _slice(x, static)


def _parted(index: Any) -> tuple[tuple[Any, ...], list[Any]]:
    static: list[Any] = []
    arrays: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        plain = isinstance(item, (int, np.integer, slice)) and not isinstance(item, bool)
        if plain or item is None or item is Ellipsis:
            static.append(int(item) if isinstance(item, np.integer) else item)
            continue
        if isinstance(item, list) and not item:
            item = np.zeros(0, np.intp)  # NumPy's way with an index of nothing
        array = as_tensor(item)
        if array.dtype.kind not in "iub":
            raise IndexError(f"an index must hold ints or bools, got dtype {array.dtype}")
        static.append(HOLE)
        arrays.append(array)
    return tuple(static), arrays


def scatter_add(x: Tensor, index: Any, values: Tensor) -> Tensor:
    """``x`` with ``values`` added at ``index``; where an index is repeated, its values add up.

    ``values`` must have the shape of ``x[index]``.
    """
    x = as_tensor(x)
    values = as_tensor(values, dtype=x.dtype)
    static, arrays = _parted(index)
    expected = getitem(x.detach(), index).shape
    if values.shape != expected:
        raise ValueError(f"scatter_add: values must have the shape of x[index], {expected}, got {values.shape}")
    return add(x, place(values, *arrays, shape=x.shape, index=static))


def take(x: Tensor, indices: Any, axis: int | None = None) -> Tensor:
    """The slices of ``x`` along ``axis`` at ``indices``; None: elements of ``x`` as if it were 1-d."""
    x = as_tensor(x)
    if axis is None:
        return getitem(reshape(x, (-1,)), indices)
    (axis,) = axes_of(axis, x.ndim)
    return getitem(x, (*[slice(None)] * axis, indices))


def take_along_axis(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Elements of ``x`` at positions along ``axis``; ``indices`` has as many axes as ``x``, and broadcasts."""
    x = as_tensor(x)
    indices = as_tensor(indices)
    if indices.ndim != x.ndim:
        raise ValueError(f"take_along_axis: indices must have {x.ndim} axes as x has, got shape {indices.shape}")
    (axis,) = axes_of(axis, x.ndim)
    positions = [axis_range(x, n, a, x.ndim) for a, n in enumerate(x.shape)]
    return getitem(x, tuple(indices if a == axis else positions[a] for a in range(x.ndim)))


def axis_range(like: Tensor, length: int, position: int, ndim: int) -> Tensor:
    """0, 1, … along one axis of ``ndim``, on the backend of ``like``."""
    steps = arange(length).to(like.backend)
    return reshape(steps, tuple(length if a == position else 1 for a in range(ndim)))
