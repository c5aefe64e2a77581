"""`scan` with ``recompute``: the bits of the plain run, its gradients, less memory."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext
from functools import partial
from itertools import chain, combinations

import numpy as np
import pytest
from helpers import on_backend
from interpreted import interpreted
from scan_ways import WAYS, B, D, H, T, by, derivatives, leaf, loss_of, made, same, values, weights

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler import pool, program, segments
from tinygrad_rnn.compiler import run as compiled
from tinygrad_rnn.nest import leaves
from tinygrad_rnn.nn import recurrent

EVERY = 1, 2, 3, 5, 9, "sqrt"
scan = tg.scan


@pytest.fixture(params=["array", "numba"])
def fast(request):
    """The name of an engine that recomputes, by which all scans run that name none."""
    with tg.use_engine(request.param), interpreted() if request.param == "numba" else nullcontext():
        yield request.param


@pytest.fixture
def short(monkeypatch):
    """Products are done for two steps at once, so that sequences of the tests have several pieces."""
    monkeypatch.setattr(program, "STEPS", 2)
    compiled._known.clear()
    yield
    compiled._known.clear()


@pytest.fixture
def segments_run(monkeypatch):
    """How many steps each segment had that was gone through again."""
    seen = []
    saving = segments.saving

    def watched(kept, segment=None):
        seen.append(None if segment is None else segment.steps.stop - segment.steps.start)
        return saving(kept, segment)

    monkeypatch.setattr(compiled, "saving", watched)
    return seen


def recomputed(monkeypatch, every):
    """From now on all scans recompute."""
    monkeypatch.setattr(tg, "scan", partial(scan, recompute=every))
    monkeypatch.setattr(recurrent, "scan", partial(scan, recompute=every))


def bits(arrays):
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_scan(name, short, fast, monkeypatch):
    """Results have the bits of the plain run, gradients are those."""
    plain = derivatives(WAYS[name], fast)
    results = len(derivatives(WAYS[name], fast, 0))
    for every in EVERY:
        recomputed(monkeypatch, every)
        found = derivatives(WAYS[name], fast)
        assert bits(found[:results]) == bits(plain[:results])
        same(found, plain, 1e-12)


@pytest.mark.parametrize("name", ["LSTM", "GRU in reverse with lengths and resets", "masks_drawn_at_each_step"])
def test_on_each_backend(name, short, backend, engine, monkeypatch):
    plain = derivatives(WAYS[name], engine, 2)
    recomputed(monkeypatch, 2)
    same(derivatives(WAYS[name], engine, 2), plain)


@pytest.mark.parametrize(
    "name",
    [
        "LSTM",
        "GRU in reverse with lengths and resets",
        "a_state_in_a_nest_some_of_it_ints_and_bools",
        "one_after_the_other",
        "states_that_swap_and_change",
        "masks_drawn_at_each_step",
        "a_weight_that_was_computed",
        "a_layer_of_everything",
    ],
)
def test_second_derivatives(name, short, fast, monkeypatch):
    plain = derivatives(WAYS[name], fast, 2)
    for every in (1, 2, "sqrt"):
        recomputed(monkeypatch, every)
        same(derivatives(WAYS[name], fast, 2), plain)


@pytest.mark.parametrize(
    ("every", "lengths"),
    [(1, [1] * T), (2, [1, 2, 2]), (3, [2, 3]), (4, [1, 4]), (5, [5]), (9, [5]), ("sqrt", [1, 2, 2])],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_segments(every, lengths, reverse, short, fast, segments_run):
    """From the end of the way that the scan went."""
    xs = leaf(T, B, D)
    ys, _ = scan(made("LSTM"), xs, reverse=reverse, recompute=every)
    assert segments_run == []
    tg.grad(ys.sum(), xs)
    assert segments_run == (lengths[::-1] if reverse else lengths)


def test_the_interval_of_sqrt():
    found = [
        segments.interval("sqrt", steps, stretch) for steps, stretch in ((2000, 1), (2000, 32), (2000, 128), (1, 1))
    ]
    assert found == [44, 64, 128, 1]
    assert segments.interval(7, 2000, 128) == 7


# Bits, where they are at stake


@pytest.fixture
def by_number_of_rows(monkeypatch):
    """Products of which every row depends on how many rows there are; with BLAS it may be the last bits alone."""

    def matmul(a, b, out=None):
        return np.multiply(np.matmul(a, b), np.float32(1 + 1e-3 * len(a)), out=out)

    monkeypatch.setattr(NUMPY, "matmul", matmul)


def long_run(every, reverse=False, batch=3, size=70):
    cell = nn.LSTMCell(size, 4, generator=tg.Generator(0))
    reader = nn.Linear(4, 3, generator=tg.Generator(1))
    xs = tg.Tensor(values(300, batch, size).astype(np.float32))

    def read(x, state):
        h, state = cell(x, state)
        return {"h": h, "read": tg.tanh(reader(h)), "x": tg.sigmoid(x[:, :2] @ cell.weight_hh[:2])}, state

    results = scan(read, xs, cell.init_state(batch), reverse=reverse, recompute=every)
    return [part.numpy() for _, part in leaves(results)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("size", [5, 70])
def test_bits_of_long_sequences(size, batch, reverse, fast):
    plain = bits(long_run(None, reverse, batch, size))
    for every in (7, 45, 128, 1000, "sqrt"):
        assert bits(long_run(every, reverse, batch, size)) == plain


@pytest.mark.usefixtures("by_number_of_rows")
@pytest.mark.parametrize("reverse", [False, True])
def test_products_of_the_array_engine_are_of_as_many_rows_as_in_a_plain_run(reverse, monkeypatch):
    if fast == "numba":
        pytest.skip("its products have the same bits in any number of rows; see test_product.py")
    plain = long_run(None, reverse)
    for every in (7, 45, 128, 1000, "sqrt"):
        assert bits(long_run(every, reverse)) == bits(plain)
    monkeypatch.setattr(program, "STEPS", 100)
    compiled._known.clear()
    other = long_run(None, reverse)
    compiled._known.clear()
    assert all(not np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


# Walks


def test_gradients_by_each_subset_of_the_sources(short, fast):
    cell, xs, start = made("GRU"), leaf(T, B, D), leaf(B, H)
    sources = [xs, start, *weights(cell)]
    subsets = list(chain.from_iterable(combinations(range(len(sources)), n) for n in range(1, len(sources) + 1)))
    whole = tg.grad(loss_of(scan(cell, xs, start)), sources)
    loss = loss_of(scan(cell, xs, start, recompute=2))
    for subset in subsets:
        found = tg.grad(loss, [sources[i] for i in subset], retain_graph=True)
        same([g.numpy() for g in found], [whole[i].numpy() for i in subset])


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3, 4), (0, 5), (1, 2, 3)])
def test_only_some_sources_require_a_gradient(asked, short, fast):
    def run(every):
        xs, start, cell = leaf(T, B, D), leaf(B, H), made("GRU")
        sources = [xs, start, *weights(cell)]
        for i, source in enumerate(sources):
            source.requires_grad = i in asked
        return scan(cell, xs, start, recompute=every), [sources[i] for i in asked]

    same(derivatives(partial(run, 2), fast, 2), derivatives(partial(run, None), fast, 2))


def test_walks_over_one_graph_until_it_is_freed(short, fast):
    cell, xs = made("LSTM"), leaf(T, B, D)
    results = scan(cell, xs, recompute=2)
    loss = loss_of(results)
    expected = [g.numpy() for g in tg.grad(loss_of(scan(cell, xs)), [xs, *weights(cell)])]
    again = tg.grad(loss, [xs, *weights(cell)], create_graph=True)  # keeps the graph
    for _ in range(2):
        same([g.numpy() for g in tg.grad(loss, [xs, *weights(cell)], retain_graph=True)], expected)
    same([g.numpy() for g in again], expected)
    loss.backward()
    same([xs.grad.numpy(), *[p.grad.numpy() for p in weights(cell)]], expected)
    with pytest.raises(RuntimeError, match="a second time through"):
        loss.backward()


def test_walks_from_different_results(short, fast):
    def run(every):
        xs, cell = leaf(T, B, D), made("LSTM")
        ys, (h, c) = scan(cell, xs, reverse=True, recompute=every)
        losses = ys[1:3].sum(), (h * c).sum(), (ys * ys).sum() + c.sum()
        return [g.numpy() for loss in losses for g in tg.grad(loss, [xs, *weights(cell)], retain_graph=True)]

    same(run(2), run(None))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("which", range(3))
def test_a_tensor_that_was_written_since(which, create_graph, short, fast):
    """The steps cannot be gone through again with another weight; the state that it began with is kept."""

    def run(write):
        sources = xs, start, w = leaf(T, B, H), leaf(B, H), leaf(H, H)
        results = scan(lambda x, h: (h, tg.tanh(x + h @ w)), xs, start, recompute=2)
        if write:
            sources[which].data = sources[which].data * 2
        return [g.numpy() for g in tg.grad(loss_of(results), sources, create_graph=create_graph)]

    expected = run(False)
    if which == 1 and not create_graph:
        same(run(True), expected)
    else:
        with pytest.raises(RuntimeError, match="was changed in place after 'scan'"):
            run(True)


def test_without_a_gradient(short, fast, segments_run):
    cell, xs = made("LSTM"), on_backend(values(T, B, D))
    expected = scan(cell, xs)[0].numpy()
    with tg.no_grad():
        ys, state = scan(cell, xs, recompute=2)
    assert not any(part.requires_grad for _, part in leaves([ys, state]))
    assert bits([ys.numpy()]) == bits([expected])
    assert segments_run == []


# Cells that draw, and that keep statistics


def test_a_cell_that_keeps_statistics(short, fast):
    """They are committed once, in the plain run's order, not again when backward goes through the steps."""

    def run(every):
        cell, xs = nn.BatchNormLSTMCell(D, H, max_steps=4, dtype=np.float64, generator=tg.Generator(3)), leaf(T, B, D)
        ys, _ = scan(cell, xs, lengths=[5, 3, 2], recompute=every)
        found = tg.grad(loss_of(ys), [xs, *weights(cell)])
        return [ys.numpy(), *[buffer.numpy() for _, buffer in cell.named_buffers()]], [g.numpy() for g in found]

    plain = run(None)
    for every in EVERY:
        found = run(every)
        assert bits(found[0]) == bits(plain[0])
        same(found[1], plain[1])


def test_the_generators_go_on_as_in_a_plain_run(short, fast):
    def run(every):
        generator = tg.Generator(3)
        cell = nn.Zoneout(made("LSTM"), 0.4, generator)
        xs = leaf(T, B, D)
        ys, _ = scan(cell, xs, recompute=every)
        tg.grad(ys.sum(), xs)
        return [ys.numpy(), scan(cell, xs)[0].numpy()]

    assert bits(run(2)) == bits(run(None))


# The argument


@pytest.mark.parametrize(
    ("recompute", "error", "said"),
    [
        ("root", ValueError, "recompute must be None, 'sqrt' or an int, got 'root'"),
        (2.0, TypeError, "recompute must be None, 'sqrt' or an int, got 2.0, float"),
        (True, TypeError, "recompute must be None, 'sqrt' or an int, got True, bool"),
        (0, ValueError, "recompute must be at least 1, got 0"),
        (-3, ValueError, "recompute must be at least 1, got -3"),
    ],
)
def test_what_it_must_not_be(recompute, error, said):
    with pytest.raises(error, match=f"^{said}$"):
        scan(made("RNN"), leaf(T, B, D), recompute=recompute)


def test_ints_of_numpy(segments_run):
    xs = leaf(T, B, D)
    tg.grad(scan(made("RNN"), xs, recompute=np.int64(4))[0].sum(), xs)
    assert segments_run == [1, 4]


def test_a_plain_loop_refuses():
    with pytest.raises(ValueError, match=r"^recompute needs an engine that is compiled: engine='unrolled' keeps"):
        scan(made("RNN"), leaf(T, B, D), recompute=2, engine="unrolled")


def test_where_the_loop_is_plain_for_another_reason():
    """As for the ledger, or while one looks for an error: the numbers are what is asked for."""
    xs = leaf(T, B, D)
    expected = by("unrolled", lambda: scan(made("GRU"), xs)[0].numpy())
    assert bits([by("unrolled", lambda: scan(made("GRU"), xs, recompute=2)[0].numpy())]) == bits([expected])


def test_a_cell_that_cannot_be_recorded_says_that_it_is_not_recomputed():
    def cell(x, h):
        return h, h if float(h.sum()) > 1e9 else tg.tanh(x + h)

    with (
        tg.use_engine("auto"),
        pytest.warns(UserWarning, match="slower and recomputes nothing: the cell makes a float"),
    ):
        scan(cell, leaf(T, B, H), leaf(B, H), recompute=2)


# Memory


def traced(run):
    """Bytes that are alive when ``run`` is at each of its yields, and the most until then."""
    for _ in run():  # what is remembered for good
        pass
    tracemalloc.start()
    try:
        found = []
        for _ in run():
            found.append(tracemalloc.get_traced_memory())
            tracemalloc.reset_peak()
        return found
    finally:
        tracemalloc.stop()


SIZES = {"array": (1000, 8, 64), "numba": (400, 4, 16)}  # what Python goes through element by element must be small


@pytest.fixture
def _one_thread():
    tg.set_num_threads(1)
    yield
    tg.set_num_threads(None)


@pytest.mark.usefixtures("_one_thread")
def test_memory(fast, monkeypatch):
    """Besides the outputs, which the caller holds."""
    monkeypatch.setattr(program, "STEPS", 20)
    monkeypatch.setattr(pool.Pool, "MOST", 0)  # what it remembers would be alive
    compiled._known.clear()
    steps, batch, hidden = SIZES[fast] if fast == "array" else (300, 2, 16)
    cell, start = nn.LSTMCell(4, hidden, generator=tg.Generator(0)), values(steps, batch, 4).astype(np.float32)

    def run(every):
        ys, (h, _) = scan(cell, tg.Tensor(start), recompute=every)
        yield
        found = tg.grad(h.sum(), list(cell.parameters()))
        yield
        del ys, found

    outputs = steps * batch * hidden * 4
    plain, less = [[(alive - outputs, most - outputs) for alive, most in traced(partial(run, k))] for k in (None, 20)]
    assert less[0][0] < plain[0][0] / 8
    assert max(most for _, most in less) < max(most for _, most in plain) / 3


CHAINS = {
    "before the loop": lambda x, h, w: (h, tg.tanh(h + tg.tanh(tg.tanh(tg.tanh(x @ w) @ w) @ w) @ w)),
    "after the loop": lambda x, h, w: (tg.tanh(tg.tanh(h @ w) @ w) @ w, tg.tanh(h + x @ w)),
}


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("where", CHAINS)
def test_what_no_later_stage_reads_is_dropped(where, fast):
    steps, batch, hidden = SIZES[fast]
    xs, w = tg.zeros((steps, batch, hidden)), tg.zeros((hidden, hidden))

    def run():
        ys, _ = scan(lambda x, h: CHAINS[where](x, h, w), xs, tg.zeros((batch, hidden)))
        yield
        del ys

    one = steps * batch * hidden * 4
    ((_, most),) = traced(run)
    assert most < 3.5 * one
