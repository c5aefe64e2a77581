"""The step backwards: what carries cotangents through one step of a recurrence, derived by the tape itself.

The step is done once on tensors of zeros, whose values nobody looks at, and walked backwards with the walk recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.compiler.step import Op, Recorder, Step, Value, hashable, needed_for, replay
from tinygrad_rnn.gradients import _key
from tinygrad_rnn.tensor import Tensor


@dataclass
class Backward:
    """The step backwards.

    Attributes
    ----------
    step
        It takes as ``xs`` those of the step forwards, the state that it was given, and the cotangents of its outputs;
        carries the cotangent of the state; and gives the cotangents of ``xs`` as outputs, of ``consts`` as totals.
    ys, carry
        Of which outputs, and of which parts of the state, it takes and carries the cotangents.
    reached
        Those parts of the state before a step that the results depend on.
    totals
        Of which totals it takes the cotangents, after the constants.
    xs, consts
        Of which it gives the cotangents.
    following
        Of which parts of the state after a step it gives the cotangents; none, unless each step was asked for.
    """

    step: Step
    ys: list[int]
    carry: list[int]
    reached: list[int]
    totals: list[int]
    xs: list[int]
    consts: list[int]
    following: list[int]


def backward_of(
    step: Step,
    ys: Sequence[bool],
    last: Sequence[bool],
    totals: Sequence[bool],
    xs: Sequence[bool],
    carry: Sequence[bool],
    consts: Sequence[bool],
    *,
    each: bool = False,
) -> Backward:
    """The step that carries cotangents back through ``step``.

    Parameters
    ----------
    ys, last, totals
        Which outputs, parts of the last state and totals have a cotangent.
    xs, carry, consts
        Of which inputs, initial states and constants the cotangents are asked for.
    each
        Whether what a step adds to the cotangents of constants is wanted of each step, as outputs that come after those
        of ``xs`` and of the state after the step; not their sums.
    """
    flows, _ = flowing(step, xs, carry, consts)
    recorder = Recorder()
    token = tape.MODE.set(tape.Mode(True, recorder))
    try:
        with np.errstate(all="ignore"):
            values = _leaves(step, xs, flows, consts)
            for value, tensor in values.items():
                recorder.meet(tensor, value)
            for op in step.ops:
                replay(op, values)
                for result in op.results:
                    recorder.meet(values[result], result)
            recorder.ops.clear()  # these are known
            roots: list[tuple[tape.Parent, Tensor]] = []

            def cotangents(results: Sequence[Value], positions: Sequence[int]) -> list[Value]:
                made = []
                for i in positions:
                    cotangent = Tensor(np.zeros(results[i].shape, results[i].dtype))
                    made.append(recorder.meet(cotangent))
                    if values[results[i]].requires_grad:
                        roots.append((_key(values[results[i]]), cotangent))
                return made

            taken = {
                "ys": _chosen(ys, [values[y].requires_grad for y in step.ys]),
                "following": _chosen(_live(step, ys, last, totals), flows),
                "totals": _chosen(totals, [values[total].requires_grad for total in step.totals]),
            }
            arriving = {kind: cotangents(getattr(step, kind), positions) for kind, positions in taken.items()}
            given = {"xs": _chosen(xs, xs), "carry": taken["following"], "consts": _chosen(consts, consts)}
            sources = {kind: [values[getattr(step, kind)[i]] for i in chosen] for kind, chosen in given.items()}
            keys = {leaf for leaves in sources.values() for leaf in leaves}
            after = [_key(values[value]) for value in step.following] if each else []
            keys.update(after)
            found: dict[tape.Parent, Tensor] = {}
            if roots:
                found = tape.walk(roots, keys, True, True)
            for kind in ("xs", "consts"):  # what the results do not depend on has no cotangent
                pairs = [pair for pair in zip(given[kind], sources[kind], strict=True) if pair[1] in found]
                given[kind], sources[kind] = [i for i, _ in pairs], [leaf for _, leaf in pairs]
            reached = [i for i, leaf in zip(given["carry"], sources["carry"], strict=True) if leaf in found]
            leaving = {
                kind: [
                    recorder.value(found[leaf] if leaf in found else Tensor(np.zeros(leaf.shape, leaf.dtype)))
                    for leaf in leaves
                ]
                for kind, leaves in sources.items()
            }
            given["following"] = [i for i, key in enumerate(after) if key in found]
            leaving["following"] = [recorder.value(found[after[i]]) for i in given["following"]]
    finally:
        tape.MODE.reset(token)
    literals = {value: tensor._data for value, tensor in recorder.constants.items()}
    ops, same = _once(recorder.ops)
    leaving = {kind: [same.get(value, value) for value in values] for kind, values in leaving.items()}
    back = Step(
        xs=[*step.xs, *step.carry, *arriving["ys"]],
        carry=arriving["following"],
        consts=[*step.consts, *arriving["totals"], *literals],
        ops=[*step.ops, *ops],
        ys=[*leaving["xs"], *leaving["following"], *leaving["consts"]] if each else leaving["xs"],
        following=leaving["carry"],
        totals=[] if each else leaving["consts"],
        literals=step.literals | literals,
    )
    back.ops = back.pruned()
    taking = taken["ys"], taken["following"], reached, taken["totals"]
    return Backward(back, *taking, given["xs"], given["consts"], given["following"])


def _once(ops: Iterable[Op]) -> tuple[list[Op], dict[Value, Value]]:
    """``ops`` without those that do what another did, and which results stand for theirs."""
    known: dict[Any, Op] = {}
    same: dict[Value, Value] = {}
    for op in ops:
        op.operands = tuple([same.get(o, o) if type(o) is Value else o for o in op.operands])
        first = known.setdefault((op.rule, hashable(op.operands), hashable(op.params), op.recording), op)
        if first is not op:
            same.update(zip(op.results, first.results, strict=True))
    return list(known.values()), same


def _leaves(step: Step, xs: Sequence[bool], carry: Sequence[bool], consts: Sequence[bool]) -> dict[Value, Tensor]:
    values: dict[Value, Tensor] = {}
    for group, asked in ((step.xs, xs), (step.carry, carry), (step.consts, consts)):
        for value, ask in zip(group, asked, strict=True):
            values[value] = Tensor(np.zeros(value.shape, value.dtype), requires_grad=ask)
    return values


def flowing(
    step: Step, xs: Sequence[bool], carry: Sequence[bool], consts: Sequence[bool]
) -> tuple[list[bool], set[Value]]:
    """Through which parts of the state a gradient flows, and all values that it passes: what is asked for has a part in
    them."""
    flows = list(carry)
    while True:
        passed = {
            value
            for group, flags in ((step.xs, xs), (step.carry, flows), (step.consts, consts))
            for value, flag in zip(group, flags, strict=True)
            if flag
        }
        for op in step.ops:
            if op.recording and op.rule.vjps and not passed.isdisjoint(op.inputs):
                passed.update(result for result in op.results if result.dtype.kind == "f")
        more = [flow or value in passed for flow, value in zip(flows, step.following, strict=True)]
        if more == flows:
            return flows, passed
        flows = more


def _live(step: Step, ys: Sequence[bool], last: Sequence[bool], totals: Sequence[bool]) -> list[bool]:
    """Which parts of the state the results have a cotangent for, at some step."""
    ends = {
        v for group, flags in ((step.ys, ys), (step.totals, totals)) for v, f in zip(group, flags, strict=True) if f
    }
    live = list(last)
    while True:
        wanted = ends.union(v for v, flag in zip(step.following, live, strict=True) if flag)
        for op in reversed(step.ops):
            if op.recording and op.rule.vjps and not wanted.isdisjoint(op.results):
                wanted.update(op.inputs)
        more = [flag or value in wanted for flag, value in zip(live, step.carry, strict=True)]
        if more == live:
            return live
        live = more


def _chosen(asked: Sequence[bool], possible: Sequence[bool]) -> list[int]:
    return [i for i, both in enumerate(zip(asked, possible, strict=True)) if all(both)]


def cut(step: Step, backward: Step, kept: Collection[Value] | None = None) -> tuple[Step, list[Value]]:
    """The step backwards without the step forwards in it, and what it takes instead: values to save at each step.

    If ``kept`` is given, these have been saved, and it must do with them.
    """
    ours = {result for op in step.ops for result in op.results}
    ends = [*backward.ys, *backward.following, *backward.totals]
    saved = {v for op in backward.ops if ours.isdisjoint(op.results) for v in op.inputs if v in ours}
    saved.update(ours.intersection(ends))
    at_hand = {*backward.xs, *backward.consts, *(kept or ())}
    again: set[Op] = set()
    for op in reversed(step.ops):  # views, and sums and products of what is at hand, are made again
        results = saved.intersection(op.results).difference(kept or ())
        sources = {value for value in op.inputs if value not in at_hand and value not in saved}
        linear = op.rule.elementwise and (op.rule.jointly or op.rule.each)
        small = op.rule.view and not op.rule.alters and _bytes(sources) <= _bytes(results)
        if results and (kept is not None or small or (linear and not sources)):
            again.add(op)
            saved -= results
            saved |= sources
    ops = needed_for(ends, [op for op in backward.ops if op in again or ours.isdisjoint(op.results)])
    read = {value for op in ops for value in op.inputs}.union(ends)
    taken = [value for op in step.ops if op not in again for value in op.results if value in read]
    shorter = Step(
        xs=[*taken, *[value for value in backward.xs if value in read]],
        carry=backward.carry,
        consts=[value for value in backward.consts if value in read],
        ops=ops,
        ys=backward.ys,
        following=backward.following,
        totals=backward.totals,
        literals={value: array for value, array in backward.literals.items() if value in read},
    )
    return shorter, taken


def _bytes(values: Iterable[Value]) -> int:
    return sum(value.bytes for value in values)
