"""The Numba engine, second part: the source of a loop over time, with loops over elements inside.

Each part of the state has memory for two steps, or for all where it is wanted afterwards; ``before`` and ``after`` say
where in it the state before and after a step is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.layout import CONSTANT, SCRATCH, Item, Layout, Store, packs, reduced_axes
from tinygrad_rnn.compiler.places import Place
from tinygrad_rnn.compiler.split import Split
from tinygrad_rnn.compiler.step import Op, Value

TAKEN = ("b", "i", "k", "n", "r", "total")  # with a number: rows, indices, constants, sizes, sums


@dataclass
class Source:
    """The generated function ``loop(b0, b1, steps, backwards, *arguments)``: so many steps of rows b0 to b1.

    Attributes
    ----------
    text
        The source.
    memory
        Its first arguments: values, and where their memory comes from.
    sums_over_time
        Of what value those are the sums over time whose memory this is.
    packed, numbers, sizes
        The others: weights to be packed, constants with their dtypes, and sizes.
    kept
        Which parts of the state are kept of all steps.
    rows_last
        Whether memory has the axes of a value from its second on, then time, and then its rows.
    work
        Multiplications, or what takes as long, for a row and step.
    rows
        How many rows there are, of which the loop may be run for some at a time; 0 if rows mix.
    """

    text: str
    memory: dict[Value, Store]
    sums_over_time: dict[Value, Value]
    packed: list[Value]
    numbers: list[tuple[float, str]]
    sizes: list[int]
    kept: list[bool]
    rows_last: bool
    work: int
    rows: int


class Generator(Layout):
    """Makes the source."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.names: dict[Value, str] = {}
        self.memory: dict[Value, Store] = {}
        self.packed: dict[Value, str] = {}
        self.numbers: dict[tuple[str, str], tuple[str, float]] = {}
        self.sizes: dict[int, str] = {}

    def generated(self) -> Source:
        """The source."""
        body: list[str] = []
        done: set[Item] = set()
        order = sorted(self.items, key=lambda item: (item.level, item.space is not None))
        for item in order:
            if item in done or item in self.along:
                continue
            if item.space is None:
                summed = item.op in self.sums
                body += self._sum(item) if summed else self._matmul(item) if packs(item.op) else self._reduction(item)
                continue
            group = [other for other in order if other.level == item.level and other.space == item.space]
            done.update(group)
            body += self._fused(group, item.space)
        sizes = list(self.sizes.values())
        arrays = [*self.memory_names(), *self.packed.values()]
        numbers = [*[name for name, _ in self.numbers.values()], *sizes]
        head = [
            f"def loop({', '.join(['b0', 'b1', *arrays, 'steps', 'backwards', *numbers])}):",
            *[f"    {name} = unsigned({name})" for name in ("b0", "b1", "steps", *sizes)],
            "    for s in range(steps):",
            "        t = steps - one_step - s if backwards else s",
            "        before = t + one_step if backwards else t",
            "        after = t if backwards else t + one_step",
        ]
        if any("_of_two" in line for line in body):  # of a state that is not kept of all steps
            head += ["        before_of_two = s & one_step", "        after_of_two = one_step - before_of_two"]
        text = "\n".join([*head, *[f"        {line}" for line in body]]) + "\n"
        return Source(
            text,
            self.memory,
            self.sums_over_time,
            list(self.packed),
            [(number, dtype) for (_, dtype), (_, number) in self.numbers.items()],
            list(self.sizes),
            self.kept,
            self.rows_last,
            self._work(),
            self.rows if self.by_rows else 0,
        )

    def _work(self) -> int:
        return sum(prod(item.result.shape[1:]) * self._work_of_element(item) for item in self.items)

    def _work_of_element(self, item: Item) -> int:
        if item.space is None and item.operands[0].ndim == 2:
            return item.operands[0].shape[1]  # type: ignore[no-any-return]
        # A function is a polynomial, and a division or two.
        return 8 if item.op and "(" in _scalar(item.op) else 1

    def memory_names(self) -> list[str]:
        """What the memory is called, each once: before and after a step, the state is in the same."""
        return list(dict.fromkeys([self._name(base) for base in self.memory]))

    def _name(self, base: Value) -> str:
        store = self.stores[base]
        if store.part >= 0:
            return f"state{store.part}"
        if base not in self.names:
            label = base.name or (base.op.rule.name if base.op else store.kind)
            self.names[base] = f"{label}_{len(self.names)}"
        return self.names[base]

    def _size(self, n: int) -> str:
        return self.sizes.setdefault(n, f"n{len(self.sizes)}")

    def _number(self, number: float, dtype: str) -> str:
        return self.numbers.setdefault((repr(number), dtype), (f"k{len(self.numbers)}", number))[0]

    def _memory(self, base: Value, *indices: str) -> str:
        store = self.stores[base]
        if self.rows_last and store.kind != CONSTANT:
            row, *others = indices
            indices = *others, store.index, row
        else:
            indices = store.index, *indices
        found = [index for index in indices if index]
        return f"{self._memory_of(base)}[{', '.join(found) or '()'}]"

    def _read(self, value: Value, known: dict[Value, str], indices: list[str]) -> str:
        """The element of a value, broadcast against a loop with these indices; computed, if it is in no memory."""
        if value in known:
            return known[value]
        place = self._place(value)
        item = self.inlined.get(place.base)
        if item is None:
            return self._element(place, value.shape, indices)
        return f"({self._expression(item, {}, self._indices(place, value.shape, indices))})"

    def _element(self, place: Place, shape: tuple[int, ...], indices: list[str]) -> str:
        """The element of a value of ``shape`` at ``place`` in memory, broadcast against a loop with these indices."""
        return self._memory(place.base, *self._indices(place, shape, indices))

    def _indices(self, place: Place, shape: tuple[int, ...], indices: list[str]) -> list[str]:
        own = indices[len(indices) - len(shape) :]
        where = []
        for line in place.lines:
            terms = [
                own[axis] if multiple == 1 else f"({own[axis]}) * {self._size(multiple)}"
                for axis, multiple in line.terms
                if shape[axis] != 1
            ]
            if line.offset:
                terms.append(self._size(line.offset))
            where.append(" + ".join(terms) or "zero_step")
        return where

    def _headers(self, space: tuple[int, ...]) -> tuple[list[str], list[str]]:
        """Nested loops over ``space``, and their indices."""
        lines: list[str] = []
        axes = [axis for axis, n in enumerate(space) if n != 1]
        for axis in [*axes[1:], *axes[:1]] if self.rows_last else axes:
            ends = "b0, b1" if axis == 0 and self.by_rows else self._size(space[axis])
            lines.append("    " * len(lines) + f"for i{axis} in range({ends}):")
        return lines, [f"i{axis}" if n != 1 else "zero_step" for axis, n in enumerate(space)]

    def _fused(self, group: list[Item], space: tuple[int, ...]) -> list[str]:
        headers, indices = self._headers(space)
        pad = "    " * len(headers)
        lines: list[str] = []
        known: dict[Value, str] = {}
        for item in group:
            if item.op is None:
                operand = item.operands[0]
                number = type(operand) is not Value
                text = self._number(operand, item.result.dtype.name) if number else self._read(operand, known, indices)
                target = self._element(item.target, item.result.shape, indices)
                lines.append(f"{pad}{target} {'+=' if item.adds else '='} {text}")
                continue
            name = item.result.name or item.op.rule.name
            known[item.result] = f"{name}{'_at' if name in TAKEN else ''}{len(known)}"
            lines.append(f"{pad}{known[item.result]} = {self._expression(item, known, indices)}")
            if item in self.read or self.stores[item.target.base].kind != SCRATCH:
                lines.append(f"{pad}{self._element(item.target, item.result.shape, indices)} = {known[item.result]}")
        before: list[str] = []
        after: list[str] = []
        for item in [item for item, maker in self.along.items() if maker in group]:
            kept = [*indices[:-1], *["zero_step"] * (item.result.ndim == len(space))]
            target = self._element(item.target, item.result.shape, kept)
            # Rows that are last are added up side by side; else the elements of a row are, in any order.
            total = target if self.rows_last else f"total{len(before)}"
            start, adding, result = self._reducing(item, total, known[item.operands[0]])
            before.append(f"{total} = {start}")
            lines.append(f"{pad}{total} = {adding}")
            if result != target:
                after.append(f"{target} = {result}")
        if self.rows_last:
            outer, _ = self._headers((*space[:-1], 1))
            return [*_loop(outer, before), *headers, *lines, *_loop(outer, after)]
        outer = headers[:-1]
        return [*outer, *_inside(outer, before), *headers[-1:], *lines, *_inside(outer, after)]

    def _reducing(self, item: Item, total: str, element: str) -> tuple[str, str, str]:
        """What a reduction begins with, how an element is added to it, and what it is in the end."""
        op = item.op
        assert op is not None
        (x,) = op.inputs
        name, dtype = op.rule.name, item.result.dtype.name
        start = self._number({"sum": 0.0, "mean": 0.0, "max": float("-inf"), "min": float("inf")}[name], dtype)
        adding = f"{name}imum({total}, {element})" if name in ("max", "min") else f"plus({total}, {element})"
        if name != "mean":
            return start, adding, total
        return start, adding, f"{total} / {self._number(float(prod([x.shape[a] for a in reduced_axes(op)])), dtype)}"

    def _expression(self, item: Item, known: dict[Value, str], indices: list[str]) -> str:
        op = item.op
        assert op is not None
        if op.rule.name == "gather":
            table, rows = op.operands
            row = self._read(rows, known, indices[:1])
            return f"{self._memory_of(table)}[row({row}, {self._memory_of(table)}.shape[0]), {indices[1]}]"
        dtypes = [operand.dtype for operand in op.inputs]
        dtype = op.results[0].dtype
        if dtype.kind == "b" and op.rule.name != "where":
            dtype = np.result_type(*dtypes)

        def text(name: str, operand: Any) -> str:
            if type(operand) is not Value:
                return self._number(operand, dtype.name)
            found = self._read(operand, known, indices)
            if name == "condition":
                return found if operand.dtype.kind == "b" else f"({found} != 0)"
            return found if operand.dtype == dtype else f"{dtype.name}({found})"

        names = dict(zip(op.rule.operands, op.operands, strict=True))
        expression = _scalar(op)
        if dtype.kind == "i":
            expression = expression.replace("imum(", "(")
        constants = {"zero": 0, "one": 1, "infinity": float("inf"), **op.named}

        def replaced(match: re.Match[str]) -> str:
            word = match.group()
            if word in names:
                return text(word, names[word])
            return self._number(constants[word], dtype.name) if word in constants else word

        return re.sub(r"[a-z_]\w*(?!\w*\()", replaced, expression)

    def _memory_of(self, base: Value) -> str:
        self._place(base)
        self.memory.setdefault(base, self.stores[base])
        return self._name(base)

    def _rows_text(self, place: Place, shape: tuple[int, ...]) -> str:
        """Rows of a matrix, as an array."""
        offset, width = place.lines[1].offset, shape[1]
        where = ["b0:b1"] if self.by_rows else []
        if width != place.base.shape[1]:
            start = self._size(offset) if offset else "zero_step"
            where = [*(where or [":"]), f"{start}:{self._size(offset + width)}"]
        return self._memory(place.base, *where).removesuffix("[()]")

    def _matmul(self, item: Item) -> list[str]:
        a, b, *_ = item.operands
        if self.rows_last:
            return self._matmul_rows_last(item, a, b)
        packed = self.packed.setdefault(b, f"packed{len(self.packed)}")
        left = self._rows_text(self._place(a), a.shape)
        target = self._rows_text(item.target, item.result.shape)
        if item.adds:
            return [f"multiply_add({left}, {packed}, {target})"]
        return [
            f"product = {target}",
            f"product[:, :] = {self._number(0, item.result.dtype.name)}",
            f"multiply_add({left}, {packed}, product)",
        ]

    def _matmul_rows_last(self, item: Item, a: Value, b: Value) -> list[str]:
        """A product by loops: a number of the weight times a feature of all rows."""
        column = [] if b.shape[1] == 1 else [f"for i1 in range({self._size(b.shape[1])}):"]
        i1, pad = ("i1", "    ") if column else ("zero_step", "")
        total = self._element(item.target, item.result.shape, ["i0", i1])
        rows = "for i0 in range(b0, b1):"
        lines = [] if item.adds else [rows, f"    {total} = {self._number(0.0, item.result.dtype.name)}"]
        lines += [
            f"for k in range({self._size(b.shape[0])}):",
            f"    {rows}",
            f"        {total} += {self._element(self._place(a), a.shape, ['i0', 'k'])} * {self._memory(b, 'k', i1)}",
        ]
        return [*column, *[f"{pad}{line}" for line in lines]]

    def _sum(self, item: Item) -> list[str]:
        """A product whose right operand cannot be packed, by loops over letters."""
        assert item.op is not None
        letters, result = self.sums[item.op]
        sizes: dict[str, int] = {}
        for part, operand in zip(letters, item.operands, strict=True):
            for letter, n in zip(part, operand.shape, strict=True):
                sizes[letter] = n if sizes.get(letter, 1) == 1 else sizes[letter]
        lines, indices = self._headers(item.result.shape)
        known = dict(zip(result, indices, strict=True))
        pad = inner = "    " * len(lines)
        lines.append(f"{pad}total = {self._number(0.0, item.result.dtype.name)}")
        for letter in sizes:
            if letter not in known:
                known[letter] = f"r_{letter}"
                lines.append(f"{inner}for r_{letter} in range({self._size(sizes[letter])}):")
                inner += "    "
        factors = [
            self._element(self._place(operand), operand.shape, [known[letter] for letter in part])
            for part, operand in zip(letters, item.operands, strict=True)
        ]
        lines.append(f"{inner}total = plus(total, {' * '.join(factors)})")
        return [*lines, f"{pad}{self._element(item.target, item.result.shape, indices)} = total"]

    def _reduction(self, item: Item) -> list[str]:
        op = item.op
        assert op is not None
        (x,) = op.inputs
        reduced = reduced_axes(op)
        shape = tuple([1 if axis in reduced else n for axis, n in enumerate(x.shape)])
        lines, indices = self._headers(shape)
        kept = indices if item.result.ndim == x.ndim else [i for axis, i in enumerate(indices) if axis not in reduced]
        inside = [f"r{axis}" if axis in reduced and x.shape[axis] != 1 else i for axis, i in enumerate(indices)]
        over = [f"for r{axis} in range({self._size(x.shape[axis])}):" for axis in reduced if x.shape[axis] != 1]
        element = self._element(self._place(x), x.shape, inside)
        target = self._element(item.target, item.result.shape, kept)
        # Rows that are last are added up side by side; else the elements of a row are, in any order.
        rows = [lines.pop().strip()] if self.rows_last else []
        total = target if rows else "total"
        start, adding, result = self._reducing(item, total, element)
        body = [*_nested(*rows, f"{total} = {start}"), *_nested(*over, *rows, f"{total} = {adding}")]
        if result != target:
            body += _nested(*rows, f"{target} = {result}")
        return _loop(lines, body)


def _scalar(op: Op) -> str:
    """The expression of an element, in the names of the operands; empty if there is none."""
    scalar = op.rule.scalar
    return scalar if isinstance(scalar, str) else scalar(*op.params) if scalar else ""


def _loop(headers: list[str], body: list[str]) -> list[str]:
    """A loop, unless there is nothing to do in it."""
    return [*headers, *_inside(headers, body)] if body else []


def _inside(headers: list[str], lines: list[str]) -> list[str]:
    """``lines`` as they stand within these headers."""
    return ["    " * len(headers) + line for line in lines]


def _nested(*lines: str) -> list[str]:
    """Each line within the one before it."""
    return ["    " * depth + line for depth, line in enumerate(lines)]
