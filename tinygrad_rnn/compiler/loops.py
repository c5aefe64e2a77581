"""The Numba engine, first half: the source of a loop over time, with loops over elements inside.

Elementwise operations over the same elements are fused into one loop, in which what no other loop reads is a local
variable. Views need no code, and what is joined is written where it belongs; see ``places``. Each part of the state has
memory for two steps, or for all where it is wanted afterwards; ``before`` and ``after`` say where in it the state
before and after a step is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.backend import HOLE
from tinygrad_rnn.compiler.places import Line, Place, of_operands, of_results, whole, within
from tinygrad_rnn.compiler.record import Unrecordable
from tinygrad_rnn.compiler.split import Split
from tinygrad_rnn.compiler.step import Op, Value
from tinygrad_rnn.ops.reduction import axes_of

STREAM, STACK, BEFORE, AFTER, SCRATCH, CONSTANT = "stream", "stack", "before", "after", "scratch", "constant"
REDUCTIONS = {"sum": "zero", "mean": "zero", "max": "-infinity", "min": "infinity"}
DTYPES = ("float32", "float64", "bool", "int32", "int64")


@dataclass(frozen=True)
class Store:
    """Memory: where it comes from; of which part of the state it is, and whether that is kept of all steps."""

    kind: str
    part: int = -1
    kept: bool = False

    @property
    def index(self) -> str:
        """Which of its parts belongs to a step, as text."""
        if self.kind in (BEFORE, AFTER):
            return self.kind if self.kept else f"{self.kind}_of_two"
        return "t" if self.kind in (STREAM, STACK) else ""


@dataclass(eq=False)
class Item:
    """Something to do at each step: an operation, or (without) a copy of ``operands[0]``.

    Attributes
    ----------
    target
        Where the result goes.
    space
        What it loops over; None if it is no loop over elements that could be fused.
    adds
        Whether it is added to what is there.
    """

    op: Op | None
    operands: tuple[Any, ...]
    result: Value
    target: Place
    space: tuple[int, ...] | None
    level: int = 0
    adds: bool = False


@dataclass
class Source:
    """The generated function ``loop(steps, backwards, b0, b1, *arguments)``.

    Attributes
    ----------
    text
        The source.
    memory
        Its first arguments: values, and where their memory comes from.
    packed, numbers, sizes
        The others: weights to be packed, constants with their dtypes, and sizes.
    kept
        Which parts of the state are kept of all steps.
    work
        Multiplications, or what takes as long, for a row and step.
    rows
        How many rows there are, of which the loop may be run for some at a time; 0 if rows mix.
    """

    text: str
    memory: dict[Value, Store]
    packed: list[Value]
    numbers: list[tuple[float, str]]
    sizes: list[int]
    kept: list[bool]
    work: int
    rows: int


class Generator:
    """Makes the source for the loop of a split step.

    Raises
    ------
    Unrecordable
        If the loop holds an operation for which this engine has no code.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.step = split.step
        self.rows = next((value.shape[0] for value in self.step.carry if value.ndim), 1)
        self.places: dict[Value, Place] = {}
        self.stores: dict[Value, Store] = {}
        self.items: list[Item] = []
        self.names: dict[Value, str] = {}
        self.memory: dict[Value, Store] = {}
        self.packed: dict[Value, str] = {}
        self.numbers: dict[tuple[str, str], tuple[str, float]] = {}
        self.sizes: dict[int, str] = {}
        self.inlined: dict[Value, Item] = {}
        self._lay_out()
        self._preload()
        self._inline()
        self.by_rows = self._rows_apart()
        self._arrange()

    # -- where everything is

    def _lay_out(self) -> None:
        split, step = self.split, self.step
        stacked = set(split.stacked)
        self.kept = kept = [not stacked.isdisjoint(pair) for pair in zip(step.carry, step.following, strict=True)]
        for k, value in enumerate(step.carry):
            self._own(value, Store(BEFORE, k, kept[k]))
        for value in split.streamed:
            self._own(value, Store(STREAM))
        made = {value for op in split.loop for value in op.results if not (op.rule.view or op.rule.joins)}
        heirs: dict[Value, int] = {}  # values written straight into the memory of the state
        for k, value in enumerate(step.following):
            if value in made:
                heirs.setdefault(value, k)
        joined = self._joined({v for v in made.difference(heirs, stacked) if v.op and v.op.rule.scalar})
        for op in split.loop:
            for value in op.results:
                if value.dtype.name not in DTYPES:
                    raise _no_code(op)
                if op.rule.view:
                    continue
                if value in joined:
                    target, lines = joined[value]
                    self._own(target, Store(STACK if target in stacked else SCRATCH))
                    self.places[value] = within(self.places[target], lines)
                elif value in heirs:
                    self._own(value, Store(AFTER, heirs[value], kept[heirs[value]]))
                else:
                    self._own(value, Store(STACK if value in stacked else SCRATCH))
            if op.rule.view:
                self._view(op, stacked)
            elif op.rule.joins:
                self._join(op, joined)
            else:
                self._item(op)
        for k, value in enumerate(step.following):
            if heirs.get(value) != k:
                self._copy(value, self._fresh(value, Store(AFTER, k, kept[k])))

    def _own(self, value: Value, store: Store) -> None:
        if value not in self.places:
            self.places[value] = whole(value)
            self.stores[value] = store

    def _fresh(self, like: Value, store: Store) -> Place:
        value = Value(like.shape, like.dtype)
        self._own(value, store)
        return self.places[value]

    def _joined(self, free: set[Value]) -> dict[Value, tuple[Value, tuple[Line, ...]]]:
        """Which values are written straight into what they are joined to, and where in it they are."""
        joined: dict[Value, tuple[Value, tuple[Line, ...]]] = {}
        for op in self.split.loop:
            if op.rule.joins:
                for part, lines in zip(op.operands, of_operands(op), strict=True):
                    if part in free and part not in joined and lines is not None:
                        joined[part] = op.results[0], lines
        return joined

    def _view(self, op: Op, stacked: set[Value]) -> None:
        (operand,) = op.inputs
        for value, lines in zip(op.results, of_results(op), strict=True):
            if lines is None:
                raise _no_code(op)
            self.places[value] = within(self._place(operand), lines)
            if value in stacked:
                self.stores[value] = Store(STACK)
                self._copy(value, whole(value))

    def _join(self, op: Op, joined: dict[Value, tuple[Value, tuple[Line, ...]]]) -> None:
        (result,) = op.results
        for part, lines in zip(op.operands, of_operands(op), strict=True):
            if lines is None:
                raise _no_code(op)
            if joined.get(part) != (result, lines):
                self._copy(part, within(self.places[result], lines))

    def _place(self, value: Value) -> Place:
        if value not in self.places:
            self._own(value, Store(CONSTANT))
        return self.places[value]

    # -- what is done, and when

    def _copy(self, value: Value, target: Place) -> None:
        self.items.append(Item(None, (value,), value, target, value.shape))

    def _item(self, op: Op) -> None:
        (result, *more) = op.results
        name = op.rule.name
        if more or any(not _straight(line) for line in self.places[result].lines if name == "matmul"):
            raise _no_code(op)
        space: tuple[int, ...] | None = result.shape
        operands = op.operands
        if name == "matmul":
            a, b = operands
            if a.ndim != 2 or b.ndim != 2 or b in self.places or result.dtype.kind != "f" or a.dtype != b.dtype:
                raise _no_code(op)
            if not self._rows_of(a):
                place = self._fresh(a, Store(SCRATCH))
                self._copy(a, place)
                operands = place.base, b
            space = None
        elif name in REDUCTIONS:
            space = None
        elif name == "gather":
            table, *arrays = operands
            forms = table.ndim, len(arrays), arrays[0].ndim, arrays[0].dtype.kind, op.params, table in self.places
            if forms != (2, 1, 1, "i", ((HOLE,),), False):
                raise _no_code(op)
        elif op.rule.scalar is None:
            raise _no_code(op)
        self.items.append(Item(op, operands, result, self.places[result], space))

    def _preload(self) -> None:
        """What is added to a product is put first where the product goes, which is then added to it."""
        readers: dict[Value, list[Item]] = {}
        for item in self.items:
            for operand in item.operands:
                if type(operand) is Value:
                    readers.setdefault(self._place(operand).base, []).append(item)
        for product in [item for item in self.items if item.op and item.op.rule.name == "matmul"]:
            (reader, *others) = readers.get(product.result) or [product]
            if others or reader is product or reader not in self.items or not reader.op or reader.op.rule.name != "add":
                continue
            (addend, *more) = [operand for operand in reader.operands if operand is not product.result]
            alike = reader.result.shape == product.result.shape and reader.result.dtype == product.result.dtype
            if more or type(addend) is not Value or addend.dtype != product.result.dtype or not alike:
                continue
            if self.stores[product.target.base].kind != SCRATCH or not self._rows_of(reader.result):
                continue
            product.target, product.adds = reader.target, True
            product.operands = (*product.operands[:2], reader.result)  # which the copy has to write first
            where = self.items.index(reader)
            self.items[where] = Item(None, (addend,), reader.result, reader.target, reader.result.shape)
            self.items.remove(product)
            self.items.insert(where, product)

    def _inline(self) -> None:
        """Leave out what is only read in parts, as the sums of all gates are: each reader computes its part itself."""
        readers: dict[Value, list[tuple[Item, Value]]] = {}
        for item in self.items:
            for operand in item.operands:
                if type(operand) is Value:
                    readers.setdefault(self._place(operand).base, []).append((item, operand))
        for item in reversed(self.items):
            base = item.target.base
            if item.op is None or item.space is None or base is not item.result or self.stores[base].kind != SCRATCH:
                continue
            if item.op.rule.name == "gather":
                continue
            parts: dict[Place, int] = {}
            for reader, operand in readers.get(base, ()):
                inside = reader in self.inlined.values() and operand is base
                if reader.space is None or not (inside or operand is not base):
                    break
                if not inside:
                    parts[self._place(operand)] = prod(operand.shape)
            else:
                if sum(parts.values()) <= prod(item.result.shape):
                    self.inlined[base] = item
        kept = set(self.inlined.values())
        self.items = [item for item in self.items if item not in kept]

    def _read_by(self, operands: Iterable[Any]) -> Iterator[Value]:
        """The values that are read for ``operands``, those of what is computed on the way among them."""
        for operand in operands:
            if type(operand) is Value:
                within_it = self.inlined.get(self._place(operand).base)
                if within_it is None:
                    yield operand
                else:
                    yield from self._read_by(within_it.operands)

    def _rows_of(self, value: Value) -> bool:
        """Whether a matrix lies row by row."""
        lines = self._place(value).lines
        return (
            len(lines) == 2
            and lines[0] == Line(0, ((0, 1),) if value.shape[0] != 1 else lines[0].terms)
            and (lines[1].terms == ((1, 1),) or value.shape[1] == 1)
        )

    def _rows_apart(self) -> bool:
        """Whether no item mixes rows."""
        if self.rows == 1:
            return False
        row = Line(0, ((0, 1),))
        for item in self.items:
            place = item.target
            values = [item.result, *[o for o in item.operands if type(o) is Value and not self._constant(o)]]
            values += [o for o in self._read_by(item.operands) if not self._constant(o)]
            for value in values:
                place = item.target if value is item.result else self._place(value)
                if value.ndim != item.result.ndim and not (item.op and item.op.rule.name in (*REDUCTIONS, "gather")):
                    return False
                if not value.ndim or value.shape[0] != self.rows or place.lines[0] != row:
                    return False
                if any(axis == 0 for line in place.lines[1:] for axis, _ in line.terms):
                    return False
            if item.op and item.op.rule.name in REDUCTIONS and 0 in _reduced(item.op):
                return False
        return True

    def _constant(self, value: Value) -> bool:
        return self.stores[self._place(value).base].kind == CONSTANT

    def _arrange(self) -> None:
        """Give each item a level, so that those of one level and space can share a loop.

        At each level what is no loop over elements comes first.
        """
        ready: dict[Value, tuple[int, bool]] = {}  # by memory: the level of its last writer, and whether it was a loop
        makers: dict[Value, Item] = {}
        readers: dict[Item, list[tuple[Item, bool]]] = {item: [] for item in self.items}
        writers: dict[Value, list[Item]] = {}
        for item in self.items:
            own = {operand for operand in item.operands if type(operand) is Value}
            for operand in self._read_by(item.operands):
                maker = makers.get(operand)
                direct = operand in own and maker is not None and maker.space is not None and maker.space == item.space
                if maker is not None and direct:
                    item.level = max(item.level, maker.level)
                    readers[maker].append((item, True))
                    continue
                base = self._place(operand).base
                if base in ready:
                    level, looped = ready[base]
                    item.level = max(item.level, level + (looped or item.space is None))
                for writer in writers.get(base, ()):
                    readers[writer].append((item, False))
            base = item.target.base
            level, looped = ready.get(base, (0, False))
            ready[base] = max((level, looped), (item.level, item.space is not None))
            writers.setdefault(base, []).append(item)
            if item.op is not None:
                makers[item.result] = item
        for item in reversed(self.items):  # as late as can be, so that more share a loop
            later = [
                reader.level if direct or item.space is None else reader.level - 1 for reader, direct in readers[item]
            ]
            if item.space is not None and later:
                item.level = max(item.level, min(later))
        self.read = {
            item for item in self.items if any(not direct or item.level != r.level for r, direct in readers[item])
        }

    # -- the source

    def generated(self) -> Source:
        """The source."""
        body: list[str] = []
        done: set[Item] = set()
        order = sorted(self.items, key=lambda item: (item.level, item.space is not None))
        for item in order:
            if item in done:
                continue
            if item.space is None:
                body += self._matmul(item) if item.op and item.op.rule.name == "matmul" else self._reduction(item)
                continue
            group = [other for other in order if other.level == item.level and other.space == item.space]
            done.update(group)
            body += self._fused(group, item.space)
        sizes = list(self.sizes.values())
        names = [*self.memory_names(), *self.packed.values(), *[name for name, _ in self.numbers.values()], *sizes]
        head = [
            f"def loop({', '.join(['steps', 'backwards', 'b0', 'b1', *names])}):",
            *[f"    {name} = unsigned({name})" for name in ("steps", "b0", "b1", *sizes)],
            "    for s in range(steps):",
            "        t = steps - one_step - s if backwards else s",
            "        before = t + one_step if backwards else t",
            "        after = t if backwards else t + one_step",
            "        before_of_two = s & one_step",
            "        after_of_two = one_step - before_of_two",
        ]
        text = "\n".join([*head, *[f"        {line}" for line in body]]) + "\n"
        numbers = [(number, dtype) for (_, dtype), (_, number) in self.numbers.items()]
        rows = self.rows if self.by_rows else 0
        return Source(text, self.memory, list(self.packed), numbers, list(self.sizes), self.kept, self._work(), rows)

    def _work(self) -> int:
        work = 0
        for item in self.items:
            elements = int(np.prod(item.result.shape[1:], dtype=np.int64))
            work += elements * (item.operands[0].shape[1] if item.space is None and item.operands[0].ndim == 2 else 8)
        return work

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
        self.memory.setdefault(base, self.stores[base])
        lead = self.stores[base].index
        found = [index for index in (lead, *indices) if index]
        return f"{self._name(base)}[{', '.join(found) or '()'}]"

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
        indices = []
        for axis, n in enumerate(space):
            if n == 1:
                indices.append("zero_step")
                continue
            shard = axis == 0 and self.by_rows
            lines.append("    " * len(lines) + f"for i{axis} in range({'b0, b1' if shard else self._size(n)}):")
            indices.append(f"i{axis}")
        return lines, indices

    def _fused(self, group: list[Item], space: tuple[int, ...]) -> list[str]:
        lines, indices = self._headers(space)
        pad = "    " * len(lines)
        known: dict[Value, str] = {}
        for item in group:
            if item.op is None:
                (operand,) = item.operands
                text = self._read(operand, known, indices)
                lines.append(f"{pad}{self._element(item.target, item.result.shape, indices)} = {text}")
                continue
            known[item.result] = f"{item.result.name or item.op.rule.name}{len(known)}"
            lines.append(f"{pad}{known[item.result]} = {self._expression(item, known, indices)}")
            if item in self.read or self.stores[item.target.base].kind != SCRATCH:
                lines.append(f"{pad}{self._element(item.target, item.result.shape, indices)} = {known[item.result]}")
        return lines

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
        params = dict(zip(op.rule.params, op.params, strict=True))
        scalar = op.rule.scalar
        expression = scalar if isinstance(scalar, str) else scalar(*op.params) if scalar else ""
        if dtype.kind == "i":
            expression = expression.replace("imum(", "(")
        constants = {"zero": 0, "one": 1, "infinity": float("inf"), **params}

        def replaced(match: re.Match[str]) -> str:
            word = match.group()
            if word in names:
                return text(word, names[word])
            return self._number(constants[word], dtype.name) if word in constants else word

        found = re.sub(r"[a-z_]\w*(?!\w*\()", replaced, expression)
        return found

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

    def _reduction(self, item: Item) -> list[str]:
        op = item.op
        assert op is not None
        (x,) = op.inputs
        name, dtype = op.rule.name, item.result.dtype.name
        reduced = _reduced(op)
        shape = tuple([1 if axis in reduced else n for axis, n in enumerate(x.shape)])
        lines, indices = self._headers(shape)
        pad = "    " * len(lines)
        start = self._number({"sum": 0.0, "mean": 0.0, "max": float("-inf"), "min": float("inf")}[name], dtype)
        lines.append(f"{pad}total = {start}")
        inner = pad
        inside = list(indices)
        for axis in reduced:
            if x.shape[axis] != 1:
                lines.append(f"{inner}for r{axis} in range({self._size(x.shape[axis])}):")
                inside[axis] = f"r{axis}"
                inner += "    "
        element = self._element(self._place(x), x.shape, inside)
        adding = f"total + {element}" if name in ("sum", "mean") else f"{name}imum(total, {element})"
        lines.append(f"{inner}total = {adding}")
        count = int(np.prod([x.shape[axis] for axis in reduced], dtype=np.int64))
        result = f"total / {self._number(float(count), dtype)}" if name == "mean" else "total"
        kept = indices if item.result.ndim == x.ndim else [i for axis, i in enumerate(indices) if axis not in reduced]
        lines.append(f"{pad}{self._element(item.target, item.result.shape, kept)} = {result}")
        return lines


def _reduced(op: Op) -> tuple[int, ...]:
    return axes_of(dict(zip(op.rule.params, op.params, strict=True))["axis"], op.operands[0].ndim)


def _straight(line: Line) -> bool:
    return len(line.terms) <= 1 and all(multiple == 1 for _, multiple in line.terms)


def _no_code(op: Op) -> Unrecordable:
    shapes = ", ".join([str(o.shape) if type(o) is Value else repr(o) for o in op.operands])
    return Unrecordable(f"the numba engine has no code for {op.rule.name} of {shapes} in the loop")
