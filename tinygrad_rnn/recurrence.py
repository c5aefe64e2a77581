"""`scan`, a recurrent cell over a sequence; and `expose`, by which a cell shows values of each step."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.arguments import alike, check_batch, extent, lengths_of_rows, rows_alive, rows_beginning
from tinygrad_rnn.backend import Array, get_backend
from tinygrad_rnn.compiler.engines import candidates, chosen, engine_named
from tinygrad_rnn.compiler.explain import Plan, planned
from tinygrad_rnn.compiler.pure import kind_of, remember, remembered
from tinygrad_rnn.compiler.record import NoCode, Recording, Unrecordable, draw_all, record
from tinygrad_rnn.compiler.run import compiled, over
from tinygrad_rnn.compiler.segments import check
from tinygrad_rnn.nest import built_in, describe, filled, flat, form, map_nest
from tinygrad_rnn.ops import pad, reshape, stack, unstack, where
from tinygrad_rnn.tensor import Tensor, _backend, _wrap, as_tensor

_Note = tuple[Callable[..., None], tuple[Tensor, ...]]
Flags = Callable[[int], Tensor]  # of the rows at a step, for a tensor of so many axes
_exposed: ContextVar[dict[str, Tensor] | None] = ContextVar("tinygrad_rnn_exposed", default=None)
_notes: ContextVar[list[_Note] | None] = ContextVar("tinygrad_rnn_notes", default=None)
_present: ContextVar[Tensor | None] = ContextVar("tinygrad_rnn_present", default=None)
_observer: ContextVar[Any] = ContextVar("tinygrad_rnn_observer", default=None)  # an Observer; see ledger.py


def expose(**values: Tensor) -> None:
    """Called by a cell at each step: show ``values`` to whoever asked for them by name.

    See the argument ``expose`` of `scan` and of the recurrent layers. When nobody asked, nothing happens.
    """
    found = _exposed.get()
    if found is not None:
        found.update(values)


def present_rows() -> Tensor | None:
    """For a cell that mixes rows, as batch normalization does: bools (B,), which rows are within their length.

    None stands for all of them.
    """
    return _present.get()


def afterwards(commit: Callable[..., None], *tensors: Tensor) -> None:
    """Called by a cell that keeps statistics: ``commit(*tensors)`` is called for each step when the sequence is over.

    So all steps see what was kept before the sequence. Outside of a sequence it is called at once.
    """
    notes = _notes.get()
    if notes is None:
        commit(*tensors)
    else:
        notes.append((commit, tensors))


def scan(
    cell: Callable[[Any, Any], tuple[Any, Any]],
    xs: Any,
    state: Any = None,
    reverse: bool = False,
    lengths: Any = None,
    reset: Any = None,
    expose: Sequence[str] = (),
    recompute: str | int | None = None,
    engine: str = "auto",
) -> Any:
    """Call ``cell`` at each step of a sequence, handing its state on; backprop through this loop is BPTT.

    Parameters
    ----------
    cell
        ``cell(x, state) -> (y, state)``, a module or a function. If it has ``for_sequence(batch)``, that is called
        once, and its result at each step: this is how a cell draws what is to stay the same for a whole sequence.
    xs
        A tensor of shape (T, B, ...), or a nest of such. T must be at least 1.
    state
        A nest of tensors whose first axis is B; None means ``cell.init_state(B)``.
    reverse
        Go from the last step to the first. ``ys`` are in the order of ``xs`` all the same.
    lengths
        Ints of shape (B,), from 0 to T, on the host: how many steps of each row are real. What comes after them is
        not seen by the cell, whatever it holds; its outputs and gradients are 0. Going in reverse, each row starts at
        its own end.
    reset
        Bools of shape (T, B): where a row begins anew. Nothing passes between that step and the one before it: the
        row starts again from ``cell.init_state(B)``, or from ``state`` if the cell has no ``init_state``.
    expose
        Names of values that the cell shows by `expose`, wanted at each step.
    recompute
        For less memory: an int k keeps for the gradient only every k-th state, and goes through each k steps once more
        when backward comes to them; "sqrt" chooses k, about the square root of T. Outputs and states keep their bits,
        gradients agree to rounding. A plain loop cannot do it; ``create_graph=True`` needs the memory all the same.
    engine
        "unrolled": a loop in Python, the definition of what the others do. "array": a recorded step, run as a list of
        array calls. "numba": the same as a compiled loop (the extra ``fast``). "auto": the fastest of these that can
        run the cell, or what `use_engine` says; a warning tells if that is not the first that is here, and why.

    Returns
    -------
    ys
        The outputs of all steps, shape (T, B, ...), or a nest of such.
    state
        After the last step, of each row's own.
    exposed
        Only if ``expose`` names something: a dict of tensors (T, B, ...), 0 past the end of a row.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, the cell returns a state unlike the one that it was given, or the engine that was named
        cannot run it.
    """
    check(recompute, engine)
    run = _prepared(cell, xs, state, reverse, lengths, reset, expose)
    ys, state, exposed = run.by(engine, recompute)
    if run.reached < run.steps:
        ys, exposed = map_nest(lambda leaf: _lengthen(leaf, run.steps), (ys, exposed))
    return (ys, state, exposed) if expose else (ys, state)


def plan(
    cell: Callable[[Any, Any], tuple[Any, Any]],
    xs: Any,
    state: Any = None,
    reverse: bool = False,
    lengths: Any = None,
    reset: Any = None,
    expose: Sequence[str] = (),
    engine: str = "auto",
) -> Plan:
    """How `scan` would run ``cell`` with these arguments, which are the same; nothing is run but one step.

    Returns
    -------
    Plan
        Print it to read what is done before, in and after the loop over time, forwards and backwards, what is saved for
        the gradient, and the generated source.

    Raises
    ------
    TypeError
        If no engine can run the cell, with the reason; `scan` would run it as a plain loop.
    """
    return _prepared(cell, xs, state, reverse, lengths, reset, expose).planned(engine)


def _prepared(cell: Any, xs: Any, state: Any, reverse: bool, lengths: Any, reset: Any, expose: Sequence[str]) -> _Run:
    """The arguments of `scan`, checked and laid out."""
    if isinstance(cell, type):
        raise TypeError(f"cell is the class {cell.__name__}: give one that was made, {cell.__name__}(...)")
    xs = map_nest(as_tensor, xs)
    steps, batch, device = extent(xs, lengths is not None or reset is not None)
    init_state = getattr(cell, "init_state", None)
    if state is None and init_state is None:
        raise TypeError("state: the cell has no init_state, so scan must be given the state to start from")
    fresh = init_state(batch) if init_state and (state is None or reset is not None) else state
    start = fresh if state is None else state
    state = map_nest(as_tensor, start)
    if lengths is None and reset is None:
        return _Run(device, step_of(cell, batch), xs, state, fresh, None, None, steps, steps, reverse, tuple(expose))
    check_batch(state, batch)
    if start is not fresh:
        alike(state, fresh, "init_state gives")
    reached, alive = steps, None
    if lengths is not None:
        ends, shortest, longest = lengths_of_rows(lengths, steps, batch)
        reached = max(longest, 1)  # steps that no row reaches are left out, but for one that shows what outputs are
        alive = rows_alive(ends, reached) if shortest < reached else None
    begins = None if reset is None else rows_beginning(reset, steps, batch, reached, alive, reverse)
    if reached < steps:
        xs = map_nest(lambda leaf: leaf[:reached], xs)

    def masks(flags: Array) -> _Masks:
        return _Masks(Tensor(get_backend(device).asarray(flags)))

    real = None if alive is None else masks(alive)
    begin = masks(begins) if begins is not None and begins.any() else None
    if real:
        xs = map_nest(real.chosen, xs)
    return _Run(device, step_of(cell, batch), xs, state, fresh, real, begin, reached, steps, reverse, tuple(expose))


class _Traced(NamedTuple):
    """A step of a run as it was recorded, or as another like it was."""

    xs: list[Tensor]
    state: list[Tensor]
    recording: Recording
    shown: Any  # a nest built as what the step gave
    notes: list[_Note]


@dataclass(slots=True)
class _Run:
    """What `scan` is to run, checked and laid out."""

    backend: str  # where the inputs are
    step: Callable[[Any, Any], Any]
    xs: Any
    state: Any
    fresh: Any
    real: _Masks | None  # where rows are within their length
    begin: _Masks | None  # where they begin anew
    reached: int  # steps that some row reaches
    steps: int
    reverse: bool
    expose: tuple[str, ...]

    def by(self, engine: str, recompute: str | int | None) -> tuple[Any, Any, Any]:
        """Outputs, last state and exposed values."""
        engine = chosen(engine)
        if engine == "unrolled" or (tape.MODE.get().listener is not None and _observer.get() is None):
            return self.unrolled()
        refused: Unrecordable | None = None
        traced: _Traced | None = None
        for name in candidates(engine, self.backend):
            if name == "unrolled" or not (refused is None or isinstance(refused, NoCode)):
                name, result = "unrolled", self.unrolled()
                break
            module = engine_named(name)
            try:
                traced = traced or self._traced(module)
                result = self.by_engine(traced, module, recompute)
                break
            except Unrecordable as refusal:
                if engine != "auto":
                    raise TypeError(f"engine {engine!r} cannot run this cell: {refusal}") from None
                refused = refusal
        if refused is not None:
            lost = " and recomputes nothing" if recompute is not None and name == "unrolled" else ""
            text = f"scan runs this cell by the {name} engine, which is slower{lost}: {refused}"
            warnings.warn(text, stacklevel=_outside())
        return result

    def planned(self, engine: str) -> Plan:
        """What the first engine that can run it would do."""
        engine = chosen(engine)
        if engine == "unrolled":
            raise ValueError("engine 'unrolled' is the plain loop, of which there is no plan")
        xs, state = self._flat()
        recording: Recording | None = None
        reasons = []
        for name in candidates(engine, self.backend):
            if name == "unrolled":
                continue
            try:
                recording = recording or self._recorded(xs, state, named=True)[0]
                groups = [*xs, *recording.drawn], state, recording.consts
                module = engine_named(name)
                module.backend(_backend(xs[0]))
                return planned(recording.step, name, module, groups, self.reached)
            except Unrecordable as reason:
                reasons.append(f"{name}: {reason}")
        raise TypeError("scan runs this cell as a plain loop; " + "; ".join(reasons))

    def unrolled(self) -> tuple[Any, Any, Any]:
        """The loop in Python, by which all engines are judged."""
        inputs = _slices(self.xs, self.reached)
        observer = _observer.get()
        observe = None if observer is None else observer.loop(self.steps)
        results: list[Any] = [None] * self.reached
        state = self.state
        notes: list[_Note] = []
        for t in reversed(range(self.reached)) if self.reverse else range(self.reached):
            begun = tape.tick()
            real, begin = [None if flags is None else partial(flags.at, t) for flags in (self.real, self.begin)]
            y, following, found, noted = self._one(inputs[t], state, real, begin, observe is not None, t)
            if observe is not None:
                observe(t, begun, following, found)
            results[t] = (y, _named(found, self.expose))
            state = following
            notes += noted
        for commit, tensors in notes:
            commit(*tensors)
        ys, exposed = map_nest(lambda *parts: stack(parts), *results)
        if (masks := self.real) is not None:
            ys, exposed = map_nest(masks.chosen, (ys, exposed))
        return ys, state, exposed

    def _traced(self, engine: Any) -> _Traced:
        """One step, recorded or remembered; nothing is drawn."""
        xs, state = self._flat()
        begins = [] if self.begin is None else flat(self.fresh)
        kind = None if _observer.get() else kind_of(self.step, begins, built_in(self.xs) and built_in(self.state))
        key = None if kind is None else (kind[0], *self._form(xs, state))
        known = remembered(key) if key else None
        if kind and known:
            return _Traced(xs, state, known.recording(kind[1]), known.extra, [])
        with engine.context():  # or threads of BLAS would go on spinning while the loop runs
            recording, shown, notes = self._recorded(xs, state)
        if kind and not notes:
            shown = map_nest(lambda _: None, shown)
            remember(key, recording, kind[1], shown)
        return _Traced(xs, state, recording, shown, notes)

    def by_engine(self, traced: _Traced, engine: Any, recompute: str | int | None) -> tuple[Any, Any, Any]:
        """A recorded step, run over the sequence by an engine; what raises `Unrecordable` has drawn nothing."""
        xs, state, recording, shown, notes = traced
        consts = recording.consts
        F = _backend(xs[0])
        engine.backend(F)  # raises if it cannot run there
        plan = compiled(recording.step, engine, [*xs, *recording.drawn], state, consts)
        drawn = draw_all(recording, self.reached, self.reverse)
        if notes and recompute is not None:  # these will write to what the cell reads, and is to read again
            consts = [const if const.requires_grad else _wrap(const._data.copy()) for const in consts]
        xs = [*xs, *drawn]
        outs, last, _ = over(F, plan, self.reached, self.reverse, xs, state, consts, recompute)
        remaining = iter(outs)
        ys, exposed, observed = filled(shown, remaining)
        if (observer := _observer.get()) is not None:
            observer.whole(self.steps, self.reached, [*outs, *last], self.state, observed)
        noted = [(commit, [unstack(next(remaining)) for _ in tensors]) for commit, tensors in notes]
        for t in (reversed(range(self.reached)) if self.reverse else range(self.reached)) if noted else ():
            for commit, stacked in noted:
                commit(*[steps[t] for steps in stacked])
        for (_, limit, what), indices in zip(recording.checks, remaining, strict=True):
            _backend(indices).check_range(indices._data, limit, what)
        return ys, filled(self.state, last), exposed

    def _flat(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that change from step to step, masks the last, and those of the state."""
        masks = [masks.flags for masks in (self.real, self.begin) if masks is not None]
        return [*flat(self.xs), *masks], flat(self.state)

    def _form(self, xs: list[Tensor], state: list[Tensor]) -> tuple[Any, ...]:
        """All that a recording depends on besides the cell."""
        tensors = tuple([(x._data.shape[1:], x._data.dtype, x.requires_grad) for x in xs])
        parts = tuple([(part._data.shape, part._data.dtype, part.requires_grad) for part in state])
        nests = form(self.xs), form(self.state)
        masks = self.real is None, self.begin is None
        backends = self.backend, get_backend().name  # of what is there, and of what the cell makes anew
        return tensors, parts, nests, masks, backends, self.expose, tape.MODE.get().recording

    def _recorded(
        self, xs: list[Tensor], state: list[Tensor], named: bool = False
    ) -> tuple[Recording, Any, list[_Note]]:
        """A recording of the first step, and what it returned and noted."""
        first = self.reached - 1 if self.reverse else 0
        shown: Any = None
        notes: list[_Note] = []
        observer = _observer.get()
        watched = () if observer is None else observer.gates

        def call(xs: list[Tensor], state: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            nonlocal shown, notes
            given = iter(xs)
            x, before = filled(self.xs, given), filled(self.state, state)
            real, begin = [
                None if masks is None else partial(_of_step, next(given)) for masks in (self.real, self.begin)
            ]
            y, following, found, notes = self._one(x, before, real, begin, bool(watched), first)
            seen = map_nest(as_tensor, (y, _named(found, self.expose)))
            if real is not None:
                seen = map_nest(lambda leaf: where(real(leaf.ndim), leaf, _zero(leaf)), seen)
            observed = {name: found[name] for name in watched if name in found}
            shown = (*seen, map_nest(as_tensor, observed))
            outs = [*flat(shown), *[tensor for _, tensors in notes for tensor in tensors]]
            return outs, flat(following)

        return record(call, [_at(leaf, first) for leaf in xs], state, self.step, named), shown, notes

    def _one(
        self, x: Any, state: Any, real: Flags | None, begin: Flags | None, listens: bool, t: int
    ) -> tuple[Any, Any, dict[str, Tensor], list[_Note]]:
        """One step: rows begin anew, the cell is called, and rows past their end stay as they are."""
        if begin is not None:
            state = map_nest(lambda new, old: where(begin(old.ndim), new, old), self.fresh, state)
        found: dict[str, Tensor] | None = {} if self.expose or listens else None
        notes: list[_Note] = []
        tokens = (
            _present.set(None if real is None else real(1)),
            _exposed.set(found),
            _notes.set(notes),
        )
        try:
            result = self.step(x, state)
        except (ValueError, TypeError) as error:
            if not hasattr(error, "__notes__"):
                error.add_note(f"scan called the cell with x, {describe(x)}, and the state, {describe(state)}")
            raise
        finally:
            _present.reset(tokens[0])
            _exposed.reset(tokens[1])
            _notes.reset(tokens[2])
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(f"the cell must return (y, state), got {describe(result)}")
        y, following = result
        alike(state, following, f"the cell, at step {t}, returned")
        if real is not None:
            following = map_nest(lambda new, old: where(real(old.ndim), new, old), following, state)
        return y, following, found or {}, notes


def _outside() -> int:
    """The stack level, for a warning of the caller's, of the first line that is not this package's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("tinygrad_rnn."):
        level, frame = level + 1, frame.f_back
    return level


def _of_step(flags: Tensor, ndim: int) -> Tensor:
    """Flags (B,) in the shape (B, 1, ...)."""
    return flags if ndim == 1 else reshape(flags, flags.shape + (1,) * (ndim - 1))


def _zero(like: Tensor) -> Any:
    """0, or False beside bools, which 0 would make ints."""
    return like.dtype.type(0).item()


def _at(xs: Tensor, t: int) -> Tensor:
    """Step ``t`` of a sequence, for its value alone."""
    x = _wrap(xs._data[t, ...])
    x.requires_grad = xs.requires_grad
    return x


def step_of(cell: Any, batch: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """What to call at each step of one sequence of ``batch`` rows: the result of the cell's hook, or the cell."""
    return cell.for_sequence(batch) if hasattr(cell, "for_sequence") else cell  # type: ignore[no-any-return]


def _named(found: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"expose: the cell shows {', '.join(found) or 'nothing'}, but not {', '.join(missing)}")
    return {name: found[name] for name in names}


def _slices(xs: Any, steps: int) -> list[Any]:
    """The inputs of each step; taken apart at once, see `tinygrad_rnn.unstack`."""
    if isinstance(xs, Tensor):
        return unstack(xs)
    parts = {id(leaf): unstack(leaf) for leaf in flat(xs)}
    return [map_nest(lambda leaf, t=t: parts[id(leaf)][t], xs) for t in range(steps)]


class _Masks:
    """Bools (T, B), and those of single steps in the shapes that they are asked for in."""

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags
        self.steps: dict[int, list[Tensor]] = {}  # by the number of axes of what is chosen

    def chosen(self, x: Tensor) -> Tensor:
        """``x`` (T, B, ...) where the flag is set, else 0."""
        flags, array = self.flags._data, x._data
        if x.requires_grad or tape.MODE.get().listener is not None or type(array) is not np.ndarray or not array.size:
            return where(reshape(self.flags, flags.shape + (1,) * (x.ndim - 2)), x, _zero(x))
        # No operation need be heard, and what a row has at a step is written at one go: a fifth of the time.
        array = array.copy()
        whole = np.dtype((np.void, array.nbytes // flags.size))
        array.reshape(*flags.shape, -1).view(whole)[..., 0][~flags] = np.zeros((), whole)
        return _wrap(array)

    def at(self, t: int, ndim: int) -> Tensor:
        """The flags of step ``t``, of shape (B, 1, ...)."""
        if ndim not in self.steps:
            self.steps[ndim] = unstack(reshape(self.flags, self.flags.shape + (1,) * (ndim - 1)))
        return self.steps[ndim][t]


def _lengthen(x: Tensor, steps: int) -> Tensor:
    return pad(x, ((0, steps - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
