"""A cell that changes something of its own, or raises, does what the plain loop does, or is refused and told why."""

from __future__ import annotations

import array
import contextvars
import itertools
import queue
import random
import re
import threading
import warnings
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
from test_record import ROWS, SIZE, engines, falls_back, normal, params, results, same

import tinygrad_rnn as tg
from tinygrad_rnn import nn

count = 0
written: list[Any] = []
drawing = random.Random(5)


class Holding(nn.Module):
    """A cell that holds something, and is multiplied by what ``act(self, h)`` makes of it."""

    calls = 0

    def __init__(self, act, **held):
        self.w = nn.Parameter(normal(3, SIZE, SIZE).data)
        self.act = act
        for name, value in held.items():
            setattr(self, name, value() if isinstance(value, partial) else value)

    def forward(self, x, h):
        h = tg.tanh(x @ self.w + self.act(self, h) * h)
        return h, h


def counts_globally(m, h):
    global count
    count += 1
    return count


def counts_in_the_namespace(m, h):
    globals()["count"] += 1
    return count


def counts_in_an_attribute(m, h):
    m.n += 1
    return m.n


def counts_in_the_class(m, h):
    type(m).calls += 1
    return type(m).calls


def appends(m, h):
    m.log.append(h)
    return len(m.log)


def appends_globally(m, h):
    written.append(1)
    return len(written)


def replaces_a_tensor(m, h):
    m.scale = m.scale * 1.5
    return m.scale


def replaces_by_an_activation(m, h):
    factor = m.last
    m.last = tg.tanh(h.detach())
    return factor


def replaces_data(m, h):
    m.scale.data = m.scale.data * 1.5
    return m.scale.data[0]


def writes_a_buffer(m, h):
    m.scale.data[...] *= 1.5
    return m.scale


def writes_an_array(m, h):
    m.array += 1
    return m.array.sum()


def loads(m, h):
    m.load_state_dict({"scale": m.scale.numpy() * 1.5}, strict=False)
    return m.scale.data[0]


def freezes(m, h):
    m.w.requires_grad = not m.w.requires_grad
    return 0.5


def trains(m, h):
    m.train(not m.training)
    return 2.0 if m.training else 0.5


def takes_a_key(m, h):
    return np.random.default_rng(m.generator.next_key()).random()


def initializes(m, h):
    return nn.init.uniform_(tg.zeros((ROWS, SIZE), np.float64), 0, 1, m.generator)


def draws_and_takes_a_key(m, h):
    return m.generator.uniform((), dtype=np.float64) * m.generator.next_key()[1]


def moves_a_generator(m, h):
    m.generator.counter += 5
    return m.generator.uniform(dtype=np.float64)


def seeds(m, h):
    m.generator.seed += 1
    return m.generator.uniform(dtype=np.float64)


def seeds_the_default(m, h):
    tg.manual_seed(m.seed)
    m.seed += 1
    return tg.random.default_generator().uniform(dtype=np.float64)


def goes_back_by_weights(m, h):
    tg.sum(m.w * m.w).backward()
    return 0.5


def exhausts(m, h):
    return next(m.iterator, 0.7)


def puts(m, h):
    m.queue.put(1)
    return m.queue.qsize()


def counts_in_a_context(m, h):
    m.variable.set(m.variable.get() + 1)
    return m.variable.get()


def counts_in_this_thread(m, h):
    m.local.n = getattr(m.local, "n", 0) + 1
    return m.local.n


def counts_in_a_typed_array(m, h):
    m.typed[0] += 1
    return m.typed[0]


def caches(m, h):
    """Each step has one more entry than the last."""
    m.cached(len(written) + m.cached.cache_info().currsize)
    return m.cached.cache_info().currsize


def held(name):
    return f"attribute '{name}' of Holding"


CHANGING = {
    "a global": (counts_globally, {}, "the global 'count'"),
    "a class": (counts_in_the_class, {}, held("calls")),
    "an attribute": (counts_in_an_attribute, {"n": 0}, held("n")),
    "a list of activations": (appends, {"log": partial(list)}, held("log")),
    "a global list": (appends_globally, {}, "the global 'written'"),
    "a replaced tensor": (replaces_a_tensor, {"scale": partial(tg.ones, SIZE, np.float64)}, held("scale")),
    "an activation": (replaces_by_an_activation, {"last": partial(tg.ones, SIZE, np.float64)}, held("last")),
    "data": (replaces_data, {"scale": partial(tg.ones, SIZE, np.float64)}, held("scale")),
    "a weight's data": (replaces_data, {"scale": partial(nn.Parameter, np.ones(2))}, held("scale")),
    "a loaded weight": (loads, {"scale": partial(nn.Parameter, np.ones(2))}, held("scale")),
    "a buffer": (writes_a_buffer, {"scale": partial(tg.ones, SIZE, np.float64)}, held("scale")),
    "an array": (writes_an_array, {"array": partial(np.zeros, 2)}, held("array")),
    "requires_grad": (freezes, {}, held("w")),
    "training": (trains, {}, held("training")),
    "random": (lambda m, h: random.random(), {}, "the state of random"),
    "a generator of Python's": (lambda m, h: m.r.random(), {"r": partial(random.Random, 1)}, "'r'"),
    "a global one": (lambda m, h: drawing.random(), {}, "'drawing'"),
    "np.random": (lambda m, h: np.random.rand(), {}, "the state of numpy.random"),  # noqa: NPY002
    "a generator of NumPy's": (lambda m, h: m.r.random(), {"r": partial(np.random.default_rng, 1)}, "'r'"),
    "a RandomState": (lambda m, h: m.r.rand(), {"r": partial(np.random.RandomState, 1)}, "'r'"),
    "a spawned generator": (lambda m, h: m.r.spawn(1)[0].random(), {"r": partial(np.random.default_rng, 1)}, "'r'"),
    "a spawned seed": (
        lambda m, h: np.random.default_rng(m.s.spawn(1)[0]).random(),
        {"s": partial(np.random.SeedSequence, 1)},
        "'s'",
    ),
    "a key": (takes_a_key, {"generator": partial(tg.Generator, 1)}, "."),
    "an initialization": (initializes, {"generator": partial(tg.Generator, 1)}, "."),
    "a key beside a draw": (draws_and_takes_a_key, {"generator": partial(tg.Generator, 1)}, "takes keys"),
    "a counter of ours": (moves_a_generator, {"generator": partial(tg.Generator, 1)}, "."),
    "a seed of ours": (seeds, {"generator": partial(tg.Generator, 1)}, held("generator")),
    "manual_seed": (seeds_the_default, {"seed": 3}, "makes or sets a generator"),
    "an iterator": (exhausts, {"iterator": partial(iter, [0.5, 0.6])}, held("iterator")),
    "a range": (exhausts, {"iterator": partial(iter, range(9))}, held("iterator")),
    "a generator function": (exhausts, {"iterator": partial(lambda: (i for i in range(9)))}, held("iterator")),
    "itertools": (exhausts, {"iterator": partial(itertools.count, 1)}, held("iterator")),
    "a cycle": (exhausts, {"iterator": partial(itertools.cycle, [0.5, 0.7])}, held("iterator")),
    "an array's elements": (exhausts, {"iterator": partial(lambda: np.arange(1.0, 9.0).flat)}, held("iterator")),
    "an array's places": (
        lambda m, h: next(m.iterator)[1],
        {"iterator": partial(np.ndenumerate, np.arange(1.0, 9.0))},
        held("iterator"),
    ),
    "the namespace": (counts_in_the_namespace, {}, "'count'"),
    "gradients": (goes_back_by_weights, {}, "."),
    "a queue": (puts, {"queue": partial(queue.Queue)}, held("queue")),
    "a context variable": (counts_in_a_context, {"variable": partial(contextvars.ContextVar, "n", default=0)}, "var"),
    "a local of threads": (counts_in_this_thread, {"local": partial(threading.local)}, held("local")),
    "a typed array": (counts_in_a_typed_array, {"typed": partial(array.array, "i", [0])}, held("typed")),
    "a cache": (caches, {"cached": partial(lambda: lru_cache(lambda n: n))}, held("cached")),
}


STANDARD = "objects of Python's library, of NumPy and of ours are not looked into that deep"
CHANGING_WRONG = {
    "a spawned generator": "how many a NumPy generator has spawned is not compared",
    "a spawned seed": "how many a NumPy seed has spawned is not compared",
    "a counter of ours": "the counter of a generator may be written before it is drawn from",
    "an array's elements": STANDARD,
    "an array's places": STANDARD,
    "a queue": STANDARD,
    "a context variable": STANDARD,
    "a local of threads": STANDARD,
    "a typed array": STANDARD,
    "a cache": STANDARD,
}


@engines
@pytest.mark.parametrize("name", params(CHANGING, CHANGING_WRONG))
def test_a_cell_that_changes_something_of_its_own_is_refused_or_the_plain_loop(by, name):
    act, things, reason = CHANGING[name]

    def ran(engine):
        """In a context of its own, so that what a cell sets there is gone afterwards."""
        global count
        count = Holding.calls = 0
        written.clear()
        drawing.seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        cell = Holding(act, **things)
        return contextvars.copy_context().run(results, cell, [cell.w], engine)

    expected = ran("unrolled")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            same(ran("auto"), expected, exactly=True)
            said = f"{caught[0].message}"
        except RuntimeError as error:
            said = str(error)
    assert re.search(f"(scan runs this cell by|cannot be put back).*{reason}", said)
    with pytest.raises((TypeError, RuntimeError), match=reason):
        ran(by)


# Errors of the cell's own


class Odd(Exception):
    pass


def raising(error):
    def step(x, h):
        raise error

    return step


@engines
@pytest.mark.parametrize(
    "error", [Odd("e"), KeyError("k"), StopIteration(3), KeyboardInterrupt(), TypeError("t")], ids=repr
)
def test_an_error_of_the_cell_passes_through(by, error):
    for engine in ("auto", by, "unrolled"):
        with pytest.raises(type(error)) as caught:
            results(raising(error), [], engine)
        assert caught.value is error
        assert caught.value.__cause__ is caught.value.__context__ is None
        error.__traceback__ = None  # it outlives the test, and would keep a graph alive


def misfits(x, h):
    return h, h[:1]


def narrows(x, h):
    return h, h.astype(np.float32)


def forgets(x, h):
    return h


def nests(x, h):
    return h, (h, h)


def writes(x, h):
    h[0] = 1
    return h, h


def multiplies_misfits(x, h):
    return x @ h, h


@engines
@pytest.mark.parametrize("cell", [misfits, narrows, forgets, nests, writes, multiplies_misfits])
def test_a_wrong_cell_is_told_what_the_loop_tells_it(by, cell):
    said = []
    for engine in ("auto", by, "unrolled"):
        with pytest.raises((TypeError, ValueError)) as caught:
            results(cell, [], engine)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1] == said[2]


@engines
def test_after_an_error_all_is_as_the_loop_leaves_it_but_for_draws(by):
    left = []
    for engine in ("auto", by, "unrolled"):
        generator = tg.Generator(1)

        def act(m, h, generator=generator):
            m.n += 1
            generator.uniform()
            raise Odd

        cell = Holding(act, n=0)
        with pytest.raises(Odd):
            results(cell, [], engine)
        left.append((cell.n, generator.counter))
        cell.act = lambda m, h: 1 + m.n
        same(results(cell, [cell.w], by), results(Holding(cell.act, n=1), [cell.w]))
    assert left == [(1, 0), (1, 0), (1, 1)]  # a step that was only recorded has drawn nothing


@engines
@falls_back
def test_an_error_at_a_later_step_of_a_refused_cell(by):
    def act(m, h):
        m.n += 1
        m.generator.uniform()
        if m.n == 3:
            raise Odd
        return 0.5

    left = []
    for engine in ("auto", "unrolled"):
        cell = Holding(act, n=0, generator=tg.Generator(1))
        with pytest.raises(Odd):
            results(cell, [], engine)
        left.append((cell.n, cell.generator.counter))
    assert left[0] == left[1] == (3, 3)
    cell = Holding(act, n=0, generator=tg.Generator(1))
    with pytest.raises(TypeError, match="'n'"):
        results(cell, [], by)
    assert (cell.n, cell.generator.counter) == (0, 0)
