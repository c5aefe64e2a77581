"""Whether a cell changes anything of its own when it is called.

One step of a cell is recorded and stands for all of them. That is right only if the call leaves the cell as it was:
a counter in an attribute would be the first step's for ever. So everything that the cell can reach is noted before
the recorded call, compared after it, and put back if the caller goes on in another way.

What is reached: attributes of modules and of objects of the user's classes; the classes themselves; closure
variables, defaults, attributes and named globals of functions, and of the functions that these reach; and what all
that holds. The code of Python, of NumPy, of this library and of other installed packages is not looked into.

What is not seen: writes into the raw arrays of weights, as everywhere here; writes into arrays for which no room is
left, beyond a sample of a thousand elements (of tensors beyond it, only the library's own writes are); raw arrays on
a device; what an object of an installed package keeps to itself; files, clocks and the operating system's randomness.
The states of ``random`` and ``numpy.random`` are costly to read, so they are noted only where a cell can come by them:
where it names them, or holds something of a package that is neither NumPy nor Python's own.
"""

from __future__ import annotations

import dis
import gc
import os
import random
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from weakref import ref

import numpy as np

from tinygrad_rnn.compiler import movers, notes
from tinygrad_rnn.compiler.notes import ATTRIBUTE, CLOSURE, GLOBAL, MISSING, PLAIN, Note, Where
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tensor import Tensor

ROOM = 1_000_000  # how many elements of arrays and tensors are copied in all, nearest to the cell first

DEFAULT = "the default of {!r} in {}"
ARGUMENT = "argument {!r} of {}"


class Watch:
    """What a cell can reach, as it is now.

    Parameters
    ----------
    cell
        A module, a function, a method, a `functools.partial`, or any object that can be called.
    """

    def __init__(self, cell: Any) -> None:
        self._notes: list[Note] = []
        self._seen: dict[int, Any] = {}  # by address; held, so that no other object can take one
        self._pending: deque[tuple[Any, Where]] = deque()  # nearest first, so that names are short
        self._room = ROOM
        self._modules: list[ModuleType] = []  # of the user's
        self._globals: dict[int, set[str]] = {}  # which names were noted, by the address of what they are in
        self._names: list[frozenset[str]] = []  # of which the code reached so far speaks
        self._home = _package_of(cell)
        self._numpy = self._foreign = False  # whether NumPy, and whether another package was reached

        self._items((default_generator(), cell), ("the cell", "", ""))
        self._walk()
        while self._look_into_modules():
            self._walk()
        if self._foreign or (self._numpy and any("random" in names for names in self._names)):
            self._global_numpy()
        if self._foreign:
            self._global_python()
        self._walk()

    def changes(self) -> list[str]:
        """What is not as it was, in words; empty if nothing is."""
        return [*dict.fromkeys(name for note in self._notes if note.changed() for name in note.names())]

    def restore(self) -> None:
        """Put everything back in place, so that another call of the cell does what the first did.

        The counters of this library's own generators are put back too, though `changes` does not count them.

        Raises
        ------
        RuntimeError
            If something cannot be put back, as an iterator that has moved on; it names that. All else is put back.
        """
        # Iterators last: how far one has come may depend on the length of what it goes through.
        for note in sorted(self._notes, key=lambda note: isinstance(note, movers.IteratorNote)):
            if note.always or note.changed():
                note.put_back()
        if lost := self.changes():
            raise RuntimeError(f"cannot be put back as before the cell was called: {', '.join(lost)}")

    def _walk(self) -> None:
        seen, pending = self._seen, self._pending
        while pending:
            thing, where = pending.popleft()
            if id(thing) not in seen:
                seen[id(thing)] = thing
                kind = _KINDS.get(type(thing)) or _kind(type(thing))
                kind.visit(self, thing, where, kind)

    def _items(self, things: Iterable[Any], where: Where) -> None:
        """Go on to these, which are one in the eyes of the user."""
        self._pending += [(thing, where) for thing in things if type(thing) not in PLAIN]

    def _entries(self, entries: dict[Any, Any], phrase: str, owner: str) -> None:
        """Go on to these, each of which has a name."""
        if not PLAIN.issuperset(map(type, entries.values())):
            self._pending += [(v, (phrase, key, owner)) for key, v in entries.items() if type(v) not in PLAIN]

    def _attributes(self, thing: Any, owner: str) -> None:
        note = notes.AttributesNote(thing, (ATTRIBUTE, "", owner))
        self._notes.append(note)
        self._entries(note.saved, ATTRIBUTE, owner)

    def _named(self, namespace: dict[str, Any], names: tuple[str, ...], owner: str) -> None:
        note = notes.GlobalsNote((namespace, names), (GLOBAL, "", owner))
        self._notes.append(note)
        self._globals.setdefault(id(namespace), set()).update(names)
        for name, value in zip(names, note.saved, strict=True):
            if type(value) not in PLAIN and value is not MISSING:
                self._pending.append((value, (GLOBAL, name, owner)))

    def _look_into_modules(self) -> bool:
        """Note what the code found so far may mean when it names an attribute of a module; whether that is news."""
        before = len(self._pending)
        for module in self._modules:
            entries = module.__dict__
            spoken = frozenset().union(*self._names)
            if names := (spoken & entries.keys()) - self._globals.get(id(entries), set()):
                self._named(entries, tuple(sorted(names)), f"the module {module.__name__}")
        return len(self._pending) > before

    def _global_python(self) -> None:
        self._items((movers.PYTHON_RANDOM,), (GLOBAL, "random", ""))

    def _global_numpy(self) -> None:
        self._items((movers.numpy_random(),), (GLOBAL, "random", ""))

    # How things of each kind are visited. All take the same four arguments.

    def _nothing(self, thing: Any, where: Where, kind: _Kind) -> None:
        pass

    def _function(self, thing: Any, where: Where, kind: _Kind) -> None:
        code = _code(thing.__code__)
        name = thing.__name__
        closure = thing.__closure__
        if code.package is not None and code.package != self._home:
            self._foreign |= code.package != ""
            if closure:  # a decorator of Python's, a wrapper of this library's: there may be a cell inside
                self._items([v for cell in closure if (v := notes.contents_of(cell)) is not MISSING], where)
            return
        self._names.append(code.names)
        if closure:
            note = notes.ClosureNote(thing, (CLOSURE, "", name))
            self._notes.append(note)
            for variable, value in zip(thing.__code__.co_freevars, note.saved, strict=True):
                if type(value) not in PLAIN and value is not MISSING:
                    self._pending.append((value, (CLOSURE, variable, name)))
        if code.globals:
            self._named(thing.__globals__, code.globals, name)
        if defaults := thing.__defaults__:
            arguments = thing.__code__.co_varnames[: thing.__code__.co_argcount]
            self._entries(dict(zip(arguments[-len(defaults) :], defaults, strict=True)), DEFAULT, name)
        if thing.__kwdefaults__:
            self._entries(thing.__kwdefaults__, DEFAULT, name)
        package = thing.__globals__.get("__package__")
        for module in code.imports:
            names = module, f"{package}.{module}" if module else package  # the second if it is a relative import
            self._items([sys.modules[name] for name in names if name in sys.modules], where)
        self._attributes(thing, name)

    def _method(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items((thing.__func__, thing.__self__), where)

    def _builtin(self, thing: Any, where: Where, kind: _Kind) -> None:
        if type(thing.__self__) is not ModuleType:  # else it is a plain function of that module
            self._items((thing.__self__,), where)

    def _partial(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items((thing.func, *thing.args), where)
        keywords = notes.DictNote(thing.keywords, where)
        self._notes.append(keywords)
        self._entries(keywords.saved, ARGUMENT, "a partial")

    def _wrapper(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items((thing.__wrapped__,), where)

    def _property(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items((thing.fget, thing.fset, thing.fdel), where)

    def _cached_property(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items((thing.func,), where)

    def _module(self, thing: Any, where: Where, kind: _Kind) -> None:
        if thing is random:
            self._global_python()
        elif thing is np.random:
            self._global_numpy()
        elif thing is np:
            self._numpy = True
        else:
            package = package_of_module(thing)
            if package is None or package == self._home:
                self._modules.append(thing)
            else:
                self._foreign |= package != ""

    def _class(self, thing: Any, where: Where, kind: _Kind) -> None:
        package = _package_of_class(thing)
        if package is not None and package != self._home:
            self._foreign |= package != ""
            return
        name = type.__getattribute__(thing, "__name__")
        note = notes.ClassNote(thing, (ATTRIBUTE, "", name))
        self._notes.append(note)
        self._entries(note.saved, ATTRIBUTE, name)
        self._items(type.__getattribute__(thing, "__bases__"), where)

    def _object(self, thing: Any, where: Where, kind: _Kind) -> None:
        """Of a class of the user's, or a module of ours."""
        if kind.package is not None and kind.package != self._home:
            self._foreign = True
            return
        owner = type(thing).__name__
        if kind.contents is not None:
            kind.contents(self, thing, where, kind)
        if kind.slots:
            note = notes.SlotsNote((thing, kind.slots), (ATTRIBUTE, "", owner))
            self._notes.append(note)
            self._items([value for value in note.saved if value is not MISSING], where)
        if kind.attributes:
            self._attributes(thing, owner)
        self._pending.append((type(thing), where))

    def _dict(self, thing: Any, where: Where, kind: _Kind) -> None:
        note = notes.DictNote(thing, where)
        self._notes.append(note)
        self._items(note.saved, where)
        self._items(note.saved.values(), where)
        if issubclass(type(thing), defaultdict):
            self._items((thing.default_factory,), where)

    def _ordered(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._noted(notes.OrderedDictNote(thing, where))

    def _list(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._noted(notes.ListNote(thing, where))

    def _deque(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._noted(notes.DequeNote(thing, where))

    def _set(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._noted(notes.SetNote(thing, where))

    def _iterator(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._notes.append(movers.IteratorNote(thing, where))
        self._items(gc.get_referents(thing), where)

    def _noted(self, note: Note) -> None:
        self._notes.append(note)
        if not PLAIN.issuperset(map(type, note.saved)):
            self._items(note.saved, note.where)

    def _tuple(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items(tuple.__iter__(thing), where)

    def _frozenset(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._items(frozenset.__iter__(thing), where)

    def _array(self, thing: Any, where: Where, kind: _Kind) -> None:
        if thing.dtype.kind == "O":
            self._noted(notes.ObjectsNote(thing, where))
        elif not thing.dtype.hasobject:
            self._notes.append(notes.ArrayNote(thing, where, self._fits(thing.size)))

    def _tensor(self, thing: Tensor, where: Where, kind: _Kind) -> None:
        owner = thing
        while owner._base is not None:
            owner = owner._base
        if owner._node is None:  # else nobody can write to it
            learned = owner.requires_grad or thing.requires_grad or type(owner) is not Tensor
            self._notes.append(notes.TensorNote(thing, where, owner, not learned and self._fits(thing.size)))

    def _draws(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._notes.append(movers.DrawsNote(thing, where))

    def _random(self, thing: Any, where: Where, kind: _Kind) -> None:
        self._notes.append(movers.RandomNote(thing, where))

    def _numpy_random(self, thing: Any, where: Where, kind: _Kind) -> None:
        if issubclass(type(thing), np.random.Generator):
            self._items((thing.bit_generator,), where)  # which several may share
        else:
            self._notes.append(movers.NumpyRandomNote(thing, where))

    def _fits(self, size: int) -> bool:
        fits = size <= self._room
        if fits:
            self._room -= size
        return fits


Found = TypeVar("Found")
Visit: TypeAlias = Callable[[Watch, Any, Where, "_Kind"], None]


class Memo(Generic[Found]):
    """What was found out about objects, until they go.

    It goes by their addresses: code objects that differ in their file alone are equal, and a metaclass of the user's
    could define equality.
    """

    def __init__(self, find: Callable[[Any], Found]) -> None:
        self.find = find
        self.found: dict[int, tuple[Found, Any]] = {}

    def __call__(self, key: Any) -> Found:
        address = id(key)
        entry = self.found.get(address)
        if entry is None:
            found = self.found
            entry = found[address] = self.find(key), ref(key, lambda _: found.pop(address, None))
        return entry[0]


class _Code(NamedTuple):
    """What the code of a function, and of those inside it, speaks of."""

    globals: tuple[str, ...]
    names: frozenset[str]  # of attributes, and all others
    imports: tuple[str, ...]
    package: str | None  # see `_package`


class _Kind(NamedTuple):
    """How objects of a type are looked at."""

    visit: Visit
    contents: Visit | None = None  # of an object that is a container too
    package: str | None = None  # see `_package`
    slots: tuple[Any, ...] = ()
    attributes: bool = False  # whether they have a ``__dict__``


_OURS, _PYTHON = (f"{os.path.dirname(file)}{os.sep}" for file in (os.path.dirname(__file__), os.__file__))
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\.]+)")


@lru_cache(maxsize=4096)
def _package(module: str, file: str | None) -> str | None:
    """None if a module is the user's; else what its package is called, "" for Python's, NumPy's and our own."""
    if file is None:
        return "" if module.partition(".")[0] in sys.stdlib_module_names else None
    if file.startswith(_OURS):
        return ""
    if found := _INSTALLED.search(file):
        return "" if found[1] == "numpy" else found[1]
    return "" if file.startswith((_PYTHON, "<frozen ")) else None


def _find_package_of_class(kind: type) -> str | None:
    module = type.__getattribute__(kind, "__module__")
    if type(module) is not str:
        return None
    if module.startswith("_cython"):  # the type of compiled functions, which has no module
        return ""
    return _package(module, getattr(sys.modules.get(module), "__file__", None))


_package_of_class = Memo(_find_package_of_class)


def _package_of(cell: Any) -> str:
    """The package that a cell is of, if it is an installed one: that is looked into as the user's code is."""
    while type(cell) in (partial, MethodType):
        cell = cell.func if type(cell) is partial else cell.__func__
    package = _code(cell.__code__).package if type(cell) is FunctionType else _package_of_class(type(cell))
    return package or "no package"


def _code_of(code: CodeType) -> _Code:
    named: set[str] = set()
    names: set[str] = set()
    imports: set[str] = set()
    pending = [code]
    while pending:
        each = pending.pop()
        names.update(each.co_names)
        pending += [constant for constant in each.co_consts if isinstance(constant, CodeType)]
        for instruction in dis.get_instructions(each):
            if instruction.opname.endswith(("_GLOBAL", "_GLOBALS", "_NAME")):
                (imports if instruction.opname == "IMPORT_NAME" else named).add(instruction.argval)
    return _Code(tuple(sorted(named)), frozenset(names), tuple(sorted(imports)), _package("", code.co_filename))


_code = Memo(_code_of)


def code_facts(code: CodeType) -> tuple[tuple[str, ...], str | None]:
    """The globals that code names, and its package (see `_package`)."""
    facts = _code(code)
    return facts.globals, facts.package


def package_of_module(module: ModuleType) -> str | None:
    """The package of a module; see `_package`."""
    return _package(module.__name__, module.__dict__.get("__file__"))


# The first that a type is or derives from says how its contents are visited.
_VISITS: dict[type, Visit] = {
    FunctionType: Watch._function,
    MethodType: Watch._method,
    BuiltinFunctionType: Watch._builtin,
    MethodWrapperType: Watch._builtin,
    partial: Watch._partial,
    type(lru_cache(len)): Watch._wrapper,
    staticmethod: Watch._wrapper,
    classmethod: Watch._wrapper,
    property: Watch._property,
    cached_property: Watch._cached_property,
    ModuleType: Watch._module,
    type: Watch._class,
    Tensor: Watch._tensor,
    Generator: Watch._draws,
    OrderedDict: Watch._ordered,
    dict: Watch._dict,
    list: Watch._list,
    tuple: Watch._tuple,
    set: Watch._set,
    frozenset: Watch._frozenset,
    deque: Watch._deque,
    bytearray: Watch._list,
    np.ndarray: Watch._array,
    random.Random: Watch._random,
}
# Of Python's own classes, those whose objects are but attributes.
_BAGS = {"types.SimpleNamespace", "argparse.Namespace", "collections.UserDict", "collections.UserList"}


def _kind_of(kind: type) -> _Kind:
    from tinygrad_rnn.nn.module import Module  # modules need scan, and so this file, to be there first

    of_numpy = np.random.Generator, np.random.RandomState, np.random.BitGenerator  # which are slow to import
    visits = _VISITS | dict.fromkeys(of_numpy, Watch._numpy_random)
    contents = next((visit for base, visit in visits.items() if issubclass(kind, base)), None)
    module, name = (type.__getattribute__(kind, each) for each in ("__module__", "__qualname__"))
    package = _package_of_class(kind)
    if issubclass(kind, Module) or f"{module}.{name}" in _BAGS:
        package = None
    if contents in (Watch._class, Watch._tensor, Watch._draws, Watch._function) or (contents and package is not None):
        return _Kind(contents)
    if package == "":
        iterates = module in ("builtins", "itertools") and hasattr(kind, "__next__")
        return _Kind(Watch._iterator if iterates else Watch._nothing)
    classes = [each for each in type.__getattribute__(kind, "__mro__") if "__slots__" in each.__dict__]
    slots = [slot for each in classes for slot in each.__dict__.values() if type(slot) is MemberDescriptorType]
    return _Kind(Watch._object, contents, package, tuple(slots), kind.__dictoffset__ != 0)


_kind = Memo(_kind_of)
# A type of Python's is found faster here.
_KINDS = {kind: _Kind(visit) for kind, visit in _VISITS.items()}
