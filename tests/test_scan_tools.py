"""What is built around `scan`, by each engine: training, the ledger, anomalies, drawings, copies, and errors."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from helpers import on_backend
from scan_ways import WAYS, B, D, H, T, by, derivatives, leaf, made, same, values

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim, viz
from tinygrad_rnn.nest import leaves


def train(k1, k2):
    layer = nn.LSTM(D, H, dtype=np.float64, generator=tg.Generator(0))
    optimizer = optim.Adam(layer.parameters(), lr=0.05)
    xs, targets = on_backend(values(20, B, D)), on_backend(values(20, B, H))
    losses = []
    for update in tg.tbptt(layer, lambda y, t: tg.square(y - t).mean(), xs, targets, optimizer, k1, k2, max_norm=0.3):
        losses.append(update.loss.numpy())
    return [*losses, *[leaf.numpy() for _, leaf in leaves(update.state)], *[p.numpy() for p in layer.parameters()]]


@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (3, 7), (20, 20), (1, 1)])
def test_updates_of_truncated_backpropagation(k1, k2, backend, engine):
    same(train(k1, k2), by("unrolled", lambda: train(k1, k2)), 1e-12)


def test_the_ledger_sees_each_step(backend, engine):
    def run():
        layer, xs = nn.LSTM(D, H, dtype=np.float64, generator=tg.Generator(0)), on_backend(values(T, B, D))
        (run,) = tg.gradient_ledger(lambda: layer(xs)[0].sum(), gates=("i", "f"), jacobian=True).runs
        return run.columns()

    found, expected = run(), by("unrolled", run)
    assert list(found) == list(expected)
    assert {"|dL/dc|", "|dh_T/dh_t|", "i saturated"} < set(found)
    same(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("backward", [False, True])
def test_an_anomaly_is_found_at_its_step(backward, engine):
    xs = np.ones((T, 1, 1))
    xs[3] = 0 if backward else -1

    def cell(x, h):
        root = tg.sqrt(x)  # its slope at 0 is infinite, its value at -1 is no number
        return root, h + root

    tensor = tg.Tensor(xs, requires_grad=True)
    with np.errstate(all="ignore"):
        tg.scan(cell, tensor, tg.zeros((1, 1), np.float64))  # a plan is known already
        with pytest.raises(tg.AnomalyError) as caught, tg.detect_anomaly():
            tg.scan(cell, tensor, tg.zeros((1, 1), np.float64))[1].sum().backward()
    assert (caught.value.operation, caught.value.backward, caught.value.step) == ("sqrt", backward, 4)
    assert "root = tg.sqrt(x)" in caught.value.text


def test_a_drawing(engine):
    cell, xs = made("GRU"), leaf(T, B, D)
    ys, last = tg.scan(cell, xs)
    for tensor in ys, last, tg.grad(ys.sum(), xs, create_graph=True):
        text = viz.draw(tensor).source
        assert ("scan" in text) == (engine != "unrolled")
        assert all(p.name in text for p in cell.parameters())


def test_a_graph_that_grows_is_noticed(engine):
    layer = nn.GRU(D, H, generator=tg.Generator(0))
    optimizer, carried = optim.SGD(layer.parameters(), lr=0.01), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            _, carried = layer(tg.zeros((T, B, D)), carried)
            optimizer.step()
    (text,) = [str(warning.message) for warning in caught if warning.category is optim.GraphGrowthWarning]
    assert "held by carried" in text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_after_a_call(copied, backend, engine):
    layer, xs = nn.LSTM(D, H, dtype=np.float64, generator=tg.Generator(0)), on_backend(values(T, B, D))
    ys, _ = layer(xs)
    ys.sum().backward()
    other = copied(layer)
    again, _ = other(xs)
    np.testing.assert_array_equal(again.numpy(), ys.numpy())
    for parameter in other.parameters():
        parameter.grad = None
    (2 * again).sum().backward()
    same([p.grad.numpy() for p in other.parameters()], [2 * p.grad.numpy() for p in layer.parameters()])


def test_a_cell_that_raises(backend, engine):
    generator, broken = tg.Generator(0), [True]
    cell = nn.Zoneout(made("GRU"), 0.5, generator)

    def step(x, h):
        tg.expose(h=h)
        y, h = cell(x, h)
        if broken[0]:
            raise OSError("broken")
        return y, h

    def run():
        return tg.scan(step, leaf(T, B, D), leaf(B, H), expose=["h"]), []

    with pytest.raises(OSError, match="broken"):
        run()
    generator.counter, broken[0] = 0, False
    found = derivatives(run, engine, 0)
    generator.counter = 0
    same(found, derivatives(run, "unrolled", 0))
    tg.expose(h=leaf(1))  # nobody asks any more
    assert derivatives(WAYS["GRU"], engine, 2)[0].shape == (T, B, H)


def test_what_a_cell_is_given_and_gives_is_named(engine):
    xs, weight = tg.zeros((5, 4, 3)), tg.zeros((3, 3))
    with pytest.raises(TypeError, match=r"must return \(y, state\), got tensor of \(2, 3\)"):
        tg.scan(lambda x, h: h, tg.zeros((5, 2, 3)), tg.zeros((2, 3)), engine=engine)
    with pytest.raises(TypeError, match=r"got \(tensor of \(4, 3\), NoneType, \{'h': tensor of \(4, 3\)\}\)"):
        tg.scan(lambda x, h: (x, None, {"h": h}), xs, tg.zeros((4, 3)), engine=engine)
    with pytest.raises(ValueError, match="broadcast") as caught:
        tg.scan(lambda x, h: (h, h @ weight + x), xs, tg.zeros((2, 3)), engine=engine)
    assert caught.value.__notes__ == ["scan called the cell with x, tensor of (4, 3), and the state, tensor of (2, 3)"]


def test_no_engine_falls_back_unless_it_is_left_to_choose(engine):
    steps = []

    def cell(x, h):
        steps.append(len(steps))
        return x * len(steps), h + x

    def run(**options):
        steps.clear()
        return tg.scan(cell, leaf(T, B, H), leaf(B, H), **options)[0].numpy()

    expected = run(engine="unrolled")
    if engine != "unrolled":
        with pytest.raises(TypeError, match=f"engine '{engine}' cannot run this cell: .* 'steps'"):
            run()
        assert steps == []
    with tg.use_engine("auto"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(run(), expected)
    assert any("'steps'" in str(warning.message) and warning.filename == __file__ for warning in caught)
    assert steps == list(range(T))


def refused_or_the_same(run, engine):
    """A cell that cannot be recorded is refused; it is never run with the values of the first step."""
    expected = derivatives(run, "unrolled")
    try:
        found = derivatives(run, engine)
    except TypeError as reason:
        assert f"engine '{engine}' cannot run this cell" in str(reason)  # noqa: PT017 - it may also be able to
    else:
        same(found, expected)


def inner_gradient(x, h):
    slope = tg.grad((tg.tanh(h) * x).sum(), h)
    return slope, tg.tanh(h - 0.3 * slope)


def inner_gradient_of_a_weight(x, h):
    weight = tg.Tensor(values(B, H), requires_grad=True)
    slope = tg.grad((tg.tanh(weight * h.detach()) * x.detach()).sum(), weight)
    return slope, tg.tanh(h - 0.3 * slope)


def chosen_by_a_value(x, h):
    return h, tg.tanh(h + x) if h.numpy().sum() > 0 else h


def random_of_numpy(x, h):
    return h, tg.tanh(h + x) * np.random.default_rng(3).random()


READERS = [inner_gradient, inner_gradient_of_a_weight, chosen_by_a_value, random_of_numpy]


@pytest.mark.parametrize("cell", READERS)
def test_a_value_of_the_first_step_is_not_taken_for_all(cell, engine):
    def run():
        sources = leaf(T, B, H), leaf(B, H)
        return tg.scan(cell, *sources), sources

    refused_or_the_same(run, engine)


@pytest.mark.parametrize("index", [-1, 3])
@pytest.mark.parametrize("step", [0, 2])
def test_indices_that_are_out_of_range_at_any_step(index, step, engine):
    ids = np.zeros((T, B), int)
    ids[step, 1] = index
    table = leaf(3, H)
    with pytest.raises(IndexError):
        tg.scan(lambda i, h: (h, h + tg.functional.embedding(i, table)), on_backend(ids), leaf(B, H))
