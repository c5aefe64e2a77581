"""How one thing that a cell can reach was, whether it is so still, and how it is made so again.

Nothing here runs code of the user: no property, no ``__eq__``, no overridden method of a container.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from operator import is_
from types import EllipsisType, NoneType
from typing import Any, TypeAlias

import numpy as np

from tinygrad_rnn.tensor import Tensor

SAMPLES = 1000  # elements that are compared of an array which is not copied

Where: TypeAlias = tuple[str, Any, str]  # a phrase, and the two words that go into it
ATTRIBUTE = "attribute {!r} of {}"
CLOSURE = "the closure variable {!r} of {}"
GLOBAL = "the global {!r} of {}"

MISSING: Any = object()
_bytes: Any = np.ndarray.tobytes
_NUMBERS = frozenset(kind for kind in np.sctypeDict.values() if issubclass(kind, (np.number, np.bool_)))
PLAIN = _NUMBERS | {int, float, complex, bool, str, bytes, range, NoneType, EllipsisType}


def _alike(a: Any, b: Any) -> bool:
    """The same object, or plain values that nobody can tell apart."""
    if a is b:
        return True
    kind = type(a)
    if type(b) is not kind:
        return False
    if kind is tuple:
        return _all_alike(a, b)
    if kind in _NUMBERS:
        return bool(a.tobytes() == b.tobytes())
    if kind in (float, complex):
        return repr(a) == repr(b)  # which tells 0.0 from -0.0, and NaN is like NaN
    return kind in PLAIN and bool(a == b)


def _all_alike(a: Collection[Any], b: Collection[Any]) -> bool:
    return len(a) == len(b) and (all(map(is_, a, b)) or all(map(_alike, a, b)))


def _same_entries(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether two dicts have the same entries in the same order."""
    return _all_alike(a.keys(), b.keys()) and _all_alike(a.values(), b.values())


class Note:
    """How one thing was.

    ``thing`` is watched, and held, so that no other object takes its address; ``where`` says how the cell reaches it;
    ``saved`` is what `state` returned at first. With ``always`` it is put back even if there is nothing to report.
    """

    __slots__ = ("saved", "thing", "where")
    always = False

    def __init__(self, thing: Any, where: Where) -> None:
        self.thing = thing
        self.where = where
        self.saved = self.state()

    def state(self) -> Any:
        raise NotImplementedError

    def changed(self) -> bool:
        return not _all_alike(self.saved, self.state())

    def names(self) -> list[str]:
        """What changed, in words."""
        phrase, *words = self.where
        return [phrase.format(*words)]

    def put_back(self) -> None:
        """Make the thing what it was; whether that succeeded is seen by `changed`."""


class DictNote(Note):
    """The contents of a dict and their order."""

    __slots__ = ()

    def state(self) -> dict[Any, Any]:
        return dict.copy(self.thing)

    def changed(self) -> bool:
        return not _same_entries(self.saved, dict.copy(self.thing))

    def put_back(self) -> None:
        dict.clear(self.thing)
        dict.update(self.thing, self.saved)


class OrderedDictNote(Note):
    """An `OrderedDict` keeps its order beside the dict that it is."""

    __slots__ = ()

    def state(self) -> list[tuple[Any, Any]]:
        return [*OrderedDict.items(self.thing)]

    def put_back(self) -> None:
        OrderedDict.clear(self.thing)
        for key, value in self.saved:
            OrderedDict.__setitem__(self.thing, key, value)


class AttributesNote(Note):
    """The attributes of an object; the last word of ``where`` is the name of its class."""

    __slots__ = ("namespace",)
    namespace: dict[str, Any]

    def state(self) -> dict[str, Any]:
        self.namespace = _attributes(self.thing)
        return self.namespace.copy()

    def changed(self) -> bool:
        return not _same_entries(self.saved, _attributes(self.thing))

    def names(self) -> list[str]:
        owner = self.where[2]
        differing = _differing(self.saved, _attributes(self.thing))
        return [ATTRIBUTE.format(key, owner) for key in differing] or [f"the order of the attributes of {owner}"]

    def put_back(self) -> None:
        self.namespace.clear()
        self.namespace.update(self.saved)
        if _attributes(self.thing) is not self.namespace:
            object.__setattr__(self.thing, "__dict__", self.namespace)


class SlotsNote(Note):
    """The attributes that the classes of an object name in ``__slots__``; ``thing`` is the object and those slots."""

    __slots__ = ()

    def state(self) -> list[Any]:
        owner, slots = self.thing
        return [_slot(owner, slot) for slot in slots]

    def names(self) -> list[str]:
        return _in_words(ATTRIBUTE, [slot.__name__ for slot in self.thing[1]], self)

    def put_back(self) -> None:
        owner, slots = self.thing
        for slot, old, new in zip(slots, self.saved, self.state(), strict=True):
            if old is not MISSING:
                slot.__set__(owner, old)
            elif new is not MISSING:
                slot.__delete__(owner)


class ClassNote(Note):
    """The attributes of a class; those between double underscores may be Python's doing, and are only looked into."""

    __slots__ = ()

    def state(self) -> dict[str, Any]:
        return dict(type.__getattribute__(self.thing, "__dict__"))

    def changed(self) -> bool:
        found = type.__getattribute__(self.thing, "__dict__")
        return not _all_alike(found.values(), self.saved.values()) and bool(self._differing())

    def names(self) -> list[str]:
        return [ATTRIBUTE.format(key, self.where[2]) for key in self._differing()]

    def put_back(self) -> None:
        for key in self._differing():
            if key in self.saved:
                type.__setattr__(self.thing, key, self.saved[key])
            else:
                type.__delattr__(self.thing, key)

    def _differing(self) -> list[str]:
        return [key for key in _differing(self.saved, self.state()) if key[:2] != "__"]


class GlobalsNote(Note):
    """Some names of a module; ``thing`` is the dict and the names, the last word of ``where`` who uses them."""

    __slots__ = ()

    def state(self) -> list[Any]:
        namespace, names = self.thing
        return [namespace.get(name, MISSING) for name in names]

    def names(self) -> list[str]:
        return _in_words(GLOBAL, self.thing[1], self)

    def put_back(self) -> None:
        namespace, names = self.thing
        for name, old in zip(names, self.saved, strict=True):
            if old is not MISSING:
                namespace[name] = old
            else:
                namespace.pop(name, None)


class ClosureNote(Note):
    """The closure variables of a function; ``thing`` is the function."""

    __slots__ = ()

    def state(self) -> list[Any]:
        try:
            return [cell.cell_contents for cell in self.thing.__closure__]
        except ValueError:  # one has no value yet
            return [contents_of(cell) for cell in self.thing.__closure__]

    def names(self) -> list[str]:
        return _in_words(CLOSURE, self.thing.__code__.co_freevars, self)

    def put_back(self) -> None:
        for cell, old in zip(self.thing.__closure__, self.saved, strict=True):
            if old is not MISSING:
                cell.cell_contents = old
            elif contents_of(cell) is not MISSING:
                del cell.cell_contents


class ListNote(Note):
    """The items of a list or a bytearray."""

    __slots__ = ()

    def state(self) -> Any:
        return self._type.__getitem__(self.thing, slice(None))

    def put_back(self) -> None:
        self._type.__setitem__(self.thing, slice(None), self.saved)

    @property
    def _type(self) -> Any:
        return list if isinstance(self.thing, list) else bytearray


class DequeNote(Note):
    """The items of a deque."""

    __slots__ = ()

    def state(self) -> list[Any]:
        return [*deque.__iter__(self.thing)]

    def put_back(self) -> None:
        deque.clear(self.thing)
        deque.extend(self.thing, self.saved)


class SetNote(Note):
    """The members of a set, without their order."""

    __slots__ = ()

    def state(self) -> set[Any]:
        return set.copy(self.thing)

    def changed(self) -> bool:
        old = {id(item): item for item in self.saved}
        new = {id(item): item for item in set.__iter__(self.thing)}
        if len(old) != len(new):
            return True
        gone = [old[key] for key in old.keys() - new.keys()]
        come = [new[key] for key in new.keys() - old.keys()]
        return not all(any(_alike(a, b) for b in come) for a in gone)

    def put_back(self) -> None:
        set.clear(self.thing)
        set.update(self.thing, self.saved)


class ArrayNote(Note):
    """The elements of a NumPy array, or of too large a one those at even distances."""

    __slots__ = ("whole",)

    def __init__(self, thing: Any, where: Where, whole: bool) -> None:
        self.whole = whole
        super().__init__(thing, where)

    def state(self) -> tuple[Any, ...]:
        return self.thing.shape, _bytes(self.thing) if self.whole else _sample(self.thing)

    def put_back(self) -> None:
        if self.whole and self.thing.shape == self.saved[0]:
            _write(self.thing, self.saved[1])


class ObjectsNote(Note):
    """The elements of a NumPy array of Python objects."""

    __slots__ = ()

    def state(self) -> list[Any]:
        return [*self.thing.flat]

    def put_back(self) -> None:
        for index, item in zip(np.ndindex(self.thing.shape), self.saved, strict=True):
            self.thing[index] = item


class TensorNote(Note):
    """A tensor that somebody could write to.

    The library's own writes are seen by their stamp. Only what is not learned has its elements copied, compared and
    put back: weights are many, and are written by optimizers, of which a cell has none.
    """

    __slots__ = ("contents", "data", "needs", "owner", "owner_data", "written")

    def __init__(self, thing: Tensor, where: Where, owner: Tensor, whole: bool) -> None:
        self.thing = thing
        self.where = where
        self.data = data = thing._data
        self.needs = thing.requires_grad
        self.owner = owner
        self.owner_data = owner._data
        self.written = owner._written
        self.contents: Any = None
        if whole:
            self.contents = _bytes(data) if type(data) is np.ndarray else data.copy()

    def changed(self) -> bool:
        thing, data, contents = self.thing, self.data, self.contents
        return (
            thing._data is not data
            or self.owner._written != self.written
            or thing.requires_grad is not self.needs
            # Elsewhere than on the host comparing would wait for the device.
            or (type(contents) is bytes and _bytes(data) != contents)
        )

    def put_back(self) -> None:
        data, contents, owner = self.data, self.contents, self.owner
        in_place = owner._written != self.written and owner._data is self.owner_data
        self.thing._data, self.thing.requires_grad, owner._data = data, self.needs, self.owner_data
        if type(contents) is bytes:
            _write(data, contents)
        elif contents is not None:
            data[...] = contents
        if not in_place or (contents is not None and data.size == owner._data.size):
            owner._written = self.written  # else old elements are lost, and the stamp goes on saying so


def _in_words(phrase: str, keys: Iterable[str], note: Note) -> list[str]:
    trios = zip(keys, note.saved, note.state(), strict=True)
    return [phrase.format(key, note.where[2]) for key, old, new in trios if not _alike(old, new)]


def _differing(old: dict[Any, Any], new: dict[Any, Any]) -> list[Any]:
    keys = [*old, *(key for key in new if key not in old)]
    return [key for key in keys if not _alike(old.get(key, MISSING), new.get(key, MISSING))]


def _attributes(thing: Any) -> dict[str, Any]:
    return object.__getattribute__(thing, "__dict__")  # type: ignore[no-any-return]


def contents_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _slot(owner: Any, slot: Any) -> Any:
    try:
        return slot.__get__(owner)
    except AttributeError:
        return MISSING


def _sample(array: Any) -> bytes:
    step = max(array.size // SAMPLES, 1)
    return bytes((array.reshape(-1)[::step] if array.flags.c_contiguous else array.flat[::step]).tobytes())


def _write(array: Any, contents: bytes) -> None:
    if array.flags.writeable and _bytes(array) != contents:
        np.ndarray.__setitem__(array, ..., np.frombuffer(contents, array.dtype).reshape(array.shape))
