"""Fewer calls in the loop, for an engine that pays for each; one that fuses operations has no use for this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.step import Op, Step, Value

FEW = 1 << 12  # more elements than that are multiplied faster in the loop, where they are in the processor's caches


def gathered(ops: Sequence[Op], step: Step, level: Mapping[Value, int], carried: Collection[Op]) -> list[Op]:
    """``ops`` in order; in sums among those that are ``carried``, what does not depend on the state comes first.

    So ``(x + a) + (h + b)`` becomes ``((a + b) + x) + h``, of which one addition is left in the loop; and the same in
    products.
    """
    known = set(ops)
    reads = Counter([*step.ys, *step.following, *step.totals, *[value for op in ops for value in op.inputs]])
    instead: dict[Op, list[Op]] = {}

    def chain(op: Op) -> list[Op]:
        """The sums, or products, that are read by this one alone, or by such."""
        inner = [o.op for o in op.operands if type(o) is Value and reads[o] == 1 and o.op in known]
        return [op, *[one for part in inner if part and part.rule is op.rule for one in chain(part)]]

    for op in reversed(ops):
        gathers = op.rule.name == "add" or (op.rule.name == "multiply" and prod(op.results[0].shape) <= FEW)
        if not gathers or op not in carried or op in instead:
            continue
        links = chain(op)
        made = {value for one in links for value in one.results}
        terms = [o for one in links for o in one.operands if o not in made]
        if not all(type(o) is Value and o.dtype == op.results[0].dtype for o in terms):
            continue
        late = [o for o in terms if level[o] == level[op.results[0]]]
        if len(late) < sum(one in carried for one in links):
            total, *others = sorted(terms, key=lambda o: level[o])
            instead |= {one: [] for one in links}
            for term in others:
                instead[op].append(_like(op, total, term))
                (total,) = instead[op][-1].results
            instead[op][-1].results = op.results
    return [one for op in ops for one in instead.get(op, [op])]


def _like(other: Op, a: Any, b: Any) -> Op:
    op = Op(other.rule, (a, b), other.params, other.recording)
    op.results = (Value(np.broadcast_shapes(a.shape, b.shape), a.dtype, op),)
    return op


JOINED = ("add", "sigmoid", "tanh")  # rules that do no harm to those parts of which nobody asked for it


def joined(ops: Sequence[Op], candidates: Collection[Op]) -> list[Op]:
    """``ops`` in order; where ``candidates`` do the same to most parts of a whole, it is done to the whole, and parted.

    The gates of a cell are such parts.
    """
    parts: dict[Value, tuple[Op, int]] = {}  # what parts a whole, and the how-manieth part it is
    groups: dict[tuple[Any, ...], tuple[dict[int, Op], Op, Op]] = {}
    for op in ops:
        if op.rule.name == "split":
            parts |= {value: (op, place) for place, value in enumerate(op.results)}
        found = [parts[o] for o in op.operands if type(o) is Value and o in parts]
        if op.rule.name not in JOINED or op not in candidates or len(found) < len(op.operands):
            continue
        partings, places = zip(*found, strict=True)
        wholes = [parting.operands[0] for parting in partings]
        alike = {(parting.params, whole.shape) for parting, whole in zip(partings, wholes, strict=True)}
        if len(alike) > 1 or len(set(places)) > 1:
            continue
        key = op.rule, *partings
        if key not in groups:
            whole, dtype = Op(op.rule, tuple(wholes), op.params, op.recording), op.results[0].dtype
            whole.results = (Value(wholes[0].shape, dtype, whole),)
            parting = Op(partings[0].rule, whole.results, partings[0].params, op.recording)
            parting.results = tuple([Value(part.shape, dtype, parting) for part in partings[0].results])
            groups[key] = {}, whole, parting
        members, _, parting = groups[key]
        if places[0] not in members:
            members[places[0]] = op
            parts[op.results[0]] = parting, places[0]
    instead: dict[Op, list[Op]] = {}
    for members, whole, parting in groups.values():
        if 2 * len(members) > len(parting.results):  # and so it is for those whose results these take
            made = {place: member.results[0] for place, member in members.items()}
            parting.results = tuple([made.get(place, part) for place, part in enumerate(parting.results)])
            first, *others = members.values()
            instead |= {first: [whole, parting], **{other: [] for other in others}}
    return [one for op in ops for one in instead.get(op, [op])]
