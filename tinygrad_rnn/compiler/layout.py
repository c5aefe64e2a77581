"""The Numba engine, first part: what the loop over time does, where its values are in memory, and in which order.

Elementwise operations over the same elements are fused into one loop, in which what no other loop reads is a local
variable. Views need no code, and what is joined is written where it belongs; see ``places``. What is only read in
parts, as the sums of all gates are, is computed by its readers; and what is added to a product is put first where the
product goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from tinygrad_rnn.backend import HOLE
from tinygrad_rnn.compiler.lower import lowered
from tinygrad_rnn.compiler.places import Line, Place, of_operands, of_region, of_results, whole, within
from tinygrad_rnn.compiler.record import NoCode
from tinygrad_rnn.compiler.split import Split
from tinygrad_rnn.compiler.step import PRODUCTS, REDUCTIONS, Op, Value
from tinygrad_rnn.ops.reduction import axes_of

STREAM, STACK, BEFORE, AFTER, SCRATCH, CONSTANT = "stream", "stack", "before", "after", "scratch", "constant"
SUM = "sum_over_time"
BY_ROW = "constant_by_row"  # a constant of which the loop reads a row's own part
OTHERS = (*PRODUCTS, "gather", "place")
DTYPES = ("float32", "float64", "bool", "int32", "int64")
FEW, MANY = 16, 16  # fewer features than that fill no vector; so many rows do


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


class Layout:
    """The loop of a split step, laid out.

    Attributes
    ----------
    items
        What is done at each step.
    places, stores
        Where values are, and what memory there is.
    inlined
        What is computed where it is read, by the memory that it would have.
    along
        Reductions that are done along with the loop over the elements that they reduce, and whose loop that is.
    read
        Items whose result is read from memory.
    by_rows
        Whether no item mixes rows.
    rows_last
        Whether rows are the last axis in memory, features the first: where these are few, and rows many.

    Raises
    ------
    NoCode
        If the loop holds an operation for which this engine has no code.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.step = split.step
        self.stacked = set(split.stacked)
        self.rows = next((value.shape[0] for value in self.step.carry if value.ndim), 1)
        self.places: dict[Value, Place] = {}
        self.stores: dict[Value, Store] = {}
        self.sums_over_time: dict[Value, Value] = {}  # of what, by their memory
        self.items: list[Item] = []
        self.inlined: dict[Value, Item] = {}
        self.sums: dict[Op, tuple[list[str], str]] = {}  # products by loops: letters of the operands and the result
        self._lay_out()
        self._preload()
        self._inline()
        self.by_rows = self._rows_apart()
        widest = max([value.shape[-1] for value in self.step.carry if value.ndim], default=FEW)
        self.rows_last = split.apart and self.by_rows and self.rows >= MANY and widest < FEW
        for value in self._read_by_row() if self.rows_last else ():
            self.stores[value] = Store(BY_ROW)
        self._arrange()

    # -- where everything is

    def _lay_out(self) -> None:
        split, step = self.split, self.step
        stacked = self.stacked
        loop = [part for op in split.loop for part in ([op] if _has_code(op) else lowered(op))]
        self.kept = kept = [not stacked.isdisjoint(pair) for pair in zip(step.carry, step.following, strict=True)]
        for k, value in enumerate(step.carry):
            self._own(value, Store(BEFORE, k, kept[k]))
        for value in split.streamed:
            self._own(value, Store(STREAM))
        made = {value for op in loop for value in op.results if not (op.rule.view or op.rule.joins)}
        heirs: dict[Value, int] = {}  # values written straight into the memory of the state
        for k, value in enumerate(step.following):
            if value in made:
                heirs.setdefault(value, k)
        joined = self._joined(loop, {v for v in made.difference(heirs, stacked) if v.op and v.op.rule.scalar})
        for op in loop:
            for value in op.results:
                if value.dtype.name not in DTYPES:
                    raise _no_code(op)
                if op.rule.view:
                    continue
                if value in joined:
                    target, lines = joined[value]
                    self._own(target, self._store(target))
                    self.places[value] = within(self.places[target], lines)
                elif value in heirs:
                    self._own(value, Store(AFTER, heirs[value], kept[heirs[value]]))
                else:
                    self._own(value, self._store(value))
            if op.rule.view:
                self._view(op)
            elif op.rule.joins:
                self._join(op, joined)
            elif op.rule.name == "place":
                self._spread(op)
            else:
                self._item(op)
        for k, value in enumerate(step.following):
            if heirs.get(value) != k:
                self._copy(value, self._fresh(value, Store(AFTER, k, kept[k])))
        for value in split.summed:
            place = self._fresh(value, Store(SUM))
            self.sums_over_time[place.base] = value
            self.items.append(Item(None, (value,), value, place, value.shape, adds=True))

    def _store(self, value: Value) -> Store:
        """Memory for what the loop makes."""
        return Store(STACK if value in self.stacked else SCRATCH)

    def _own(self, value: Value, store: Store) -> None:
        if value not in self.places:
            self.places[value] = whole(value)
            self.stores[value] = store

    def _fresh(self, like: Value, store: Store) -> Place:
        value = Value(like.shape, like.dtype)
        self._own(value, store)
        return self.places[value]

    def _joined(self, loop: list[Op], free: set[Value]) -> dict[Value, tuple[Value, tuple[Line, ...]]]:
        """Which values are written straight into what they are joined to, and where in it they are."""
        joined: dict[Value, tuple[Value, tuple[Line, ...]]] = {}
        for op in loop:
            if op.rule.joins:
                for part, lines in zip(op.operands, of_operands(op), strict=True):
                    if part in free and part not in joined and lines is not None:
                        joined[part] = op.results[0], lines
        return joined

    def _view(self, op: Op) -> None:
        (operand,) = op.inputs
        for value, lines in zip(op.results, of_results(op), strict=True):
            if lines is None:
                self._fold(op)
                return
            self.places[value] = within(self._place(operand), lines)
            if value in self.stacked:
                self.stores[value] = Store(STACK)
                self._copy(value, whole(value))

    def _fold(self, op: Op) -> None:
        """A reshape by which one axis becomes of several: copied to memory of its own."""
        value, *more = op.results
        (lines,) = of_operands(op)
        if lines is None or more:
            raise _no_code(op)
        self._own(value, self._store(value))
        self._copy(op.operands[0], within(self.places[value], lines))

    def _join(self, op: Op, joined: dict[Value, tuple[Value, tuple[Line, ...]]]) -> None:
        (result,) = op.results
        for part, lines in zip(op.operands, of_operands(op), strict=True):
            if lines is None:
                raise _no_code(op)
            if joined.get(part) != (result, lines):
                self._copy(part, within(self.places[result], lines))

    def _spread(self, op: Op) -> None:
        """Zeros, and in part of them a value."""
        (result,) = op.results
        lines = of_region(result.shape, op.params[1]) if len(op.operands) == 1 else None
        if lines is None:
            raise _no_code(op)
        whole_of = self.places[result]
        self.items.append(Item(None, (0,), result, whole_of, result.shape))
        value = op.operands[0]  # to be put there after the zeros
        self.items.append(Item(None, (value, result), value, within(whole_of, lines), value.shape))

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
        if more:
            raise _no_code(op)
        space: tuple[int, ...] | None = result.shape
        operands = op.operands
        if packs(op) and operands[1] not in self.places:
            a, b = operands
            if not self._rows_of(a):
                place = self._fresh(a, Store(SCRATCH))
                self._copy(a, place)
                operands = place.base, b
            space = None
        elif name in PRODUCTS:
            if any(operand.dtype != result.dtype for operand in operands):
                raise _no_code(op)
            self.sums[op] = letters_of(op)
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
        readers = self._readers()
        for product in [item for item in self.items if item.op and packs(item.op) and item.op not in self.sums]:
            (reader, *others) = [item for item, _ in readers.get(product.result, ())] or [product]
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
        readers = self._readers()
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

    def _readers(self) -> dict[Value, list[tuple[Item, Value]]]:
        """By memory: who reads it, and what it is to them."""
        readers: dict[Value, list[tuple[Item, Value]]] = {}
        for item in self.items:
            for operand in item.operands:
                if type(operand) is Value:
                    readers.setdefault(self._place(operand).base, []).append((item, operand))
        return readers

    def _reads(self, item: Item) -> Iterator[tuple[Value, bool]]:
        """The values that are read for an item, and whether as its operands or for what is computed on the way."""
        for operand in item.operands:
            for value in self._behind((operand,)):
                if self._place(value).base not in self.inlined:
                    yield value, value is operand

    def _behind(self, operands: Iterable[Any]) -> Iterator[Value]:
        """``operands``, and those of what is computed on the way to them."""
        for operand in operands:
            if type(operand) is Value:
                yield operand
                within_it = self.inlined.get(self._place(operand).base)
                if within_it is not None:
                    yield from self._behind(within_it.operands)

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
            read = [value for value in self._behind(item.operands) if not self._constant(value)]
            for value, place in [(item.result, item.target), *[(value, self._place(value)) for value in read]]:
                if value.ndim != item.result.ndim and item.space is not None and item.op and item.op.rule.scalar:
                    return False
                if not value.ndim or value.shape[0] != self.rows or place.lines[:1] != (row,):
                    return False
                if any(axis == 0 for line in place.lines[1:] for axis, _ in line.terms):
                    return False
            if item.op and item.op.rule.name in REDUCTIONS and 0 in reduced_axes(item.op):
                return False
            if item.op in self.sums and not self._rows_first(item, *self.sums[item.op]):
                return False
        return True

    def _rows_first(self, item: Item, letters: list[str], result: str) -> bool:
        """Whether in a product the rows of the result are those of all operands that have rows."""
        return all(
            part[:1] == result[:1] and result[:1] not in part[1:]
            if not self._constant(operand)
            else result[:1] not in part
            for part, operand in zip(letters, item.operands, strict=True)
        )

    def _read_by_row(self) -> set[Value]:
        """The constants that are read in no other way, as the state that rows begin anew with is."""
        by_row: set[Value] = set()
        otherwise: set[Value] = set()
        for item in [*self.items, *self.inlined.values()]:
            space = () if item.space is None or (item.op and item.op.rule.name == "gather") else item.space
            for value in [operand for operand in item.operands if type(operand) is Value and self._constant(operand)]:
                rows = value.ndim == len(space) and value.shape[:1] == (self.rows,)
                (by_row if rows else otherwise).add(value)
        return by_row - otherwise

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
            for operand, own in self._reads(item):
                maker = makers.get(operand)
                direct = own and maker is not None and maker.space is not None and maker.space == item.space
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
        self.along: dict[Item, Item] = {}
        for item in self.items:
            maker = makers.get(item.operands[0]) if _reduces_last_axis(item) else None
            if maker is not None and maker.space is not None:
                self.along[item] = maker
        self.read = {
            item
            for item in self.items
            if any(
                self.along.get(reader) is not item and (not direct or item.level != reader.level)
                for reader, direct in readers[item]
            )
        }


def reduced_axes(op: Op) -> tuple[int, ...]:
    return axes_of(op.named["axis"], op.operands[0].ndim)


def _reduces_last_axis(item: Item) -> bool:
    if item.op is None or item.op.rule.name not in REDUCTIONS:
        return False
    (x,) = item.op.inputs
    return x.dtype.kind == "f" and x.shape[-1] != 1 and reduced_axes(item.op) == (x.ndim - 1,)


def packs(op: Op | None) -> bool:
    """Whether it is a product of matrices for which the right one could be packed."""
    if op is None or op.rule.name != "matmul":
        return False
    a, b = op.operands
    return bool(a.ndim == b.ndim == 2 and a.dtype == b.dtype and a.dtype.kind == "f")


def letters_of(op: Op) -> tuple[list[str], str]:
    """A product as a sum over letters, as in einsum: those of each operand, and those of the result."""
    if op.rule.name == "einsum":
        inputs, result = op.params[0].split("->")
        return inputs.split(","), result
    a, b = op.operands
    most = max(a.ndim, b.ndim) - 2
    batch = "abcdefgh"[:most]
    return [batch[most - a.ndim + 2 :] + "mk", batch[most - b.ndim + 2 :] + "kn"], batch + "mn"


def _has_code(op: Op) -> bool:
    """Whether nothing is gained by taking an operation apart."""
    rule = op.rule
    return rule.scalar is not None or rule.view or rule.joins or rule.name in (*REDUCTIONS, *OTHERS)


def _no_code(op: Op) -> NoCode:
    shapes = ", ".join([str(o.shape) if type(o) is Value else repr(o) for o in op.operands])
    return NoCode(f"the numba engine has no code for {op.rule.name} of {shapes} in the loop")
