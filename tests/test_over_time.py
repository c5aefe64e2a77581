"""What operations declare about the steps of a sequence, held against doing the steps one by one.

Sample calls are all operations heard in ``cases.py`` and in the gradients of these cases, and further calls below, for
every choice of which operands have time.
"""

from __future__ import annotations

import itertools
import math
import string
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from case import results
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_rnn as tg
from tinygrad_rnn import tape
from tinygrad_rnn.backend import HOLE, get_backend
from tinygrad_rnn.compiler import array as array_engine
from tinygrad_rnn.compiler.program import Program
from tinygrad_rnn.compiler.step import Op, Step, Value
from tinygrad_rnn.ops.declare import REGISTRY, TRANSPOSED, apply, apply_with_results, operation
from tinygrad_rnn.ops.over_time import aligned, lettered, shifted
from tinygrad_rnn.ops.rule import Rule

RULES = {  # other tests may declare some of their own
    rule.name: rule for rule in (*REGISTRY.values(), TRANSPOSED) if rule.forward.__module__.startswith("tinygrad_rnn.")
}

# Which operations cannot run on all steps at once, and when; nothing else may decline.
DECLINED = {
    "to_backend": {"copies to another backend"},
    "roll": {"of all axes as one"},
    "gather": {"array axes come first", "a mask", "arrays of unlike numbers of axes", "an array is not first"},
    "place": {"array axes come first", "a mask", "arrays of unlike numbers of axes", "an array is not first"}
    | {"total: no arrays", "total: an operand without time"},
    "matmul": {"total: an operand without time", "total: unlike leading axes"},
}
# Linear, but declared as nothing: their totals are never asked for, or as quickly found otherwise; or would be added up
# in float32 before they are widened, which rounds more (astype).
LINEAR_BUT_UNDECLARED = {("to_backend", "x"), ("zeros_like", "x"), ("astype", "x")}
# Not declared as views, since they share memory in some calls only.
SHARES_SOMETIMES = {"astype", "einsum"}


@dataclass(frozen=True)
class Call:
    """An operation as it was applied: to NumPy arrays and Python numbers, with what result of which shape and dtype."""

    rule: Rule
    operands: tuple[Any, ...]
    params: tuple[Any, ...]
    results: tuple[tuple[tuple[int, ...], np.dtype], ...]

    def __str__(self) -> str:
        forms = [(x.shape, x.dtype.name) if isinstance(x, np.ndarray) else x for x in self.operands]
        return f"{self.rule.name} of {forms} with {dict(zip(self.rule.params, self.params, strict=True))}"

    @property
    def coarse(self) -> bool:
        """Whether float32 is among operands and results."""
        dtypes = [x.dtype for x in self.operands if isinstance(x, np.ndarray)] + [dtype for _, dtype in self.results]
        return np.float32 in dtypes

    def how(self, declared: Any, timed: tuple[bool, ...]) -> Any:
        """What a declaration says of this call."""
        forms = [x if isinstance(x, np.ndarray) else np.empty(()) for x in self.operands]
        return declared and declared(self.rule, self.params, forms, timed)

    def forward(self, F: Any, arrays: list[Any]) -> list[Any]:
        return self.listed(F, self.rule.forward(F, *arrays, **dict(zip(self.rule.params, self.params, strict=True))))

    def listed(self, F: Any, out: Any) -> list[Any]:
        return [F.asarray(y) for y in (out if self.rule.several else [out])]


def raw(F: Any, operands: Sequence[Any]) -> list[Any]:
    """Arrays on a backend; numbers as they are."""
    return [F.asarray(x) if isinstance(x, np.ndarray) else x for x in operands]


def host(F: Any, arrays: list[Any]) -> list[np.ndarray]:
    return [F.to_numpy(y) for y in arrays]


def another(x: np.ndarray, step: int) -> np.ndarray:
    """The values of ``x`` at another step, such that they stay in the domain and indices in range."""
    x = np.roll(x.reshape(-1), step).reshape(x.shape)
    if x.dtype.kind == "f":
        return np.asarray(x * (1 + step / 8), x.dtype)
    for _ in range(step if x.dtype.kind == "i" else 0):
        x = np.where(x > 0, x - 1, np.where(x < -1, x + 1, -1 - x))
    return x


def heard(f: Callable[..., Any], *arrays: np.ndarray) -> list[Call]:
    """The operations that ``f`` applies to tensors of ``arrays``, and those that its gradient takes."""
    calls = []

    def listener(rule, operands, params, outs):
        values = tuple(x.numpy() if isinstance(x, tg.Tensor) else x for x in operands)
        calls.append(Call(rule, values, params, tuple((y.shape, y.dtype) for y in outs)))

    with tg.use_backend("numpy"), tape.listen(listener), np.errstate(all="ignore"):
        leaves = [tg.Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
        outs = [y for y in results(f(*leaves)) if y.requires_grad]
        cotangents = [tg.Tensor(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)) for y in outs]
        if outs:
            needed = [x for x in leaves if x.requires_grad]
            tg.grad(outs, needed, cotangents, create_graph=True, allow_unused=True)
    return calls


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


Sample = tuple[Any, ...]  # a function of tensors, and arrays for it


def _some() -> Iterator[Sample]:
    for shape in ((), (3,), (2, 3), (0, 3)):
        x = numbers(*shape)
        for limits in ({"max_norm": 0.5, "max_value": 0.4}, {"max_norm": 0.5}, {"max_value": 0.4}):
            yield partial(tg.clip_gradient, **limits), x
        yield partial(tg.scale_gradient, factor=-2.5), x
        yield tg.stop_gradient, x
        yield partial(tg.astype, dtype=x.dtype), x
    for ndim in range(5):
        yield lambda x: x.T, numbers(*range(2, 2 + ndim))
    leading = ((), (5,), (1,), (2, 5), (2, 1), (1, 5), (0,))
    for a, b in itertools.product(leading, leading):
        if 0 not in a + b or 5 not in a + b:
            yield tg.matmul, numbers(*a, 3, 4), numbers(*b, 4, 2)
            yield tg.matmul, numbers(*a, 1, 2), numbers(*b, 2, 1)
    for m, n, p in ((0, 4, 2), (3, 0, 2), (3, 4, 0)):
        yield tg.matmul, numbers(5, m, n), numbers(n, p)
    for text, *shapes in (
        *[("tT,Tz->tz", (2, 3), (3, 4)), (",ij->ij", (), (2, 3)), ("ij,jk,ki->", (2, 3), (3, 4), (4, 2))],
        *[("ij,ij->ij", (2, 1), (1, 3)), ("bij,bjk->bik", (2, 3, 4), (1, 4, 2)), ("i,i->i", (0,), (1,))],
    ):
        yield partial(tg.einsum, text), *[numbers(*shape) for shape in shapes]


def _of_axes() -> Iterator[Sample]:
    """All axes, from both ends, and all tuples of them."""
    for shape in ((), (3,), (2, 3), (1, 3), (2, 1, 3), (0, 3), (2, 0)):
        x, ndim = numbers(*shape), len(shape)
        tuples = [axes for size in range(ndim + 1) for axes in itertools.permutations(range(ndim), size)]
        tuples += [tuple(a - ndim if i % 2 else a for i, a in enumerate(axes)) for axes in tuples]
        for axis in (None, *range(-ndim, ndim), *tuples):
            each = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
            some = math.prod(shape[i] for i in each) > 0  # of nothing there is no maximum
            functions = [tg.sum, tg.all, tg.any, *[tg.mean, tg.max, tg.min, tg.var, tg.std, tg.logsumexp] * some]
            functions += [partial(f, keepdims=True) for f in functions] + [tg.flip]
            if isinstance(axis, int):
                functions += [tg.argsort, tg.cumsum, tg.unstack, partial(tg.roll, shift=2)]
                functions.append(lambda x, axis: tg.concatenate([x, x * 2, x], axis))
            elif axis:
                functions.append(partial(tg.roll, shift=(1, -2, 3)[: len(axis)]))
            if not isinstance(axis, tuple):
                functions += [tg.argmax, tg.argmin] * some
            if axis is None or all(shape[i] == 1 for i in each):
                functions.append(tg.squeeze)
            yield from [(partial(f, axis=axis), x) for f in functions]
        for axis in range(-ndim - 1, ndim + 1):
            yield partial(tg.expand_dims, axis=axis), x
            yield lambda x, axis=axis: tg.stack([x, x * 2], axis), x
        for first, second in itertools.permutations(range(ndim + 2), 2):
            yield partial(tg.expand_dims, axis=(first, second - ndim - 2)), x


BASIC = {"1": -2, ":": slice(None, None, 2), "<": slice(3, 0, -1), "N": None, ".": Ellipsis}
MASK = np.array([True, False, False, True])
FILLINGS = (  # of the holes of an index, from the left
    [np.array([0, -1, 3]), np.array([2, 2, 1]), np.array([-4, 1, 0])],
    [np.array(2), np.array(-3), np.array(1)],
    [np.array([[0, -2, 1], [3, 2, 0]]), np.array([[1], [-2]]), np.array([[0, 3, -4]])],
    [np.zeros(0, np.int64)] * 3,
    [np.array([0, 3, -4]), np.array([[1], [-2]]), np.array(1)],
    [MASK, np.array([1, -2]), np.array([3, 0])],
    [np.array([1, -2]), MASK, np.array([3, 0])],
)


def _indices() -> Iterator[Sample]:
    """All orders of up to three kinds of items, and those of four in which arrays, None and ... meet."""
    x = numbers(4, 4, 4)
    for size in range(1, 5):
        for kinds in map("".join, itertools.product((*BASIC, "a"), repeat=size)):
            long = size < 4 or set("aN.") <= set(kinds)
            if long and kinds.count(".") < 2 and size - kinds.count("N") - kinds.count(".") < 4:
                for arrays in ((),) if "a" not in kinds else FILLINGS if size < 4 else FILLINGS[:1]:
                    holes = iter(arrays)
                    index = tuple(next(holes) if kind == "a" else BASIC[kind] for kind in kinds)
                    yield lambda x, index=index: x[index], x


@cache
def samples() -> dict[str, list[Call]]:
    """Calls of every operation, no two alike."""
    cases = [(case.ours, *case.draw()) for cases in CASES.values() for case in cases]
    calls: dict[str, Call] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for f, *arrays in (*cases, *_some(), *_of_axes(), *_indices()):
            for call in heard(f, *arrays):
                calls.setdefault(str(call), call)
    return {name: [call for call in calls.values() if call.rule.name == name] for name in RULES}


def test_every_operation_has_sample_calls():
    for name, calls in samples().items():
        assert any(math.prod(shape) for call in calls for shape, _ in call.results), name


def reason(call: Call, timed: Sequence[bool], total: bool = False) -> str | None:
    """Why it cannot run on all steps at once, or its total has no way of its own; None if it can, or has."""
    name, arrays = call.rule.name, call.operands[1:]
    if name == "to_backend":
        return "copies to another backend"
    if name == "roll":
        return "of all axes as one" if call.params[1] is None else None
    if total and name in ("matmul", "place") and not (arrays and all(timed)):
        return "an operand without time" if arrays else "no arrays"
    if name == "matmul" and total:
        return None if call.operands[0].shape[:-2] == arrays[0].shape[:-2] else "unlike leading axes"
    if name not in ("gather", "place") or not arrays:
        return None
    advanced = [i for i, item in enumerate(call.params[-1]) if item is HOLE or type(item) is int]
    apart = advanced[-1] - advanced[0] >= len(advanced)
    if not any(timed[1:]):
        return "array axes come first" if apart else None
    if any(x.dtype == bool for x in arrays):
        return "a mask"
    if len({x.ndim for x in arrays}) > 1:
        return "arrays of unlike numbers of axes"
    return "an array is not first" if apart or advanced[0] > 0 else None


def agree(found: list[np.ndarray], expected: list[np.ndarray], what: str, coarse: bool) -> None:
    """Equal bit for bit or to rounding, which is that of float32 if it is anywhere among operands and results."""
    assert len(found) == len(expected), what
    for y, right in zip(found, expected, strict=True):
        assert (y.shape, y.dtype) == (right.shape, right.dtype), what
        tolerance = 0 if y.dtype.kind != "f" else 2e-6 if coarse else 1e-12
        np.testing.assert_allclose(y, right, rtol=tolerance, atol=tolerance, err_msg=what)


def check_steps(F: Any, call: Call) -> set[str]:
    """All steps at once, their total, and a scan, against one step after another; returns what declines, and why."""
    rule, declines = call.rule, set()
    choices = [(False, True) if isinstance(x, np.ndarray) else (False,) for x in call.operands]
    for timed in filter(any, itertools.product(*choices)):
        what = f"{call}, time: {timed}"
        how, why = call.how(rule.over_time, timed), reason(call, timed)
        assert (how is None) == (why is not None), f"{what}: {why}"
        total = call.how(rule.total, timed)
        if why:
            declines.add(why)
        elif rule.total:
            why = reason(call, timed, total=True)
            assert (total is None) == (why is not None), f"total of {what}: {why}"
            if why:
                declines.add(f"total: {why}")
        for steps in ((1,), (0, 1, 2)):
            rows = [[another(x, s) if has else x for x, has in zip(call.operands, timed, strict=True)] for s in steps]
            stacked = [np.stack(x) if has else x[0] for x, has in zip(zip(*rows, strict=True), timed, strict=True)]
            arrays = raw(F, stacked)
            by_step = [host(F, call.forward(F, raw(F, row))) for row in rows]
            expected = [np.stack(y) for y in zip(*by_step, strict=True)]
            if how:
                agree(host(F, call.listed(F, how(F, len(steps), *arrays))), expected, what, call.coarse)
            if total:
                summed = host(F, call.listed(F, total(F, len(steps), *arrays)))
                agree(summed, [y.sum(axis=0) for y in expected], f"total of {what}", call.coarse)
        if why == "copies to another backend" and F.name != "numpy":
            continue  # which a scan does not
        ys, sums = scan(F, call, timed, arrays, len(steps))
        typed = [y.astype(dtype) for y, (_, dtype) in zip(expected, call.results, strict=True)]
        agree(host(F, ys), typed, f"scan of {what}", call.coarse)
        floats = [y.sum(axis=0) for y in typed if y.dtype.kind == "f"]
        agree(host(F, sums), floats, f"total in a scan of {what}", call.coarse)
    return declines


def scan(F: Any, call: Call, timed: Sequence[bool], arrays: list[Any], steps: int) -> tuple[list[Any], list[Any]]:
    """The outputs and totals of a scan that does nothing else."""
    values = [Value(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in call.operands]
    op = Op(call.rule, tuple(values), call.params, True)
    op.results = tuple(Value(shape, dtype, op) for shape, dtype in call.results)
    given = [(value, x, has) for value, x, has in zip(values, arrays, timed, strict=True) if type(value) is Value]
    (xs, consts), (raw_xs, raw_consts) = [[[g[k] for g in given if g[2] == t] for t in (True, False)] for k in (0, 1)]
    totals = [value for value in op.results if value.dtype.kind == "f"]
    program = Program(Step(xs, [], consts, [op], list(op.results), totals=totals), array_engine)
    ys, _, sums = program(F, steps, False, raw_xs, [], raw_consts)
    return ys, sums


def check_time(F: Any, rule: Rule, calls: list[Call]) -> None:
    declines = set().union(*[check_steps(F, call) for call in calls])
    assert declines == DECLINED.get(rule.name, set())


def test_names_of_the_library_are_taken():
    """Engines know operations by name, so an operation of one's own must not pass for one of these."""
    before = REGISTRY["sum"]
    with pytest.raises(ValueError, match="has an operation 'sum', which"):

        @operation(x=lambda F, g: g)
        def sum(F, x, /):
            return x

    assert REGISTRY["sum"] is before
    for _ in range(2):  # one's own may be declared again, as when a notebook's cell is run twice

        @operation(True, x=lambda F, g: 3 * g)
        def threefold(F, x, /):
            return 3 * x

    assert threefold(2.0).item() == 6
    source = "@operation(x=lambda F, g: g)\ndef threefold(F, x, /): return x\n"
    exec(2 * source, {"operation": operation})  # where there is no module
    del REGISTRY["threefold"]


@pytest.mark.parametrize("declared", ["over_time", "total"])
def test_an_einsum_without_a_letter_to_spare_declines(declared):
    rule, operands = RULES["einsum"], [np.ones((1,) * 26)] * 2
    for letters, declines in ((string.ascii_letters, True), (string.ascii_letters[1:], False)):
        subscripts = f"{letters[:26]},{letters[26:]}->"
        assert (getattr(rule, declared)(rule, (subscripts,), operands, (True, True)) is None) == declines


def close(found: list[np.ndarray], expected: list[np.ndarray], coarse: bool) -> bool:
    tolerance = 1e-5 if coarse else 1e-10
    return all(map(partial(np.allclose, rtol=tolerance, atol=tolerance, equal_nan=True), found, expected))


def sums(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(a, b, strict=True)]


def is_linear(F: Any, call: Call, positions: list[int]) -> bool:
    """Whether the results are linear in the operands at ``positions``, taken together."""

    def applied(values: list[Any]) -> list[np.ndarray]:
        operands = list(call.operands)
        for i, value in zip(positions, values, strict=True):
            old = operands[i]
            operands[i] = np.asarray(value, old.dtype) if isinstance(old, np.ndarray) else float(value)
        return host(F, call.forward(F, raw(F, operands)))

    rng = np.random.default_rng(2)
    a, b = [[rng.standard_normal(np.shape(call.operands[i])) for i in positions] for _ in range(2)]
    of_a = applied(a)
    additive = close(applied(sums(a, b)), sums(of_a, applied(b)), call.coarse)
    return additive and close(applied(sums(a, a)), sums(of_a, of_a), call.coarse)


def check_linear(F: Any, rule: Rule, calls: list[Call]) -> None:
    tried: dict[str, list[bool]] = {}
    for call in calls:
        if any(math.prod(shape) for shape, _ in call.results) and call.results[0][1].kind == "f":
            kinds = [x.dtype.kind if isinstance(x, np.ndarray) else "number" for x in call.operands]
            if len(kinds) > 1 and set(kinds) <= {"f", "number"}:
                tried.setdefault("jointly", []).append(is_linear(F, call, list(range(len(kinds)))))
            for i in [i for i, kind in enumerate(kinds) if kind == "f"]:
                tried.setdefault(rule.operands[min(i, rule.fixed)], []).append(is_linear(F, call, [i]))
    found = {name for name, verdicts in tried.items() if all(verdicts)}
    alone = len(rule.operands) == 1 and not rule.variadic  # then both ways to declare it mean the same
    declared = {*rule.each, *((rule.operands if alone else ("jointly",)) if rule.jointly else ())}
    assert found == declared | {operand for name, operand in LINEAR_BUT_UNDECLARED if name == rule.name}


def is_linear_backwards(F: Any, call: Call) -> bool:
    """Whether the VJPs are linear in the cotangent."""
    operands = [tg.Tensor(x) if isinstance(x, F.array_type) else x for x in raw(F, call.operands)]
    leaves = [x for x in operands if isinstance(x, tg.Tensor) and x.dtype.kind == "f"]
    for leaf in leaves:
        leaf.requires_grad = True
    run = apply_with_results if call.rule.several else apply
    outs = [y for y in results(run(call.rule, tuple(operands), call.params)) if y.requires_grad]
    if not outs:
        return True

    def pulled(cotangents: list[Any]) -> list[np.ndarray]:
        tensors = [tg.Tensor(np.asarray(g, y.dtype)).to(y.backend) for y, g in zip(outs, cotangents, strict=True)]
        return [g.numpy() for g in tg.grad(outs, leaves, tensors, retain_graph=True)]

    rng = np.random.default_rng(3)
    a, b = [[rng.standard_normal(y.shape) for y in outs] for _ in range(2)]
    return close(pulled(sums(a, b)), sums(pulled(a), pulled(b)), call.coarse)


def check_alters(F: Any, rule: Rule, calls: list[Call]) -> None:
    nonlinear = [str(call) for call in calls if not is_linear_backwards(F, call)]
    assert bool(nonlinear) == rule.alters, nonlinear


def share(arrays: list[Any], others: list[Any]) -> bool:
    """Whether one of ``arrays``, of NumPy or the strict backend, shares memory with one of ``others``."""
    a, b = [[getattr(x, "_host", x) for x in group if not isinstance(x, (int, float))] for group in (arrays, others)]
    return any(np.shares_memory(x, y) for x, y in itertools.product(a, b))


def check_view(F: Any, rule: Rule, calls: list[Call]) -> None:
    """Views share memory, and outputs of a scan have memory of their own."""
    layouts: list[Any] = [partial(np.array, order="C")]
    if rule.name != "reshape":
        layouts.append(lambda x: np.stack([x, x], -1)[..., 0])
    shares, shared = [], []
    for call in calls:
        for layout in layouts:
            arrays = raw(F, [layout(x) if isinstance(x, np.ndarray) else x for x in call.operands])
            shares += [(str(call), share([y], arrays)) for y in call.forward(F, arrays) if y.size]
        timed = [isinstance(x, np.ndarray) for x in call.operands]
        arrays = raw(F, [np.stack([x, x]) if has else x for x, has in zip(call.operands, timed, strict=True)])
        if rule.name != "to_backend" and share(scan(F, call, timed, arrays, 2)[0], arrays):
            shared.append(str(call))
    sometimes = rule.name in SHARES_SOMETIMES or (rule.name == "to_backend" and F.name == "numpy")
    assert not (rule.view and [call for call, has in shares if not has])
    assert rule.view or any(has for _, has in shares) == sometimes
    assert not shared, "outputs of scans"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("check", [check_time, check_linear, check_alters, check_view])
def test_declarations_hold(check, name, backend):
    with np.errstate(all="ignore"):
        check(get_backend(), RULES[name], samples()[name])


WRONG = [  # a check, operations, an attribute of theirs, and a value of it that the check must find wrong
    (check_time, "add broadcast_to argmax matmul roll gather", "over_time", shifted),
    (check_time, "sum transpose slice concatenate reshape", "over_time", aligned),
    (check_time, "tanh", "over_time", None),
    (check_time, "matmul", "total", None),
    (check_time, "einsum", "total", lettered),
    (check_time, "exp multiply", "jointly", True),
    (check_time, "divide", "each", ("b",)),
    (check_linear, "multiply exp std where clip pad", "jointly", True),
    (check_linear, "add sum concatenate", "jointly", False),
    (check_linear, "divide add maximum", "each", ("a", "b")),
    (check_linear, "where", "each", ("x",)),
    (check_linear, "einsum", "each", ()),
    (check_alters, "clip_gradient", "alters", False),
    (check_alters, "tanh", "alters", True),
    (check_view, "roll gather astype concatenate tanh", "view", True),
    (check_view, "transpose split broadcast_to stop_gradient", "view", False),
]
FOUND = (AssertionError, ValueError, IndexError, TypeError, AttributeError)


@pytest.mark.parametrize(("check", "names", "attribute", "wrong"), WRONG)
def test_wrong_declarations_are_found(check, names, attribute, wrong, monkeypatch):
    for name in names.split():
        rule, calls = RULES[name], samples()[name]
        monkeypatch.setattr(rule, attribute, wrong)
        with np.errstate(all="ignore"), pytest.raises(FOUND):
            check(get_backend("numpy"), rule, calls)


def _broadcasting(draw: Any) -> Sample:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, min_side=0, max_side=3)).input_shapes
    functions = [lambda a, b, c: a * b + c, lambda a, b, c: tg.where(a > 0, b, c), lambda a, b, c: tg.maximum(a / b, c)]
    return draw(st.sampled_from(functions)), *[numbers(*shape) for shape in shapes]


def _reshaping(draw: Any) -> Sample:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    to = list(draw(st.permutations([*shape, 1])))
    if draw(st.booleans()) and 0 not in to:
        to[draw(st.integers(0, len(to) - 1))] = -1
    axes = draw(st.permutations(range(len(to))))
    return lambda x: tg.transpose(tg.reshape(x, tuple(to)), tuple(a - len(to) * (a % 2) for a in axes)), numbers(*shape)


def _picking(draw: Any) -> Sample:
    shape = draw(hnp.array_shapes(max_dims=4, max_side=4))
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=len(shape), max_dims=2, max_side=3)).input_shapes
    index = []
    for n, of_array in zip(shape, shapes, strict=True):
        array = hnp.arrays(np.int64, of_array, elements=st.integers(-n, n - 1))
        index.append(draw(st.one_of(array, array, st.integers(-n, n - 1), st.slices(n))))
    if draw(st.booleans()):
        index[draw(st.integers(0, len(index) - 1))] = Ellipsis
    if draw(st.booleans()):
        index.insert(draw(st.integers(0, len(index))), None)
    return lambda x: x[tuple(index)], numbers(*shape)


def _einsum(draw: Any) -> Sample:
    lengths = dict(zip("tabT", draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)), strict=True))
    operands = draw(st.lists(st.lists(st.sampled_from("tabT"), max_size=3), min_size=1, max_size=3))
    known = sorted(set().union(*operands))
    kept = draw(st.permutations(known))[: draw(st.integers(0, len(known)))]
    text = ",".join(map("".join, operands)) + "->" + "".join(kept)
    # A length may be 1 beside others; not where a letter names a diagonal.
    shapes = [[1 if x.count(c) == 1 and draw(st.integers(0, 3)) == 0 else lengths[c] for c in x] for x in operands]
    return partial(tg.einsum, text), *[numbers(*shape) for shape in shapes]


@pytest.mark.parametrize("drawn", [_broadcasting, _reshaping, _picking, _einsum])
@settings(max_examples=40)
@given(st.data())
def test_calls_of_any_shape(drawn, backend, data):
    f, *arrays = drawn(data.draw)
    with np.errstate(all="ignore"):
        for call in heard(f, *arrays):
            check_steps(get_backend(), call)
