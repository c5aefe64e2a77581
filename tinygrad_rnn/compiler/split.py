"""Only what lies on the recurrence stays in the loop.

A step is parted into what is the same at every step (done once), what depends on the inputs alone (done before the
loop, for all steps at once), what the next state depends on (the loop), and what only outputs and totals depend on
(done after it, for all steps at once). So the products with the inputs, and the gradients of weights, which are sums
over time, become one product each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.joined import gathered, joined
from tinygrad_rnn.compiler.step import REDUCTIONS, Op, Step, Value, needed_for

SAME, BEFORE, CARRIED = range(3)  # what a value depends on: constants alone, inputs, the state


@dataclass(slots=True)
class Run:
    """The values of a run over a sequence, time as their first axis where they change with it, and their sums over it
    as far as the loop makes them."""

    F: Any
    steps: int
    values: dict[Value, Any] = field(default_factory=dict)
    sums: dict[Value, Any] = field(default_factory=dict)

    def __getitem__(self, operand: Any) -> Any:
        return self.values[operand] if type(operand) is Value else operand


Total = Callable[[Run], Any]
Batched = tuple[Op, Callable[..., Any]]


class Split:
    """A step, parted.

    Attributes
    ----------
    same
        Operations done once.
    before, after
        Operations done for all steps at once, before and after the loop, with how.
    loop
        Operations done at each step.
    streamed
        What the loop reads that is another at each step.
    stacked
        What is made in the loop, or carried by it, and wanted of all steps afterwards.
    summed
        What is made in the loop and of which only the sum over time is wanted, if the engine fuses operations.
    apart
        Whether there are other parts than the loop at all.
    totals
        How each of the step's totals is found in the end, by its value.
    """

    def __init__(self, step: Step, fuses: bool, apart: bool = True) -> None:
        """Part a step.

        Parameters
        ----------
        fuses
            Whether the engine fuses operations, so that cheap ones had better stay in the loop.
        apart
            Whether anything that is not the same at every step may leave the loop; a single step has nothing to gain.
        """
        self.step = step
        self.apart = apart
        self.fuses = fuses
        ops = step.pruned()
        self.same, before, carried = self._by_level(ops)
        if not fuses:
            ops = joined(gathered(ops, step, self.level, set(carried)), set(carried))
            self.same, before, carried = self._by_level(ops)
        self._looped = self._needed_in_loop(carried)
        self._leaves: set[Value] = set()
        self._addends: set[Value] = set()
        self._known_totals: dict[Value, Total] = {}
        self.totals = {value: self._total(value) for value in step.totals}
        wanted = {*step.ys, *self._leaves, *self._addends}
        after = needed_for(wanted, [op for op in carried if op not in self._looped])
        if fuses:  # what is only put side by side is written so by the loop
            made = {value for op in self._looped for value in op.results}
            joining = [op for op in after if op.rule.joins and made.issuperset(op.inputs)]
            self._looped.update(joining)
            after = [op for op in after if op not in self._looped]
            self._looped.update(_cheap(after))
            after = [op for op in after if op not in self._looped]
        read = wanted.union(*[op.inputs for op in after])
        self.loop = [op for op in ops if op in self._looped]
        views = self._views_of_stacked(read)
        after = [op for op in ops if op in views or op in set(after)]
        read = wanted.union(*[op.inputs for op in after])
        if fuses:
            self.loop = self._sunk(before, read)
        inside = set(self.loop)
        self.before = [
            (op, self.batched[op]) for op in needed_for(self._read_by_loop() | read, before) if op not in inside
        ]
        self.after = [(op, self.batched[op]) for op in after]
        made = {value for op in self.loop for value in op.results if op not in views}
        made.update(step.carry)
        whole = {*step.ys, *self._leaves}.union(*[op.inputs for op in after])
        adding = [op for op in self.loop if fuses and _adds_up(op)]
        self.summed = [value for value in _results(adding) if value in self._addends and value not in whole]
        read.difference_update(self.summed)
        self.stacked = [value for value in [*step.carry, *_results(self.loop)] if value in made and value in read]
        loops = self._read_by_loop()
        self.streamed = [v for v in [*step.xs, *[v for op, _ in self.before for v in op.results]] if v in loops]

    def _by_level(self, ops: list[Op]) -> tuple[list[Op], list[Op], list[Op]]:
        """Operations that depend on constants alone; on inputs too; and on the state, or must be done at each step."""
        step = self.step
        self.level: dict[Value, int] = dict.fromkeys(step.consts, SAME)
        self.level |= dict.fromkeys(step.xs, BEFORE) | dict.fromkeys(step.carry, CARRIED)
        self.batched: dict[Op, Callable[..., Any]] = {}
        groups: tuple[list[Op], list[Op], list[Op]] = ([], [], [])
        for op in ops:
            level = max([self.level[value] for value in op.inputs], default=SAME)
            if level != SAME:
                rule, timed = op.rule, self._timed(op)
                how = rule.over_time(rule, op.params, _forms(op), timed) if self.apart and rule.over_time else None
                if how is None:
                    level = CARRIED
                else:
                    self.batched[op] = how
            groups[level].append(op)
            self.level.update(dict.fromkeys(op.results, level))
        return groups

    def _read_by_loop(self) -> set[Value]:
        made = set(_results(self.loop))
        return {v for op in self.loop for v in op.inputs}.union(self.step.following).difference(made)

    def _timed(self, op: Op) -> list[bool]:
        return [type(operand) is Value and self.level[operand] != SAME for operand in op.operands]

    def _needed_in_loop(self, carried: list[Op]) -> set[Op]:
        needed = set(self.step.following)
        looped: set[Op] = set()
        for op in reversed(carried):
            if op not in self.batched or not needed.isdisjoint(op.results):
                looped.add(op)
                needed.update(op.inputs)
        return looped

    def _views_of_stacked(self, read: set[Value]) -> set[Op]:
        """Views made in the loop that are rather made again after it, of what they are views of."""
        views: set[Op] = set()
        read = set(read)
        for op in reversed(self.loop):
            results = read.intersection(op.results)
            if op.rule.view and op in self.batched and results:
                sources = [value for value in op.inputs if value not in read]
                most = sum(value.bytes for value in results)
                if sum(value.bytes for value in sources) <= (most if self.fuses else 2 * most):
                    views.add(op)
                    read.update(op.inputs)
        return views

    def _sunk(self, before: list[Op], read: set[Value]) -> list[Op]:
        """The loop, with those operations that it needs and that it does faster, by fusing them, than they are done
        before it, unless these are there for others that come before it."""
        sunk: set[Op] = set()
        outside = set(self.step.following)
        for op in reversed(before):
            if _fuses(op) and outside.isdisjoint(op.results) and not (op.rule.view and not read.isdisjoint(op.results)):
                sunk.add(op)
            else:
                outside.update(op.inputs)
        inputs = {value for op in self.loop for value in op.inputs}
        used = set(needed_for(inputs, [op for op in before if op in sunk]))
        for op in needed_for(inputs | read, before):  # what is only wanted otherwise goes along with what it is made of
            if op in sunk and not set(_results(used)).isdisjoint(op.inputs):
                used.add(op)
        self.level.update(dict.fromkeys(_results(used), CARRIED))
        return [op for op in before if op in used] + self.loop

    def _total(self, value: Value) -> Total:
        if value not in self._known_totals:
            self._known_totals[value] = self._found_total(value)
        return self._known_totals[value]

    def _found_total(self, value: Value) -> Total:
        """The sum of ``value`` over all steps, pulled through operations that are linear."""
        if self.level[value] == SAME:
            self._leaves.add(value)
            return lambda run: run[value] * run.steps
        op = value.op
        near = op is not None and (op.rule.joins or (op in self._looped and op.rule.elementwise))  # no work to save
        if op in self.batched and not op.rule.several and not near:
            timed = self._timed(op)
            floats = all(o.dtype.kind == "f" for o, has in zip(op.operands, timed, strict=True) if has)
            changing = [name for name, has in zip(_operand_names(op), timed, strict=True) if has]
            rule = op.rule
            if floats and (rule.jointly or (len(changing) == 1 and changing[0] in rule.each)):
                parts = [
                    self._total(o) if has or (rule.jointly and type(o) is Value) else self._constant(o, rule.jointly)
                    for o, has in zip(op.operands, timed, strict=True)
                ]
                forward, named = rule.forward, op.named
                return lambda run: forward(run.F, *[part(run) for part in parts], **named)
            if rule.total is not None and (how := rule.total(rule, op.params, _forms(op), timed)):
                self._leaves.update(op.inputs)
                return lambda run: how(run.F, run.steps, *[run[operand] for operand in op.operands])
        self._addends.add(value)
        return lambda run: run.sums[value] if value in run.sums else run.F.sum(run[value], axis=0)

    def _constant(self, operand: Any, summed: bool) -> Total:
        if type(operand) is Value:
            self._leaves.add(operand)
            return lambda run: run.values[operand]
        return (lambda run: operand * run.steps) if summed else (lambda run: operand)


def _cheap(after: list[Op]) -> set[Op]:
    """Those that had better be done in the loop, where they are fused: what needs no result of the others, for which
    there is code, and views that these need."""
    late: set[Value] = set()
    cheap: list[Op] = []
    for op in after:
        if _fuses(op) and late.isdisjoint(op.inputs):
            cheap.append(op)
        else:
            late.update(op.results)
    needed: set[Value] = set()
    kept: set[Op] = set()
    for op in reversed(cheap):
        if not op.rule.view or not needed.isdisjoint(op.results):
            kept.add(op)
            needed.update(op.inputs)
    return kept


def _fuses(op: Op) -> bool:
    """Whether an engine that fuses operations has code for it, and gains by that."""
    coded = op.rule.view or op.rule.scalar is not None or op.rule.name in REDUCTIONS
    return bool(coded) and all(value.dtype.kind in "fb" for value in op.results)


def _adds_up(op: Op) -> bool:
    """Whether a loop over elements makes the result, which it may add to a sum while it has it."""
    return op.rule.scalar is not None and op.results[0].dtype.kind == "f"


def _results(ops: Iterable[Op]) -> list[Value]:
    return [value for op in ops for value in op.results]


def _forms(op: Op) -> list[Any]:
    """The operands by their shapes and dtypes; numbers have none."""
    return [operand if type(operand) is Value else np.empty(()) for operand in op.operands]


def _operand_names(op: Op) -> list[str]:
    *first, last = op.rule.operands
    return [*first, *[last] * (len(op.operands) - len(first))]
