"""`compile_step`: a recurrent cell one step at a time, for inputs that come one by one and are not learned from.

The step is recorded as for `scan`, and taken in memory that is laid out once; see ``lanes``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from tinygrad_rnn import random, recurrence, tape
from tinygrad_rnn.arguments import alike
from tinygrad_rnn.backend import Array
from tinygrad_rnn.compiler import notes
from tinygrad_rnn.compiler.engines import candidates, chosen, engine_named
from tinygrad_rnn.compiler.lanes import ArrayLane, Called, Form, Lane, Loop, NumbaLane, copy
from tinygrad_rnn.compiler.record import Recording, Unrecordable, _Listener, record
from tinygrad_rnn.compiler.watch import Watch
from tinygrad_rnn.nest import filled, flat, map_nest
from tinygrad_rnn.nn.recurrent import Layers, Recurrent
from tinygrad_rnn.recurrence import step_of
from tinygrad_rnn.tensor import Tensor, _backend, _wrap, as_tensor

_written = attrgetter("_written")


def compile_step(cell: Any, x: Any, state: Any = None, engine: str = "auto") -> CompiledStep:
    """Make a function of one step of a cell or layer, without a graph, for inputs that come one at a time.

    Parameters
    ----------
    cell
        ``cell(x, state) -> (y, state)``, as for `scan`; or a recurrent layer of one direction, all of whose cells then
        take the step together.
    x
        An input of one step, (B, ...), or a nest of such; all later ones must have its shapes and dtypes.
    state
        Where the stream begins, which is copied; None means ``cell.init_state(B)``.
    engine
        As for `scan`; ``"unrolled"`` calls the cell itself.

    Returns
    -------
    CompiledStep
        To be called as ``y = step(x)``, or as ``y, state = step(x, state)``.

    Raises
    ------
    TypeError, ValueError
        If the cell draws random numbers or keeps statistics, as some do in training; if a layer has two directions; or
        if the engine that was asked for cannot run the cell.

    Warns
    -----
    UserWarning
        If the fastest engine cannot run the cell, with the reason; if none can, each step calls the cell itself.
    """
    return CompiledStep(cell, x, state, engine)


class CompiledStep:
    """What `compile_step` returns.

    ``y = step(x)`` takes a step from the state inside, and keeps the next one there. ``y, state = step(x, state)``
    takes a step from that state, and leaves the one inside alone. Inputs are tensors or arrays. Outputs and states are
    tensors without a graph; their memory is the caller's to keep.

    A step sees the cell as it is: weights that an optimizer, ``load_state_dict`` or ``weight.data = ...`` wrote, and
    attributes that were set anew. The first step after such a change takes about a millisecond longer. Only what was
    written into a raw array, as by ``weight.data[0] = ...``, is not seen before `refresh`. Another batch size or dtype
    needs another `compile_step`.

    If a step raises, the state is as before. One object serves one thread at a time: each thread needs its own.

    Attributes
    ----------
    engine
        Which engine takes the steps; ``"unrolled"`` if the cell itself is called.
    """

    engine: str
    _make: Callable[[], Lane]
    _lane: Lane
    _other: Lane | None  # for states that are passed
    _changed: Callable[[], bool]

    def __init__(self, cell: Any, x: Any, state: Any, engine: str) -> None:
        engine = chosen(engine)
        if isinstance(cell, Recurrent) and cell.bidirectional:
            raise ValueError("cell: a layer of two directions needs the end of a sequence for its first output")
        self._cell = cell
        self._asked = engine
        self._x = Form(map_nest(_copied, x))
        if not self._x.tensors:
            raise TypeError("x: an empty nest, so there is nothing to take a step with")
        first = self._x.tensors[0]
        self._F = _backend(first)
        self._batch = first.shape[0] if first.ndim else 1
        self._given = None if state is None else map_nest(_copied, state)
        if isinstance(cell, Recurrent) and state is not None:
            alike(cell.init_state(self._batch), self._given, "compile_step got")
        # The state as the cell has it, and as what is recorded has it.
        self._state = Form(map_nest(_copied, self._start()))
        self._packed = isinstance(cell, Layers)
        self._parts = Form(cell._unpacked(self._state.like)) if self._packed else self._state
        self._loops: dict[Any, Loop] = {}
        self._begin([part._data for part in self._parts.tensors])

    def __call__(self, x: Any, state: Any = None) -> Any:
        """Take a step.

        Raises
        ------
        TypeError, ValueError
            If ``x`` or ``state`` has not the form that the step was compiled for.
        """
        listener = tape.MODE.get().listener
        if type(listener) is _Listener:
            listener.refusal = Unrecordable("the cell calls a compiled step, which has a state of its own")
            raise listener.refusal
        if self._changed():
            self.refresh()
        if state is None:
            lane = self._lane
            copy(self._x.arrays("x", x), lane.xs)
            lane.run()
            return lane.outputs()
        lane = self._other = self._other or self._make()
        self._move(state, lane.state)
        copy(self._x.arrays("x", x), lane.xs)
        lane.run()
        return lane.outputs(), self._shown(lane.state)

    @property
    def state(self) -> Any:
        """The state inside, as the cell has it; what is assigned to it is copied."""
        return self._shown(self._lane.state)

    @state.setter
    def state(self, state: Any) -> None:
        self._move(state, self._lane.state)

    def reset(self) -> None:
        """Go back to where the stream begins: the state given to `compile_step`, or what ``init_state`` makes now."""
        self._move(self._start(), self._lane.state)

    def refresh(self) -> None:
        """Look at the cell and its weights anew; the state stays."""
        self._begin(self._lane.state)

    def _start(self) -> Any:
        if self._given is not None:
            return self._given
        if not hasattr(self._cell, "init_state"):
            raise TypeError("state: the cell has no init_state, so compile_step must be given the state to start from")
        return map_nest(as_tensor, self._cell.init_state(self._batch))

    def _begin(self, state: Sequence[Array]) -> None:
        """Record the step, and lay out memory that holds this state."""
        at = tape.tick()
        with _without_draws():
            step = _step_of(self._cell, self._batch)
        watched = self._cell if isinstance(self._cell, Recurrent) else step
        form = self._x

        def call(xs: list[Tensor], state: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            nonlocal form
            y, following = _taken(step, filled(self._x.like, xs), filled(self._parts.like, state))
            form = Form(map_nest(lambda part: _wrap(part._data), y))
            return flat(y), flat(following)

        recording: Recording | None = None
        for name in candidates(self._asked, self._x.tensors[0].backend):
            make: Callable[[], Lane] = partial(Called, self._called, self._x, self._parts)
            if name == "unrolled":
                break
            try:
                recording = recording or record(call, self._x.tensors, [*map(_wrap, state)], watched)
                make = self._compiled(name, recording, form)
                break
            except Unrecordable as reason:
                if self._asked != "auto":
                    raise TypeError(f"engine {name!r} cannot run this cell: {reason}") from None
                by = "an" if recording is None else f"the {name}"
                text = f"compile_step cannot run this cell by {by} engine, which is fast: {reason}"
                warnings.warn(text, stacklevel=recurrence._outside())
                if recording is None:
                    name = "unrolled"
                    break
        lane = make()
        copy(state, lane.state)
        self.engine, self._make, self._lane = name, make, lane
        self._other = None
        self._changed = bool if name == "unrolled" else _changes(self._cell, recording, at)

    def _called(self, x: Any, state: Any) -> tuple[Any, Any]:
        """A step by the cell itself, as it is now."""
        with _without_draws():
            step = _step_of(self._cell, self._batch)
        return _taken(step, x, state)

    def _compiled(self, name: str, recording: Recording, form: Form) -> Callable[[], Lane]:
        """What makes lanes by an engine that compiles."""
        key = name, recording.step.key
        if key not in self._loops:
            self._loops[key] = Loop(recording.step, engine_named(name))
        loop = self._loops[key]
        run = loop.prepared(self._F, recording)
        return partial(ArrayLane if name == "array" else NumbaLane, loop, run, recording, form)

    def _move(self, state: Any, memory: Sequence[Array]) -> None:
        arrays = self._state.arrays("state", state)
        if self._packed:
            arrays = [array[layer] for layer in range(len(arrays[0])) for array in arrays]
        copy(arrays, memory)

    def _shown(self, memory: Sequence[Array]) -> Any:
        """A state in memory, as the cell has it."""
        if not self._packed:
            return self._state.tensors_of([part.copy() for part in memory])
        arrays = []
        for k, (_, shape, dtype) in enumerate(self._state.wanted):
            array = self._F.empty(shape, dtype)
            for layer in range(shape[0]):
                array[layer] = memory[k + layer * len(self._state.wanted)]
            arrays.append(array)
        return self._state.tensors_of(arrays)


# -- the cell


@contextmanager
def _without_draws() -> Iterator[None]:
    def refuse(generator: random.Generator, make: Any, drawn: Any) -> None:
        generator.counter -= 1
        raise TypeError("cell: it draws random numbers, which a compiled step does not; call its eval() first")

    token = random._drawn.set(refuse)
    try:
        yield
    finally:
        random._drawn.reset(token)


def _step_of(cell: Any, batch: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """What to call at each step; for a layer its cells one after the other, with a list of their states."""
    if not isinstance(cell, Recurrent):
        return step_of(cell, batch)
    steps = [step_of(own, batch) for (own,) in cell._layers()]

    def step(x: Any, state: Any) -> tuple[Any, Any]:
        before = state if cell.stacked else [state]
        following = []

        def run(layer: int, x: Any) -> Any:
            y, after = steps[layer](x, before[layer])
            following.append(after)
            return y

        y = cell._through(x, len(steps), run)
        return y, following if cell.stacked else following[0]

    return step


def _taken(step: Callable[[Any, Any], tuple[Any, Any]], x: Any, state: Any) -> tuple[Any, Any]:
    """A step by the cell itself: the output, and the next state."""
    kept: list[Any] = []
    token = recurrence._notes.set(kept)
    try:
        with _without_draws():
            y, following = step(x, state)
    finally:
        recurrence._notes.reset(token)
    if kept:
        raise TypeError("cell: it keeps statistics, which a compiled step does not; call its eval() first")
    alike(state, following, "the cell returned")
    return map_nest(as_tensor, y), following


def _changes(cell: Any, recording: Recording | None, at: int) -> Callable[[], bool]:
    """What tells, as fast as can be, whether anything that the cell can reach was set or written since ``at``."""
    tensors = [] if recording is None else list(recording.prologue.constants.values())
    places: list[tuple[Callable[[], Any], list[Any]]] = []
    for note in Watch(cell)._notes:
        if isinstance(note, notes.TensorNote):
            tensors += [note.thing, note.owner]
        elif isinstance(note, notes.AttributesNote):
            places.append((note.namespace.values, [*note.saved.values()]))
        elif isinstance(note, notes.ClosureNote):
            places.append((partial(map, notes.contents_of, note.thing.__closure__), note.saved))
        elif isinstance(note, notes.GlobalsNote):
            namespace, names = note.thing
            places.append((partial(map, namespace.get, names, [notes.MISSING] * len(names)), note.saved))
        elif isinstance(note, (notes.DictNote, notes.ListNote)):
            values = note.saved.values() if isinstance(note, notes.DictNote) else note.saved
            if not notes.PLAIN.issuperset(map(type, values)):  # a vocabulary may be long
                read = note.thing.values if isinstance(note, notes.DictNote) else partial(iter, note.thing)
                places.append((read, [*values]))
    tensors = [*{id(tensor): tensor for tensor in tensors}.values()]
    end = (notes.MISSING,)  # so that one more, or one less, is seen
    ended = [(read, [*saved, *end]) for read, saved in places]

    def changed() -> bool:
        for read, saved in ended:
            if not all(map(is_, chain(read(), end), saved)):
                return True
        return max(map(_written, tensors), default=0) > at

    return changed


def _copied(value: Any) -> Tensor:
    return _wrap(as_tensor(value).data.copy())
