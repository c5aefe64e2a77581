"""Where in memory the elements of a value are, for engines that generate loops over elements.

A value that only rearranges another, as a slice does, needs no memory: its elements are those of the other. And what
is joined to something larger is best written where it is to be. Either way the index into memory is, along each axis,
a sum of multiples of the loop's own indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler.step import Op, Value


@dataclass(frozen=True)
class Line:
    """An index along one axis of memory: ``offset`` and, for axes of the value, how far one step along it leads."""

    offset: int
    terms: tuple[tuple[int, int], ...]  # (axis, multiple)


@dataclass(frozen=True)
class Place:
    """The elements of a value within the memory of ``base``: a line for each axis of that."""

    base: Value
    lines: tuple[Line, ...]


def whole(value: Value) -> Place:
    """The place of a value that has memory of its own."""
    return Place(value, tuple([Line(0, ((axis, 1),)) for axis in range(value.ndim)]))


def within(place: Place, lines: Sequence[Line]) -> Place:
    """The place of what is found along ``lines`` in a value that is at ``place``."""
    combined = []
    for line in place.lines:
        offset = line.offset
        terms: dict[int, int] = {}
        for axis, multiple in line.terms:
            offset += multiple * lines[axis].offset
            for inner, step in lines[axis].terms:
                terms[inner] = terms.get(inner, 0) + multiple * step
        combined.append(Line(offset, tuple(sorted(terms.items()))))
    return Place(place.base, tuple(combined))


def of_results(op: Op) -> list[tuple[Line, ...] | None]:
    """Where the results of a view are in its operand, found by letting it rearrange the numbers of the elements."""
    (operand,) = op.inputs
    numbers = np.arange(_size(operand)).reshape(operand.shape)
    results = _forward(op, [numbers])
    return [_lines(result, operand.shape) for result in results]


def of_operands(op: Op) -> list[tuple[Line, ...] | None]:
    """Where the operands of a joining operation are in its result."""
    ends = np.cumsum([0, *[_size(part) for part in op.operands]])
    numbered = [
        np.arange(start, start + _size(part)).reshape(part.shape)
        for start, part in zip(ends, op.operands, strict=False)
    ]
    (result,) = _forward(op, numbered)
    where = np.empty(ends[-1], np.int64)
    where[result.ravel()] = np.arange(result.size)
    return [_lines(where[part], result.shape) for part in numbered]


def of_region(shape: tuple[int, ...], index: tuple[Any, ...]) -> tuple[Line, ...] | None:
    """Where what an index picks is in a value of ``shape``."""
    return _lines(np.asarray(np.arange(prod(shape)).reshape(shape)[index]), shape)


def _forward(op: Op, arrays: list[Any]) -> list[Any]:
    results = op.forward(NUMPY, *arrays)
    return results if op.rule.several else [results]


def _size(value: Value) -> int:
    return prod(value.shape)


def _lines(numbers: np.ndarray[Any, Any], shape: tuple[int, ...]) -> tuple[Line, ...] | None:
    """Numbers of elements of ``shape`` as lines along its axes; None if they do not lie so."""
    if not numbers.size:
        return tuple([Line(0, ()) for _ in shape])
    lines = []
    for index in _indices(numbers, shape):
        offset = int(index[(0,) * index.ndim])
        line = np.full(index.shape, offset)
        terms = []
        for axis, length in enumerate(index.shape):
            if length > 1:
                step = int(index[(0,) * axis + (1,) + (0,) * (index.ndim - axis - 1)]) - offset
                if step:
                    terms.append((axis, step))
                    line += step * np.arange(length).reshape((-1,) + (1,) * (index.ndim - axis - 1))
        if not np.array_equal(line, index):
            return None
        lines.append(Line(offset, tuple(terms)))
    return tuple(lines)


def _indices(numbers: np.ndarray[Any, Any], shape: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    """What ``np.unravel_index`` should give; that of NumPy 2.4 errs where there are more than 8192 numbers."""
    indices = []
    for n in reversed(shape):
        numbers, index = np.divmod(numbers, n)
        indices.append(index)
    return indices[::-1]
