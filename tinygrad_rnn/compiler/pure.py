"""Doing without a recording: a cell known to be pure does the same as long as it is built and called the same way.

A cell is pure if its class says so by an attribute ``pure = True`` of its own: one step depends on nothing but its
arguments, its attributes and the modules and functions among these, and changes nothing. The library's own cells are.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from tinygrad_rnn.compiler.record import Recording
from tinygrad_rnn.compiler.step import Op, Recorder, Step, Value, hashable, replay
from tinygrad_rnn.tensor import Tensor

MOST = 256
_known: OrderedDict[Any, Known] = OrderedDict()
_PLAIN = (int, float, bool, str, type(None))


@dataclass
class Known:
    """A recording that will do for another cell of the same kind.

    Attributes
    ----------
    sources
        Which of the cell's tensors the values are that the ``prologue`` begins with.
    extra
        What else the caller wanted remembered.
    """

    step: Step
    prologue: list[Op]
    sources: dict[Value, int]
    consts: list[Value]
    extra: Any

    def recording(self, tensors: list[Tensor]) -> Recording:
        """As if a cell that has these tensors had been recorded."""
        values = {value: tensors[place] for value, place in self.sources.items()}
        for op in self.prologue:
            replay(op, values)
        return Recording(self.step, [values[value] for value in self.consts], [], Recorder(), [])


def kind_of(cell: Any) -> tuple[Any, list[Tensor]] | None:
    """What a pure cell does, as a key, and its tensors in a fixed order; None if it makes no promise."""
    tensors: list[Tensor] = []
    key = _kind(cell, tensors)
    return None if key is None else (key, tensors)


def _kind(module: Any, tensors: list[Tensor]) -> Any:
    cls = type(module)
    if not vars(cls).get("pure", False):
        return None
    parts: list[Any] = [cls, cls.forward]
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            place = next((i for i, other in enumerate(tensors) if other is value), len(tensors))
            if place == len(tensors):
                tensors.append(value)
            parts.append((name, place, value.shape, value.dtype, value.requires_grad))
        elif type(value) in _PLAIN or (type(value) is FunctionType and _is_ours(value)):
            parts.append((name, hashable(value)))
        elif (below := _kind(value, tensors)) is not None:
            parts.append((name, below))
        elif name != "_buffers":
            return None
    return tuple(parts)


def _is_ours(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).startswith("tinygrad_rnn.")


def remembered(key: Any) -> Known | None:
    """The recording under ``key``."""
    found = _known.get(key)
    if found is not None:
        _known.move_to_end(key)
    return found


def remember(key: Any, recording: Recording, tensors: list[Tensor], extra: Any) -> None:
    """Keep a recording of a pure cell, unless it used tensors that the cell does not hold."""
    prologue = recording.prologue
    places = {id(tensor): i for i, tensor in enumerate(tensors)}
    consts = [prologue.find(tensor) or prologue.value(tensor) for tensor in recording.consts]
    sources = {}
    for value, tensor in prologue.constants.items():
        if id(tensor) not in places:
            return
        sources[value] = places[id(tensor)]
    if recording.draws or recording.checks:
        return
    _known[key] = Known(recording.step, prologue.ops, sources, consts, extra)
    if len(_known) > MOST:
        _known.popitem(last=False)
