"""Recording must not be fooled: what one step cannot stand for runs as the plain loop, with a warning that says why."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from interpreted import interpreted

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim
from tinygrad_rnn.nest import leaves
from tinygrad_rnn.recurrence import afterwards

ENGINES = ("array", "numba")
STEPS, ROWS, SIZE = 4, 3, 2
falls_back = pytest.mark.filterwarnings("ignore:scan runs this cell")


def engines(test):
    """The test runs once by each engine, and compiles nothing."""
    return pytest.mark.usefixtures("uncompiled")(pytest.mark.parametrize("by", ENGINES)(test))


def params(things, wrong):
    """Their names, or functions themselves; ``wrong`` says of some what is still wrong with them."""
    found = []
    for thing in things:
        name = thing if isinstance(thing, str) else thing.__name__
        marks = [pytest.mark.xfail(strict=True, reason=wrong[name])] if name in wrong else []
        found.append(pytest.param(thing, marks=marks, id=name))
    assert wrong.keys() <= {each.id for each in found}
    return found


def normal(seed: int, *shape: int, dtype: Any = np.float64) -> tg.Tensor:
    """A leaf that requires a gradient."""
    return tg.Tensor(np.random.default_rng(seed).normal(size=shape).astype(dtype), requires_grad=True)


def results(cell, learned, engine="unrolled", xs=None, state=None, **options):
    """What a scan gives, and then the gradients of inputs, state and ``learned``, as arrays."""
    xs = normal(1, STEPS, ROWS, SIZE) if xs is None else xs
    state = normal(2, ROWS, SIZE) if state is None else state
    given = [tensor for _, tensor in (*leaves(xs), *leaves(state))]
    with tg.use_engine("auto"), interpreted():  # elsewhere in these tests "auto" is not automatic
        found = [tensor for _, tensor in leaves(tg.scan(cell, xs, state, engine=engine, **options))]
        slopes(found)
    return [tensor.numpy() for tensor in found] + [
        None if tensor.grad is None else tensor.grad.numpy().copy() for tensor in (*given, *learned)
    ]


def learns(module):
    """A step of an optimizer."""
    if learned := [p for p in module.parameters() if p.requires_grad]:
        for p in learned:
            p.grad = tg.ones_like(p)
        optim.SGD(learned, lr=0.1).step()


def slopes(found):
    """Go back from all of ``found``, each element with a weight of its own."""
    loss = [tg.sum(tensor * np.cos(np.arange(tensor.size)).reshape(tensor.shape)) for tensor in found]
    sum(part for part in loss if part.requires_grad).backward()


def same(found, expected, exactly=False):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            precision = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}.get(a.dtype, 0)
            np.testing.assert_allclose(a, b, rtol=0 if exactly else precision, atol=0 if exactly else precision)


def refused(make, engine, reason):
    """``make()`` gives a fresh cell and what it learns; it runs as the plain loop, exactly, and says why."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = results(*make())
    with pytest.warns(UserWarning, match=reason):
        found = results(*make(), "auto")
    same(found, expected, exactly=True)
    with pytest.raises(TypeError, match=f"(?s)engine '{engine}' cannot run this cell: .*{reason}"):
        results(*make(), engine)


def unless_refused(make, engine, reason="", **options):
    """What a fresh cell gives by this engine, or by the plain loop if the engine says that it cannot run it."""
    try:
        return results(*make(), engine, **options)
    except TypeError as error:
        if f"engine {engine!r} cannot run this cell: {reason}" not in str(error):
            raise
        return results(*make(), **options)


def compiled(make, engine, **options):
    """It runs compiled, if the engine has code for all of it, and that is the plain loop."""
    same(unless_refused(make, engine, f"the {engine} engine has no code for", **options), results(*make(), **options))


# Looking at a value


def with_factor(look):
    """A cell whose state is multiplied by what ``look(h, w)`` makes of it."""

    def make():
        w = normal(3, SIZE, SIZE)

        def step(x, h):
            h = tg.tanh(x @ w + look(h, w) * h)
            return h, h

        return step, [w]

    return make


def positive(h):
    """An int that changes from step to step."""
    return (h[0, 0] > 0).astype(np.int64)


def branches(h, w):
    if h.sum() > 0:
        return 0.5
    return 2.0


def loops(h, w):
    factor = 1.0
    while tg.max(tg.abs(h)) * factor > 0.4:
        factor /= 2
    return factor


def asserts(h, w):
    assert tg.max(tg.abs(h)) < 9
    return tg.sigmoid(w[0, 0])


def goes_back(h, w):
    tg.sum(h.detach() * w[0]).backward()
    return 0.5


def scans_inside(h, w):
    lengths = (h[:, 0] > 0).astype(np.int64) + 1
    ys, _ = tg.scan(lambda x, s: (x + s, x + s), tg.stack([h, h * w[0]]), tg.zeros_like(h), lengths=lengths)
    return ys[1]


def swallows(h, w):
    """As careful code does where a value may be missing."""
    try:
        return float(h.sum())
    except Exception:
        return 1.0


def suppresses(h, w):
    factor = 1.0
    with contextlib.suppress(Exception):
        factor = h.numpy().mean()
    return factor


LOOKING = {
    ".data": (lambda h, w: h.data.mean(), r"reads \.data of"),
    ".data of a sum": (lambda h, w: h.sum().data, r"reads \.data of"),
    "numpy": (lambda h, w: h.numpy().mean(), r"calls \.numpy\(\) of"),
    "item": (lambda h, w: h.sum().item(), r"calls \.item\(\) of"),
    "bool": (lambda h, w: 1 + bool(h[0, 0] > 0), "asks for the truth of"),
    "float": (lambda h, w: float(h.sum()), "makes a float of"),
    "int": (lambda h, w: int(3 * h.sum()), "makes an int of"),
    "round": (lambda h, w: round(float(h.sum()), 1), "makes a float of"),
    "an index of a list": (lambda h, w: [0.5, 2.0][positive(h)], "makes an index of"),
    "a range": (lambda h, w: 0.5 * len(range(positive(h))), "makes an index of"),
    "an index of an array": (lambda h, w: np.array([0.5, 2.0])[positive(h)], "makes an? .* of"),
    "asarray": (lambda h, w: np.asarray(h).mean(), "makes a NumPy array of"),
    "asarray of a list": (lambda h, w: np.asarray([h.detach(), h.detach()]).mean(), "makes a NumPy array of"),
    "np.float64": (lambda h, w: np.float64(h.sum()), "makes a"),
    "math": (lambda h, w: math.exp(h.sum()), "makes a float of"),
    "f-string": (lambda h, w: len(f"{h * h}") / 99, "prints"),
    "format": (lambda h, w: len(format(h)) / 99, "prints"),
    "percent": (lambda h, w: float("%.1f" % h.sum()), "makes a float of"),  # noqa: UP031
    "repr": (lambda h, w: len(repr(h)) / 99, "prints"),
    "str": (lambda h, w: len(str(h)) / 99, "prints"),
    "print": (lambda h, w: print(h) or 0.5, "prints"),
    "html": (lambda h, w: len(h._repr_html_()) / 999, r"calls \.numpy\(\) of"),
    "if": (branches, "asks for the truth of"),
    "while": (loops, "asks for the truth of"),
    "assert": (asserts, "asks for the truth of"),
    "and": (lambda h, w: (h[0, 0] > 0 and h[1, 0] > 0) * 1.0, "asks for the truth of"),
    "not": (lambda h, w: 1.0 + (not h[0, 0] > 0), "asks for the truth of"),
    "a chain": (lambda h, w: 1.0 + bool(0 < h[0, 0] < 1), "asks for the truth of"),
    "in": (lambda h, w: 1.0 + (positive(h) in [1, 2]), "asks for the truth of"),
    "min": (lambda h, w: min(h[0, 0], h[1, 0]), "asks for the truth of"),
    "max": (lambda h, w: max(h[0, 0], 0.1), "asks for the truth of"),
    "sorted": (lambda h, w: sorted([h[0, 0], h[1, 0], h[2, 0]])[1], "asks for the truth of"),
    "any": (lambda h, w: 1.0 + any(h[:, 0] > 0), "asks for the truth of"),
    "Tensor": (lambda h, w: tg.Tensor(h), r"reads \.data of"),
    "Parameter": (lambda h, w: nn.Parameter(h), r"reads \.data of"),
    "copy": (lambda h, w: copy.copy(h.detach()), "copies"),
    "deepcopy": (lambda h, w: copy.deepcopy(h.detach()), "copies"),
    "pickle": (lambda h, w: pickle.loads(pickle.dumps(h.detach())), "copies"),
    "backward": (goes_back, r"calls \.backward\(\) of"),
    "a mask": (lambda h, w: h[h > 0].sum(), "picks by a mask"),
    "a mask to add at": (
        lambda h, w: tg.scatter_add(h, h > 0, tg.ones(1, h.dtype)[(h[h > 0] * 0).astype(int)]),
        "mask",
    ),
    "lengths of an inner scan": (scans_inside, r"calls \.numpy\(\) of"),
    "a number to fill with": (lambda h, w: tg.full((ROWS, SIZE), h[0, 0], np.float64), "makes a"),
    "a slice": (lambda h, w: h[:, positive(h) :].sum(), "makes an index of"),
    "try": (swallows, "makes a float of"),
    "suppress": (suppresses, r"calls \.numpy\(\) of"),
    "grad": (lambda h, w: tg.grad(tg.sum(h.detach() * w[0]), w)[0, 0], "gradient"),
    "grad by the state": (lambda h, w: tg.grad(tg.sum(tg.square(h.detach() @ w)), w)[0], "gradient"),
    "a computed factor of gradients": (lambda h, w: tg.scale_gradient(tg.sin(h), tg.mean(h.detach())), "."),
}
LOOKING_WRONG = {
    "a computed factor of gradients": "a static argument that is a tensor becomes a constant of the first step",
}


@engines
@pytest.mark.parametrize("name", params(LOOKING, LOOKING_WRONG))
def test_a_cell_that_looks_at_a_value_runs_as_the_plain_loop(by, name, capsys):
    look, reason = LOOKING[name]
    refused(with_factor(look), by, reason)


def differentiates(h, w):
    """A gradient that is itself recorded, as an energy's in a cell."""
    energy = tg.sum(tg.sin(h @ w))
    return tg.grad(energy, w, create_graph=True)[0]


def differentiates_by_the_state(h, w):
    energy = tg.sum(tg.sin(h @ w))
    return tg.grad(energy, h, create_graph=True)[0]


ALLOWED = {
    "another dtype": lambda h, w: h.to(dtype=np.float32).to(dtype=np.float64),
    "another backend": lambda h, w: h.to("strict").to("numpy"),
    "grad by a weight": differentiates,
    "grad by a weight, detached": lambda h, w: differentiates(h.detach(), w),
    "grad by the state": differentiates_by_the_state,
    "shape and dtype": lambda h, w: h.shape[1] / h.ndim if h.dtype == np.float64 else 9.0,
    "len and iteration": lambda h, w: sum(row * i for i, row in enumerate(h)) / len(h),
    "where": lambda h, w: tg.where(h.sum() > 0, 0.5, 2.0),
    "a computed index": lambda h, w: tg.Tensor(np.array([0.5, 2.0]))[positive(h)],
    "a slice of a weight": lambda h, w: w[0, 1:],
    "a weight's value": lambda h, w: float(w[0, 0]) + w.numpy()[1, 1] if w[0, 0] > 0 else w.item(),
    "no_grad": lambda h, w: tg.no_grad()(lambda: h * w[0])(),
    "a number from NumPy": lambda h, w: np.float64(0.5) * np.arange(2.0),
    "an empty cell of a list": lambda h, w: [h, w[0]][-1],
    "an element": lambda h, w: h[0, 0],
    "an element of a weight": lambda h, w: w[0, 0],
    "elements": lambda h, w: sum(h[:, 0]),
    "an index of ints": lambda h, w: h[[0, 2, 1]] + h[np.array([1, 1, 0])],
    "a scan inside": lambda h, w: tg.scan(lambda x, s: (x * s, tg.sin(x + s)), tg.stack([h, h @ w]), h)[1],
}
ALLOWED_WRONG = {
    "another backend": "the loop mixes arrays of two backends; it should have been refused",
    "grad by a weight": "it lacks the way through the steps before",
}


@engines
@pytest.mark.parametrize("name", params(ALLOWED, ALLOWED_WRONG))
def test_a_cell_that_looks_at_no_value_runs_compiled(by, name):
    compiled(with_factor(ALLOWED[name]), by)


# What the recorded call shows by accident


def is_the_first_state(state):
    return lambda x, h: (h + x, tg.sin(x)) if h is state else (h - x, tg.sin(h))


def asks_for_its_type(state):
    return lambda x, h: (h + x, tg.sin(x)) if type(h) is tg.Tensor else (h - x, tg.sin(h))


def asks_for_the_gradient(state):
    w = normal(5, SIZE)
    return lambda x, h: (h + x, tg.sin(x * w + h * (2 if h.requires_grad else 1)))


def cuts_by_hand(state):
    w = normal(5, SIZE)

    def step(x, h):
        h = tg.sin(x * w + h)
        h.requires_grad = False
        return h * w, tg.cos(h)

    return step


def computes_in_a_thread(state):
    def step(x, h):
        with ThreadPoolExecutor() as pool:
            h = x + pool.submit(tg.sin, h).result()
        return h, h

    return step


ACCIDENTS = [is_the_first_state, asks_for_its_type, asks_for_the_gradient, cuts_by_hand, computes_in_a_thread]
ACCIDENTS_WRONG = {
    "is_the_first_state": "while a step is recorded the state is another object",
    "asks_for_its_type": "while a step is recorded tensors are of a class of their own",
    "asks_for_the_gradient": "at later steps the state needs a gradient, at the first it does not",
    "cuts_by_hand": "requires_grad of a result is not recorded",
    "computes_in_a_thread": "what another thread does is not heard, and becomes a constant",
}


@engines
@pytest.mark.parametrize("make", params(ACCIDENTS, ACCIDENTS_WRONG))
def test_what_tells_the_recorded_step_from_others_gives_no_wrong_number(by, make):
    state = tg.Tensor(np.full((ROWS, SIZE), 0.5))
    same(unless_refused(lambda: (make(state), []), by, state=state), results(make(state), [], state=state))


@falls_back
def test_a_cell_that_logs_its_values():
    found = []
    for engine in ("auto", "unrolled"):
        stream = io.StringIO()
        log = logging.Logger("cell")
        log.addHandler(logging.StreamHandler(stream))

        def step(x, h, log=log):
            log.warning("%s", h)
            return h + x, tg.sin(h + x)

        results(step, [], engine)
        found.append(stream.getvalue())
    assert found[0] == found[1] != ""


@pytest.mark.xfail(strict=True, reason="only the first step is looked at")
@falls_back
def test_a_cell_that_looks_for_nan_finds_it_at_a_later_step():
    def step(x, h):
        with tg.detect_anomaly():
            return h, tg.sin(x + h)

    xs = normal(1, STEPS, ROWS, SIZE)
    xs.data[2] = np.nan
    for engine in ("unrolled", "auto"):
        with pytest.raises(tg.AnomalyError):
            results(step, [], engine, xs)


@pytest.mark.xfail(strict=True, reason="what a commit reads other than its arguments is of the first step")
def test_a_commit_that_looks_at_a_value_of_its_step():
    found = []
    for engine in ("auto", "unrolled"):
        log = []

        def step(x, h, log=log):
            h = tg.sin(x + h)
            afterwards(lambda: log.append(float(h[0, 0])))
            return h, h

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = results(step, [], engine)
        found.append((values, log))
    same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@engines
def test_commits_are_called_for_each_step_with_its_values(by):
    found = []
    for engine in (by, "unrolled"):
        log = []

        def step(x, h, log=log):
            h = tg.sin(x + h)
            afterwards(lambda a, b: log.append((a.numpy().tolist(), b.numpy().tolist())), x, h)
            return h, h

        results(step, [], engine, reverse=True)
        found.append(log)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


@engines
@pytest.mark.parametrize("wrong", [SIZE, -1])
def test_an_index_out_of_range_at_a_later_step_raises_as_in_the_loop(by, wrong):
    table = normal(4, SIZE, SIZE)
    indices = np.array([[0], [1], [wrong], [0]])
    for engine in ("unrolled", by):
        with pytest.raises(IndexError):
            tg.scan(
                lambda x, h: (F.embedding(x, table) + h, h), indices, tg.zeros((1, SIZE), np.float64), engine=engine
            )


@engines
@pytest.mark.parametrize("numbers", [(0.0, -0.0), (1, 1.0), (1, True), (2, 2.0)], ids=str)
def test_numbers_that_are_equal_but_not_alike_are_told_apart(by, numbers):
    for number in numbers:

        def step(x, h, number=number):
            return tg.ones_like(x) / (x * number if number == 0 else x / number), tg.sin(h)

        with np.errstate(divide="ignore"):
            check_values(step, np.ones((STEPS, ROWS, SIZE)), by)


@engines
@pytest.mark.parametrize("bounds", [((0, 1), (0.0, 1.0))], ids=str)
def test_static_arguments_that_are_equal_but_not_alike_are_told_apart(by, bounds):
    for low, high in bounds:
        check_values(lambda x, h, low=low, high=high: (tg.clip(x, low, high), h), np.arange(STEPS * ROWS), by)


def check_values(step, xs, by):
    xs = tg.Tensor(xs.reshape(STEPS, ROWS, -1))
    ys, expected = (tg.scan(step, xs, tg.ones((ROWS, SIZE)), engine=engine)[0] for engine in (by, "unrolled"))
    assert ys.dtype == expected.dtype
    np.testing.assert_array_equal(ys.numpy(), expected.numpy())
