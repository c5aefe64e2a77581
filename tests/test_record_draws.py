"""What a cell draws from our own generators is what it draws in the plain loop, and they end where it leaves them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_record import ROWS, SIZE, STEPS, engines, falls_back, normal, params, results, same, slopes

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn


def scaled(x, h, *masks):
    for mask in masks:
        h = tg.sin(x + h * mask)
    return (h, *[tg.broadcast_to(mask, h.shape) for mask in masks]), h


DRAWS = {
    "keep_mask": lambda g, h: g.keep_mask(0.5, like=h),
    "uniform": lambda g, h: g.uniform((SIZE,), -1, 2, np.float64),
    "normal": lambda g, h: g.normal((ROWS, 1), 1, 2, np.float64),
    "a number": lambda g, h: g.normal(dtype=np.float64),
    "integers": lambda g, h: g.integers(-5, 5, (ROWS, SIZE)),
    "permutation": lambda g, h: g.permutation(ROWS).reshape((ROWS, 1)),
}
OPTIONS = {
    "forward": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": [2, STEPS - 1, 0]},
    "reversed lengths": {"lengths": [2, STEPS - 1, 0], "reverse": True},
    "a reset": {"reset": np.arange(STEPS * ROWS).reshape(STEPS, ROWS) % 5 == 1},
}


def drawn_alike(make, by, **options):
    """``make(generators)`` gives the cell; masks are the same bits, and generators end in the same place."""
    found = []
    for engine in (by, "unrolled"):
        generators = [tg.Generator(seed) for seed in (1, 2)]
        tg.manual_seed(3)
        default = tg.random.default_generator()
        default.uniform(3)
        values = results(make(generators), [], engine, **options)
        found.append((values, [g.state_dict() for g in (*generators, default)]))
    (values, counters), (expected, expected_counters) = found
    same(values, expected)
    assert counters == expected_counters
    masks = len(values) - 4  # less output, state, and the gradients of inputs and state
    same(values[1 : 1 + masks], expected[1 : 1 + masks], exactly=True)


@engines
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_step_draws_its_own_numbers(by, draw, options):
    drawn_alike(lambda generators: lambda x, h: scaled(x, h, draw(generators[0], h)), by, **options)


def take_turns(generators):
    a, b = generators

    def step(x, h):
        return scaled(x, h, a.uniform((), -1, 1, np.float64), b.normal((), dtype=np.float64), a.keep_mask(0.5, like=h))

    return step


def by_default(generators):
    def step(x, h):
        mask = tg.random.default_generator().keep_mask(0.3, like=h)
        return scaled(F.dropout(x, 0.4, True), h, mask, generators[1].uniform((), dtype=np.float64))

    return step


def in_a_loop(generators):
    return lambda x, h: scaled(
        x, h, *[g.uniform((n + 1, 1, SIZE), dtype=np.float64)[n] for g in generators for n in (0, 2)]
    )


def without_gradient(generators):
    def step(x, h):
        with tg.no_grad():
            mask = generators[0].normal((ROWS, SIZE), dtype=np.float64) * 2
        return scaled(x, h, mask)

    return step


def unread(generators):
    def step(x, h):
        generators[0].uniform(7)
        generators[1].uniform(7)
        return scaled(x, h, generators[1].uniform((), dtype=np.float64))

    return step


def by_an_inner_scan(generators):
    def inner(x, s):
        s = tg.sin(x + s * generators[0].uniform((SIZE,), dtype=np.float64))
        return s, s

    def step(x, h):
        mask = generators[0].keep_mask(0.5, like=h)
        return scaled(x, tg.scan(inner, tg.stack([x, h]), h)[1], mask, generators[0].uniform(dtype=np.float64))

    return step


SITES = [take_turns, by_default, in_a_loop, without_gradient, unread, by_an_inner_scan]


@engines
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", params(SITES, {}))
def test_sites_and_generators_take_turns_as_in_the_loop(by, make, options):
    drawn_alike(make, by, **options)


def starts_anew(generators):
    return lambda x, h: scaled(x, h, tg.Generator(4).uniform((ROWS, SIZE), dtype=np.float64))


def goes_back_to_the_start(generators):
    def step(x, h):
        generators[0].load_state_dict({"seed": 1, "counter": 0})
        return scaled(x, h, generators[0].uniform((ROWS, SIZE), dtype=np.float64))

    return step


def seeds_alike(generators):
    def step(x, h):
        tg.manual_seed(3)
        return scaled(x, h, tg.random.default_generator().uniform((ROWS, SIZE), dtype=np.float64))

    return step


def in_a_thread(generators):
    def step(x, h):
        with ThreadPoolExecutor() as pool:
            return scaled(x, h, pool.submit(generators[0].uniform, (ROWS, SIZE), dtype=np.float64).result())

    return step


def written_over(generators):
    def step(x, h):
        noise = tg.zeros((ROWS, SIZE), np.float64)
        nn.init.normal_(noise, generator=generators[0])
        return scaled(x, h, noise, generators[1].uniform(dtype=np.float64))

    return step


AGAIN_WRONG = {"in_a_thread": "what another thread does is not heard, and becomes a constant"}
AGAIN = [starts_anew, goes_back_to_the_start, seeds_alike, in_a_thread, written_over]


@falls_back
@pytest.mark.parametrize("make", params(AGAIN, AGAIN_WRONG))
def test_a_cell_with_a_will_of_its_own_about_generators_draws_what_the_loop_draws(make):
    drawn_alike(make, "auto")


def test_an_engine_without_code_for_the_cell_leaves_no_draw_behind():
    def make(generators):
        def cell(x, h):
            h = tg.tanh(x + h) * generators[0].keep_mask(0.5, like=h)
            return h, h + tg.cumsum(h, axis=-1)

        return cell

    for _ in range(2):  # the second time the refusal is remembered
        with pytest.warns(UserWarning, match="by the array engine, .* no code for cumsum"):
            drawn_alike(make, "auto")


def zoned(**k):
    return nn.Zoneout(nn.LSTMCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)), (0.3, 0.5), **k)


def connected(**k):
    return nn.DropConnect(nn.GRUCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)), 0.5, **k)


def dropped(**k):
    return nn.RecurrentDropout(nn.LSTMCell(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0)), 0.5, **k)


def nested(**k):
    return nn.Zoneout(nn.RecurrentDropout(connected(**k), 0.5, **k), 0.5, **k)


@engines
@pytest.mark.parametrize("options", list(OPTIONS.values())[:4], ids=list(OPTIONS)[:4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("wrapper", params([zoned, connected, dropped, nested], {}))
def test_wrappers_draw_what_the_loop_draws(by, wrapper, default, training, options):
    found = []
    for engine in (by, "unrolled"):
        generator = tg.manual_seed(5) if default else tg.Generator(6)
        cell = wrapper(generator=None if default else generator).train(training)
        values = [results(cell, [*cell.parameters()], engine, state=cell.init_state(ROWS), **options) for _ in "ab"]
        found.append((values, generator.counter))
    assert found[0][1] == found[1][1]
    for a, b in zip(found[0][0], found[1][0], strict=True):
        same(a, b)


@engines
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_is_the_loops(by, bidirectional):
    found = []
    for engine in (by, "unrolled"):
        tg.manual_seed(8)
        layers = nn.LSTM(SIZE, SIZE, num_layers=3, dropout=0.5, bidirectional=bidirectional, dtype=np.float64)
        xs = normal(1, STEPS, ROWS, SIZE)
        with tg.use_engine(engine):
            ys, last = layers(xs)
            ys, _ = layers(xs, last)
        slopes([ys])
        gradients = [p.grad.numpy() for p in layers.parameters()]
        found.append(([ys.numpy(), xs.grad.numpy(), *gradients], tg.random.default_generator().counter))
    assert found[0][1] == found[1][1]
    same(found[0][0], found[1][0])
