"""What `scan` makes of a step, at the edges that random cells seldom reach: each of these was a planted mistake that
nothing else noticed."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from operator import mul

import numpy as np
import pytest
from interpreted import alone, interpreted, rows_last
from scan_ways import B, T, derivatives, leaf, made, same, weights

import tinygrad_rnn as tg
from tinygrad_rnn import nn, tape
from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler import array, build, jit, joined, run, team
from tinygrad_rnn.compiler.lower import lowered
from tinygrad_rnn.compiler.step import Op, Recorder, Step, Value
from tinygrad_rnn.ops.declare import REGISTRY

F8 = np.dtype(np.float64)

# Views of views: where their elements are

VIEWS = {
    "every other": lambda s: s[:, ::2],
    "a part of every other": lambda s: s[:, ::2][:, 1:],
    "every other of a part": lambda s: s[:, 1:][:, ::2],
    "every other of every other": lambda s: s[:, ::2][:, ::2],
    "parts of parts": lambda s: s[:, 1:][:, 2:][:, :-1],
    "turned twice": lambda s: tg.swapaxes(tg.swapaxes(s, 0, 1)[2:], 0, 1),
    "a row": lambda s: s[1],
    "nothing": lambda s: tg.sum(s[:, 3:3], axis=1),
}


FOLDED = {  # backwards these are folded from what is no rectangle
    "folded, turned and cut": lambda s: tg.swapaxes(tg.reshape(s, (B, 4, 2)), 1, 2)[:, :, 1:],
    "folded, and every other": lambda s: tg.reshape(s, (B, 4, 2))[:, ::2, 1],
}


def viewing(view):
    xs, start, w = leaf(T, B, 8), leaf(B, 8, seed=1), leaf(8, seed=2)

    def cell(x, s):
        s = tg.tanh(s * w + x)
        seen = view(s)
        return seen, s * tg.sum(tg.square(seen)) + view(s * x).sum()

    return tg.scan(cell, xs, start), [xs, start, w]


@pytest.mark.parametrize("name", [*VIEWS, *FOLDED])
def test_views_of_views(name, backend, engine):
    way = partial(viewing, (VIEWS | FOLDED)[name])
    same(derivatives(way, engine, 2), derivatives(way, "unrolled", 2))


def beside():
    """A part of what is computed from ``s``, read in one loop with the whole of ``s``."""
    xs, start = leaf(T, B, 4), leaf(B, 4, seed=1)

    def cell(x, s):
        s = s * 0.7 + x
        parts = tg.split(tg.maximum(s, 0.137), 4, axis=-1)
        return parts[3], parts[2] + s

    return tg.scan(cell, xs, start), [xs, start]


def test_a_part_beside_the_whole(backend, engine):
    same(derivatives(beside, engine, 2), derivatives(beside, "unrolled", 2))


# Sums over time of what does not change, or changes only in part

TOTALS = {
    "a weight alone": lambda w, x, s: w,
    "a product with the inputs": lambda w, x, s: w * x,
    "a difference from the inputs": lambda w, x, s: w - x,
    "a sum with a number": lambda w, x, s: (w + 3.0) * s,
    "a quotient": lambda w, x, s: s / (2 + w * w),
}


def totalling(term):
    xs, start, w = leaf(T, B, 2), leaf(B, 2, seed=1), leaf(2, seed=2)
    return tg.scan(lambda x, s: (term(w, x, s), tg.tanh(s * x)), xs, start), [xs, start, w]


@pytest.mark.parametrize("name", TOTALS)
def test_gradients_that_are_sums_over_time(name, backend, engine):
    way = partial(totalling, TOTALS[name])
    same(derivatives(way, engine, 2), derivatives(way, "unrolled", 2))


TERMS = {
    "what is the same": lambda w, x, s: w,
    "a function of what is the same": lambda w, x, s: tg.tanh(w),
    "the inputs": lambda w, x, s: x,
    "the state": lambda w, x, s: s,
    "a sum with what is the same": lambda w, x, s: x + w,
    "what is the same, less the inputs": lambda w, x, s: w - x,
    "a sum with a number": lambda w, x, s: x - 0.3,
    "a product with what is the same": lambda w, x, s: w * x,
    "a product with a number": lambda w, x, s: 0.3 * x,
    "a product of inputs": lambda w, x, s: x * x,
    "a quotient": lambda w, x, s: 0.3 / (x + 2),
    "a product of matrices": lambda w, x, s: tg.swapaxes(x, 0, 1) @ (x + w),
    "a sum over rows": lambda w, x, s: tg.sum(x * w, axis=0),
}


def totals_of(term, engine):
    """The sum of a term over all steps, as one total of a step that carries a state along."""
    recorder = Recorder()
    groups = [Value((B, 2), F8) for _ in range(3)]
    w, x, s = [tg.zeros((B, 2), np.float64) for _ in groups]
    for tensor, value in zip((w, x, s), groups, strict=True):
        recorder.meet(tensor, value)
    token = tape.MODE.set(tape.Mode(False, recorder))
    try:
        following, total = recorder.value(tg.tanh(s)), recorder.value(term(w, x, s))
    finally:
        tape.MODE.reset(token)
    step = Step([groups[1]], [groups[2]], [groups[0]], recorder.ops, [], [following], [total])
    sequence, start, weight = leaf(T, B, 2), leaf(B, 2, seed=1), leaf(B, 2, seed=2)
    with tg.no_grad():
        given = [sequence], [start], [weight]
        _, _, (found,) = run.over(NUMPY, run.compiled(step, engine, *given), T, False, *given)
        expected, h = [], start
        for x in sequence:
            expected.append(term(weight, x, h).numpy())
            h = tg.tanh(h)
    return found.numpy(), sum(expected)


@pytest.mark.parametrize("by", [array, jit], ids=["array", "numba"])
@pytest.mark.parametrize("name", TERMS)
def test_totals(name, by):
    with interpreted():
        np.testing.assert_allclose(*totals_of(TERMS[name], by), rtol=1e-12)


# Rows that are shared out, and parts of matrices


@contextmanager
def in_shards():
    """Loops that can be run for some rows at a time are, however little work it is: for one row after the other."""
    before = jit.LEAST_WORK, jit.LEAST_PRODUCT, jit.LEAST_PACKED, team.get_num_threads
    jit.LEAST_WORK, jit.LEAST_PRODUCT, jit.LEAST_PACKED, team.get_num_threads = 0, 0, 0, lambda: B
    try:
        with alone():
            yield
    finally:
        jit.LEAST_WORK, jit.LEAST_PRODUCT, jit.LEAST_PACKED, team.get_num_threads = before


MIXED = {
    "rows that stand alone": lambda w, x, s: tg.tanh(x @ w + s @ w),
    "rows that are rolled": lambda w, x, s: tg.tanh(tg.concatenate([s[1:], s[:1]], 0) + x),
    "the first row": lambda w, x, s: tg.tanh(s * s[:1] + x),
    "rows that meet in a mean": lambda w, x, s: tg.tanh(s - tg.mean(s, axis=0) + x),
    "rows that meet in a product": lambda w, x, s: tg.tanh(tg.swapaxes(s, 0, 1) @ s)[:B] * x,
    "rows that are columns too": lambda w, x, s: tg.tanh((s @ tg.swapaxes(s, 0, 1)) @ x),
    "a part from the first column": lambda w, x, s: tg.tanh(s[:, :2] @ w[:2] + x),
    "a part from another column": lambda w, x, s: tg.tanh(s[:, 1:3] @ w[:2] + x),
    "products put side by side": lambda w, x, s: tg.tanh(tg.concatenate([s @ w[:, :2], s @ w[:, 2:]], 1) + x),
    "a product in halves": lambda w, x, s: tg.concatenate([(s @ w)[:, 2:], tg.tanh(s @ w)[:, :2] * x[:, :2]], 1),
}


def mixing(term):
    xs, start, w = leaf(T, B, 4), leaf(B, 4, seed=1), leaf(4, 4, seed=2)
    return tg.scan(lambda x, s: (s, term(w, x, s)), xs, start), [xs, start, w]


def exchanging(term):
    xs, start, w = leaf(T, B, B), leaf(B, B, seed=1), leaf(B, B, seed=2)
    return tg.scan(lambda x, s: (s, term(w, x, s)), xs, start), [xs, start, w]


SQUARE = {  # as many rows as columns, so that only what is read tells them apart
    "products summed over rows": lambda w, x, s: tg.tanh(tg.einsum("bi,bj->ij", s, s) + x),
    "a mean over rows": lambda w, x, s: tg.tanh(s * tg.mean(x * s, axis=0) + x),
    "a mean over rows, one for each row": lambda w, x, s: tg.tanh(tg.reshape(tg.mean(x * s, axis=0), (B, 1)) * s),
}


@pytest.mark.parametrize("name", SQUARE)
def test_rows_of_a_square_that_meet_are_not_shared_out(name):
    way = partial(exchanging, SQUARE[name])
    with in_shards(), interpreted():
        same(derivatives(way, "numba", 2), derivatives(way, "unrolled", 2))


EXCHANGED = {
    "rows for columns": lambda w, x, s: tg.tanh(tg.swapaxes(s, 0, 1) @ w + x),
    "the last row for the first": lambda w, x, s: tg.tanh(s[::-1] @ w + x),
}


@pytest.mark.parametrize("name", EXCHANGED)
def test_rows_that_are_exchanged_are_not_shared_out(name):
    way = partial(exchanging, EXCHANGED[name])
    with in_shards(), interpreted():
        same(derivatives(way, "numba", 2), derivatives(way, "unrolled", 2))


@pytest.mark.parametrize(("by", "memory"), [("array", nullcontext), ("numba", nullcontext), ("numba", rows_last)])
@pytest.mark.parametrize("name", MIXED)
def test_rows_that_are_shared_out(name, by, memory):
    way = partial(mixing, MIXED[name])
    with in_shards(), interpreted(), memory():
        same(derivatives(way, by, 2), derivatives(way, "unrolled", 2))


@pytest.mark.parametrize(("hidden", "batch", "last"), [(5, 32, True), (16, 32, False), (5, 15, False)])
def test_rows_are_last_where_features_are_few(hidden, batch, last):
    cell, xs = made("GRU", 3, hidden), leaf(T, batch, 3)

    def way():
        return tg.scan(cell, xs), [xs, *weights(cell)]

    run._known.clear()
    same(derivatives(way, "numba", 2), derivatives(way, "unrolled", 2))
    assert {plan.forward.loop.code.rows_last for plan in run._known.values()} == {last}


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize(("hidden", "batch", "loops"), [(20, 3, 1 + 2 + 2), (5, 32, 1 + 1 + 2 + 2)])
def test_a_sum_goes_along_with_the_loop_that_makes_what_is_summed(name, keepdims, hidden, batch, loops):
    def cell(x, s):
        made = tg.tanh(x + s)
        reduced = getattr(tg, name)(made, axis=-1, keepdims=keepdims)
        return x, made - (reduced if keepdims else tg.expand_dims(reduced, 1))

    xs, start = leaf(T, batch, hidden), leaf(batch, hidden, seed=1)

    def way():
        return tg.scan(cell, xs, start), [xs, start]

    same(derivatives(way, "numba", 1), derivatives(way, "unrolled", 1))
    source = tg.plan(cell, xs.detach(), start.detach(), engine="numba").forward.source
    ends = name == "mean" and hidden < batch  # rows that are side by side are divided in a loop of their own
    assert source.count("for ") == loops + ends, source


@pytest.mark.parametrize(("hidden", "batch"), [(20, 3), (5, 32)])
@pytest.mark.parametrize("shards", [False, True])
def test_a_sum_over_time_is_made_in_the_loop(hidden, batch, shards):
    xs, start, w = leaf(T, batch, hidden), leaf(batch, hidden, seed=1), leaf(hidden, seed=2)

    def way():
        return tg.scan(lambda x, s: (s, tg.tanh(x + w * s)), xs, start), [xs, start, w]

    run._known.clear()
    with in_shards() if shards else nullcontext():
        same(derivatives(way, "numba", 2), derivatives(way, "unrolled", 2))
    back = next(iter(run._known.values())).programs[-1]
    assert len(back.split.summed) == 1
    assert not {*back.split.summed} & {*back.split.stacked}


# Taking operations apart


def op_of(name, *operands, params=()):
    op = Op(REGISTRY[name], operands, params, True)
    op.results = (Value((B, 2), F8, op),)
    return op


def test_an_operation_is_taken_apart():
    op = op_of("logsumexp", Value((B, 2), F8), params=(1, True))
    parts = lowered(op)
    assert len(parts) > 3
    assert parts[-1].results == op.results
    assert all(part.rule is not op.rule for part in parts)
    assert [value for value in parts[0].inputs if value is op.operands[0]]


@pytest.mark.parametrize(("name", "params"), [("cumsum", (1,)), ("argsort", (1,)), ("argmax", (1, False))])
def test_an_operation_of_arrays_alone_is_left(name, params):
    op = op_of(name, Value((B, 2), F8), params=params)
    assert lowered(op) == [op]


# What leaves the loop, and what is saved: not more and not less


def programs(kind, engine, **options):
    """The programs forwards and backwards of a cell that takes a gradient by everything."""
    run._known.clear()
    cell, xs = made(kind, 3, 4), leaf(T, B, 3)
    start = tg.nest.map_nest(lambda part: leaf(*part.shape, seed=1), cell.init_state(B))
    with tg.use_engine(engine):
        ys, last = tg.scan(cell, xs, start, **options)
        total = sum((part * part).sum() for _, part in tg.nest.leaves([ys, last]))
        tg.grad(total, [xs, *weights(cell), *[part for _, part in tg.nest.leaves(start)]])
    (plan,) = run._known.values()
    return plan, plan.programs[-1]


def products(program):
    """Outside of the loop, and in it."""
    outside = [op for op, _ in [*program.split.before, *program.split.after]]
    return tuple([sum(op.rule.name in ("matmul", "einsum") for op in ops) for ops in (outside, program.split.loop)])


# Values saved; products outside and inside of the loop, forwards and backwards; operations done once, before, in and
# after the loop, and values that it reads and leaves of all steps, forwards and backwards.
FACTS = {
    ("RNN", "array"): [2, (1, 1), (1, 1), [1, 2, 3, 0, 1, 2], [2, 2, 3, 2, 2, 1]],
    ("RNN", "numba"): [2, (1, 1), (1, 1), [0, 1, 5, 0, 1, 2], [2, 0, 5, 2, 2, 1]],
    ("GRU", "array"): [5, (1, 1), (1, 1), [0, 3, 12, 1, 2, 5], [2, 9, 11, 4, 6, 4]],
    ("GRU", "numba"): [5, (1, 1), (1, 1), [0, 1, 15, 0, 1, 6], [2, 0, 21, 3, 6, 2]],
    ("LSTM", "array"): [7, (1, 1), (1, 1), [1, 2, 11, 1, 1, 6], [2, 15, 10, 2, 7, 1]],
    ("LSTM", "numba"): [7, (1, 1), (1, 1), [0, 1, 14, 0, 1, 8], [2, 0, 25, 2, 7, 1]],
}


def facts(kind, by):
    """What a plan is like, in numbers."""
    plan, back = programs(kind, by)
    ways = [(program, program.split) for program in (plan.forward, back)]
    sizes = [[len(part) for part in (s.same, s.before, s.loop, s.after, s.streamed, s.stacked)] for _, s in ways]
    return [len(plan.saved), *[products(program) for program, _ in ways], *sizes]


@pytest.mark.parametrize(("kind", "by"), FACTS)
def test_where_the_work_is(kind, by):
    """Nothing stays in the loop, or is saved, that need not be."""
    with interpreted():
        assert facts(kind, by) == FACTS[kind, by]
        plan, back = programs(kind, by)
    assert {value.shape for value in plan.saved} == {(B, 4)}
    loops = 5, 3  # over time, rows and units, and what a product needs
    assert by == "array" or tuple([p.loop.source.count("for ") for p in (plan.forward, back)]) == loops


# Fewer calls in the loop, for an engine that pays for each


product = partial(reduce, mul)
HALF = tg.Tensor(np.full(16, 0.5, np.float32))


def gates(term):
    """A step whose state goes through what ``term`` makes of four parts of a product."""
    w, b = leaf(4, 16, seed=2), leaf(16, seed=3)

    def cell(x, h):
        y = term(tg.concatenate([x, x, x, x], 1), h @ w, b)
        return y if isinstance(y, tuple) else (y, tg.sin(y))

    return cell, [w, b]


FEWER = {
    "a bias comes before": (lambda x, hw, b: tg.tanh(x + (hw + b))[:, :4], {"add": 1}),
    "two biases come before": (lambda x, hw, b: tg.tanh((x + b) + (hw + b))[:, :4], {"add": 1}),
    "and on whichever side": (lambda x, hw, b: tg.tanh((b + hw) + (b + x))[:, :4], {"add": 1}),
    "a sum that is read twice stays": (lambda x, hw, b: (tg.tanh(x + (s := hw + b)) * s)[:, :4], {"add": 2}),
    "a sum that is shown stays": (lambda x, hw, b: (s := hw + b, tg.tanh(x + s)[:, :4]), {"add": 2}),
    "a sum that is the state stays": (  # the other leaves the loop
        lambda x, hw, b: (tg.tanh(x[:, :4] + (s := hw[:, :4] + b[:4])), s),
        {"add": 1},
    ),
    "a sum with another dtype stays": (lambda x, hw, b: tg.tanh(x + (hw + HALF))[:, :4], {"add": 2}),
    "a sum of what depends on the state stays": (lambda x, hw, b: (tg.tanh(hw) + (hw + x))[:, :4], {"add": 2}),
    "factors come before": (lambda x, hw, b: (hw[:, :4] * x[:, :4]) * tg.sigmoid(x[:, 4:8]), {"multiply": 1}),
    "and of two products": (
        lambda x, hw, b: (x[:, :4] * hw[:, :4]) * (tg.sigmoid(x[:, 4:8]) * hw[:, 4:8] * b[:4]),
        {"multiply": 2},
    ),
    "a product that is read twice stays": (
        lambda x, hw, b: (p := hw[:, :4] * x[:, :4]) * tg.sigmoid(x[:, 4:8]) + p,
        {"multiply": 2},
    ),
    "a product of a sum, and a sum of a product": (
        lambda x, hw, b: (hw[:, :4] + x[:, :4] + b[:4]) * x[:, 4:8] * b[4:8] + b[8:12],
        {"multiply": 1, "add": 2},
    ),
    "three of four": (
        lambda x, hw, b: product([*map(tg.sigmoid, (p := tg.split(hw + x, 4, 1))[:3]), tg.tanh(p[3])]),
        {"sigmoid": 1, "tanh": 1, "split": 2},
    ),
    "all of both sums, then three": (
        lambda x, hw, b: product(
            [
                tg.sigmoid(s) if i else tg.tanh(s)
                for i, s in enumerate(map(tg.add, tg.split(x, 4, 1), tg.split(hw, 4, 1)))
            ]
        ),
        {"add": 1, "sigmoid": 1, "tanh": 1, "split": 2},
    ),
    "two of four": (
        lambda x, hw, b: product([*map(tg.sigmoid, (p := tg.split(hw + x, 4, 1))[:2]), *map(tg.exp, p[2:])]),
        {"sigmoid": 2, "split": 1},
    ),
    "parts at different places": (
        lambda x, hw, b: product(map(tg.add, tg.split(x, 4, 1), tg.split(hw, 4, 1)[::-1])),
        {"add": 4, "split": 1},
    ),
    "parts otherwise made": (
        lambda x, hw, b: product(map(tg.add, tg.split(x, 4, 1), tg.split(hw, (4, 8, 12), 1))),
        {"add": 4, "split": 1},
    ),
    "parts of another whole": (
        lambda x, hw, b: product(map(tg.add, tg.split(x, (4, 8), 1)[:2], tg.split(hw[:, :12], (4, 8), 1)[:2])),
        {"add": 2, "split": 1},
    ),
    "the same twice": (
        lambda x, hw, b: product([*map(tg.sigmoid, (p := tg.split(hw + x, 4, 1))), tg.sigmoid(p[0])]),
        {"sigmoid": 2, "split": 2},
    ),
    "a gate that is the state": (
        lambda x, hw, b: (product(p := [*map(tg.sigmoid, tg.split(hw + x, 4, 1))]), p[2]),
        {"sigmoid": 1, "split": 1},
    ),
}


@pytest.mark.parametrize("case", FEWER)
@pytest.mark.parametrize("rows", [1, 3, 300])  # of the last, memory is from the pool
@pytest.mark.parametrize("reverse", [False, True])
def test_calls_in_the_loop(case, rows, reverse):
    """Operations left in the loop; and that it is the plain loop, with its gradients."""
    term, expected = FEWER[case]
    cell, weights = gates(term)
    given = [leaf(T, rows, 4), leaf(rows, 4, seed=1)]
    run._known.clear()
    results = []
    for by in ("array", "unrolled"):
        ys, last = tg.scan(cell, *given, reverse=reverse, engine=by)
        total = (ys * ys).sum() + (last * last * last).sum()
        results.append([ys, last, *tg.grad(total, [*given, *weights], allow_unused=True)])
    for found, right in zip(*results, strict=True):
        assert (found is None) == (right is None)
        if right is not None:
            np.testing.assert_allclose(found.numpy(), right.numpy(), 1e-9, 1e-9)
    (plan,) = run._known.values()
    counts = Counter(op.rule.name for op in plan.forward.split.loop)
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.parametrize(("columns", "left"), [(8, 1), (joined.FEW // 4, 1), (joined.FEW // 4 + 1, 2)])
def test_many_factors_are_multiplied_in_the_loop(columns, left):
    run._known.clear()
    tg.scan(lambda x, h: (h, h * x * x), tg.ones((3, 4, columns)), tg.ones((4, columns)), engine="array")
    (plan,) = run._known.values()
    assert [op.rule.name for op in plan.forward.split.loop] == ["multiply"] * left


@pytest.mark.parametrize(("kind", "forwards", "backwards"), [("LSTM", 0, 0), ("GRU", 1, 2)])
def test_only_what_is_kept_besides_is_copied(kind, forwards, backwards):
    """Of what is split, and of what is joined: the rest is written where it will be, or read where it is."""
    plan, back = programs(kind, "array")
    assert (plan.forward.loop.source.count("] = "), back.loop.source.count("] = ")) == (forwards, backwards)


def divides_vectors(native):
    """Whether a loop has a division of vectors, which only the activations in the loop over gates are made of."""
    code = build.llvm_code(native.name, native.kinds, native.text)
    return re.search(r"fdiv (\w+ )*<\d+ x float>", str(code)) is not None


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("hidden", "last"), [(5, True), (40, False)])
@pytest.mark.parametrize("how", ["plain", "reset", "lengths"])
def test_the_loop_over_gates_becomes_vector_instructions(kind, hidden, last, how):
    cell = getattr(nn, f"{kind}Cell")(3, hidden, generator=tg.Generator(0))
    marks = np.zeros((4, 32), bool)
    marks[2, 5] = True
    given = {"plain": {}, "reset": {"reset": marks}, "lengths": {"lengths": np.full(32, 3)}}[how]
    run._known.clear()
    tg.scan(cell, tg.zeros((4, 32, 3)), engine="numba", **given)
    (plan,) = run._known.values()
    code = plan.forward.loop.code
    assert code.rows_last == last
    assert divides_vectors(plan.forward.loop.native)
