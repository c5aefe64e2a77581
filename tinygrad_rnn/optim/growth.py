"""Noticing a graph that grows from one step of an optimizer to the next, because somebody forgot a ``detach``."""

from __future__ import annotations

import gc
import sys
import warnings
from typing import Any

from tinygrad_rnn import tape
from tinygrad_rnn.tensor import Tensor

FIRST, FACTOR = 8, 4  # looked for at steps 8, 32, 128, ...: rarely enough to cost nothing


class GraphGrowthWarning(UserWarning):
    """A graph reaches back over many steps of an optimizer and grows with each."""


class Watch:
    """Counts an optimizer's steps, and now and then the nodes that outlived the step after they were made."""

    def __init__(self) -> None:
        self.steps = 0
        self.due = FIRST
        self.begun = tape.tick()  # what is older than the optimizer is not of its steps
        self.last = 0  # the tape's clock at the step before
        self.before = (0, 0)  # steps and old nodes at the check before

    def step(self) -> None:
        """To be called at each step, after the update."""
        self.steps += 1
        if self.steps == self.due:
            self.due *= FACTOR
            old = [
                thing
                for thing in gc.get_objects()
                if type(thing) is tape.Node and thing.plan is not None and self.begun < thing.number < self.last
            ]
            steps, count = self.before
            # One that grows has at least a node for each step; a graph kept for long has as many as before.
            if len(old) - count >= self.steps - steps - 1 > 0 and self.steps > FIRST:
                _warn(min(old, key=lambda node: node.number), self.steps)
                self.due = sys.maxsize
            self.before = (self.steps, len(old))
        self.last = tape.tick()


def _warn(oldest: tape.Node, steps: int) -> None:
    # isinstance would ask each object for its class, and a weak proxy of what has died raises then.
    holders = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing._node is not None]
    holders.sort(key=lambda tensor: tensor._node.number if tensor._node else 0, reverse=True)
    holder = next((tensor for tensor in holders if _reaches(tensor._node, oldest)), None)
    if holder is None:
        return
    names = _names(holder)
    called = f"{' = '.join(names)}, " if names else ""
    warnings.warn(
        f"a graph has grown over {steps} steps of the optimizer. It is held by {called}a tensor of shape "
        f"{holder.shape} made by {holder._made_by!r}: detach() what is carried on, or take its .item()",
        GraphGrowthWarning,
        stacklevel=4,
    )


def _reaches(node: Any, wanted: tape.Node) -> bool:
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if current is wanted:
            return True
        for parent in current.parents:
            if type(parent) is tape.Node and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False


def _names(tensor: Tensor) -> list[str]:
    """What the callers' variables, modules and attributes call it."""
    places: list[dict[str, Any]] = []
    frame = sys._getframe(3)
    while frame is not None:
        places.append(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    names = [name for place in places for name, value in place.items() if value is tensor]
    for owner in gc.get_referrers(tensor):
        values = owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})
        names += [name for name, value in values.items() if value is tensor and isinstance(name, str)]
    return sorted(set(names) - {"tensor", "holder", "thing"})
