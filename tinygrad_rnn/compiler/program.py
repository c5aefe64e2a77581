"""A split step that an engine runs over sequences: what is done once, before the loop, in it, and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from tinygrad_rnn.compiler.segments import parts
from tinygrad_rnn.compiler.split import CARRIED, SAME, Batched, Run, Split
from tinygrad_rnn.compiler.step import PRODUCTS, Op, Step, Value

Arrays = list[Any]
ROWS, STEPS = 1024, 128  # so many rows in one product are enough for BLAS to be fast; but not more than so many steps


class Program:
    """A step that is ready to run over sequences.

    Attributes
    ----------
    stretch
        For so many steps at once products outside of the loop are done: BLAS may round a row otherwise if it is one of
        more rows, so that a part of a sequence has the bits of the whole if it begins where a stretch does. 1 stands
        for any number, if bits do not matter or the engine's products have rows apart.
    grain
        So many steps are worth a run of their own.
    """

    def __init__(self, step: Step, engine: Any, stretches: bool = False, saved: Iterable[Value] = ()) -> None:
        """Get a step ready; ``saved`` are those of its outputs that are only read, by nobody but this package."""
        self.step = step
        self.engine = engine
        self.split = Split(step, engine.FUSES)
        self.loop = engine.Loop(self.split)
        outside = [op for op, _ in [*self.split.before, *self.split.after] if op.rule.name in PRODUCTS]
        rows = min([prod(op.results[0].shape[:-1]) for op in outside], default=1)
        self.grain = min(-(-ROWS // max(rows, 1)), STEPS)
        self.stretch = self.grain if outside and stretches and not engine.ROWS_APART else 1
        self._given = [*step.xs, *step.consts]
        self._totals = [(value, value in step.totals[:i]) for i, value in enumerate(step.totals)]
        self._done_with = self._last_reads()
        level = self.split.level
        inner = {value for value in saved if level[value] == level[_viewed(value)] == CARRIED}
        # Outputs whose arrays are nobody else's, or are never written.
        self._own = inner.union(step.carry)
        made = [value for value in step.ys if value.op is not None and not value.op.rule.view]
        self._own.update([value for value in made if level[value] == CARRIED])

    def __call__(
        self, F: Any, steps: int, reverse: bool, xs: Arrays, carry: Arrays, consts: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs of all steps, last state, and totals."""
        split = self.split
        F = self.engine.backend(F)
        run = Run(self.loop.feeding(F), steps, dict(zip(self._given, [*xs, *consts], strict=True)))
        do_once(run, split.same)
        self._over_time(run, split.before)
        last = self.loop(run, reverse, carry)
        run.F = F
        _forget(run, self._done_with[None])
        self._over_time(run, split.after)
        sums = {value: _alike(F, total(run), value) for value, total in split.totals.items()}
        totals = [sums[value].copy() if again else sums[value] for value, again in self._totals]
        return [self._output(run, value) for value in self.step.ys], [F.asarray(part).copy() for part in last], totals

    def _over_time(self, run: Run, work: list[Batched]) -> None:
        """Operations for all steps at once."""
        F, steps = run.F, run.steps
        parted = 1 < self.stretch < steps
        for op, how in work:
            arrays = [run[operand] for operand in op.operands]
            in_parts = parted and op.rule.name in PRODUCTS
            _store(run, op, self._in_parts(run, op, how, arrays) if in_parts else how(F, steps, *arrays))
            _forget(run, self._done_with[op])

    def _in_parts(self, run: Run, op: Op, how: Callable[..., Any], arrays: Arrays) -> Any:
        """A product, stretch by stretch."""
        F, steps, level = run.F, run.steps, self.split.level
        (value,) = op.results
        timed = [type(operand) is Value and level[operand] != SAME for operand in op.operands]
        result = F.empty((steps, *value.shape), dtype=value.dtype)
        for part in parts(steps, self.stretch):
            given = [x[part] if has else x for x, has in zip(arrays, timed, strict=True)]
            result[part] = how(F, part.stop - part.start, *given)
        return result

    def _last_reads(self) -> dict[Op | None, list[Value]]:
        """What nothing reads any more after each operation outside of the loop, and (None) after the loop."""
        split, step = self.split, self.step
        sources = [value.op.operands[0] for value in step.ys if value.op is not None]  # `_output` looks at them
        read = {
            *step.ys,
            *split._leaves,
            *split._addends,
            *[source for source in sources if type(source) is Value],
        }
        inside = [*step.following, *[value for op in split.loop for value in op.inputs]]
        after, before = [[(op, op.inputs) for op, _ in work] for work in (split.after, split.before)]
        given = set(self._given)  # which whoever gave them holds all the same
        done: dict[Op | None, list[Value]] = {}
        for what, values in reversed([*before, (None, inside), *after]):
            done[what] = [value for value in dict.fromkeys(values) if value not in read and value not in given]
            read.update(values)
        return done

    def _output(self, run: Run, value: Value) -> Any:
        array = run.values[value]
        if value in self._own:
            return array
        if self.split.level[value] == SAME:
            array = run.F.broadcast_to(array, (run.steps, *value.shape))
        elif (op := value.op) is not None and not op.rule.view and array.base is None:
            # What comes of inputs alone may be no more than another view of them.
            return array if array is not run[op.operands[0]] else array.copy()
        return run.F.asarray(array).copy()


def _viewed(value: Value) -> Value:
    """What ``value`` is a view of in the end."""
    while value.op is not None and value.op.rule.view:
        (value,) = value.op.inputs
    return value


def do_once(run: Run, work: list[Op]) -> None:
    """Operations that are the same at every step."""
    for op in work:
        _store(run, op, op.forward(run.F, *[run[operand] for operand in op.operands]))


def _store(run: Run, op: Op, results: Any) -> None:
    for value, result in zip(op.results, results if op.rule.several else (results,), strict=True):
        run.values[value] = _alike(run.F, result, value)


def _forget(run: Run, values: list[Value]) -> None:
    for value in values:
        run.values.pop(value, None)


def _alike(F: Any, array: Any, value: Value) -> Any:
    """``array`` with the dtype that the operation on tensors had given it."""
    if type(array) is not F.array_type:
        array = F.asarray(array)
    return array if array.dtype == value.dtype else array.astype(value.dtype)
