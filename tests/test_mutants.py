"""Mistakes planted in every vector-Jacobian product, which the checks of its operation must notice.

They are made for each declaration, not picked: the product negated, doubled, dropped, rolled by one, transposed, taken
from the wrong cotangent, with a value that it reads replaced or two exchanged, and a sum over broadcast axes that takes
one slice for the sum. A mutant that gives the right numbers wherever the checks call it (a roll of one element, an
exchange of equal values) is the same function and does not count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from case import results, tensors
from cases import CASES

import tinygrad_rnn as tg
from tinygrad_rnn.checks import GradientError, gradcheck, gradgradcheck
from tinygrad_rnn.ops import altered, declare
from tinygrad_rnn.ops.declare import REGISTRY
from tinygrad_rnn.ops.rule import Plan, Rule
from tinygrad_rnn.outer_sum import multiplied

VIRTUAL = {declare.CAST: declare.CAST_PLAN, declare.BROADCAST: declare.BROADCAST_PLAN}
VIRTUAL[declare.TRANSPOSED] = declare.TRANSPOSED_PLAN
RULES = [rule for rule in (*REGISTRY.values(), *VIRTUAL) if rule.vjps and rule.name not in altered.__all__]
SMOOTH = [case for cases in CASES.values() for case in cases if case.torch]
tally = {"planted": 0, "killed": 0, "same": 0}

Mutation = Callable[[Any], Any]


def _array(change: Callable[[Any], Any]) -> Mutation:
    """A change of one cotangent, or of each in a list."""
    return lambda pulled: [change(p) for p in pulled] if isinstance(pulled, (list, tuple)) else change(pulled)


CHANGES: dict[str, Mutation] = {
    "negated": _array(lambda p: -p),
    "doubled": _array(lambda p: 2 * p),
    "dropped": _array(lambda p: p * 0),
    "rolled": _array(lambda p: np.roll(p, 1, -1) if np.ndim(p) else p),
    "flipped": _array(lambda p: np.flip(p)),
    "transposed": _array(lambda p: np.asarray(p).T if np.ndim(p) > 1 and p.shape == p.T.shape else p),
}


def mutants(vjp: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Wrong versions of ``vjp``, with the same names of arguments, by which a rule knows what it reads."""
    names = vjp.__code__.co_varnames[: vjp.__code__.co_argcount]
    arguments = ", ".join(names)

    def pulled(F: Any, g: Any, *reads: Any) -> Any:
        return multiplied(vjp(F, g, *reads))

    def version(run: Callable[..., Any]) -> Callable[..., Any]:
        wrong: Callable[..., Any] = eval(f"lambda {arguments}: run({arguments})", {"run": run})
        return wrong

    for label, change in CHANGES.items():
        yield label, version(lambda F, g, *reads, change=change: change(pulled(F, g, *reads)))

    def first_slice(F: Any, g: Any, *reads: Any) -> Any:
        return pulled(_Thin(F), g, *reads)

    yield "one slice for the sum", version(first_slice)
    yield (
        "squared cotangent",
        version(lambda F, g, *reads: pulled(F, [_square(p) for p in g] if isinstance(g, list) else g * g, *reads)),
    )
    for i, name in enumerate(names[2:]):
        yield f"{name} replaced", version(lambda F, g, *r, i=i: pulled(F, g, *r[:i], _other(r[i]), *r[i + 1 :]))
        for j in range(i):
            yield (
                f"{names[2 + j]} and {name} exchanged",
                version(lambda F, g, *r, i=i, j=j: pulled(F, g, *[r[{i: j, j: i}.get(k, k)] for k in range(len(r))])),
            )


class _Thin:
    """A namespace whose sum takes the first slice along the axes."""

    def __init__(self, F: Any) -> None:
        self.F = F

    def __getattr__(self, name: str) -> Any:
        return getattr(self.F, name)

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axes = range(x.ndim) if axis is None else [a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
        for a in axes:
            x = np.take(x, [0], a)
        return x if keepdims else np.squeeze(x, tuple(axes))


def _square(p: Any) -> Any:
    return None if p is None else p * p


def _other(value: Any) -> Any:
    """Something of the same kind, and a different one where that can be."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value + 1
    if isinstance(value, np.ndarray) and value.dtype.kind == "b":
        return ~value
    if isinstance(value, list):
        return [_other(v) for v in value]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else value


def plant(rule: Rule, operand: str, vjp: Callable[..., Any]) -> None:
    rule.vjps[operand] = vjp
    rule.plans.clear()
    if rule in VIRTUAL:
        fresh = Plan(rule, 1)
        VIRTUAL[rule].calls, VIRTUAL[rule].quick = fresh.calls, fresh.quick


def cases_of(rule: Rule, operand: str) -> list[Any]:
    """The cases that call this product, found by looking."""
    called = []
    vjp = rule.vjps[operand]
    hits: list[int] = []
    names = ", ".join(vjp.__code__.co_varnames[: vjp.__code__.co_argcount])
    plant(rule, operand, eval(f"lambda {names}: hits.append(1) or vjp({names})", {"hits": hits, "vjp": vjp}))
    for case in SMOOTH:
        if "0x" in case.note or "x0" in case.note:
            continue  # nothing to get wrong where there are no elements
        hits.clear()
        _numbers(case.ours, case.draw)
        if hits:
            called.append(case)
    plant(rule, operand, vjp)
    return called


def extra(rule: Rule) -> list[Any]:
    """Calls that reach the products which no registered operation's case does."""
    if rule is declare.TRANSPOSED:
        return [lambda x: x.T * tg.Tensor(np.arange(6.0).reshape(3, 2))]
    if rule is declare.CAST:
        return [lambda x: tg.multiply(x.astype(np.float32).astype(np.float64), x)]
    if rule.name == "to_backend":
        return [lambda x: x.to("strict").to("numpy") * x]
    return []


def noticed(checks: list[Any], right: dict[int, list[np.ndarray]]) -> tuple[bool, bool]:
    """Whether a check fails, and whether any number differs at all."""
    differs = False
    for k, (f, draw, eps) in enumerate(checks):
        try:
            wrong = _numbers(f, draw)
        except Exception:  # a crash is noticed by anyone
            return True, True
        if all(_equal(a, b) for a, b in zip(wrong, right[k], strict=True)):
            continue
        differs = True
        try:
            gradcheck(f, tensors(draw(), requires_grad=True), eps=eps)
        except (GradientError, TypeError, ValueError, RuntimeError):
            return True, True
    return False, differs


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


def _numbers(f: Any, draw: Any) -> list[np.ndarray]:
    operands = tensors(draw(), requires_grad=True)
    ys = results(f(*operands))
    rng = np.random.default_rng(1)
    if not ys:
        return []
    needed = [x for x in operands if x.requires_grad]
    found = tg.grad(ys, needed, [tg.Tensor(np.asarray(rng.standard_normal(y.shape))) for y in ys])
    return [g.numpy() for g in found]


PRODUCTS = [(rule, operand) for rule in RULES for operand in rule.vjps]


@pytest.mark.parametrize(("rule", "operand"), PRODUCTS, ids=[f"{rule.name}.{operand}" for rule, operand in PRODUCTS])
def test_every_planted_mistake_is_noticed(rule, operand):
    true = rule.vjps[operand]
    checks = [(case.ours, case.draw, case.eps) for case in cases_of(rule, operand)][:12]
    checks += [(f, lambda: [np.random.default_rng(0).integers(1, 9, (2, 3)) / 4], 1e-4) for f in extra(rule)]
    assert checks, "no case calls this product"
    right = {k: _numbers(f, draw) for k, (f, draw, _) in enumerate(checks)}
    survivors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, wrong in mutants(true):
            plant(rule, operand, wrong)
            try:
                killed, differs = noticed(checks, right)
            finally:
                plant(rule, operand, true)
            if not differs:
                tally["same"] += 1
                continue
            tally["planted"] += 1
            tally["killed"] += killed
            if not killed:
                survivors.append(label)
    assert not survivors


def _detached(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_detached(v) for v in value)
    return value.detach() if isinstance(value, tg.Tensor) else value


def _second_numbers(f: Any, draw: Any) -> list[np.ndarray]:
    operands = tensors(draw(), requires_grad=True)
    ys = results(f(*operands))
    rng = np.random.default_rng(1)
    needed = [x for x in operands if x.requires_grad]
    given = [tg.Tensor(np.asarray(rng.standard_normal(y.shape)), requires_grad=True) for y in ys]
    first = tg.grad(ys, needed, given, create_graph=True)
    second = tg.grad(
        first, needed, [np.asarray(rng.standard_normal(g.shape)) for g in first], allow_unused=True, retain_graph=True
    )
    return [np.zeros(x.shape) if g is None else g.numpy() for x, g in zip(needed, second, strict=True)]


@pytest.mark.parametrize(("rule", "operand"), PRODUCTS, ids=[f"{rule.name}.{operand}" for rule, operand in PRODUCTS])
def test_a_product_that_forgets_what_it_reads_is_noticed(rule, operand):
    """Right to first order; its own gradient lacks what goes through the operands and the result."""
    true = rule.vjps[operand]
    names = ", ".join(true.__code__.co_varnames[: true.__code__.co_argcount])
    wrong = eval(f"lambda {names}: run({names})", {"run": lambda F, g, *reads: true(F, g, *_detached(reads))})
    noticed = differs = False
    for case in [case for case in cases_of(rule, operand) if results(case.ours(*tensors(case.draw())))][:12]:
        right = _second_numbers(case.ours, case.draw)
        plant(rule, operand, wrong)
        try:
            differs |= not all(map(_equal, _second_numbers(case.ours, case.draw), right))
            gradgradcheck(case.ours, tensors(case.draw(), requires_grad=True), eps=case.eps)
        except GradientError:
            noticed = True
        finally:
            plant(rule, operand, true)
    tally["same"] += not differs
    tally["planted"] += differs
    tally["killed"] += differs and noticed
    assert noticed == differs


def test_the_tally(capsys):
    with capsys.disabled():
        print(f"\nmutants: planted {tally['planted']}, killed {tally['killed']}", end="")
        print(f" ({tally['same']} gave the same numbers as the original and were not counted)")
    assert tally["killed"] == tally["planted"] > 0
