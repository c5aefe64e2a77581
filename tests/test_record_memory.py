"""What is remembered of the library's own cells, which promise to be pure, is never stale."""

from __future__ import annotations

import functools
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from test_record import ROWS, SIZE, STEPS, engines, learns, normal, results, same

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn
from tinygrad_rnn.nn.simple import IndRNNCell, PReLU


def seeded(kind, **options):
    return lambda: kind(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0), **options)


CELLS = {
    "rnn": seeded(nn.RNNCell),
    "gru": seeded(nn.GRUCell),
    "lstm": seeded(nn.LSTMCell),
    "layer norm": seeded(nn.LayerNormLSTMCell),
    "prelu": lambda: seeded(IndRNNCell, activation=PReLU(SIZE, dtype=np.float64))(),
}
factor: Any = 2.0


@functools.wraps(tg.tanh)
def scaled(x):
    """It says that it is the library's own function, as a decorated one does."""
    return tg.tanh(x) * factor


def doubles_the_factor(cell):
    global factor
    factor = factor * 2


def activates(function):
    def change(cell):
        name = next((n for n in ("nonlinearity", "activation") if hasattr(cell, n)), None)
        if name:
            setattr(cell, name, function)

    return change


def replaces(cell):
    cell.weight_ih = nn.Parameter(normal(7, *cell.weight_ih.shape).data)


def ties(cell):
    cell.bias_ih = nn.Parameter(normal(8, *cell.weight_ih.shape[:1]).data)
    cell.bias_hh = cell.bias_ih


def unties(cell):
    cell.bias_hh = nn.Parameter(normal(9, *cell.weight_ih.shape[:1]).data)


def ties_weights(cell):
    if cell.weight_ih.shape == getattr(cell, "weight_hh", cell.weight_ih).shape:
        cell.weight_ih = getattr(cell, "weight_hh", cell.weight_ih)


def swaps_biases(cell):
    if getattr(cell, "bias_hh", None) is not None:
        cell.bias_ih, cell.bias_hh = cell.bias_hh, cell.bias_ih


def freezes(cell):
    cell.weight_ih.requires_grad = False


def thaws(cell):
    for p in cell.parameters():
        p.requires_grad = True


def doubles(cell):
    cell.weight_ih.data = cell.weight_ih.data * 2


def overrides(cell):
    """As a user patches one cell."""
    forward = type(cell).forward
    cell.forward = lambda x, state: (forward(cell, x * 2, state)[0] + 1, state)


def restores(cell):
    vars(cell).pop("forward", None)


def loads(cell):
    cell.load_state_dict({name: value.numpy() * 0.5 for name, value in cell.state_dict().items()})


CHANGES = {
    f.__name__: f
    for f in (
        *(replaces, ties, unties, ties_weights, swaps_biases, freezes, thaws, doubles, learns, overrides, restores),
        *(loads, doubles_the_factor),
    )
}
CHANGES |= {
    "no bias": lambda cell: setattr(cell, "bias_ih", None) if hasattr(cell, "bias_hh") else None,
    "sine": activates(tg.sin),
    "relu": activates(F.relu),
    "tanh": activates(tg.tanh),
    "one of the user's": activates(lambda x: x * tg.sigmoid(x)),
    "a module": lambda cell: activates(PReLU(SIZE, dtype=np.float64))(cell),
    "a list": lambda cell: setattr(cell, "notes", [1]),
    "a float": lambda cell: setattr(cell, "temperature", 0.5),
    "eval": lambda cell: cell.eval(),
}


def in_turn(make, engine, changes):
    global factor
    factor = 2.0
    cell = make()
    found = []
    for change in (lambda cell: None, *changes):
        change(cell)
        learned = [*cell.parameters()]
        for p in learned:
            p.grad = None
        found.append(results(cell, learned, engine, state=cell.init_state(ROWS)))
    return found


@engines
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(4))
def test_changes_of_the_librarys_cells_are_seen(by, cell, seed):
    order = np.random.default_rng(seed).permutation([*CHANGES] * 2)
    changes = [CHANGES[name] for name in order]
    found = [in_turn(CELLS[cell], engine, changes) for engine in (by, "unrolled")]
    for name, a, b in zip(["none", *order], *found, strict=True):
        try:
            same(a, b)
        except AssertionError as error:
            raise AssertionError(f"after {name!r}") from error


@engines
def test_a_function_under_the_name_of_the_librarys_is_read_anew(by):
    changes = [doubles_the_factor] * 2
    make = seeded(nn.RNNCell, nonlinearity=scaled)
    for a, b in zip(in_turn(make, by, changes), in_turn(make, "unrolled", changes), strict=True):
        same(a, b)


@engines
def test_a_counter_under_the_name_of_the_librarys_is_noticed(by):
    n = 0

    @functools.wraps(tg.tanh)
    def counted(x):
        nonlocal n
        n += 1
        return tg.tanh(x)

    cell = seeded(nn.RNNCell, nonlinearity=counted)()
    for _ in range(2):
        with pytest.raises(TypeError, match="'n'"):
            results(cell, [], by)


class Pure(nn.Module):
    """A cell of the user's that promises, and keeps its promise."""

    pure = True

    def __init__(self):
        self.w = nn.Parameter(normal(1, SIZE, SIZE).data)
        self.power: Any = 1.0
        self.start = nn.Parameter(normal(2, SIZE).data)

    def init_state(self, batch):
        return tg.broadcast_to(self.start, (batch, SIZE))

    def forward(self, x, h):
        h = tg.sin(x @ self.w + h) * self.power
        tg.expose(h=h, x=x)
        return h, h


ASKED = {
    "lengths": ({}, {"lengths": [1, STEPS, 0]}, {}),
    "reset": ({}, {"reset": np.arange(STEPS * ROWS).reshape(STEPS, ROWS) % 3 == 1}, {}),
    "expose": ({}, {"expose": ["h"]}, {"expose": ["x"]}, {"expose": ["h", "x"]}, {"expose": ["x", "h"]}, {}),
    "reverse": ({}, {"reverse": True}, {}),
}


@engines
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("make", [Pure, CELLS["gru"]], ids=["pure", "gru"])
def test_what_is_asked_of_a_scan_changes(by, make, asked):
    cell = make()
    for options in asked:
        if "x" in options.get("expose", ()) and make is not Pure:
            continue
        found = []
        for engine in (by, "unrolled"):
            cell.zero_grad()
            state = cell.init_state(ROWS) if "reset" not in options else None
            xs = normal(1, STEPS, ROWS, SIZE)
            outs = tg.scan(cell, xs, state, engine=engine, **options)
            tensors = [t for _, t in tg.nest.leaves(outs)]
            sum(tg.sum(tg.sin(t)) for t in tensors).backward()
            found.append(
                [t.numpy() for t in tensors] + [t.grad.numpy() for t in (xs, *cell.parameters()) if t.grad is not None]
            )
        same(*found)


@engines
@pytest.mark.parametrize("powers", [(0.5, 2.0, 1, True), (0.0, -0.0)], ids=str)
def test_numbers_of_a_pure_cell_are_seen(by, powers):
    cell = Pure()
    for power in powers:
        cell.power = power
        found = [tg.scan(cell, np.ones((STEPS, ROWS, SIZE)), engine=engine)[0].numpy() for engine in (by, "unrolled")]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
        np.testing.assert_array_equal(np.signbit(found[0]), np.signbit(found[1]))


@engines
def test_a_fresh_state_of_a_pure_cell_is_seen(by):
    """Where rows begin anew: what init_state gives is no argument of the step."""
    cell = Pure()
    reset = np.arange(STEPS * ROWS).reshape(STEPS, ROWS) % 3 == 1
    starts = lambda: normal(3, SIZE), lambda: cell.w[0], lambda: cell.w[1], lambda: tg.zeros(SIZE, np.float64)
    for start in starts:
        found = []
        for engine in (by, "unrolled"):
            cell.start = start()
            ys, _ = tg.scan(cell, normal(1, STEPS, ROWS, SIZE), reset=reset, engine=engine)
            asked = [cell.w, *([cell.start] if cell.start.requires_grad else [])]
            found.append([ys.numpy(), *[g.numpy() for g in tg.grad(tg.sum(tg.sin(ys)), asked)]])
        same(*found)


@engines
def test_a_patched_class_is_seen(by, monkeypatch):
    cell = CELLS["gru"]()
    results(cell, [], by)
    forward = nn.GRUCell.forward
    monkeypatch.setattr(nn.GRUCell, "forward", lambda self, x, h: forward(self, x * 2, h))
    same(results(cell, [], by), results(cell, []))


@engines
@pytest.mark.parametrize("wrong", [(STEPS, ROWS, SIZE + 1), (STEPS, ROWS, SIZE, 1), (STEPS, ROWS + 1, SIZE)], ids=str)
def test_wrong_inputs_are_told_as_before(by, wrong):
    cell = CELLS["gru"]()
    results(cell, [], by)
    said = []
    for engine in (by, "unrolled"):
        with pytest.raises((ValueError, TypeError)) as caught:
            results(cell, [], engine, normal(1, *wrong))
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


@engines
def test_cells_of_one_kind_take_turns(by):
    """What is remembered of one serves the other, with the other's weights."""
    cells = [nn.LSTMCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(i)) for i in range(2)]
    cells[1].weight_ih.requires_grad = False
    for cell, reverse in itertools.product(cells * 2, (False, True)):
        found = []
        for engine in (by, "unrolled"):
            for each in cells:
                each.zero_grad()
            values = results(cell, [*cell.parameters()], engine, state=cell.init_state(ROWS), reverse=reverse)
            found.append(values)
            assert all(p.grad is None for each in cells if each is not cell for p in each.parameters())
        same(*found)


@engines
def test_threads_with_other_numbers_each_get_their_own(by):
    def wrong(thread):
        found = 0
        for i in range(20):
            number = 100.0 * thread + i
            step = functools.partial(lambda number, x, h: (x * number, h + x), number)
            ys, _ = tg.scan(step, np.ones((2, 1, 1)), tg.zeros((1, 1), np.float64), engine=by)
            found += ys.numpy()[1, 0, 0] != number
        return found

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(wrong, range(4))] == [0] * 4
    finally:
        sys.setswitchinterval(before)


# Functions that promise


rate: Any = 0.5


class Held:
    """What one cell reads, each in another way."""

    def __init__(self) -> None:
        self.weights = [nn.Parameter(normal(1, SIZE, SIZE).data), nn.Parameter(normal(2, SIZE).data)]
        self.power: Any = 1.0
        self.helper = twice(1.0)
        self.held: Any = None

    def cell(self, add=0.0, gain=1.0):
        weights, power, helper, held = self.weights, self.power, self.helper, self.held

        def cell(x, h, *, add=add):
            h = tg.sin(x @ weights[0] + h * rate) * power + add + helper(weights[-1]) * cell.gain
            return h if held is None else h * held["factor"], h

        cell.gain = gain
        cell.pure = True
        return cell


def twice(times):
    return lambda x: x * (2 * times)


def outcome(cell, weights, by):
    xs, start = normal(1, STEPS, ROWS, SIZE), normal(2, ROWS, SIZE)
    ys, last = tg.scan(cell, xs, start, engine=by)
    return [ys.numpy(), last.numpy(), *[g.numpy() for g in tg.grad(tg.sum(ys), [xs, start, *weights])]]


def sees(held, by, **defaults):
    cell = held.cell(**defaults)
    same(outcome(cell, held.weights, by), outcome(cell, held.weights, "unrolled"))


@engines
def test_a_pure_function_is_recorded_once(by, recorded):
    for _ in range(3):
        sees(Held(), by)  # other functions, with other weights, of the same code
    assert len(recorded) == 1


@engines
def test_a_cell_whose_rows_begin_anew_is_recorded_once(by, recorded):
    reset = np.arange(STEPS * ROWS).reshape(STEPS, ROWS) % 3 == 1
    for seed in range(3):
        cell = Pure()
        cell.start = nn.Parameter(normal(seed, SIZE).data)
        found = [
            tg.scan(cell, normal(1, STEPS, ROWS, SIZE), reset=reset, engine=e)[0].numpy() for e in (by, "unrolled")
        ]
        np.testing.assert_allclose(*found, rtol=1e-12)
    assert len(recorded) == 1


@engines
def test_a_cell_that_draws_is_recorded_once(by, recorded):
    """Masks are those of the loop, whichever generators there are, however they were set."""

    def zoned(inner, outer, p=0.3):
        return nn.Zoneout(nn.Zoneout(seeded(nn.LSTMCell)(), (p, 0.1), inner), 0.2, outer)

    def same_as_the_loop(cell, *generators):
        found = []
        before = [generator.state_dict() for generator in generators]
        for engine in (by, "unrolled"):
            for generator, state in zip(generators, before, strict=True):
                generator.load_state_dict(state)
            outs = tg.scan(cell, normal(1, STEPS, ROWS, SIZE), engine=engine)
            found.append([t.numpy() for _, t in tg.nest.leaves(outs)] + [np.array([g.counter for g in generators])])
        same(*found)

    one, two, default = tg.Generator(1), tg.Generator(2), tg.manual_seed(3)
    for _ in range(3):
        same_as_the_loop(zoned(one, two), one, two)
    one.load_state_dict({"seed": 7, "counter": 11})
    same_as_the_loop(zoned(two, one), one, two)
    assert len(recorded) == 1
    for count, (cell, *generators) in enumerate(
        [
            (zoned(one, one), one),
            (zoned(one, two, p=0.4), one, two),
            (zoned(one, two).eval(), one, two),
            (zoned(None, None), default),
            (zoned(one, None), one, default),
        ],
        start=2,
    ):
        for _ in range(2):
            same_as_the_loop(cell, *generators)
        assert len(recorded) == count


@engines
def test_what_a_pure_function_reads_is_seen(by, recorded, monkeypatch):
    held = Held()
    sees(held, by)
    held.weights[0].data = normal(3, SIZE, SIZE).data
    sees(held, by)
    assert len(recorded) == 1
    changes = (
        lambda: setattr(held, "power", 3.0),
        lambda: setattr(held, "helper", twice(4.0)),
        lambda: setattr(held, "helper", lambda x: x - 1),
        lambda: held.weights.append(held.weights[1]),
        lambda: monkeypatch.setitem(globals(), "rate", -0.25),
    )
    for number, change in enumerate(changes, 2):
        change()
        sees(held, by)
        assert len(recorded) == number
    for one in ({"add": 1.0}, {"add": -0.0}, {"gain": 5.0}):
        number += 1
        sees(held, by, **one)
        assert len(recorded) == number


@engines
def test_a_function_is_recorded_each_time_if_it_holds_what_changes_unseen(by, recorded):
    held = Held()
    held.held = {"factor": 2.0}
    for number in range(1, 4):
        sees(held, by)
        assert len(recorded) == number
        held.held["factor"] += 1.0


@engines
def test_a_function_that_promises_nothing_is_recorded_each_time(by, recorded):
    held = Held()
    cell = held.cell()
    del cell.pure
    for number in range(1, 4):
        outcome(cell, held.weights, by)
        assert len(recorded) == number


@engines
def test_a_wrapper_does_not_promise_for_the_cell_in_it(by, recorded):
    """The library's own cell in it is recorded once, a function only if it promises."""

    class Plain:
        hidden_size = SIZE

        def __init__(self, pure):
            self.w = tg.Tensor(normal(5, SIZE, SIZE).data)
            self.for_sequence = lambda batch: self.step
            self.step = lambda x, h: (tg.tanh(x + h @ self.w),) * 2
            if pure:
                self.step.pure = True

        def __call__(self, x, h):
            return self.step(x, h)

        def init_state(self, batch):
            return tg.zeros((batch, SIZE), np.float64)

    xs = normal(1, STEPS, ROWS, SIZE)
    for make, times in ((CELLS["gru"], 1), (lambda: Plain(False), 3)):
        recorded.clear()
        cell = nn.RecurrentDropout(make(), 0.4, tg.Generator(1))
        for seed in range(3):
            found = []
            for engine in (by, "unrolled"):
                cell.generator = tg.Generator(seed)
                found.append([tg.scan(cell, xs, engine=engine)[0].numpy()])
            same(*found)
        assert len(recorded) == times
