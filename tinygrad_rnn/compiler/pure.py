"""Doing without a recording: a cell known to be pure does the same as long as it is built and called the same way.

A cell is pure if its class, or the function that it is, says so by an attribute ``pure = True`` of its own: one step
depends on nothing but its arguments, its attributes (the outer variables and globals of a function) and the modules and
functions among these, and changes nothing but the generators that it draws from. The library's own cells are. So are a
function and a module's ``forward`` whose code can do nothing else; see ``proof``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeAlias

from tinygrad_rnn.compiler.notes import MISSING, contents_of
from tinygrad_rnn.compiler.proof import ATTRIBUTES, BUILTINS, attributes_of, known
from tinygrad_rnn.compiler.record import Draw, Recording
from tinygrad_rnn.compiler.step import Op, Recorder, Step, Value, hashable, replay
from tinygrad_rnn.compiler.watch import code_facts, package_of_module
from tinygrad_rnn.ops.declare import TRANSPOSED
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tensor import Tensor

Held: TypeAlias = Tensor | Generator  # what is not in a cell's kind, which says only where in the cell it is
MOST = 256
_known: OrderedDict[Any, Known] = OrderedDict()
_PLAIN = (int, float, bool, str, type(None))
_EXACT = frozenset((int, bool, str, type(None)))  # of which those that are equal are alike
_NOTHING = Recorder()  # to which nothing is written
TRUSTING, OURS, PROVING = range(3)  # how what a function holds is looked at


@dataclass(slots=True)
class _Look:
    """What has been come across in a cell.

    Attributes
    ----------
    places
        Tensors and generators by their addresses: the how-manieth each is.
    seen
        Functions, likewise, each with how it was looked at: one that is trusted is not proved by that.
    proved
        Whether something was taken for pure by its code.
    """

    places: dict[int, tuple[int, Held]] = field(default_factory=dict)
    seen: dict[tuple[FunctionType, int], int] = field(default_factory=dict)
    proved: bool = False


@dataclass
class Known:
    """A recording that will do for another cell of the same kind.

    Attributes
    ----------
    sources
        Which of the cell's tensors the values are that the ``prologue`` begins with.
    draws
        What a step draws, and which of the cell's generators from; None stands for the default one.
    extra
        What else the caller wanted remembered.
    """

    step: Step
    prologue: list[Op]
    sources: dict[Value, int]
    consts: list[Value]
    draws: list[tuple[int | None, Draw]]
    extra: Any

    def recording(self, held: list[Any]) -> Recording:
        """As if a cell that holds these tensors and generators had been recorded."""
        values = {value: held[place] for value, place in self.sources.items()}
        for op in self.prologue:
            if op.rule is TRANSPOSED and op.recording:
                values[op.results[0]] = values[op.operands[0]].T
            else:
                replay(op, values)
        draws = [
            Draw(default_generator() if place is None else held[place], draw.make, draw.tensor)
            for place, draw in self.draws
        ]
        return Recording(self.step, [values[value] for value in self.consts], draws, _NOTHING, [])


def kind_of(cell: Any, others: Iterable[Tensor] = (), provable: bool = True) -> tuple[Any, list[Held]] | None:
    """What a pure cell does, as a key, and what it holds in a fixed order, ``others`` that its step reads included.

    None if that is not known; it can be proved only if nothing with methods of the user's is given to the cell.
    """
    look = _Look()
    kind = _kind(cell, look, TRUSTING)
    if kind is None or (look.proved and not provable):
        return None
    key = kind, *[_of_value(other, look, TRUSTING) for other in others]
    return key, [held for _, held in look.places.values()]


def _kind(cell: Any, look: _Look, how: int) -> Any:
    cls = type(cell)
    if cls is FunctionType:
        return _of_held(cell, look, PROVING)
    promise = vars(cls).get("pure")
    if not promise:
        if promise is not None:
            return None
        how = PROVING
    if how == PROVING and _overrides(cls):
        return None
    parts: list[Any] = [cls, cls.forward if promise else _shown(cell, look)]
    if parts[1] is None:
        return None
    for name, value in vars(cell).items():
        if type(value) in _EXACT:  # most are
            parts.append((name, type(value), value))
            continue
        part = _of_value(value, look, how)
        if part is None and promise and type(value) is FunctionType and _is_ours(value):
            part = value
        if part is None:
            part = _kind(value, look, how)
        if part is not None:
            parts.append((name, part))
        elif name != "_buffers":
            return None
    return tuple(parts)


def _overrides(cls: type) -> bool:
    """Whether a class of the user's has something of its own by a name that stands for an operation."""
    bases = [base for base in cls.__mro__[:-1] if not base.__module__.startswith("tinygrad_rnn.")]
    return not all(ATTRIBUTES.isdisjoint(vars(base)) for base in bases)


def _shown(cell: Any, look: _Look) -> Any:
    """What a module's ``forward`` does, if its code and its attributes show that it is pure."""
    cls = type(cell)
    forward, call = getattr(cls, "forward", None), getattr(cls, "__call__", None)  # noqa: B004 - the function itself
    if type(forward) is not FunctionType or type(call) is not FunctionType or not _is_ours(call):
        return None
    if code_facts(forward.__code__)[1] is not None:  # of a package, and so without a promise not known
        return None
    defined = {name for base in cls.__mro__[:-1] for name in vars(base)}
    if not defined.isdisjoint(("__getattribute__", "__getattr__")):
        return None
    own = {*vars(cell)}.difference(defined)  # what nothing of the class comes before
    if type(getattr(cls, "training", None)) is bool:
        own.add("training")
    part = _of_function(forward, look, PROVING, own)
    return None if part is None else (part, getattr(cell, "training", None))


def _of_value(value: Any, look: _Look, how: int) -> Any:
    """A tensor, a generator or a plain value; None for anything else."""
    places = look.places
    if isinstance(value, Tensor) and not (how == PROVING and _overrides(type(value))):
        place, _ = places.setdefault(id(value), (len(places), value))
        array = value._data
        return place, array.shape, array.dtype, value.requires_grad
    if type(value) is Generator:
        return Generator, places.setdefault(id(value), (len(places), value))[0]
    plain = type(value) in _PLAIN or (type(value) is tuple and all(type(part) in _PLAIN for part in value))
    return (hashable(value),) if plain else None


def _of_function(function: FunctionType, look: _Look, how: int, attributes: Collection[str] = ()) -> Any:
    """A function by its code and by all that it can read; ``attributes`` are looked at by the caller."""
    seen, key = look.seen, (function, how)
    if key in seen:
        return seen[key]
    seen[key] = len(seen)
    code, space = function.__code__, function.__globals__
    named, _ = code_facts(code)
    if how == PROVING:
        look.proved = True
        read = attributes_of(code)
        if read is None or not read.issubset(attributes) or any(n not in space and n not in BUILTINS for n in named):
            return None
    outer = [contents_of(cell) for cell in function.__closure__ or ()]
    own = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *function.__dict__.values()]
    parts: list[Any] = [code, *function.__dict__]
    for value in [*outer, *own, *[space.get(name, MISSING) for name in named]]:
        part = _of_held(value, look, how)
        if part is None:
            return None
        parts.append(part)
    return tuple(parts)


def _of_held(value: Any, look: _Look, how: int) -> Any:
    """What a function holds; None if it is nothing of which it is known when it changes.

    A function of the user's that promises speaks for those that it holds (``how`` is TRUSTING). What one of ours holds
    (OURS), the user's cell for instance, promises for itself, or shows by its code that it is pure (PROVING).
    """
    kind = type(value)
    if kind is FunctionType:
        promise, package = value.__dict__.get("pure"), code_facts(value.__code__)[1]
        if promise:
            return _of_function(value, look, OURS if package == "" else TRUSTING)
        if package is not None:  # by itself alone, if that can be known
            alone = how == TRUSTING or (known(value) if how == PROVING else value.__closure__ is None)
            return value if alone else None
        if how == TRUSTING:
            return _of_function(value, look, TRUSTING)
        return _of_function(value, look, PROVING) if promise is None else None
    if kind in (tuple, list):
        parts = [_of_held(part, look, how) for part in value]
        return None if None in parts else (kind, *parts)
    if value is MISSING:
        return value
    if kind is ModuleType or kind is BuiltinFunctionType:
        foreign = kind is ModuleType and package_of_module(value) is None
        return None if foreign or (how == PROVING and not known(value)) else value
    return _of_value(value, look, how) or _kind(value, look, how)


def _is_ours(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).startswith("tinygrad_rnn.")


def remembered(key: Any) -> Known | None:
    """The recording under ``key``."""
    found = _known.get(key)
    if found is not None:
        _known.move_to_end(key)
    return found


def remember(key: Any, recording: Recording, held: list[Held], extra: Any) -> None:
    """Keep a recording of a pure cell, unless it used tensors or generators that the cell does not hold."""
    prologue = recording.prologue
    places: dict[int, int | None] = {id(one): i for i, one in enumerate(held)}
    places.setdefault(id(default_generator()), None)
    consts = [prologue.find(tensor) or prologue.value(tensor) for tensor in recording.consts]
    sources = {}
    for value, tensor in prologue.constants.items():
        place = places.get(id(tensor))
        if place is None:
            return
        sources[value] = place
    if recording.checks or any(id(draw.generator) not in places for draw in recording.draws):
        return
    draws = [(places[id(draw.generator)], draw) for draw in recording.draws]
    _known[key] = Known(recording.step, prologue.ops, sources, consts, draws, extra)
    if len(_known) > MOST:
        _known.popitem(last=False)
