"""Finding the steps of an unrolled loop again in its tape; `tinygrad_rnn.viz.draw` shows them as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinygrad_rnn.tape import Node


class Ref(NamedTuple):
    """What an operation was given."""

    operand: int  # which operand
    target: int  # the operation that made it, counted from the oldest; for a leaf -1 less its number
    result: int  # which of several results, -1 if there is one


def params_of(node: Node) -> dict[str, Any]:
    """Those static arguments that the node keeps."""
    kept = zip(node.plan.keeps, node.kept, strict=False)
    return {name: value for at, value in kept if (name := node.rule.readable[at]) in node.rule.params}


@dataclass
class Loop:
    """``count`` repeats of ``period`` operations each, the first of which is ``start``."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count

    @property
    def last(self) -> int:
        """Where the last repeat starts: it is the one that is drawn."""
        return self.stop - self.period


class Search:
    """Looks for loops in a graph; each round may find loops that follow those of the last."""

    def __init__(self, nodes: Sequence[Node], refs: Sequence[tuple[Ref, ...]]) -> None:
        self.refs = refs
        self.kinds: list[str] = []  # the operation and its static arguments
        numbers: dict[Any, int] = {}
        keys = []
        for node, given_to in zip(nodes, refs, strict=True):
            # An index is left out: in a loop it may count the steps.
            params = {name: value for name, value in params_of(node).items() if name != "index"}
            self.kinds.append(f"{node.rule.name} {params}")
            given = tuple((ref.operand, min(ref.target, 0), ref.result < 0) for ref in given_to)
            keys.append(numbers.setdefault((self.kinds[-1], given), len(numbers)))
        self.keys = np.array(keys)  # equal for operations that could be repeats of each other
        self.owner = np.full(len(keys), -1)  # which loop an operation is part of
        self.loops: list[Loop] = []
        while self._round():
            pass

    def _round(self) -> bool:
        found = [loop for period in self._periods() for loop in self._with_period(period)]
        before = len(self.loops)
        for loop in sorted(found, key=lambda loop: (loop.start - loop.stop, loop.period)):
            if (self.owner[loop.start : loop.stop] < 0).all():
                self.owner[loop.start : loop.stop] = len(self.loops)
                self.loops.append(loop)
        return len(self.loops) > before

    def _periods(self) -> list[int]:
        """The commonest distances between operations that come of like operations, for three generations back."""
        likeness = self.keys.tolist()
        for _ in range(3):
            likeness = [
                hash((own, *[likeness[ref.target] for ref in refs if ref.target >= 0]))
                for own, refs in zip(likeness, self.refs, strict=True)
            ]
        seen: dict[int, int] = {}
        distances: Counter[int] = Counter()
        for i in np.flatnonzero(self.owner < 0).tolist():
            if (before := seen.get(likeness[i])) is not None:
                distances[i - before] += 1
            seen[likeness[i]] = i
        return [period for period, _ in distances.most_common(12)]

    def _with_period(self, period: int) -> Iterator[Loop]:
        free = self.owner < 0
        same = (self.keys[:-period] == self.keys[period:]) & free[:-period] & free[period:]
        strides: dict[int, list[tuple[int, int]]] = {}
        start = before = -2
        for i in [*np.flatnonzero(same).tolist(), -1]:
            own = self._strides(i, period) if i >= 0 else None
            if own is None or i != before + 1 or (i - period >= start and strides[i - period] != own):
                if start >= 0 and (loop := self._fitted(start, before + 1 + period, period, strides)):
                    yield loop
                start = i if own is not None else -2
            if own is not None:
                strides[i] = own
                before = i

    def _strides(self, i: int, period: int) -> list[tuple[int, int]] | None:
        """How far each operand of ``i`` moves on in the next repeat; None if that is no repeat."""
        strides = []
        for old, new in zip(self.refs[i], self.refs[i + period], strict=True):
            stride = new.target - old.target
            if stride not in (0, period):  # it must go through another loop, from step to step
                owner = self.owner[old.target]
                if owner < 0 or owner != self.owner[new.target] or stride % self.loops[owner].period:
                    return None
            strides.append((stride, new.result - old.result))
        return strides

    def _fitted(self, start: int, stop: int, period: int, strides: dict[int, list[tuple[int, int]]]) -> Loop | None:
        """The loop in a stretch of repeats, with its first steps, which may lack what the others are handed."""
        if stop - start < 2 * period:
            return None
        handed_on, floor = False, 0
        for i in range(stop - 2 * period, stop - period):
            for ref, (stride, _) in zip(self.refs[i], strides[i], strict=True):
                handed_on |= stride == period and ref.target < stop - 2 * period
                if stride == 0:  # what all repeats share cannot be part of one
                    floor = max(floor, ref.target + 1)
        first = start = max(start, floor)
        while first > max(start - 4 * period, floor) and self.owner[first - 1] < 0:
            if self.kinds[first - 1] != self.kinds[first - 1 + period]:
                break
            first -= 1
        for begin in range(first, start + 1):
            loop = Loop(begin, period, (stop - begin) // period)
            if loop.count < (3 if handed_on else 8) or loop.last - period < start:
                continue
            if all(self._enters(i, loop, strides) for i in range(begin, start)):
                return loop
        return None

    def _enters(self, i: int, loop: Loop, strides: dict[int, list[tuple[int, int]]]) -> bool:
        """Whether ``i`` may be of the first repeats: what the last does, traced back, but for what was handed on."""
        steps = (loop.stop - 1 - i) // loop.period
        model = i + steps * loop.period
        given = {ref.operand: ref for ref in self.refs[i]}
        for ref, (stride, turn) in zip(self.refs[model], strides[model - loop.period], strict=True):
            own = given.pop(ref.operand, None)
            target = ref.target - steps * stride
            if stride == loop.period and target < loop.start:
                if own is None or own.target < loop.start:
                    continue
                return False
            if own != (ref.operand, target, ref.result - steps * turn):
                return False
        return not given
