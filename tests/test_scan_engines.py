"""`scan` by each engine beside the plain loop: values, gradients of all orders, one plan for many calls, and memory."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations

import numpy as np
import pytest
from helpers import on_backend
from scan_ways import WAYS, B, D, H, T, along, by, derivatives, leaf, loss_of, made, same, slopes, values, weights

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nest import leaves

LONG_ROWS = 16  # the error of a product that BLAS adds up in float32 in long rows, as a multiple of the plain loop's


# Values and gradients


@pytest.mark.parametrize("name", WAYS)
def test_values_and_derivatives_of_two_orders(name, backend, engine):
    same(derivatives(WAYS[name], engine, 2), derivatives(WAYS[name], "unrolled", 2))


@pytest.mark.parametrize("name", ["RNN", "LSTM with lengths and resets", "one_after_the_other", "states_that_swap"])
def test_third_derivatives(name, backend, engine):
    same(derivatives(WAYS[name], engine, 3), derivatives(WAYS[name], "unrolled", 3))


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("by", ["unrolled", "array", "numba"])
@pytest.mark.parametrize("columns", [(), (0,), (3,), (2, 3)])
def test_what_is_past_the_end_is_zero_of_its_own_dtype(dtype, by, columns):
    xs = np.ones((4, 2, *columns), dtype)
    xs[1:, 0] = 1 if dtype == np.bool_ else 7
    before = xs.copy()
    ys, count = tg.scan(lambda x, s: (x, s + 1), tg.Tensor(xs), tg.zeros((2,)), lengths=[1, 4], engine=by)
    expected = xs.copy()
    expected[1:, 0] = 0
    np.testing.assert_array_equal(ys.numpy(), expected, strict=True)
    np.testing.assert_array_equal(count.numpy(), [1, 4])
    np.testing.assert_array_equal(xs, before)


def test_attention_to_a_memory_of_real_size(engine):
    """Its sizes pass the 8192 elements of NumPy's buffers, where some functions take other ways."""
    memory = leaf(10, 64, 128)

    def cell(x, h):
        weights = tg.exp(0.1 * tg.tanh(tg.sum(memory * h, axis=-1)))
        h = tg.tanh(x + tg.sum(tg.expand_dims(weights, -1) * memory, axis=0) / 10)
        return h, h

    def run():
        xs = leaf(3, 64, 128)
        return tg.scan(cell, xs, tg.zeros((64, 128), np.float64)), [xs, memory]

    same(derivatives(run, engine, 1), derivatives(run, "unrolled", 1))


def test_a_part_of_one_unit_of_many_rows(engine):
    weight = leaf(4, 2)

    def cell(x, h):
        a, b = tg.split(h @ weight, 2, axis=-1)
        h = tg.tanh(h * a + b * x)
        return h, h

    def run():
        xs = leaf(2, 9000, 1)
        return tg.scan(cell, xs, tg.ones((9000, 4), np.float64)), [xs, weight]

    same(derivatives(run, engine, 1), derivatives(run, "unrolled", 1))


def test_the_comparison_can_fail(monkeypatch):
    scan, expected = tg.scan, derivatives(WAYS["GRU"], "unrolled", 2)

    def wrong(*arguments, **options):
        ys, state = scan(*arguments, **options)
        return tg.scale_gradient(ys, 1 + 1e-8), state

    monkeypatch.setattr(tg, "scan", wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        same(derivatives(WAYS["GRU"], "array", 2), expected)


def test_gradients_by_each_subset_of_the_sources(backend, engine):
    _, sources = WAYS["GRU"]()
    subsets = list(chain.from_iterable(combinations(range(len(sources)), n) for n in range(1, len(sources) + 1)))
    results, sources = by("unrolled", WAYS["GRU"])
    whole = tg.grad(loss_of(results), sources)
    results, sources = WAYS["GRU"]()
    loss = loss_of(results)
    for order in (1, 2):
        for subset in subsets if order == 1 else subsets[::7]:
            found = tg.grad(loss, [sources[i] for i in subset], create_graph=order == 2, retain_graph=True)
            same([g.numpy() for g in found], [whole[i].numpy() for i in subset])


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3, 4), (0, 5), (1, 2, 3)])
def test_only_some_sources_require_a_gradient(asked, backend, engine):
    def run():
        xs, start, cell = leaf(T, B, D), leaf(B, H), made("GRU")
        sources = [xs, start, *weights(cell)]
        for i, source in enumerate(sources):
            source.requires_grad = i in asked
        return tg.scan(cell, xs, start), [sources[i] for i in asked]

    same(derivatives(run, engine, 2), derivatives(run, "unrolled", 2))


def test_two_walks_over_one_graph(backend, engine):
    results, sources = WAYS["LSTM"]()
    loss = loss_of(results)
    loss.backward(retain_graph=True)
    once = [source.grad.numpy().copy() for source in sources]
    loss.backward()
    same([source.grad.numpy() for source in sources], [2 * g for g in once])
    with pytest.raises(RuntimeError, match="a second time through the result of 'add'"):
        loss.backward()


def test_two_walks_from_different_results(backend, engine):
    def run():
        (ys, (h, c)), sources = WAYS["LSTM"]()
        first = tg.grad(ys.sum(), sources, retain_graph=True)
        second = tg.grad((h * c).sum(), sources, retain_graph=True)
        return [g.numpy() for g in (*first, *second, *tg.grad((ys * ys).sum() + c.sum(), sources))]

    same(run(), by("unrolled", run))


def test_two_recorded_walks_and_a_walk_over_both(backend, engine):
    def run():
        (ys, last), sources = WAYS["RNN"]()
        first = tg.grad((ys * last).sum(), sources, create_graph=True)
        second = tg.grad((last * last).sum(), sources, create_graph=True)
        return [*first, *second], sources

    same(derivatives(run, engine), derivatives(run, "unrolled"))


def test_a_graph_that_was_freed(backend, engine):
    cell = made("LSTM")
    ys, state = tg.scan(cell, leaf(T, B, D))
    ys.sum().backward()
    with pytest.raises(RuntimeError, match=r"an earlier backward freed.*detach\(\) it first"):
        state[1].sum().backward()
    ys, _ = tg.scan(cell, leaf(T, B, D), state)
    with pytest.raises(RuntimeError, match=r"an earlier backward freed.*detach\(\) it first"):
        ys.sum().backward()
    tg.scan(cell, leaf(T, B, D), tg.nest.detach(state))[0].sum().backward()


def test_two_forwards_before_their_backwards(backend, engine):
    def run():
        cell, sources = made("LSTM"), [leaf(T, B, D, seed=i) for i in range(3)]
        losses = [loss_of(tg.scan(cell, xs)) for xs in sources]
        found = [tg.grad(losses[i], [sources[i], *weights(cell)]) for i in (1, 0, 2)]
        return [g for each in found for g in each], []

    same(derivatives(run, engine, 0), derivatives(run, "unrolled", 0))


@pytest.mark.parametrize("which", range(3))
def test_a_tensor_that_was_written_since(which, backend, engine):
    """Either the graph says so, or it has kept the old value."""

    def run(write, create_graph):
        sources = xs, start, w = leaf(T, B, H), leaf(B, H), leaf(H, H)
        results = tg.scan(lambda x, h: (h, tg.tanh(x * h @ w)), xs, start)
        if write:
            sources[which].data = sources[which].data * 2
        return [g.numpy() for g in tg.grad(loss_of(results), sources, create_graph=create_graph)]

    for create_graph in (False, True):
        expected = run(False, create_graph)
        try:
            found = run(True, create_graph)
        except RuntimeError as error:
            assert "was changed in place after" in str(error)  # noqa: PT017 - that nothing is raised may be right too
        else:
            same(found, expected)


CUTS = {
    "a weight of an unused output": lambda w, x, s: ((s * x, w * x), tg.tanh(x + s)),
    "a detached weight": lambda w, x, s: ((tg.tanh(x * s + w.detach()), w * 1), s * x),
    "a state that is not read": lambda w, x, s: ((x, w), w * x),
    "a detached state": lambda w, x, s: ((s.detach() * x, w), tg.tanh(s.detach() + x)),
}


@pytest.mark.parametrize("name", CUTS)
def test_no_gradient_is_none(name, backend, engine):
    def run():
        xs, start, w = sources = [leaf(T, B, H), leaf(B, H), leaf(B, H)]
        (ys, _), _ = tg.scan(lambda x, s: CUTS[name](w, x, s), xs, start)
        return [g is None for g in slopes(ys.sum(), sources)]

    assert run() == by("unrolled", run)


@pytest.mark.parametrize("name", ["detached", "not detached"])
def test_which_results_require_a_gradient(name, backend, engine):
    def run():
        xs, start, w = on_backend(values(T, B, H)), leaf(B, H), leaf(H)

        def cell(x, state):
            h, other = state
            carried = (h.detach() if name == "detached" else h) * x
            return {"h": h, "w": w, "cut": h.detach(), "x": x, "above": h > 0}, (carried, other * w)

        results = tg.scan(cell, xs, (start, xs[0]))
        return [part.requires_grad for _, part in leaves(results)]

    assert run() == by("unrolled", run)


# Numbers


def test_a_product_with_the_hessian_is_the_difference_of_gradients(backend, engine):
    cell, start = made("LSTM"), values(T, B, D)
    points = [start, *[p.numpy().copy() for p in cell.parameters()]]
    directions = [values(*point.shape, seed=9) for point in points]
    names = [name for name, _ in cell.named_parameters()]

    def gradients(distance, create_graph=False):
        moved = [on_backend(p + distance * d) for p, d in zip(points, directions, strict=True)]
        for tensor in moved:
            tensor.requires_grad = True
        vars(cell).update(zip(names, moved[1:], strict=True))
        found = tg.grad(loss_of(tg.scan(cell, moved[0], lengths=[5, 3, 1])), moved, create_graph=create_graph)
        return moved, found

    moved, found = gradients(0.0, True)
    products = tg.grad(sum((g * on_backend(d)).sum() for g, d in zip(found, directions, strict=True)), moved)
    (_, ahead), (_, behind) = gradients(1e-5), gradients(-1e-5)
    for product, a, b in zip(products, ahead, behind, strict=True):
        np.testing.assert_allclose(product.numpy(), (a.numpy() - b.numpy()) / 2e-5, rtol=1e-6, atol=1e-7)


PARTS = "ys", "xs", "weight_ih", "weight_hh", "bias_ih", "bias_hh"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_float32_is_as_near_as_the_loop(kind, part, engine):
    def run(dtype):
        cell = getattr(nn, f"{kind}Cell")(10, 5, generator=tg.Generator(0)).to(dtype=dtype)
        xs = tg.Tensor(values(100, 32, 10).astype(np.float32).astype(dtype), requires_grad=True)
        ys, _ = tg.scan(cell, xs)
        return [ys, *tg.grad((ys * ys).sum(), [xs, *cell.parameters()])][PARTS.index(part)].numpy()

    exact = by("unrolled", lambda: run(np.float64))
    ours, theirs = [np.linalg.norm(by(name, lambda: run(np.float32)) - exact) for name in (engine, "unrolled")]
    assert 0 < theirs < 1e-5 * np.linalg.norm(exact)
    # By arrays the gradient of a weight is one product over all steps and rows.
    assert 0 < ours <= (LONG_ROWS if engine == "array" and part.startswith("weight") else 2) * theirs


# One plan for many calls


def test_calls_of_one_cell_that_differ_in_what_it_reads(backend, engine):
    """What is remembered of a step must not hold for another one."""
    cell, table, number = made("RNN"), values(4, H), {"scale": 0.5}

    def step(x, h):
        y, h = cell(x, h)
        return y * number["scale"] + tg.take(on_backend(table), number.get("row", 0), axis=0), h

    def run():
        xs = leaf(number.get("steps", T), number.get("rows", B), D, seed=2)
        return tg.scan(step, xs, leaf(xs.shape[1], H), reverse=number.get("reverse", False)), [
            xs,
            *[weight for weight in weights(cell) if weight.requires_grad],
        ]

    def check():
        same(derivatives(run, engine), derivatives(run, "unrolled"))

    check()
    for change in ({"scale": 2.0}, {"scale": 2}, {"row": 3}, {"steps": 1}, {"steps": 9, "rows": 7}, {"reverse": True}):
        number.update(change)
        check()
    table[3] = 7
    check()
    for frozen in (True, False):
        cell.weight_hh.requires_grad = not frozen
        check()
    cell.weight_hh = nn.Parameter(on_backend(values(H, H, seed=77)))
    check()
    cell.nonlinearity = tg.sigmoid
    check()


def test_threads(engine):
    """Each has memory of its own, though they share a plan."""
    cell = made("LSTM", hidden=20)
    xs = [on_backend(values(30, 8, D, seed=seed)) for seed in range(8)]

    def run(x, name):
        x = tg.Tensor(x, requires_grad=True)
        return tg.grad(loss_of(tg.scan(cell, x, engine=name)), x).numpy()

    expected = [run(x, "unrolled") for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda x: run(x, engine), xs * 5), expected * 5, strict=True):
            same([found], [wanted])


# Memory

STEPS = 100


def traced(run):
    """Bytes that ``run`` leaves with its result alive, and the most that it had."""
    kept = [run()]  # what is remembered for good
    kept.clear()
    tracemalloc.start()
    try:
        kept = [run()]
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_no_grad_keeps_nothing(engine):
    cell, xs = nn.LSTMCell(4, 32), tg.zeros((STEPS, 8, 4))
    with tg.no_grad():
        ys, state = tg.scan(cell, xs)
        assert not any(part.requires_grad or part._node for _, part in leaves([ys, state]))
        result = ys.numpy().nbytes
        alive, most = traced(lambda: tg.scan(cell, xs))
    recorded, _ = traced(lambda: tg.scan(cell, xs))
    assert alive < 1.1 * result
    assert most < 10 * result  # the four gates' products with the inputs, before and after their bias, and the outputs
    assert recorded > 3 * result


@pytest.mark.parametrize("name", ["LSTM", "GRU in reverse with lengths and resets", "a_layer_of_everything"])
def test_a_graph_dies_with_its_results(name, backend, engine):
    """Nothing that a scan makes is part of a cycle of references, and no plan holds on to it."""
    gc.collect()
    gc.disable()
    try:
        results, sources = WAYS[name]()
        gradients = tg.grad(loss_of(results), sources, create_graph=True)
        second = along(gradients, 0)
        watched = [second._node, *[part._node for _, part in leaves(results) if part._node], *sources]
        references = [weakref.ref(thing) for thing in watched]
        del results, sources, gradients, second, watched
        assert [reference() for reference in references if reference() is not None] == []
    finally:
        gc.enable()


def test_a_walk_frees_what_was_kept(engine):
    cell, xs = nn.LSTMCell(4, 32), tg.Tensor(np.zeros((STEPS, 8, 4), np.float32), requires_grad=True)

    def run(walks):
        ys, state = tg.scan(cell, xs)
        if walks:
            tg.grad(ys.sum(), xs)
        return ys, state

    before, after = [traced(lambda walks=walks: run(walks))[0] for walks in (False, True)]
    assert after < 0.5 * before
