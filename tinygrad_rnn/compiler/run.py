"""A recorded step over a sequence, as one operation on the tape.

Forwards it is the step, split and run by an engine; backwards it is the step that `derive` made of it, run by the same
engine. When the gradient is itself to be recorded, the step backwards is run by this same operation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tinygrad_rnn import tape
from tinygrad_rnn.compiler import array
from tinygrad_rnn.compiler.derive import Backward, backward_of, cut, flowing
from tinygrad_rnn.compiler.program import Arrays, Program
from tinygrad_rnn.compiler.record import NoCode
from tinygrad_rnn.compiler.segments import Segment, in_segments, saving
from tinygrad_rnn.compiler.step import Step, Value
from tinygrad_rnn.ops.rule import _check
from tinygrad_rnn.tensor import Tensor, _wrap, as_tensor

Flags = tuple[bool, ...]


class Way:
    """A program backwards, and where what it is given comes from.

    Attributes
    ----------
    sources
        Of each of its inputs and of each of its constants: of which group it is, and which of that. The groups are
        ``xs`` and ``consts`` of the run forwards, what was ``saved`` of it, its ``states``, the cotangents ``dys`` and
        ``dtotals``, and the program's ``literals``.
    read
        Those of ``xs`` and ``consts`` that are read.
    states
        Whether the state before each step is read, which was not saved.
    found
        Where among its results, outputs, last state and totals, the cotangent of each that has asked for one is; None
        if there is none.
    """

    def __init__(self, plan: Compiled, program: Program, backward: Backward) -> None:
        step = plan.step
        self.program = program
        self.backward = backward
        first = len(step.xs) + len(step.carry)
        groups: dict[str, Sequence[tuple[int, Value]]] = {
            "xs": [*enumerate(step.xs)],
            "consts": [*enumerate(step.consts)],
            "states": [*enumerate(step.carry)],
            "saved": [*enumerate(plan.saved)],
            "dys": [*zip(backward.ys, backward.step.xs[first:], strict=True)],
            "dtotals": [*zip(backward.totals, backward.step.consts[len(step.consts) :], strict=False)],
            "literals": [*enumerate(program.step.literals)],
        }
        source = {value: (kind, i) for kind, pairs in groups.items() for i, value in pairs}
        self.sources = [[source[value] for value in group] for group in (program.step.xs, program.step.consts)]
        taken = [one for group in self.sources for one in group]
        self.read = [one for one in taken if one[0] in ("xs", "consts")]
        self.states = any(kind == "states" for kind, _ in taken)
        given = backward.xs, [i if i in backward.reached else None for i in backward.carry], backward.consts
        self.found = [(k, given[k].index(i)) if i in given[k] else None for k, i in plan.wanted]


class Compiled:
    """A step with what is asked of it: programs forwards and backwards, made when they are first needed.

    Attributes
    ----------
    step
        The step, whose outputs are those that were asked for, ``size`` of them, and then what its step backwards reads.
    active
        Which of the outputs, parts of the state and totals a gradient passes through.
    wanted
        The inputs, parts of the state and constants that gradients are asked for, as group and place in it.
    """

    def __init__(self, step: Step, engine: Any, asked: tuple[Flags, ...]) -> None:
        self.engine = engine
        self.asked = asked
        self.size = len(step.ys)
        self._backward: dict[Any, Way] = {}
        self.wanted = [(k, i) for k, flags in enumerate(asked) for i, flag in enumerate(flags) if flag]
        if self.wanted:
            every = [[True] * len(group) for group in (step.ys, step.carry, step.totals)]
            first = backward_of(step, *every, *asked)
            shorter, saved = cut(step, first.step)
            states = [value for value in step.carry if value in shorter.xs]
            step = replace(step, ys=[*step.ys, *saved, *states])
            _, passed = flowing(step, *asked)
            groups = step.ys, step.following, step.totals
            self.active = [[value in passed for value in group] for group in groups]
            self.pulling = _Plan(len(self.wanted))
        self.step = step
        self.forward = self._forwards(step)
        if self.wanted:  # at once, so that an engine which has no code for it says so now
            ys = (True,) * self.size + (False,) * (len(step.ys) - self.size)
            self._add((*ys, *self.active[1], *[True] * len(step.totals)), asked, False, engine)

    def _forwards(self, step: Step) -> Program:
        """A program whose outputs begin with those of the step; what is saved and not asked for, only we read."""
        return Program(step, self.engine, True, set(self.saved).difference(step.ys[: self.size]))

    @property
    def programs(self) -> list[Program]:
        """The programs backwards that there are so far."""
        return [way.program for way in self._backward.values()]

    @property
    def saved(self) -> list[Value]:
        """What the step backwards reads."""
        return self.step.ys[self.size :]

    def parted(self, results: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """What belongs to results, parted into that of outputs, of the last state and of totals."""
        first = len(self.step.ys)
        second = first + len(self.step.carry)
        return results[:first], results[first:second], results[second:]

    def backward(self, given: Flags, asked: tuple[Flags, ...], each: bool = False) -> Way:
        """How cotangents of those results of which some are given are carried to what is asked, or ``each`` step's (see
        `backward_of`)."""
        key = given, asked, each
        if key not in self._backward:
            try:
                self._add(*key, self.engine)
            except NoCode:  # parts of a step backwards may be what the engine has no code for
                self._add(*key, array)
        return self._backward[key]

    def _add(self, given: Flags, asked: tuple[Flags, ...], each: bool, engine: Any) -> None:
        backward = backward_of(self.step, *self.parted(given), *asked, each=each)
        shorter, _ = cut(self.step, backward.step, self.saved)
        self._backward[given, asked, each] = Way(self, Program(shorter, engine), backward)

    @cached_property
    def marking(self) -> Program:
        """The program forwards that also gives the state before each step; all else has the bits of ``forward``."""
        return self._forwards(replace(self.step, ys=[*self.step.ys, *self.step.carry]))

    @cached_property
    def states(self) -> Program:
        """The program that gives the state before each step, where the steps backwards of higher order need it."""
        return Program(replace(self.step, ys=self.step.carry, totals=[]), self.engine)


MOST = 256  # so many structures are remembered
_known: OrderedDict[Any, Compiled | NoCode] = OrderedDict()


def compiled(step: Step, engine: Any, *groups: list[Tensor]) -> Compiled:
    """The programs for ``step``, from memory if a step of the same structure came before.

    ``groups`` are the inputs, the initial state and the constants, or others that need gradients where these do.

    Raises
    ------
    NoCode
        If the engine has no code for the step; this too is remembered.
    """
    recording = tape.MODE.get().recording
    asked = tuple([tuple([recording and tensor.requires_grad for tensor in group]) for group in groups])
    key = engine, step.key, asked
    found = _known.get(key)
    if found is None:
        try:
            found = Compiled(step, engine, asked)
        except NoCode as refusal:
            found = NoCode(*refusal.args)  # without the traceback, which would keep what was recorded
        _known[key] = found
        if len(_known) > MOST:
            _known.popitem(last=False)
    else:
        _known.move_to_end(key)
    if isinstance(found, NoCode):
        raise NoCode(*found.args)
    return found


@dataclass(slots=True)
class Kept:
    """What a node of a scan keeps for its backward pass: what was saved of all steps, or segments (in time order)."""

    F: Any
    compiled: Compiled
    steps: int
    reverse: bool
    xs: list[Tensor]
    carry: list[Tensor]
    consts: list[Tensor]
    saved: Arrays
    segments: list[Segment] | None

    @property
    def inputs(self) -> tuple[Arrays, Arrays, Arrays]:
        """The arrays of inputs, initial state and constants."""
        xs, carry, consts = [[tensor._data for tensor in group] for group in (self.xs, self.carry, self.consts)]
        return xs, carry, consts


def over(
    F: Any,
    plan: Compiled,
    steps: int,
    reverse: bool,
    xs: list[Tensor],
    carry: list[Tensor],
    consts: list[Tensor],
    recompute: int | str | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run a step over a sequence: its outputs at all steps, the last state, and the totals.

    With ``recompute`` only some states are kept for the gradient, and what lies between is computed again; the step
    must have no totals.
    """
    kept = Kept(F, plan, steps, reverse, xs, carry, consts, [], None)
    if not plan.wanted:
        ys, last, totals = [
            [_wrap(plan.engine.in_order(array)) for array in group]
            for group in plan.forward(F, steps, reverse, *kept.inputs)
        ]
        return ys, last, totals
    if recompute is None:
        arrays = plan.forward(F, steps, reverse, *kept.inputs)
        kept.saved = arrays[0][plan.size :]
    else:
        arrays = in_segments(kept, recompute)
    groups = xs, carry, consts
    wanted = [groups[k][i] for k, i in plan.wanted]
    parents = [tensor if tensor._node is None else tensor._node for tensor in wanted]
    node = tape.record(SCAN, tuple(parents), plan.pulling, (kept,))
    results = arrays[0][: plan.size], *arrays[1:]  # what is saved is nobody else's
    count = sum(map(len, plan.active))
    first = 0
    for group, active in zip(results, plan.active, strict=True):
        for i, result in enumerate(group):
            group[i] = _selected(node, plan.engine.in_order(result), first + i, count, active[i])
        first += len(active)
    return results


def _selected(node: tape.Node, array: Any, position: int, count: int, active: bool) -> Tensor:
    """One result of a scan as a tensor."""
    return _wrap(array, tape.record(SCAN, (node,), tape.SELECT, (position, count)) if active else None)


class _Scan:
    """The rule of the nodes of scans; see `tinygrad_rnn.ops.rule.Rule`."""

    name = "scan"
    operands = readable = params = ()
    elementwise = False

    def pull(self, node: tape.Node, cotangents: Any, as_tensors: bool, asked: set[tape.Parent] | None) -> list[Any]:
        """For each parent of ``node`` its cotangent."""
        (kept,) = node.kept
        if as_tensors and kept.segments is not None:
            _check_all([*kept.xs, *kept.carry, *kept.consts], node)
            kept = saving(kept)
            node = tape.record(SCAN, node.parents, node.plan, (kept,))
        plan: Compiled = kept.compiled
        wanted = plan.asked
        if asked is not None:
            parents = iter(node.parents)
            wanted = tuple([tuple([flag and next(parents) in asked for flag in flags]) for flags in wanted])
        way, dys, dtotals, carry = self._way(kept, cotangents, wanted, False)
        program, F = way.program, kept.F
        if as_tensors:
            carry = [as_tensor(part) for part in carry]
            xs, consts = self._given(node, kept, way, dys, dtotals, True)
            found = self._again(F, program.step, plan.engine, kept.steps, not kept.reverse, xs, carry, consts)
        elif kept.segments is None:
            xs, consts = self._given(node, kept, way, dys, dtotals, False)
            found = program(F, kept.steps, not kept.reverse, xs, carry, consts)
        else:
            found = self._by_segments(node, kept, way, dys, dtotals, carry)
        return [None if place is None else found[place[0]][place[1]] for place in way.found]

    def each_step(self, node: tape.Node, cotangents: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        """Of each part of the state its cotangents after all steps, and of each constant what all steps add to its."""
        (kept,) = node.kept
        if kept.segments is not None:
            kept = saving(kept)
        way, dys, dtotals, carry = self._way(kept, cotangents, kept.compiled.asked, True)
        xs, consts = self._given(node, kept, way, dys, dtotals, False)
        ys, _, _ = way.program(kept.F, kept.steps, not kept.reverse, xs, carry, consts)
        backward = way.backward
        states = ys[len(backward.xs) : len(ys) - len(backward.consts)]
        shares = ys[len(ys) - len(backward.consts) :]
        return dict(zip(backward.following, states, strict=True)), dict(zip(backward.consts, shares, strict=True))

    def _way(
        self, kept: Kept, cotangents: Any, wanted: tuple[Flags, ...], each: bool
    ) -> tuple[Way, Sequence[Any], Sequence[Any], list[Any]]:
        """The way backwards for these cotangents, those of outputs and totals, and the state that it begins with."""
        dys, dlast, dtotals = kept.compiled.parted(cotangents)
        way = kept.compiled.backward(tuple([g is not None for g in cotangents]), wanted, each)
        carry = [
            kept.F.zeros(value.shape, dtype=value.dtype) if dlast[i] is None else dlast[i]
            for i, value in zip(way.backward.carry, way.program.step.carry, strict=True)
        ]
        return way, dys, dtotals, carry

    def _again(
        self,
        F: Any,
        step: Step,
        engine: Any,
        steps: int,
        reverse: bool,
        xs: list[Tensor],
        carry: list[Tensor],
        consts: list[Tensor],
    ) -> tuple[list[Tensor], ...]:
        """The step backwards as one that can itself be differentiated, by an engine that has code for that."""
        groups = xs, carry, consts
        try:
            plan = compiled(step, engine, *groups)
        except NoCode:
            plan = compiled(step, array, *groups)
        return over(F, plan, steps, reverse, *groups)

    def _by_segments(
        self, node: tape.Node, kept: Kept, way: Way, dys: Sequence[Any], dtotals: Sequence[Any], carry: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Cotangents, segment by segment, each of them gone through forwards once more just before."""
        _check_all([*kept.xs, *kept.consts], node)
        F, program, segments = kept.F, way.program, kept.segments or []
        dxs = [F.empty((kept.steps, *value.shape), dtype=value.dtype) for value in program.step.ys]
        sums: Arrays = []

        def run(segment: Segment) -> None:
            nonlocal carry, sums
            part = segment.steps
            arriving = [dy if dy is None else dy[part] for dy in dys]
            xs, consts = self._given(node, saving(kept, segment), way, arriving, dtotals, False)
            found, carry, totals = program(F, part.stop - part.start, not kept.reverse, xs, carry, consts)
            for dx, one in zip(dxs, found, strict=True):
                dx[part] = one
            sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals

        for segment in segments if kept.reverse else reversed(segments):
            run(segment)
        return dxs, carry, sums

    def _given(
        self, node: tape.Node, kept: Kept, way: Way, dys: Sequence[Any], dtotals: Sequence[Any], as_tensors: bool
    ) -> list[list[Any]]:
        """What the step backwards reads, as inputs and as constants."""
        plan, F, step = kept.compiled, kept.F, kept.compiled.step
        tensors = {"xs": kept.xs, "consts": kept.consts}
        _check_all([tensors[kind][i] for kind, i in way.read], node)
        groups: dict[str, Sequence[Any]] = {"dys": dys, "dtotals": dtotals, "saved": kept.saved}
        groups["literals"] = [F.asarray(array) for array in way.program.step.literals.values()]
        if as_tensors:
            count = len(step.ys) + len(step.carry) + len(step.totals)
            positions = range(plan.size, len(step.ys))
            groups |= tensors
            groups["literals"] = [Tensor(array) for array in groups["literals"]]
            groups["saved"] = [
                _selected(node, array, i, count, plan.active[0][i])
                for array, i in zip(kept.saved, positions, strict=True)
            ]
        else:
            groups |= {kind: [tensor._data for tensor in group] for kind, group in tensors.items()}
        if way.states:
            groups["states"] = self._states(kept, as_tensors)
        return [[groups[kind][i] for kind, i in sources] for sources in way.sources]

    def _states(self, kept: Kept, as_tensors: bool) -> list[Any]:
        """The state before each step, gone through once more."""
        plan, groups = kept.compiled, (kept.xs, kept.carry, kept.consts)
        if as_tensors:
            again = compiled(plan.states.step, plan.engine, *groups)
            return over(kept.F, again, kept.steps, kept.reverse, *groups)[0]
        return plan.states(kept.F, kept.steps, kept.reverse, *kept.inputs)[0]


def _check_all(tensors: Iterable[Tensor], node: tape.Node) -> None:
    """Raise if one that could have been written since was."""
    for tensor in tensors:
        if tensor._node is None or tensor._base is not None:
            _check(tensor, node)


class _Plan:
    """The plan of the nodes of scans; see `tinygrad_rnn.ops.rule.Plan`."""

    quick = None
    lasting = False
    keeps = ()
    out = -1

    def __init__(self, parents: int) -> None:
        self.indices = tuple(range(parents))


SCAN: Any = _Scan()


def node_of(results: Iterable[Tensor]) -> tape.Node | None:
    """The node of the scan that has these results, if a gradient passes through one."""
    return next((tensor._node.parents[0] for tensor in results if tensor._node is not None), None)
