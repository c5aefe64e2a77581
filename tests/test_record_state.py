"""A recording is never stale: changes between calls, threads, graphs and writes are seen as by the plain loop."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from test_record import ENGINES, ROWS, SIZE, STEPS, engines, learns, normal, results, same, slopes

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim
from tinygrad_rnn.compiler import run

both = ("unrolled", *ENGINES)


class Changing(nn.Module):
    """A cell of which everything can be changed."""

    def __init__(self):
        self.w, self.u, self.b = (nn.Parameter(normal(i, *(SIZE,) * n).data) for i, n in enumerate((2, 2, 1)))
        self.scale: Any = 2
        self.rate = 0.5
        self.activation = tg.tanh
        self.generator = tg.Generator(1)

    def forward(self, x, h):
        h = F.dropout(h, self.rate, self.training, self.generator)
        u = self.u if isinstance(self.u, tg.Tensor) else self.u()
        h = self.activation(F.linear(x, self.w, self.b) + F.linear(h, u) * self.scale)
        return h, h


def set_to(**values):
    def change(m):
        for name, value in values.items():
            setattr(m, name, value if name == "activation" or not callable(value) else value(m))

    return change


def writes(m):
    m.w.data = m.w.data * 1.5


def freezes(m):
    m.w.requires_grad = False


CHANGES = {
    "eval": lambda m: m.eval(),
    "train": lambda m: m.train(),
    "a rate": set_to(rate=0.2),
    "no dropout": set_to(rate=0),
    "another weight": set_to(w=lambda m: nn.Parameter(normal(7, SIZE, SIZE).data)),
    "a tied weight": set_to(u=lambda m: m.w),
    "an untied weight": set_to(u=lambda m: nn.Parameter(m.w.data.copy())),
    "a weight that is computed": set_to(u=lambda m: lambda: tg.sin(m.w)),
    "no bias": set_to(b=None),
    "a bias": set_to(b=lambda m: nn.Parameter(normal(8, SIZE).data)),
    "data": writes,
    "an optimizer": learns,
    "load_state_dict": lambda m: m.load_state_dict({"w": m.w.numpy() * 0.5}, strict=False),
    "frozen": freezes,
    "all frozen": lambda m: m.requires_grad_(False),
    "thawed": lambda m: m.requires_grad_(True),
    "a number": set_to(scale=0.7),
    "its negative": set_to(scale=-0.7),
    "an int": set_to(scale=1),
    "a float": set_to(scale=1.0),
    "a bool": set_to(scale=True),
    "an array": set_to(scale=np.array([0.5, 1.5])),
    "a tensor": set_to(scale=lambda m: normal(9, SIZE)),
    "a tensor of rows": set_to(scale=lambda m: normal(9, ROWS, 1)),
    "another generator": set_to(generator=lambda m: tg.Generator(2)),
    "the default generator": set_to(generator=None),
    "a generator put back": lambda m: m.generator and m.generator.load_state_dict({"seed": 1, "counter": 0}),
    "a generator drawn from": lambda m: m.generator and m.generator.uniform(3),
    "another activation": set_to(activation=tg.sin),
    "one of the user's": set_to(activation=lambda x: x * tg.sigmoid(x)),
    "one that mixes rows": set_to(activation=lambda x: tg.tanh(x - tg.mean(x, axis=0))),
}


def in_turn(engine, changes):
    """The results of a cell, again after each change."""
    tg.manual_seed(4)
    m = Changing()
    m.generator = tg.Generator(1)
    found = []
    for change in (lambda m: None, *changes):
        change(m)
        learned = [*m.parameters(), *([m.scale] if isinstance(m.scale, tg.Tensor) else [])]
        for p in learned:
            p.grad = None
        found.append(results(m, learned, engine))
        found[-1].append(np.array([m.generator.counter if m.generator else 0, tg.random.default_generator().counter]))
    return found


@engines
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_calls_is_seen(by, name):
    changes = [CHANGES[name], CHANGES["a rate"], CHANGES[name]]
    for a, b in zip(in_turn(by, changes), in_turn("unrolled", changes), strict=True):
        same(a, b)


@engines
@pytest.mark.parametrize("seed", range(8))
def test_changes_in_any_order_are_seen(by, seed):
    order = np.random.default_rng(seed).permutation([*CHANGES] * 2)
    changes = [CHANGES[name] for name in order]
    for name, a, b in zip(["none", *order], in_turn(by, changes), in_turn("unrolled", changes), strict=True):
        try:
            same(a, b)
        except AssertionError as error:
            raise AssertionError(f"after {name!r}") from error


factor: Any = 1.0


@engines
def test_closure_variables_and_globals_are_read_anew(by):
    global factor

    def make():
        mine: Any = 1.0

        def step(x, h):
            h = tg.sin(x * factor + h * mine)
            return h, h

        def change(value):
            nonlocal mine
            mine = value

        return step, change

    found = {}
    for engine in both:
        factor = 1.0
        step, change = make()
        found[engine] = []
        for value in (0.5, normal(1, SIZE), -0.5, 2, normal(1, ROWS, 1), np.ones(SIZE), normal(2, SIZE)):
            change(value)
            learned = [value] if isinstance(value, tg.Tensor) else []
            found[engine].append(results(step, learned, engine))
            factor = value
            found[engine].append(results(step, [], engine))
    for a, b in zip(found[by], found["unrolled"], strict=True):
        same(a, b)


@engines
def test_shapes_dtypes_and_directions_take_turns(by):
    cells = [nn.GRUCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)), Changing().eval()]
    kinds = itertools.product((4, 1, 7), (3, 1, 5), (np.float64, np.float32), (False, True), (True, False))
    order = np.random.default_rng(0).permutation(np.array([*kinds], object))
    for n, rows, dtype, reverse, needs in order:
        for cell in cells:
            cell.to(dtype=dtype)
            found = []
            for engine in (by, "unrolled"):
                cell.zero_grad()
                xs, state = normal(n, n, rows, SIZE, dtype=dtype), normal(rows, rows, SIZE, dtype=dtype)
                xs.requires_grad = needs
                found.append(results(cell, [*cell.parameters()], engine, xs, state, reverse=reverse))
            same(*found)


@engines
def test_backends_take_turns(by):
    cell = nn.LSTMCell(SIZE, SIZE, generator=tg.Generator(0))
    found = []
    for name in ("numpy", "strict", "numpy", "strict"):
        with tg.use_backend(name):
            cell.to(name).zero_grad()
            xs = tg.Tensor(normal(1, STEPS, ROWS, SIZE, dtype=np.float32).data)
            # The Numba engine runs on NumPy alone.
            ys, _ = tg.scan(cell, xs.to(name), engine="array" if name == "strict" else by)
            tg.sum(tg.sin(ys)).backward()
            found.append([ys.numpy(), *[p.grad.numpy() for p in cell.parameters()]])
    for values in found[1:]:
        same(values, found[0])


@engines
def test_no_grad_and_grad_take_turns(by):
    m = Changing().eval()
    expected = results(m, [*m.parameters()])
    for _ in range(2):
        with tg.no_grad():
            ys, _ = tg.scan(m, normal(1, STEPS, ROWS, SIZE), normal(2, ROWS, SIZE), engine=by)
        assert not ys.requires_grad
        same([ys.numpy()], expected[:1])
        m.zero_grad()
        same(results(m, [*m.parameters()], by), expected)


# Threads


def by_thread(cell, shapes, engine):
    """Values and gradients of one scan for each of ``shapes``; nothing is left in the leaves."""

    def one(number):
        n, rows = shapes[number]
        xs, state = normal(number, n, rows, SIZE), normal(number + 1, rows, SIZE)
        ready.wait()
        ys, last = tg.scan(cell, xs, state, engine=engine)
        gradients = tg.grad(tg.sum(tg.sin(ys)) + tg.sum(last), [xs, state, *cell.parameters()])
        return [ys.numpy(), last.numpy(), *[g.numpy() for g in gradients]]

    ready = threading.Barrier(len(shapes))
    with ThreadPoolExecutor(len(shapes)) as pool:
        return [*pool.map(one, range(len(shapes)))]


@engines
@pytest.mark.parametrize("most", [1, 256])
def test_threads_share_a_cell(by, monkeypatch, most):
    monkeypatch.setattr(run, "MOST", most)
    cell = nn.GRUCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0))
    for shapes in ([(20, 3)] * 4, [(5, 3), (9, 2), (5, 3), (1, 1)]):
        expected = by_thread(cell, shapes, "unrolled")
        for _ in range(5):
            for a, b in zip(by_thread(cell, shapes, by), expected, strict=True):
                same(a, b)


# Several scans in one graph


def two_forwards(cell, engine, order):
    """Backwards in another order than forwards, over sequences of two lengths."""
    found = []
    for i in range(3):
        xs = normal(i, STEPS + i % 2, ROWS, SIZE)
        found.append((xs, tg.scan(cell, xs, normal(i, ROWS, SIZE), engine=engine)))
    values = [ys.numpy().copy() for _, (ys, _) in found]
    for i in order:
        slopes(found[i][1])
    same([ys.numpy() for _, (ys, _) in found], values, exactly=True)
    return [*values, *[xs.grad.numpy() for xs, _ in found]]


@engines
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_forwards_before_backwards(by, order):
    found = []
    for engine in (by, "unrolled"):
        m = Changing().eval()
        values = two_forwards(m, engine, order)
        found.append([*values, *[p.grad.numpy() for p in m.parameters()]])
    same(*found)


def chained(m, xs, h, engine):
    ys, h = tg.scan(m, xs, h, engine=engine)
    more, h = tg.scan(m, xs * 2, h, engine=engine)
    return ys, more, h


def one_over_the_other(m, xs, h, engine):
    ys, last = tg.scan(m, xs, h, engine=engine)
    return tg.scan(m, ys, last, engine=engine, reverse=True)


def side_by_side(m, xs, h, engine):
    a, _ = tg.scan(m, xs, h, engine=engine)
    b, _ = tg.scan(m, xs, h, engine=engine)
    return (a * b,)


def over_its_own_outputs(m, xs, h, engine):
    """Attention over the first scan's outputs, and over the inputs themselves, in the second's cell."""
    memory, last = tg.scan(m, xs, h, engine=engine)

    def step(x, h):
        scores = F.softmax(tg.einsum("tbi,bi->tb", memory + xs, h), axis=0)
        return m(x + tg.einsum("tb,tbi->bi", scores, memory), h)

    return tg.scan(step, xs, last, engine=engine)


def inside(m, xs, h, engine):
    def step(x, h):
        ys, h = tg.scan(m, tg.stack([x, x * 2]), h, engine=engine)
        return ys[1], h

    return tg.scan(step, xs, h, engine=engine)


def closing_over_its_state(m, xs, h, engine):
    return tg.scan(lambda x, s: m(x * h, s + h), xs, h, engine=engine)


def twice_in_a_step(m, xs, h, engine):
    def step(x, pair):
        y, a = m(x, pair[0])
        y, b = m(y, pair[1])
        return y, (b, a)

    ys, (a, b) = tg.scan(step, xs, (h, h), engine=engine)
    return ys, a, b


def by_pieces(m, xs, h, engine):
    """Truncated backpropagation through time."""
    ys, h = tg.scan(m, xs[:2], h, engine=engine)
    more, h = tg.scan(m, xs[2:], h.detach(), engine=engine)
    return ys, more, h


SEVERAL = [
    chained,
    one_over_the_other,
    side_by_side,
    over_its_own_outputs,
    inside,
    closing_over_its_state,
    twice_in_a_step,
    by_pieces,
]


@engines
@pytest.mark.parametrize("graph", SEVERAL)
def test_several_scans_in_one_graph(by, graph):
    found = []
    for engine in (by, "unrolled"):
        m = Changing().eval()
        leaves = xs, h, *_ = normal(1, STEPS, ROWS, SIZE), normal(2, ROWS, SIZE), *m.parameters()
        outs = graph(m, xs, h, engine)
        loss = sum(tg.sum(tg.sin(out)) for out in outs)
        first = tg.grad(loss, leaves, create_graph=True)
        second = tg.grad(sum(tg.sum(tg.sin(g)) for g in first), leaves, retain_graph=True)
        slopes(outs)
        values = [*outs, *first, *second, *[leaf.grad for leaf in leaves]]
        found.append([tensor.numpy() for tensor in values])
    same(*found)


# Writes between forward and backward


class Parts(nn.Module):
    """Parameters that the backward pass needs, and such as it does not."""

    def __init__(self):
        self.w, self.u = (nn.Parameter(normal(i, SIZE, SIZE).data) for i in (1, 2))
        self.b, self.gain, self.slope = (nn.Parameter(normal(i, SIZE).data) for i in (3, 4, 5))

    def forward(self, x, h):
        h = tg.sin(x @ self.w + h @ self.u + self.b) * self.gain
        return h + x * self.slope, h


def writes_data(p):
    p.data = p.data * 2


def by_an_optimizer(p):
    needs, p.requires_grad = p.requires_grad, True
    p.grad = tg.ones_like(p)
    optim.SGD([p], lr=0.1).step()
    p.requires_grad = needs


WRITES = {"data": writes_data, "an optimizer": by_an_optimizer}


def written(name, write, engine, needs, length):
    """Whether the backward pass raises, and else the gradients."""
    m = Parts()
    xs, h = normal(1, length, ROWS, SIZE), normal(2, ROWS, SIZE)
    xs.requires_grad, h.requires_grad = needs
    outs = tg.scan(m, xs, h, engine=engine)
    things = {"xs": xs, "h": h} | dict(m.named_parameters())
    write(things[name])
    for thing in things.values():
        thing.grad = None
    try:
        slopes(outs)
    except RuntimeError as error:
        if "was changed in place" not in str(error):
            raise
        return None
    return [None if p.grad is None else p.grad.numpy() for p in things.values()]


@engines
@pytest.mark.parametrize("length", [1, STEPS])
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("name", ["w", "u", "b", "gain", "slope", "xs"])
def test_a_write_is_noticed_exactly_when_the_old_value_is_needed(request, by, name, write, needs, length):
    if name == "u" and length == 1 and not needs[1]:
        request.applymarker(pytest.mark.xfail(strict=True, reason="a single step is taken for one of several"))
    found, expected = (written(name, write, engine, needs, length) for engine in (by, "unrolled"))
    assert (found is None) == (expected is None)
    if found is not None:
        same(found, expected)


@engines
@pytest.mark.parametrize("needs", [(True, True), (True, False)], ids=str)
def test_a_write_to_the_initial_state_spoils_nothing(by, needs):
    """A scan keeps the states of all steps, the first among them; the loop keeps the tensor, and raises."""
    untouched = written("h", lambda h: None, "unrolled", needs, STEPS)
    found = written("h", WRITES["data"], by, needs, STEPS)
    if found is not None:
        same(found, untouched)


@engines
def test_training_goes_as_by_the_loop(by):
    found = []
    for engine in (by, "unrolled"):
        m = Parts()
        optimizer = optim.Adam(m.parameters(), lr=0.05)
        h = normal(2, ROWS, SIZE).detach()
        for i in range(5):
            ys, h = tg.scan(m, normal(i, STEPS, ROWS, SIZE).detach(), h.detach(), engine=engine)
            optimizer.zero_grad()
            tg.mean(tg.square(ys)).backward()
            optimizer.step()
        found.append([p.numpy() for p in m.parameters()])
    same(*found)


# NaN


def choosing(x, h):
    """Where NaN is set aside, in values and in gradients."""
    h = tg.where(tg.isnan(x), h, tg.sin(x + h))
    return tg.maximum(h, x), tg.minimum(h, 0.5)


NAN_CELLS = {
    "rnn": lambda: nn.RNNCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)),
    "gru": lambda: nn.GRUCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)),
    "relu": lambda: nn.RNNCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0), nonlinearity="relu"),
    "layer norm": lambda: nn.LayerNormGRUCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)),
    "parts": Parts,
    "choosing": lambda: choosing,
    "mixing rows": lambda: lambda x, h: (h, tg.tanh(x + h - tg.mean(x, axis=0))),
}


@engines
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", NAN_CELLS.values(), ids=NAN_CELLS)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"lengths": [STEPS, 3, 1]}], ids=str)
def test_a_nan_goes_where_the_loop_has_it(by, make, value, options):
    found = []
    for engine in (by, "unrolled"):
        cell = make()
        xs = normal(1, STEPS, ROWS, SIZE)
        xs.data[2, 1, 0] = value
        learned = [*cell.parameters()] if isinstance(cell, nn.Module) else []
        found.append(results(cell, learned, engine, xs, **options))
    same(*found)


@engines
@pytest.mark.parametrize("make", NAN_CELLS.values(), ids=NAN_CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_in_the_padding_changes_nothing(by, make, reverse):
    found = []
    lengths = np.array([STEPS - 1, 1, 0])
    for value in (np.nan, 0.0):
        cell = make()
        xs = normal(1, STEPS, ROWS, SIZE)
        xs.data[np.arange(STEPS)[:, None] >= lengths] = value
        learned = [*cell.parameters()] if isinstance(cell, nn.Module) else []
        found.append(results(cell, learned, by, xs, lengths=lengths, reverse=reverse))
    same(*found, exactly=True)
    assert all(np.isfinite(array).all() for array in found[0] if array is not None)
