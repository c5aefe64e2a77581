"""The array engine: the loop as a flat list of array calls into memory that is laid out before it, on any backend.

All arrays that a step reads and writes are known before the loop begins, views included, so that the loop itself does
nothing but call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler.pool import BLOCK, empty
from tinygrad_rnn.compiler.split import Run, Split
from tinygrad_rnn.compiler.step import Op, Value

FUSES = False
ROWS_APART = False  # whether a row of a product has the same bits among any other rows


class _Host(type(NUMPY)):  # type: ignore[misc]
    """NumPy for what comes after the loop: large copies lie in memory that is used again."""

    def in_order(self, array: Any) -> Any:
        if array.flags.c_contiguous:
            return array
        result = empty(array.shape, array.dtype)
        result[...] = array
        return result


class _Feeding(type(NUMPY)):  # type: ignore[misc]
    """NumPy for what feeds the loop: large results lie in such memory, those of steps with rows last.

    For then the columns of a step, of which gates are parts, lie together: NumPy takes a third of the time for these,
    and two thirds for products with weights.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("add", "subtract", "multiply", "divide", "negative", "exp", "tanh", "sqrt", "square"):
            setattr(self, name, partial(_pooled, getattr(np, name)))
        self.matmul = _matmul
        self.empty = _empty


def _empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """Memory for values of steps, (T, B, features) with rows last."""
    if len(shape) != 3:
        return empty(shape, dtype)
    steps, rows, columns = shape
    return empty((steps, columns, rows), dtype).transpose(0, 2, 1)


def _pooled(function: np.ufunc, *operands: Any) -> Any:
    """What ``function`` gives, in such memory if it is large."""
    for operand in operands:
        if type(operand) is np.ndarray and operand.nbytes > BLOCK and np.broadcast(*operands).shape == operand.shape:
            dtype = np.result_type(*operands)
            return function(*operands, out=_empty(operand.shape, dtype) if dtype.kind == "f" else None)
    return function(*operands)


def _matmul(a: Any, b: Any) -> Any:
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        return NUMPY.matmul(a, b)
    return NUMPY.matmul(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))


HOST, FEEDING = _Host(), _Feeding()


def backend(F: Any) -> Any:
    """What computes outside of the loop."""
    return HOST if F is NUMPY else F


def context() -> Any:
    """What a step is recorded in."""
    return nullcontext()


def in_order(array: Any) -> Any:
    """``array`` in C order, as its owner is to have it."""
    return array if array.flags.c_contiguous else array.copy()


Rows = list[Any]  # of one value: the array at each step, in the order in which steps are taken


class Loop:
    """The loop of a split step.

    Attributes
    ----------
    source
        The generated function.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.persistent = _persistent(split)
        self.views: list[Op] = []
        self.calls: list[Op] = []
        self.owners: list[Value] = []  # what has memory of its own
        self.parts: dict[Value, tuple[Value, Any]] = {}  # what is written into what it will be joined to: where
        self.copied: dict[Value, Value] = {}  # what is kept of the several views of something: of which view a copy
        kept = self.persistent.union(split.step.following)
        for op in split.loop:
            view = op.rule.view and not (op.rule.name == "reshape" and self._strided(op))
            keeping = kept.intersection(op.results)
            if view and (op.rule.several or not keeping):
                self.views.append(op)
                self.copied |= {value: Value(value.shape, value.dtype) for value in keeping}
            if op.rule.name == "concatenate":
                for part, where in zip(op.operands, _places(op), strict=True):
                    if part in self.owners and part not in kept and part not in self.parts:
                        self.parts[part] = op.results[0], where
            if keeping or not view:
                self.calls.append(op)
                self.owners += [value for value in op.results if value in keeping or not view]
        self.fixed: set[Value] = set()  # what is in the same memory at every step
        for value in reversed(self.owners):
            if self.parts[value][0] in self.fixed if value in self.parts else value not in kept:
                self.fixed.add(value)
        for op in self.views:
            if self.fixed.issuperset(op.inputs):
                self.fixed.update(self._seen(op))
        self._functions: dict[Any, Callable[..., None]] = {}
        self.source, self.functions, self.rows, self.constants = self._generated()

    def _seen(self, op: Op) -> list[Value]:
        """The results of a view, as views."""
        return [self.copied.get(value, value) for value in op.results]

    def _strided(self, op: Op) -> bool:
        """Whether the operand may not be contiguous, so that a reshape of it would be a copy."""
        (operand,) = op.inputs
        return operand not in self.owners or operand in self.parts

    def _generated(self) -> tuple[str, dict[str, Op], list[Value], list[Value]]:
        """Source, what its names stand for, and which values it is given: rows at each step, and constants."""
        step = self.split.step
        made = [value for op in self.split.loop for value in op.results]
        views = set(self.copied.values())
        changing = {*self.split.streamed, *step.carry, *made, *views}.difference(self.fixed)
        names: dict[Value, str] = {}

        def name(operand: Any) -> str:
            if type(operand) is not Value:
                return repr(operand)
            other = "state" if operand in step.carry else "view" if operand in views else "given"
            label = operand.op.rule.name if operand.op else other
            return names.setdefault(operand, f"{operand.name or label}{len(names)}")

        lines = []
        functions: dict[str, Op] = {}
        for op in self.calls:
            if op in self.views:
                lines += [f"{name(v)}[...] = {name(self.copied[v])}" for v in op.results if v in self.copied]
                continue
            outs = [name(value) for value in op.results]
            if op.rule.name == "concatenate":
                for part, place in zip(op.operands, _places(op), strict=True):
                    if self.parts.get(part) != (op.results[0], place):
                        lines.append(f"{outs[0]}[{place[1]}] = {name(part)}")
                continue
            arguments = ", ".join([name(operand) for operand in op.operands])
            if _writes(op):
                called = "dot" if _of_one_row(op) else op.rule.name
                functions[called] = op
                lines.append(f"{called}({arguments}, out={outs[0]})")
                continue
            call = f"{op.rule.name}_{len(functions)}"
            functions[call] = op
            if op.rule.several:
                lines += [f"parts = {call}({arguments})"]
                lines += [f"{out}[...] = parts[{i}]" for i, out in enumerate(outs)]
            else:
                lines.append(f"{outs[0]}[...] = {call}({arguments})")
        rows = [value for value in names if value in changing]
        constants = [value for value in names if value not in changing]
        head = f"def loop({', '.join(['rows', *[names[value] for value in constants]])}):\n"
        if not rows:
            return f"{head}    pass\n", {}, [], constants
        body = "\n        ".join([f"for {', '.join([names[value] for value in rows])}, in rows:", *lines])
        return f"{head}    {body}\n", functions, rows, constants

    def feeding(self, F: Any) -> Any:
        """What computes for the loop, before it."""
        return FEEDING if F is HOST else F

    def __call__(self, run: Run, reverse: bool, carry: Sequence[Any]) -> list[Any]:
        """Run it; what is wanted of all steps is added to ``run``, and the last state returned."""
        rows = self._laid_out(run, reverse, carry)
        state = self._carried(run, rows, carry)
        self._for(run.F)(
            zip(*[rows[value] for value in self.rows], strict=True), *[run[value] for value in self.constants]
        )
        for value in self.split.stacked:
            if value not in run.values:
                run.values[value] = run.F.stack(rows[value][:: -1 if reverse else 1], 0)
        return state

    def _for(self, F: Any) -> Callable[..., None]:
        """The generated function on a backend."""
        if F not in self._functions:
            space: dict[str, Any] = {name: _function(F, op, name) for name, op in self.functions.items()}
            exec(compile(self.source, "<loop>", "exec"), space)
            # Entering this for each sigmoid would take as long as half of one.
            self._functions[F] = np.errstate(over="ignore")(space["loop"]) if "sigmoid" in space else space["loop"]
        return self._functions[F]

    def _laid_out(self, run: Run, reverse: bool, carry: Sequence[Any]) -> dict[Value, Rows]:
        """The memory of every value but the state, and of all views that are not views of the state."""
        F, steps, step = run.F, run.steps, self.split.step
        order = -1 if reverse else 1
        rows: dict[Value, Rows] = {
            value: F.unstack(_rows_last(F, run[value]), 0)[::order] for value in self.split.streamed
        }
        stacked = set(self.split.stacked)
        handed_on = sum(value in step.carry for value in step.following)  # from one part of the state to another
        lives = 2 + handed_on  # for so many steps a part of the state may be read
        for value in reversed(self.owners):
            if value in self.parts:
                whole, (where, _) = self.parts[value]
                if value in self.fixed:
                    run.values[value] = run[whole][where]
                else:
                    rows[value] = [row[where] for row in rows[whole]]
            elif value in self.fixed:
                run.values[value] = _for_a_step(F, value)
            elif value in self.persistent:
                heirs = [k for k, v in enumerate(step.following) if v is value and step.carry[k] in stacked]
                memory = F.empty((steps + len(heirs[:1]), *value.shape), dtype=value.dtype)
                if heirs:  # the states before all steps, and those after: the same memory, one step apart
                    before, memory = (memory[1:], memory[:-1]) if reverse else (memory[:-1], memory[1:])
                    before[-1 if reverse else 0] = carry[heirs[0]]
                    run.values[step.carry[heirs[0]]] = before
                run.values[value] = memory
                rows[value] = F.unstack(memory, 0)[::order]
            else:
                buffers = [_for_a_step(F, value) for _ in range(lives)]
                rows[value] = list(islice(cycle(buffers), steps))
        for op in self.views:
            (operand,) = op.inputs
            if operand in self.fixed:
                results = _function(F, op, "")(run[operand])
                run.values.update(zip(self._seen(op), results if op.rule.several else (results,), strict=True))
            elif operand in self.persistent and operand in rows and op in self.split.batched:
                results = self.split.batched[op](F, steps, run[operand])
                views = results if op.rule.several else [results]
                rows.update(zip(self._seen(op), [F.unstack(x, 0)[::order] for x in views], strict=True))
            elif operand in rows:
                self._view(F, op, rows)
        return rows

    def _carried(self, run: Run, rows: dict[Value, Rows], carry: Sequence[Any]) -> list[Any]:
        """Add the rows of the state, and of views of it; return the last state."""
        step = self.split.step
        states: list[Rows] = [[part] for part in carry]
        places = {value: k for k, value in enumerate(step.carry)}
        handed_on = [(k, places[value]) for k, value in enumerate(step.following) if value in places]
        for k, value in enumerate(step.following):
            if value not in places:
                states[k] += rows[value] if value in rows else [run[value]] * run.steps
        for s in range(run.steps if handed_on else 0):
            for k, before in handed_on:
                states[k].append(states[before][s])
        rows.update({value: states[k][:-1] for k, value in enumerate(step.carry)})
        for op in self.views:
            if self.fixed.isdisjoint(op.inputs) and self._seen(op)[0] not in rows:
                self._view(run.F, op, rows)
        return [states[k][-1] for k in range(len(carry))]

    def _view(self, F: Any, op: Op, rows: dict[Value, Rows]) -> None:
        """Add the rows of a view."""
        function, seen = _function(F, op, ""), self._seen(op)
        (operand,) = op.inputs
        known: dict[int, Any] = {}
        for row in rows[operand]:  # the same memory may serve several steps
            if id(row) not in known:
                known[id(row)] = function(row)
        parts = [known[id(row)] for row in rows[operand]]
        each = [[part[i] for part in parts] for i in range(len(seen))] if op.rule.several else [parts]
        rows.update(zip(seen, each, strict=True))


def _for_a_step(F: Any, value: Value) -> Any:
    """Memory for one step's value."""
    return F.empty((1, *value.shape), dtype=value.dtype)[0, ...]


def _rows_last(F: Any, array: Any) -> Any:
    """``array`` (T, B, features) in the order that is fast, see `_Feeding`."""
    if F is not FEEDING or array.ndim != 3 or array.shape[1] == 1 or array.strides[1] == array.itemsize:
        return array
    result = _empty(array.shape, array.dtype)
    result[...] = array
    return result


def _persistent(split: Split) -> set[Value]:
    """What is wanted of all steps, and so must not be written over."""
    following = dict(zip(split.step.carry, split.step.following, strict=True))
    persistent: set[Value] = set()
    pending = list(split.stacked)
    for value in pending:
        if value not in persistent:
            persistent.add(value)
            if value in following:
                pending.append(following[value])
    return persistent


def _places(op: Op) -> list[tuple[Any, str]]:
    """Where in the result of a concatenation each operand goes, as an index and as text."""
    (axis,) = op.params
    axis %= op.results[0].ndim
    places = []
    end = 0
    for part in op.operands:
        start, end = end, end + part.shape[axis]
        places.append(((slice(None),) * axis + (slice(start, end),), ":, " * axis + f"{start}:{end}"))
    return places


def _writes(op: Op) -> bool:
    """Whether the operation is one call of a function that takes ``out``."""
    name = op.rule.name
    if name == "matmul":
        return not (op.operands[1].ndim == 2 and op.operands[0].ndim > 2)
    called: tuple[str, ...] = op.rule.forward.__code__.co_names
    return called == (name,) and (name == "sigmoid" or (isinstance(getattr(np, name, None), np.ufunc)))


def _of_one_row(op: Op) -> bool:
    """Whether it is a product of a single row, for which ``dot`` takes half of the time of ``matmul``."""
    return op.rule.name == "matmul" and all(o.ndim == 2 for o in op.operands) and op.results[0].shape[0] == 1


def _function(F: Any, op: Op, name: str) -> Callable[..., Any]:
    if name == "sigmoid":
        return F.sigmoid_unguarded  # type: ignore[no-any-return]
    if name in (op.rule.name, "dot"):
        return getattr(F.library, name)  # type: ignore[no-any-return]
    forward, named = op.rule.forward, op.named
    return lambda *operands: forward(F, *operands, **named)
