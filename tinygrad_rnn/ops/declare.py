"""How an operation is declared, and what happens when it is called.

A declaration holds the forward and, above it, one vector-Jacobian product (VJP) for each operand::

    @operation(x=lambda F, g, out: g * (1 - out * out))
    def tanh(F, x, /):
        return F.tanh(x)

Positional-only arguments are the operands, tensors or what can become one; the others are static. ``F`` is the
namespace to compute with: a backend, on raw arrays, or ``tinygrad_rnn.ops``, on tensors, when the gradient itself is
to be recorded. So one expression gives first and higher derivatives.

A VJP names what it reads, after ``F`` and the result's cotangent ``g``: ``out``, an operand, an operand's shape
(``x_shape``) or a static argument. What no VJP names is not kept alive by the graph, and may be overwritten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from weakref import ref

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.backend import BY_TYPE, Array, backend_of
from tinygrad_rnn.ops.over_time import aligned, reversed_axes
from tinygrad_rnn.ops.rule import KEEPS_OUT, Operands, OverTime, Plan, Rule, Vjp
from tinygrad_rnn.tensor import Tensor, _as_array, _wrap

P = ParamSpec("P")
F_ = TypeVar("F_", bound=Callable[..., Any])
Operand: TypeAlias = Any  # a Tensor or what can become one; inside a declaration, the raw array

REGISTRY: dict[str, Rule] = {}

MODE = tape.MODE.get
Node = tape.Node
record = tape.record
SELECT = tape.SELECT
_FLOAT64 = np.dtype(np.float64)
_SCALARS = (float, int, bool)


def operation(
    elementwise: bool = False, /, **vjps: Vjp
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, Tensor]]:
    """Declare an operation with one result; see the module's text."""

    def declare(forward: Callable[Concatenate[Any, P], Any]) -> Callable[P, Tensor]:
        return _public(Rule(forward, vjps, elementwise), apply)

    return declare


def operation_with_results(**vjps: Vjp) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, list[Tensor]]]:
    """Declare an operation that gives a list; its VJPs get a list of cotangents, None for an unused result."""

    def declare(forward: Callable[Concatenate[Any, P], Any]) -> Callable[P, list[Tensor]]:
        return _public(Rule(forward, vjps, False, several=True), apply_with_results)

    return declare


def over_time(
    how: OverTime | None = None,
    /,
    total: OverTime | None = None,
    jointly: bool = False,
    each: tuple[str, ...] = (),
    alters: bool = False,
    view: bool = False,
) -> Callable[[F_], F_]:
    """Declare, above `operation`, how it behaves over the steps of a sequence; see the attributes of `Rule`."""

    def declare(public: F_) -> F_:
        rule = REGISTRY[public.__name__.strip("_")]
        rule.over_time, rule.total = how or rule.over_time, total
        rule.jointly, rule.each, rule.alters, rule.view = jointly, each, alters, view
        return public

    return declare


def scalar(expression: str | Callable[..., str], /) -> Callable[[F_], F_]:
    """Declare, above `operation`, what it does to one element: an expression of its operands and static arguments.

    Engines that generate loops over elements use it. It may call the functions of `tinygrad_rnn.compiler.scalars`, and
    name the constants ``zero``, ``one`` and ``infinity``. A function is given the static arguments and returns the
    expression.
    """

    def declare(public: F_) -> F_:
        REGISTRY[public.__name__.strip("_")].scalar = expression
        return public

    return declare


def _public(rule: Rule, run: Callable[..., Any]) -> Callable[..., Any]:
    before = REGISTRY.get(rule.name)
    if before is not None and _is_ours(before) and not _is_ours(rule):
        raise ValueError(
            f"operation: tinygrad_rnn has an operation {rule.name!r}, which the engines of scan know by its name: "
            "take another"
        )
    REGISTRY[rule.name] = rule
    if rule.elementwise:
        rule.over_time = aligned
    arity = len(rule.operands)

    def plain(*operands: Any) -> Any:
        return run(rule, operands, ())

    def unary(x: Any) -> Any:
        if isinstance(x, Tensor):
            raw = x._data
            F = BY_TYPE[type(raw)]
            return _result(rule, (x,), (raw,), (), x.requires_grad, forward(F, raw), F)
        return apply(rule, (x,), ())

    def binary(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            raw_a, raw_b = a._data, b._data
            if type(raw_a) is type(raw_b):
                F = BY_TYPE[type(raw_a)]
                needed = a.requires_grad + 2 * b.requires_grad
                return _result(rule, (a, b), (raw_a, raw_b), (), needed, forward(F, raw_a, raw_b), F)
        return apply(rule, (a, b), ())

    def variadic(*operands: Any, **named: Any) -> Any:
        return run(rule, operands, _bind(rule, (), named))

    def with_params(*args: Any, **named: Any) -> Any:
        return run(rule, args[:arity], _bind(rule, args[arity:], named))

    def unary_with_params(x: Any, *args: Any, **named: Any) -> Any:
        params = _bind(rule, args, named)
        if isinstance(x, Tensor):
            raw = x._data
            F = BY_TYPE[type(raw)]
            return _result(rule, (x,), (raw,), params, x.requires_grad, forward(F, raw, *params), F)
        return apply(rule, (x,), params)

    forward = rule.forward
    call: Any
    if rule.variadic:
        call = variadic
    elif rule.params:
        call = with_params
        if arity == 1 and run is apply:
            call = unary_with_params
    else:  # the short way for the commonest calls; `apply` does the same for any
        short: dict[int, Callable[..., Any]] = {1: unary, 2: binary}
        call = short.get(arity, plain) if run is apply else plain
    update_wrapper(call, forward)
    del call.__wrapped__
    _, *arguments = inspect.signature(forward).parameters.values()
    returns = "Tensor" if run is apply else "list[Tensor]"
    call.__signature__ = inspect.Signature(arguments, return_annotation=returns)
    call.__annotations__ = {argument.name: argument.annotation for argument in arguments} | {"return": returns}
    return call  # type: ignore[no-any-return]


def _is_ours(rule: Rule) -> bool:
    return (rule.forward.__module__ or "").startswith("tinygrad_rnn.")  # None where a program is run by exec


def _bind(rule: Rule, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Static arguments in their order, defaults filled in."""
    if not named:
        if len(positional) == len(rule.params):
            return positional
        if not positional and rule.optional:
            return rule.defaults
    values = [*positional, *rule.defaults[len(positional) :]]
    for name, value in named.items():
        if name not in rule.params:
            raise TypeError(f"{rule.name}() got an unexpected argument {name!r}; it takes {', '.join(rule.params)}")
        position = rule.params.index(name)
        if position < len(positional):
            raise TypeError(f"{rule.name}() got {name!r} twice")
        values[position] = value
    if len(values) > len(rule.params):
        raise TypeError(f"{rule.name}() takes at most {len(rule.operands) + len(rule.params)} arguments")
    for name, value in zip(rule.params, values, strict=True):
        if value is ...:
            raise TypeError(f"{rule.name}() is missing its argument {name!r}")
    return tuple(values)


def apply(rule: Rule, operands: tuple[Any, ...], params: tuple[Any, ...]) -> Tensor:
    """Run ``rule`` on ``operands`` and leave a node if one of them needs a gradient."""
    raws: list[Any] = []
    needed = 0  # the operands that need a gradient, one bit each
    bit = 1
    F: Any = None
    for operand in operands:
        if isinstance(operand, Tensor):
            raw = operand._data
            if F is None:
                F = BY_TYPE[type(raw)]
            elif type(raw) is not F.array_type:
                raise TypeError(_mixed(rule, operands))
            raws.append(raw)
            if operand.requires_grad:
                needed += bit
        elif type(operand) in _SCALARS:
            raws.append(operand)
        else:
            return apply(rule, _as_operands(rule, operands), params)
        bit += bit
    if F is None:
        return apply(rule, _first_as_tensor(rule, operands), params)
    if rule.variadic:
        out = rule.forward(F, *raws, **dict(zip(rule.params, params, strict=True)))
    else:
        out = rule.forward(F, *raws, *params)
    return _result(rule, operands, raws, params, needed, out, F)


def _result(
    rule: Rule, operands: tuple[Any, ...], raws: Sequence[Any], params: tuple[Any, ...], needed: int, out: Any, F: Any
) -> Tensor:
    """The result of an operation as a tensor, with its node if an operand needs a gradient."""
    if type(out) is not F.array_type and type(out) not in BY_TYPE:
        out = F.asarray(out)  # NumPy gives scalars where a result is 0-d
    if out.dtype is _FLOAT64 and _widened(raws) and "dtype" not in rule.params:
        kinds = {raw.dtype.kind for raw in raws if type(raw) not in _SCALARS}
        if "f" in kinds and not kinds.isdisjoint("iu"):
            return apply(rule, _ints_as_float32(operands), params)
        out = out.astype(np.float32)
    mode = MODE()
    if needed and mode.recording and rule.vjps and out.dtype.kind == "f":
        result = _wrap(out, _node(rule, operands, raws, params, out, needed))
    else:
        result = _wrap(out, None)
    if out.base is not None or out is raws[0]:  # perhaps a leaf's memory, whose later writes a graph must notice
        for operand in operands:
            if isinstance(operand, Tensor) and (memory := operand._memory) is not None:
                result._base = memory
                break
    if mode.listener is not None:
        mode.listener(rule, operands, params, (result,))
    return result


def apply_with_results(rule: Rule, operands: tuple[Any, ...], params: tuple[Any, ...]) -> list[Tensor]:
    """`apply` for an operation of one operand that gives a list."""
    (operand,) = operands
    if not isinstance(operand, Tensor):
        operand = Tensor(operand)
    raw = operand._data
    outs = rule.forward(BY_TYPE[type(raw)], raw, *params)
    mode = MODE()
    if operand.requires_grad and mode.recording and outs:
        node = _node(rule, operands, [raw], params, outs[0], 1)
        size = len(outs)
        results = [_wrap(out, record(rule, (node,), SELECT, (position, size))) for position, out in enumerate(outs)]
    else:
        results = [_wrap(out) for out in outs]
    if (memory := operand._memory) is not None:
        for result in results:
            result._base = memory
    if mode.listener is not None:
        mode.listener(rule, operands, params, tuple(results))
    return results


def _first_as_tensor(rule: Rule, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    if not operands:
        raise TypeError(f"{rule.name} needs at least one tensor")
    return (Tensor(operands[0]), *operands[1:])


def _as_operands(rule: Rule, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Array-likes as tensors: arrays keep their dtype, lists of floats take that of the first float operand."""
    floats = [o.dtype for o in operands if (isinstance(o, Tensor) or backend_of(o) is not None) and o.dtype.kind == "f"]
    result: list[Any] = []
    for operand in operands:
        if isinstance(operand, np.generic):
            result.append(operand.item())
        elif isinstance(operand, Tensor) or type(operand) in _SCALARS:
            result.append(operand)
        else:
            try:
                tensor = Tensor(operand)
            except TypeError as error:
                raise TypeError(f"{rule.name}: {error}") from None
            if floats and backend_of(operand) is None and tensor.dtype.kind == "f":
                tensor = Tensor(_as_array(operand, floats[0]))
            result.append(tensor)
    return tuple(result)


def _mixed(rule: Rule, operands: tuple[Any, ...]) -> str:
    names = list(dict.fromkeys(o.backend for o in operands if isinstance(o, Tensor)))
    return f"{rule.name} got tensors on {' and '.join(names)}: move one with .to({names[0]!r})"


def _widened(raws: Sequence[Any]) -> bool:
    """Whether float64 came of ints and Python floats among float32, or of ints alone: we give float32 for these."""
    return not any(type(raw) not in _SCALARS and raw.dtype == _FLOAT64 for raw in raws)


def _ints_as_float32(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(o.astype(np.float32) if isinstance(o, Tensor) and o.dtype.kind in "iu" else o for o in operands)


def _node(
    rule: Rule, operands: tuple[Any, ...], raws: Sequence[Any], params: tuple[Any, ...], out: Array, needed: int
) -> Node:
    plan = rule.plans.get(needed)
    if plan is None:
        plan = Plan(rule, needed)
        if not rule.variadic:  # of those there would be as many as ways to call them
            rule.plans[needed] = plan
    parents: list[tape.Parent] = []
    dtype = out.dtype
    shape = out.shape if rule.elementwise else None
    for index in plan.indices:
        operand = operands[index]
        raw = raws[index]
        parent: tape.Parent = operand._node
        if parent is None:
            parent = operand
        if raw.dtype is not dtype and raw.dtype != dtype:
            parent = record(CAST, (parent,), CAST_PLAN, (raw.dtype,))
        if shape is not None and raw.shape != shape:
            parent = shared(parent, BROADCAST, BROADCAST_PLAN, (raw.shape, shape))
        parents.append(parent)
    if not plan.keeps:
        kept: tuple[Any, ...] = ()
    elif plan.keeps is KEEPS_OUT:
        kept = (out,)
    elif rule.variadic:
        fixed = rule.fixed
        shapes = [raw.shape for raw in raws]
        rest = (Operands(operands[fixed:]), *params, *shapes[:fixed], shapes[fixed:], plan.rest)
        kept = plan.pick((out, *operands[:fixed], *rest))
    elif rule.reads_shapes:
        kept = plan.pick((out, *operands, *params, *[getattr(raw, "shape", ()) for raw in raws]))
    else:
        kept = plan.pick((out, *operands, *params))
    return record(rule, tuple(parents), plan, kept)


def shared(parent: tape.Parent, rule: Rule, plan: Plan, kept: tuple[Any, ...]) -> Node:
    """A node that keeps no values; one on a leaf serves all uses of the leaf, in whatever graphs.

    A bias or a transposed weight is used at every step of a sequence: their cotangents are then summed first, and
    pulled through the broadcast or the transpose once.
    """
    if type(parent) is Node or MODE().listener is not None:  # who listens wants each use by itself
        return record(rule, (parent,), plan, kept)
    node: Node | None = parent._shared and parent._shared()
    if node is None or node.plan is not plan or node.kept != kept:
        node = record(rule, (parent,), plan, kept)
        parent._shared = ref(node)  # weak: the leaf is not to keep a graph alive
    return node


def _cast(F: Any, x: Operand, /, dtype: Any) -> Array:
    return F.astype(x, dtype)


def _broadcast(F: Any, x: Operand, /, shape: tuple[int, ...]) -> Array:
    return F.broadcast_to(x, shape)


def _transposed(F: Any, x: Operand, /) -> Array:
    return x.T


def sum_to(F: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """Sum ``x`` over the axes along which ``shape`` would be broadcast to its shape."""
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    if x.shape[extra:] == shape:
        return F.sum(x, axis=tuple(range(extra)))
    axes = (*range(extra), *[i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1])
    return F.reshape(F.sum(x, axis=axes), shape)


# Broadcasting and casting are operations like any other: a call that does them on the way records them as such,
# so no other VJP has to think of them. ``dtype`` and ``x_shape`` are those to go back to.
CAST = Rule(_cast, {"x": lambda F, g, dtype: F.astype(g, dtype)}, False)
BROADCAST = Rule(_broadcast, {"x": lambda F, g, x_shape, shape: sum_to(F, g, x_shape)}, False)
TRANSPOSED = Rule(_transposed, {"x": lambda F, g: g.T}, False)
CAST_PLAN, BROADCAST_PLAN, TRANSPOSED_PLAN = Plan(CAST, 1), Plan(BROADCAST, 1), Plan(TRANSPOSED, 1)
BROADCAST_PLAN.lasting = TRANSPOSED_PLAN.lasting = True


def transposed(x: Tensor) -> Tensor:
    """``x.T``."""
    mode = MODE()
    if x._node is not None or not x.requires_grad or not mode.recording or mode.listener is not None:
        return _transpose(x)
    result = _wrap(x._data.T, shared(x, TRANSPOSED, TRANSPOSED_PLAN, ()))
    result._base = x._memory
    return result


TRANSPOSED.over_time, TRANSPOSED.jointly, TRANSPOSED.view = reversed_axes, True, True
_transpose: Callable[[Tensor], Tensor] = _public(TRANSPOSED, apply)
del REGISTRY[TRANSPOSED.name]
