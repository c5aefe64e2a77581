"""How far a generator or an iterator had come, whether it moved on, and how it is put back; see ``notes``."""

from __future__ import annotations

import gc
import itertools
import random
from operator import length_hint
from types import GeneratorType
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.notes import Note

PYTHON_RANDOM: Any = random.random.__self__  # type: ignore[attr-defined]


def numpy_random() -> Any:
    """The generator behind NumPy's own functions, whose import takes as long as that of all of ours."""
    return np.random.random_sample.__self__  # type: ignore[attr-defined]


class DrawsNote(Note):
    """How far a generator of this library has come: what it draws is recorded, so that is no change."""

    __slots__ = ()
    always = True

    def state(self) -> tuple[int, int]:
        return self.thing.seed, self.thing.counter

    def changed(self) -> bool:
        return bool(self.thing.seed != self.saved[0])

    def put_back(self) -> None:
        self.thing.seed, self.thing.counter = self.saved


class RandomNote(Note):
    """The state of a `random.Random`."""

    __slots__ = ()

    def state(self) -> Any:
        return random.Random.getstate(self.thing)

    def changed(self) -> bool:
        return self.saved != self.state()  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        return [_generator("random", "Python's random generator", self)]

    def put_back(self) -> None:
        random.Random.setstate(self.thing, self.saved)


class NumpyRandomNote(Note):
    """The state of a `numpy.random.RandomState` or of a bit generator, as NumPy wants it back."""

    __slots__ = ()

    def state(self) -> Any:
        thing = self.thing
        return thing.get_state(legacy=False) if isinstance(thing, np.random.RandomState) else thing.state

    def changed(self) -> bool:
        return _comparable(self.saved) != _comparable(self.state())  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        return [_generator("numpy.random", "NumPy's random generator", self)]

    def put_back(self) -> None:
        if isinstance(self.thing, np.random.RandomState):
            self.thing.set_state(self.saved)
        else:
            self.thing.state = self.saved


class IteratorNote(Note):
    """How far an iterator of Python's has come. Most cannot be put back."""

    __slots__ = ()

    def state(self) -> list[Any]:
        thing, kind = self.thing, type(self.thing)
        if kind is itertools.count:
            return [repr(thing)]
        if kind in _REWINDABLE:
            return [*thing.__reduce__()[2:]]
        if kind is enumerate:
            return [*thing.__reduce__()[1]]
        if (left := length_hint(thing, -1)) >= 0:
            return [left]
        if kind is GeneratorType:
            # A generator stands at the same place each time round a loop, but its variables move on.
            frame = thing.gi_frame
            return [None] if frame is None else [frame.f_lasti, *gc.get_referents(thing)]
        return gc.get_referents(thing)

    def changed(self) -> bool:
        return type(self.thing) in _UNSEEN or super().changed()

    def put_back(self) -> None:
        if type(self.thing) in _REWINDABLE and self.saved:
            self.thing.__setstate__(*self.saved)


_BY_INDEX: Any = type("", (), {"__getitem__": None})  # iterators over such a sequence are of types of their own
_REWINDABLE: Any = {*map(type, (iter([]), iter(()), iter(_BY_INDEX()), reversed([]))), reversed}
# These have a state that they do not tell, so they are taken to move on at every call.
_TEE: Any = type(itertools.tee(())[0])
_UNSEEN = {itertools.cycle, itertools.islice, itertools.takewhile, itertools.dropwhile, _TEE}


def _generator(module: str, phrase: str, note: Note) -> str:
    if note.thing is PYTHON_RANDOM or note.thing is numpy_random():
        return f"the state of {module} (the module)"
    return f"{phrase} {note.where[1]!r}" if note.where[1] else phrase


def _comparable(state: Any) -> Any:
    """A state of NumPy's, which holds arrays, as something that ``==`` can be asked of."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
