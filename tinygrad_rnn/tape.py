"""The tape: what was computed from what, and the walk backwards over it.

Every operation on a tensor that needs a gradient leaves a `Node`. A node points to the nodes of its operands
(or to a leaf tensor, where the graph ends), never to its result, so a graph has no reference cycle and is freed
when nobody holds its end. Nodes are numbered in the order in which they were made; an operand is always older than
its result, so walking backwards is visiting the reachable nodes from the youngest to the oldest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np

from tinygrad_rnn.backend import BY_TYPE
from tinygrad_rnn.outer_sum import OuterSum, multiplied

tick: Callable[[], int] = itertools.count(1).__next__  # one clock for nodes made and tensors written


class Node:
    """One recorded operation.

    Attributes
    ----------
    rule
        The operation's declaration; it knows the vector-Jacobian products.
    parents
        For each operand that needs a gradient its node, or the operand itself if it is a leaf.
    plan
        Which vector-Jacobian product belongs to which parent; None once the node has been freed.
    kept
        The values that these products read.
    number
        When the node was made.
    """

    __slots__ = ("__weakref__", "kept", "number", "parents", "plan", "rule")

    rule: Any
    parents: tuple[Parent, ...]
    plan: Any
    kept: tuple[Any, ...]
    number: int


Parent: TypeAlias = Any  # a node, or a leaf tensor
SELECT = "select"  # in place of a plan: this node stands for one of the several results of its parent
_new = object.__new__  # a third of the time that calling a class takes


def record(rule: Any, parents: tuple[Parent, ...], plan: Any, kept: tuple[Any, ...]) -> Node:
    """A new node."""
    node = _new(Node)
    node.rule = rule
    node.parents = parents
    node.plan = plan
    node.kept = kept
    node.number = tick()
    return node


class Mode:
    """What happens to operations just now: whether they leave nodes, and who else listens.

    A listener is called with every operation, whether or not it needs a gradient, as
    ``listener(rule, operands, params, results)``, and before a walk its ``hear_walk(order, wanted, as_tensors)`` if it
    has one.
    """

    __slots__ = ("listener", "recording")

    def __init__(self, recording: bool, listener: Callable[..., None] | None = None) -> None:
        self.recording = recording
        self.listener = listener


MODE: ContextVar[Mode] = ContextVar("tinygrad_rnn_mode", default=Mode(recording=True))  # noqa: B039 - never changed in place


@contextmanager
def no_grad() -> Iterator[None]:
    """Operations inside record nothing; a context manager and a decorator.

    It holds for this thread or asyncio task alone.
    """
    token = MODE.set(Mode(recording=False, listener=MODE.get().listener))
    try:
        yield
    finally:
        MODE.reset(token)


@contextmanager
def listen(listener: Callable[..., None]) -> Iterator[None]:
    """Hear of every operation inside; see `Mode`."""
    token = MODE.set(Mode(recording=MODE.get().recording, listener=listener))
    try:
        yield
    finally:
        MODE.reset(token)


@np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore")  # forward has warned already
def walk(
    roots: Sequence[tuple[Parent, Any]], wanted: set[Parent] | None, as_tensors: bool, retain: bool
) -> dict[Parent, Any]:
    """Carry cotangents from ``roots`` backwards and return those that arrive at ``wanted``.

    Parameters
    ----------
    roots
        Pairs of a node or leaf and its cotangent.
    wanted
        The nodes and leaves whose cotangents are asked for; None means all leaves.
    as_tensors
        Whether cotangents are tensors, so that the walk is itself recorded, or raw arrays.
    retain
        Keep the graph for another walk instead of freeing each node after its use.

    Raises
    ------
    RuntimeError
        If a part of the graph was freed (noticed before anything is done), or a tensor that it needs was written since.
    """
    order = _reachable([root for root, _ in roots])
    listener: Any = MODE.get().listener
    if hasattr(listener, "hear_walk"):
        listener.hear_walk(order, wanted, as_tensors)
    useful = set() if wanted is None else _leading_to(wanted, order)
    asked = None if wanted is None else useful | wanted
    direct = asked is None and not as_tensors
    cotangents: dict[Parent, Any] = {}
    found: dict[Parent, Any] = {}
    ours: set[Parent] = set()  # whose cotangent is a sum that this walk made, and may add to in place

    pop = cotangents.pop
    get = cotangents.get
    for root, cotangent in roots:
        before = get(root)
        cotangents[root] = cotangent if before is None else before + cotangent
    for node in order:
        cotangent = pop(node, None)
        if cotangent is None:
            continue
        if type(cotangent) is OuterSum:
            cotangent = cotangent.value()
        if wanted is not None:
            if node in wanted:
                found[node] = cotangent
            if node not in useful:
                continue
        plan = node.plan
        if plan is SELECT:  # one result of several: hand the cotangent to the node of them all
            position, results = node.kept
            slots = cotangents.setdefault(node.parents[0], [None] * results)
            before = slots[position]
            slots[position] = cotangent if before is None else before + cotangent
        else:
            if direct and plan.quick is not None and (F := BY_TYPE.get(type(cotangent))) is not None:
                all_pulled = plan.quick(F, cotangent, node)
            else:
                all_pulled = node.rule.pull(node, cotangent, as_tensors, asked)
            for parent, pulled in zip(node.parents, all_pulled, strict=True):
                if pulled is None:
                    continue
                before = get(parent)
                if before is None:
                    cotangents[parent] = pulled
                elif type(pulled) is OuterSum:
                    cotangents[parent] = pulled + before
                elif parent in ours:
                    before += pulled
                else:
                    cotangents[parent] = before + pulled
                    if not as_tensors and pulled.ndim:
                        ours.add(parent)
        if not (retain or (plan is not SELECT and plan.lasting)):
            node.plan = None
            node.kept = node.parents = ()
    for leaf, cotangent in cotangents.items():
        if wanted is None or leaf in wanted:
            found[leaf] = multiplied(cotangent)
    return found


def _reachable(roots: list[Parent]) -> list[Node]:
    """All nodes behind ``roots``, youngest first."""
    seen: set[Node] = set()
    pending = [root for root in roots if type(root) is Node]
    for root in pending:
        if root.plan is None:
            raise RuntimeError(
                f"backward a second time through the result of {root.rule.name!r}: its graph was freed by the first. "
                "Compute it again, or pass retain_graph=True to the first call."
            )
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                if type(parent) is Node:
                    if parent.plan is None:
                        raise RuntimeError(
                            f"{node.rule.name!r} used the result of {parent.rule.name!r} from a graph that an earlier "
                            "backward freed. If that is the state carried from one batch to the next, detach() it "
                            "first: state = tg.detach(state)."
                        )
                    pending.append(parent)
    return sorted(seen, key=attrgetter("number"), reverse=True)


def _leading_to(wanted: set[Parent], order: list[Node]) -> set[Parent]:
    """The nodes of ``order`` from which ``wanted`` can be reached."""
    useful: set[Parent] = set()
    for node in reversed(order):
        if any(parent in useful or parent in wanted for parent in node.parents):
            useful.add(node)
    return useful
