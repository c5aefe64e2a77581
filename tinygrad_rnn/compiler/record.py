"""Recording: one step of a cell, called once on tensors that know when they are being looked at."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tinygrad_rnn import random, tape
from tinygrad_rnn.backend import Key
from tinygrad_rnn.compiler.step import Recorder, Step
from tinygrad_rnn.compiler.watch import Watch
from tinygrad_rnn.ops.rule import Rule
from tinygrad_rnn.tensor import Tensor, _wrap


class Unrecordable(Exception):
    """One step cannot stand for all, and why."""


class NoCode(Unrecordable):
    """An engine has no code for an operation in the loop; another may have."""


class Traced(Tensor):
    """A tensor of the step that is recorded: it has a value, which must not be looked at."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        """Refused."""
        _refuse("reads .data of")

    @data.setter
    def data(self, value: Any) -> None:
        _refuse("assigns to .data of")

    def numpy(self) -> Any:
        _refuse("calls .numpy() of")

    def item(self) -> Any:
        _refuse("calls .item() of")

    def backward(self, *args: Any, **kwargs: Any) -> None:
        _refuse("calls .backward() of")

    def _describe(self) -> str:
        _refuse("prints")

    def __bool__(self) -> bool:
        _refuse("asks for the truth of")

    def __float__(self) -> float:
        _refuse("makes a float of")

    def __int__(self) -> int:
        _refuse("makes an int of")

    def __index__(self) -> int:
        _refuse("makes an index of")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        _refuse("makes a NumPy array of")

    def __getstate__(self) -> Any:
        _refuse("copies")


Traced.__name__ = Tensor.__name__  # as errors of NumPy and Python call it


def _refuse(what: str) -> NoReturn:
    refusal = Unrecordable(f"the cell {what} a value that changes from step to step")
    listener = tape.MODE.get().listener
    if isinstance(listener, _Listener):
        listener.refusal = refusal  # the cell might catch it
    raise refusal


@dataclass
class Draw:
    """What a step drew from one of our generators: ``make(keys)`` draws it for other steps, one after the other."""

    generator: random.Generator
    make: Callable[[Key], Tensor]
    tensor: Tensor


Check = tuple[Tensor, int, str]  # indices, what they must be below, and what they are called


@dataclass
class Recording:
    """A recorded step; its ``xs`` are those that were given, and then what was drawn.

    Attributes
    ----------
    consts
        The tensors that the step's ``consts`` stand for.
    prologue
        What the cell computed from constants alone, once: its results may be among ``consts``.
    checks
        For each of the last of the step's ``ys`` the range that it must be in.
    draws
        What was drawn, in order.
    """

    step: Step
    consts: list[Tensor]
    draws: list[Draw]
    prologue: Recorder
    checks: list[Check]

    @property
    def drawn(self) -> list[Tensor]:
        """What was drawn at the step that was recorded."""
        return [draw.tensor for draw in self.draws]


class _Namer:
    """Finds out what a cell calls its values: the names of its variables while it runs, and when it has run."""

    def __init__(self) -> None:
        self.frames: dict[Any, None] = {}

    def hear(self, recorder: Recorder) -> None:
        """An operation was written down: note the line that it stands in."""
        frame: Any = sys._getframe(2)
        while frame.f_globals.get("__name__", "").startswith(OURS):
            frame = frame.f_back
        self.frames.setdefault(frame)
        recorder.ops[-1].place = frame.f_code.co_filename, frame.f_lineno
        self.name(recorder)

    def name(self, recorder: Recorder) -> None:
        """Give names to the values that variables now hold."""
        for frame in reversed(self.frames):
            for name, tensor in frame.f_locals.items():
                value = recorder.find(tensor) if isinstance(tensor, Tensor) else None
                if value is not None and not value.name:
                    value.name = name


# Whose frames are not the cell's.
_MODULES = ("compiler", "ops", "tensor", "tape", "functional", "random", "nn.layers", "nn.module")
OURS = tuple([f"tinygrad_rnn.{name}" for name in _MODULES])


class _Listener(Recorder):
    """Marks the results of what it hears, so that they know when they are being looked at."""

    def __init__(self, namer: _Namer | None) -> None:
        super().__init__()
        self.namer = namer
        self.prologue = Recorder()
        self.checks: list[Check] = []
        self.refusal: Unrecordable | None = None

    def hear_walk(self, order: Sequence[tape.Node], wanted: set[tape.Parent] | None, as_tensors: bool) -> None:
        """A gradient is taken: it must be recorded, and stay within the step."""
        if not as_tensors:
            _refuse("takes a gradient, without create_graph=True, of")
        ours = {parent for node in order for parent in node.parents if type(parent) is Traced}
        others = [key for key in wanted or () if key not in self._by_node and type(key) is not Traced]
        if ours and others:
            _refuse("takes a gradient by a constant through")

    def hear_check(self, indices: Tensor, limit: int, what: str) -> None:
        """Indices that the cell wants to be below ``limit``: to be looked at when they are known for all steps."""
        self.checks.append((indices, limit, what))

    def __call__(self, rule: Rule, operands: Sequence[Any], params: tuple[Any, ...], results: Sequence[Tensor]) -> None:
        before = len(self.ops)
        super().__call__(rule, operands, params, results)
        if len(self.ops) == before:
            self.prologue.note(rule, operands, params, results)
            return
        if self.namer is not None:
            self.namer.hear(self)
        if any(isinstance(param, Traced) for param in params):
            _refuse("gives as a static argument")
        if rule.name == "to_backend":
            _refuse("moves to another backend")
        if rule.name in ("gather", "place") and any(isinstance(o, Tensor) and o.dtype.kind == "b" for o in operands):
            raise Unrecordable("the cell picks by a mask, so that a shape depends on values")
        for result in results:
            result.__class__ = Traced


def record(
    call: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]],
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    cell: Any,
    named: bool = False,
) -> Recording:
    """Record ``call(xs, state)``, which calls ``cell`` and returns the outputs and the next state.

    If it is to be ``named``, what the cell calls its values, and where it says so, is recorded too.

    Raises
    ------
    Unrecordable
        If the call looked at a value that it computed, or changed something of its own. All is then as it was before.
    RuntimeError
        If what it changed cannot be put back.
    """
    watch = Watch(cell)
    try:
        recording = _recorded(call, xs, state, _Namer() if named else None)
    except Unrecordable:
        watch.restore()
        raise
    changes = watch.changes()
    if changes:
        watch.restore()
        raise Unrecordable(f"the cell changes something of its own: {', '.join(changes)}")
    return recording


def _recorded(
    call: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]],
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    namer: _Namer | None,
) -> Recording:
    listener = _Listener(namer)
    given = [[_traced(tensor) for tensor in group] for group in (xs, state)]
    met = [[listener.meet(tensor) for tensor in group] for group in given]
    step = Step(xs=met[0], carry=met[1], consts=[])
    draws: list[Draw] = []
    counters: dict[int, tuple[random.Generator, int, int]] = {}
    begun = tape.tick()

    def drawn(generator: random.Generator, make: Callable[[Any], Tensor] | None, tensor: Tensor | None) -> None:
        if make is None or tensor is None:
            raise Unrecordable("the cell takes keys from a generator by itself")
        _, before, seed = counters.setdefault(id(generator), (generator, generator.counter - 1, generator.seed))
        earlier = sum(draw.generator is generator for draw in draws)
        if generator.set_at > begun or (generator.seed, generator.counter) != (seed, before + earlier + 1):
            raise Unrecordable("the cell makes or sets a generator that it draws from")
        step.xs.append(listener.meet(tensor))
        tensor.__class__ = Traced
        draws.append(Draw(generator, make, tensor))

    token = random._drawn.set(drawn)
    try:
        with tape.listen(listener), np.errstate(all="ignore"):
            ys, following = call(*given)
    finally:
        random._drawn.reset(token)
        taken = {key: generator.counter - before for key, (generator, before, _) in counters.items()}
        for generator, before, _ in counters.values():
            generator.counter = before
    if listener.refusal is not None:
        raise listener.refusal
    if any(sum(id(draw.generator) == key for draw in draws) != count for key, count in taken.items()):
        raise Unrecordable("the cell takes keys from a generator by itself")
    if namer is not None:
        namer.name(listener)
    step.ys = [listener.value(y) for y in (*ys, *[indices for indices, _, _ in listener.checks])]
    step.following = [listener.value(part) for part in following]
    step.ops = listener.ops
    step.consts = list(listener.constants)
    return Recording(step, list(listener.constants.values()), draws, listener.prologue, listener.checks)


def draw_all(recording: Recording, steps: int, reverse: bool) -> list[Tensor]:
    """What all steps draw, in the order in which they take their turns; the generators move on."""
    if not recording.draws:
        return []
    per_step = Counter(id(draw.generator) for draw in recording.draws)
    earlier: Counter[int] = Counter()
    drawn = []
    for draw in recording.draws:
        generator = draw.generator
        earlier[id(generator)] += 1
        first, stride = generator.counter + earlier[id(generator)], per_step[id(generator)]
        keys = np.full((steps, 2), generator.seed, np.uint64)
        counters = np.arange(first, first + steps * stride, stride)
        keys[:, 1] = counters[::-1] if reverse else counters
        drawn.append(draw.make(keys))
    for draw in {id(draw.generator): draw for draw in recording.draws}.values():
        draw.generator.counter += steps * per_step[id(draw.generator)]
    return drawn


def _traced(tensor: Tensor) -> Tensor:
    traced = _wrap(tensor._data)
    traced.__class__ = Traced
    traced.requires_grad = tensor.requires_grad
    return traced
