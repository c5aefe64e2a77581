"""What an operation is: its forward, its vector-Jacobian products, and what these read.

See ``declare.py`` for how one is written down.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

from tinygrad_rnn import tape
from tinygrad_rnn.backend import BY_TYPE, NUMPY
from tinygrad_rnn.outer_sum import multiplied
from tinygrad_rnn.tape import Node
from tinygrad_rnn.tensor import Tensor, _name, _wrap

Vjp: TypeAlias = Callable[..., Any]

OverTime: TypeAlias = Callable[["Rule", tuple[Any, ...], Sequence[Any], Sequence[bool]], Any]
TENSORS: Any = None  # the namespace of operations on tensors; ops/__init__.py puts itself here
KEEPS_OUT = (0,)  # a plan that keeps the result alone


class Rule:
    """One operation: its forward, its VJPs, and how both are to be called.

    Attributes
    ----------
    forward
        ``forward(F, *operands, *params)`` on raw arrays.
    vjps
        For each operand's name its VJP, absent where the operation has no gradient.
    operands, params
        Names, in order.
    variadic
        Whether the last operand is ``*operands``, any number of them; its VJP returns the cotangents of all of them,
        of which it need only compute those ``wanted``, a tuple of positions.
    fixed
        How many operands come before those.
    elementwise
        Whether operands broadcast against each other.
    several
        Whether the result is a list.
    over_time, total
        How it runs on all steps of a sequence at once, and how the sum over all steps is found where that is less work;
        see ``over_time.py``.
    jointly, each
        Whether it is linear in all operands taken together, and the names of those in which it is linear if the others
        stay as they are.
    alters
        Whether a VJP is not linear in the cotangent, so that those of several uses cannot be summed first.
    scalar
        What it does to one element, as an expression or a function of the static arguments that gives one; see
        `tinygrad_rnn.ops.declare.scalar`.
    view
        Whether the result shares the memory of its only operand.
    """

    def __init__(
        self, forward: Callable[..., Any], vjps: dict[str, Vjp], elementwise: bool, several: bool = False
    ) -> None:
        code = forward.__code__
        self.name = forward.__name__.strip("_")
        self.forward = forward
        self.vjps = vjps
        self.elementwise = elementwise
        self.several = several
        self.over_time: OverTime | None = None
        self.total: OverTime | None = None
        self.jointly = False
        self.each: tuple[str, ...] = ()
        self.alters = False
        self.scalar: str | Callable[..., str] | None = None
        self.view = False
        self.variadic = bool(code.co_flags & inspect.CO_VARARGS)
        # Operands are positional-only; static arguments follow, by keyword alone where there are ``*operands``.
        fixed = code.co_varnames[1 : code.co_posonlyargcount]
        if self.variadic:
            first = code.co_argcount
            total = first + code.co_kwonlyargcount
            self.operands: tuple[str, ...] = (*fixed, code.co_varnames[total])
            self.params = code.co_varnames[first:total]
            self.defaults = tuple((forward.__kwdefaults__ or {}).get(name, ...) for name in self.params)
        else:
            self.operands = fixed
            self.params = code.co_varnames[code.co_posonlyargcount : code.co_argcount]
            given = forward.__defaults__ or ()
            self.defaults = (...,) * (len(self.params) - len(given)) + given
        self.optional = ... not in self.defaults
        self.fixed = len(fixed)
        # Everything that a VJP may read, in the order in which `_node` lays it out.
        shapes = tuple(f"{name}_shape" for name in self.operands)
        self.readable = ("out", *self.operands, *self.params, *shapes, *(("wanted",) if self.variadic else ()))
        read = {name for vjp in vjps.values() for name in _reads(vjp)}
        self.reads_shapes = not read.isdisjoint(shapes)
        unknown = read.difference(self.readable)
        if unknown or not set(vjps) <= set(self.operands):
            raise TypeError(f"{self.name}: the VJPs of {tuple(vjps)} read {unknown}; there are {self.readable}")
        self.plans: dict[int, Plan] = {}

    @property
    def joins(self) -> bool:
        """Whether it puts its operands side by side."""
        return self.variadic and self.jointly

    def __repr__(self) -> str:
        return f"<operation {self.name}>"

    def pull(self, node: Node, cotangent: Any, as_tensors: bool, asked: set[tape.Parent] | None) -> list[Any]:
        """For each parent of ``node`` the cotangent that comes from the result's, None where nobody asked."""
        plan: Plan = node.plan
        values: Any = node.kept
        if as_tensors:
            F = TENSORS
            for position in plan.tensors:
                _check(values[position], node)
            if plan.out >= 0:
                values = (*values[: plan.out], _wrap(values[plan.out], node), *values[plan.out + 1 :])
        else:
            array = next(g for g in cotangent if g is not None) if type(cotangent) is list else cotangent
            F = BY_TYPE.get(type(array), NUMPY)  # a NumPy scalar is on no backend
            if plan.tensors:
                values = _arrays(values, plan.tensors, node)
        pulled = [
            multiplied(vjp(F, cotangent, *reads(values))) if asked is None or parent in asked else None
            for parent, (vjp, reads) in zip(node.parents, plan.calls, strict=False)
        ]
        if plan.joint is not None:
            vjp, reads = plan.joint
            of_rest = vjp(F, cotangent, *reads(values))
            pulled += [of_rest[position] for position in plan.rest]
        return pulled


class Plan:
    """Which operands of a call need a gradient, and what their VJPs read from what the node keeps.

    Attributes
    ----------
    indices
        The operands that need a gradient.
    rest
        Those among ``*operands``, counted from the first of these.
    calls
        For each of the other operands that need a gradient: the VJP, and which of the kept values it reads.
    joint
        The same for the rest together, None if none of them needs one.
    lasting
        Whether nodes survive a backward pass: they keep no values, and graphs share them.
    quick
        ``quick(F, cotangent, node)`` does what `Rule.pull` does for raw arrays when every parent asks, if nothing is
        joint; else None. A gradient of a weight may be an `OuterSum`, for the walk to put others into.
    keeps
        Which of the rule's ``readable`` values are kept, and ``pick``, which picks them.
    tensors
        Where operands are among the kept values.
    out
        Where the result is among them, -1 if it is not.
    """

    __slots__ = ("calls", "indices", "joint", "keeps", "lasting", "out", "pick", "quick", "rest", "tensors")

    def __init__(self, rule: Rule, needed: int) -> None:
        limit = rule.fixed if rule.variadic else len(rule.operands)
        bits = [i for i in range(needed.bit_length()) if needed >> i & 1]
        fixed = tuple(i for i in bits if i < limit and rule.operands[i] in rule.vjps)
        self.rest = tuple(i - limit for i in bits if i >= limit) if rule.operands[-1] in rule.vjps else ()
        self.indices = fixed + tuple(i + limit for i in self.rest)
        vjps = [rule.vjps[rule.operands[i]] for i in fixed] + ([rule.vjps[rule.operands[-1]]] if self.rest else [])
        names = tuple(dict.fromkeys(name for vjp in vjps for name in _reads(vjp)))
        calls = tuple((vjp, _picker(tuple(names.index(name) for name in _reads(vjp)))) for vjp in vjps)
        self.joint = calls[-1] if self.rest else None
        self.calls = calls[:-1] if self.rest else calls
        self.keeps = KEEPS_OUT if names == ("out",) else tuple(rule.readable.index(name) for name in names)
        self.pick = _picker(self.keeps)
        self.tensors = tuple(i for i, name in enumerate(names) if name in rule.operands)
        self.out = names.index("out") if "out" in names else -1
        self.lasting = False
        self.quick = None if self.rest else _quick(self.calls, self.tensors)


class Operands(tuple[Tensor, ...]):
    """The operands of a variadic operation, kept as one value."""

    __slots__ = ()


def _arrays(values: Sequence[Any], positions: tuple[int, ...], node: Node) -> list[Any]:
    """``values`` with the operands at ``positions`` as raw arrays."""
    arrays = list(values)
    for position in positions:
        value = arrays[position]
        if isinstance(value, Tensor):
            if value._node is None or value._base is not None:
                _check(value, node)
            arrays[position] = value._data
        elif type(value) is Operands:
            _check(value, node)
            arrays[position] = [item._data for item in value]
    return arrays


def _check(value: Any, node: Node) -> None:
    """Raise if the memory of a kept operand was written since ``node`` was made."""
    if type(value) is Operands:
        for item in value:
            _check(item, node)
    elif isinstance(value, Tensor):
        owner = value._owner
        if owner._written > node.number:
            raise RuntimeError(
                f"{_name(owner)}, was changed in place after {node.rule.name!r} used it, whose gradient needs the "
                "old value: call backward before optimizer.step() or load_state_dict(), or compute the loss again"
            )


def _reads(vjp: Vjp) -> tuple[str, ...]:
    """The names of a VJP's arguments after F and g."""
    return vjp.__code__.co_varnames[2 : vjp.__code__.co_argcount]


def _picker(positions: tuple[int, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that picks items as a tuple; `itemgetter` of a single position would give the bare item."""
    if len(positions) > 1:
        return itemgetter(*positions)
    start = positions[0] if positions else 0
    return itemgetter(slice(start, start + len(positions)))


def _quick(calls: tuple[tuple[Vjp, Any], ...], tensors: tuple[int, ...]) -> Callable[[Any, Any, Node], Sequence[Any]]:
    (first, reads), *others = calls
    if others:
        (second, reads_second), *more = others
        if more:
            return lambda F, g, node: [
                vjp(F, g, *reads(values)) for values in [_arrays(node.kept, tensors, node)] for vjp, reads in calls
            ]

        def two(F: Any, g: Any, node: Node) -> Sequence[Any]:
            values = _arrays(node.kept, tensors, node) if tensors else node.kept
            return first(F, g, *reads(values)), second(F, g, *reads_second(values))

        return two
    if tensors:  # a VJP that is alone reads all that is kept, in its own order
        return lambda F, g, node: (first(F, g, *_arrays(node.kept, tensors, node)),)
    return lambda F, g, node: (first(F, g, *node.kept),)
