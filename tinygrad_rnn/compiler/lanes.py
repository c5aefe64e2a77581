"""Lanes: memory in which a compiled step is taken, one step after the other.

The step is recorded as for `scan`, but nothing leaves the loop, which is run for one step at a time in memory that is
laid out once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tinygrad_rnn.backend import Array
from tinygrad_rnn.compiler.program import do_once
from tinygrad_rnn.compiler.record import Recording
from tinygrad_rnn.compiler.split import Run, Split
from tinygrad_rnn.compiler.step import Step, Value
from tinygrad_rnn.nest import filled, flat, leaves, map_nest
from tinygrad_rnn.tensor import Tensor, _wrap, as_tensor


class Form:
    """How a nest is built, with the shapes, dtypes and backends of its tensors."""

    def __init__(self, like: Any) -> None:
        self.like = like
        self.tensors = flat(like)
        self.wanted = [(type(tensor._data), tensor.shape, tensor.dtype) for tensor in self.tensors]
        self.single = isinstance(like, Tensor)
        self.flat = type(like) is tuple and all(isinstance(part, Tensor) for part in like)

    def arrays(self, what: str, given: Any) -> list[Array]:
        """The arrays of a nest of tensors, arrays or numbers, which must be of this form."""
        if self.single or (self.flat and type(given) is tuple and len(given) == len(self.wanted)):
            arrays = []
            for value, (kind, shape, dtype) in zip((given,) if self.single else given, self.wanted, strict=True):
                array = value._data if type(value) is Tensor else value
                if type(array) is not kind or array.shape != shape or array.dtype is not dtype:
                    break
                arrays.append(array)
            else:
                return arrays
        return self._checked(what, given)

    def _checked(self, what: str, given: Any) -> list[Array]:
        arrays: list[Array] = []
        try:
            map_nest(lambda _, value: arrays.append(as_tensor(value).data), self.like, given)
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
        for array, (place, _), (kind, shape, dtype) in zip(arrays, leaves(self.like), self.wanted, strict=True):
            if array.shape != shape:
                raise ValueError(f"{what}{place} must have shape {shape}, as compiled for; got {array.shape}")
            if array.dtype != dtype:
                raise TypeError(f"{what}{place} must be {dtype}, as compiled for; got {array.dtype}")
            if type(array) is not kind:
                raise TypeError(f"{what}{place} must be a {kind.__name__}, as compiled for; got {type(array).__name__}")
        return arrays

    def tensors_of(self, arrays: Sequence[Array]) -> Any:
        """A nest of this form, of these arrays."""
        if self.single:
            return _wrap(arrays[0])
        tensors = map(_wrap, arrays)
        return tuple(tensors) if self.flat else filled(self.like, tensors)


class Lane:
    """Memory in which steps are taken.

    Attributes
    ----------
    xs, state
        Where the input is to be put, and where the state is, before a step and after it.
    ys
        Where the output is after a step.
    form
        Of the output.
    """

    xs: list[Array]
    state: list[Array]
    ys: list[Array]
    form: Form

    def run(self) -> None:
        """Take a step."""
        raise NotImplementedError

    def outputs(self) -> Any:
        """The output, in tensors of its own."""
        return self.form.tensors_of([y.copy() for y in self.ys])


class Called(Lane):
    """The cell itself, which no engine can run."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], x: Form, state: Form) -> None:
        self.step, self.x, self.parts = step, x, state
        self.xs, self.state = [[tensor._data.copy() for tensor in form.tensors] for form in (x, state)]

    def run(self) -> None:
        x, state = [array.copy() for array in self.xs], [array.copy() for array in self.state]  # the cell may keep them
        y, following = self.step(self.x.tensors_of(x), self.parts.tensors_of(state))
        self.form = Form(y)
        self.ys = [tensor._data for tensor in self.form.tensors]
        copy([part._data for part in flat(following)], self.state)


class Loop:
    """The loop of a recorded step, none of which leaves it."""

    def __init__(self, step: Step, engine: Any) -> None:
        self.step = step
        self.engine = engine
        self.split = Split(step, engine.FUSES, apart=False)
        self.loop = engine.Loop(self.split)

    def prepared(self, F: Any, recording: Recording) -> Run:
        """What is the same at every step, by the constants of a recording that does the same."""
        with self.engine.context():
            run = Run(self.loop.feeding(self.engine.backend(F)), 1)
            run.values.update(zip(self.step.consts, [tensor._data for tensor in recording.consts], strict=True))
            do_once(run, self.split.same)
        return run


class ArrayLane(Lane):
    """A step by the array engine."""

    def __init__(self, loop: Loop, run: Run, recording: Recording, form: Form) -> None:
        F, step, program = run.F, loop.step, loop.loop
        run = Run(F, 1, dict(run.values))
        run.values.update({value: F.empty((1, *value.shape), dtype=value.dtype) for value in step.xs})
        self.xs = [run[value][0, ...] for value in step.xs]
        self.state = [F.zeros(value.shape, dtype=value.dtype) for value in step.carry]
        self.before = [F.zeros(value.shape, dtype=value.dtype) for value in step.carry]
        rows = program._laid_out(run, False, self.before)
        self.after = program._carried(run, rows, self.before)
        self.rows = [[rows[value][0] for value in program.rows]]
        self.constants = [run[value] for value in program.constants]
        self.function = program._for(F)
        rows.update({value: [x] for value, x in zip(step.xs, self.xs, strict=True)})
        self.ys = [rows[value][0] if value in rows else run[value] for value in step.ys]
        self.form, self.check = form, _checks(run.F, recording, self.ys)

    def run(self) -> None:
        copy(self.state, self.before)
        self.function(self.rows, *self.constants)
        self.check()
        copy(self.after, self.state)


class NumbaLane(Lane):
    """A step by the Numba engine: the loop, for one step, that first takes over what the step before it left."""

    def __init__(self, loop: Loop, run: Run, recording: Recording, form: Form) -> None:
        step, program = loop.step, loop.loop
        run = Run(run.F, 1, dict(run.values))
        xs = loop.engine.Places([((1, *value.shape), value.dtype) for value in step.xs])
        run.values.update(zip(step.xs, xs.arrays(), strict=True))
        arguments, states = program.laid_out(run)
        self.xs = [run[value][0, ...] for value in step.xs]
        self.before, self.state = [[states[k][i, ...] for k in range(len(step.carry))] for i in range(2)]
        ys = dict(zip(step.following, self.state, strict=True)) | dict(zip(step.carry, self.before, strict=True))
        ys |= {value: run[value][0, ...] for value in [*step.xs, *program.stacks]}
        self.ys = [ys[value] if value in ys else run[value] for value in step.ys]
        self.form, self.check = form, _checks(run.F, recording, self.ys)
        text = _taking_over(program.source, [(k, step.carry[k]) for k in states])
        native = loop.engine.Native("loop", program.native.kinds, text)
        self.raises = partial(native.call, 0, program.code.rows, *arguments, 1, 0, *program.numbers)
        self.out_of_range = loop.engine.OUT_OF_RANGE

    def run(self) -> None:
        try:
            if self.raises():
                raise IndexError(self.out_of_range)
            self.check()
        except IndexError:
            copy(self.before, self.state)
            raise


def _taking_over(text: str, parts: Sequence[tuple[int, Value]]) -> str:
    """The source of a loop that begins where it ended."""
    first, rest = text.split("\n", 1)
    lines = [first]
    for k, value in parts:
        for axis in range(value.ndim):
            lines.append("    " * (axis + 1) + f"for i{axis} in range(state{k}.shape[{axis + 1}]):")
        indices = "".join([f", i{axis}" for axis in range(value.ndim)])
        lines.append("    " * (value.ndim + 1) + f"state{k}[0{indices}] = state{k}[1{indices}]")
    return "\n".join([*lines, rest])


def _checks(F: Any, recording: Recording, ys: list[Array]) -> Callable[[], None]:
    """What looks whether indices were in range; their arrays are the last of ``ys``, which are left out of it."""
    checks = [(limit, what) for _, limit, what in recording.checks]
    arrays = [ys.pop() for _ in checks][::-1]

    def check() -> None:
        for indices, (limit, what) in zip(arrays, checks, strict=True):
            F.check_range(indices, limit, what)

    return check if checks else lambda: None


def copy(arrays: Sequence[Array], memory: Sequence[Array]) -> None:
    for array, to in zip(arrays, memory, strict=True):
        to[...] = array
