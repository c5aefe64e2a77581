"""Functions are taken for pure by their code only where it can do nothing else, and are never stale then."""

from __future__ import annotations

import math
import random
import time
from typing import NamedTuple

import numpy as np
import pytest
from test_record import ROWS, SIZE, STEPS, engines, normal, same

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, ops
from tinygrad_rnn.compiler import pure

rate, gains, count = 0.5, [1.0, 2.0], 0
W, U = normal(11, SIZE, SIZE), normal(12, SIZE, SIZE)
linear = nn.Linear(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(0))


def mixed(lib, split, x, h, weights):
    a, b = split(x @ weights[0] + h @ weights[1].T)
    return lib.tanh(a), lib.sigmoid(b)


def with_a_helper(weights):
    def cell(x, h):
        a, b = mixed(tg, lambda sums: tg.split(sums, 2, axis=-1), x, h, weights)
        h = tg.concatenate([a, b], axis=-1) * rate + h / 2
        return h, h

    return cell


def with_branches(scale=2.0, *, twice=True):
    def cell(x, h):
        new = F.relu(x @ W) + (scale if twice else 1) * tg.functional.softmax(h, axis=-1)
        for gain in gains:
            new = new * gain + sum([part.mean() for part in tg.unstack(new, axis=-1)[:2]])
        if new.shape[0] != ROWS or len(gains) > 3:
            raise ValueError("other rows")
        return new.reshape(new.shape), tg.where(new > 0, new, math.exp(-1.0) * h)

    return cell


def with_variables_of_its_own():
    def cell(x, h):
        old = h
        parts = [(x, 1.0), (old, 0.5)]
        total = sum([factor * ops.tanh(part) for part, factor in parts])
        scaled = lambda t: t * 0.5 + old  # noqa: E731 - that reads a variable of the function around it
        return scaled(total), 0.5 * total - linear(old)

    return cell


def with_masks(generator):
    return lambda x, h: (x + h, F.dropout(tg.tanh(x + h), 0.5, True, generator))


class Inner(nn.Module):
    def __init__(self, seed):
        self.weight = nn.Parameter(normal(seed, SIZE, SIZE).data)

    def forward(self, x):
        return F.relu(x @ self.weight)


class Cell(nn.Module):
    def __init__(self, seed=3):
        self.x, self.inner = nn.Linear(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(seed)), Inner(seed)
        self.gain, self.generator = 2.0, tg.Generator(seed)

    def init_state(self, batch):
        return tg.zeros((batch, SIZE), np.float64)

    def forward(self, x, h):
        h = self.gain * tg.tanh(self.x(x) + self.inner(h)) + h / 2
        tg.expose(h=h)
        return h, F.dropout(h, 0.5, self.training, self.generator)


PURE = {
    "a module of modules": Cell,
    "a helper that is given a module": lambda: with_a_helper([normal(1, SIZE, SIZE), normal(2, SIZE, SIZE)]),
    "branches, loops, lists": with_branches,
    "functions inside, modules of ours": with_variables_of_its_own,
    "a generator of ours": lambda: with_masks(tg.Generator(3)),
    "a lambda": lambda: lambda x, h: (x, tg.tanh(x + h)),
}


def outcome(cell, by, seed=1):
    xs, start = normal(seed, STEPS, ROWS, SIZE), normal(2, ROWS, SIZE)
    ys, last = tg.scan(cell, xs, start, engine=by)
    return [ys.numpy(), last.numpy(), *[g.numpy() for g in tg.grad(tg.sum(ys) + tg.sum(last), [xs, start])]]


@engines
@pytest.mark.parametrize("name", PURE)
def test_such_functions_are_recorded_once(name, by, recorded):
    for seed in range(3):  # functions made anew, with other weights
        same(outcome(PURE[name](), by, seed), outcome(PURE[name](), "unrolled", seed))
    assert len(recorded) == 1


@engines
def test_what_they_read_is_seen(by, recorded, monkeypatch):
    weights = [normal(1, SIZE, SIZE), normal(2, SIZE, SIZE)]
    helper, branches = with_a_helper(weights), with_branches()

    def sees(cell, times):
        same(outcome(cell, by), outcome(cell, "unrolled"))
        assert len(recorded) == times

    sees(helper, 1)
    weights[0].data = normal(5, SIZE, SIZE).data
    sees(helper, 1)
    weights[1] = normal(6, SIZE, SIZE)
    sees(helper, 1)
    weights.append(weights[0])
    sees(helper, 2)
    monkeypatch.setitem(globals(), "rate", 0.25)
    sees(helper, 3)
    sees(branches, 4)
    gains.append(0.5)
    sees(branches, 5)
    gains.pop()
    sees(branches, 5)
    sees(with_branches(3.0), 6)
    sees(with_branches(3.0, twice=False), 7)
    monkeypatch.setitem(globals(), "mixed", lambda lib, split, x, h, weights: split(lib.sin(x + h)))
    sees(helper, 8)
    monkeypatch.setitem(globals(), "len", lambda held: 7)
    with pytest.raises(ValueError, match="other rows"):
        outcome(branches, by)


def test_a_function_may_say_that_it_is_not(recorded):
    cell = PURE["a lambda"]()
    cell.pure = False
    for times in (1, 2):
        outcome(cell, "array")
        assert len(recorded) == times


@engines
def test_what_modules_read_is_seen(by, recorded, monkeypatch):
    cell = Cell()

    def sees(times):
        start = cell.generator.state_dict()
        found = []
        for engine in (by, "unrolled"):
            cell.generator.load_state_dict(start)
            found.append(outcome(cell, engine))
        same(*found)
        assert len(recorded) == times

    sees(1)
    cell.inner.weight.data = normal(9, SIZE, SIZE).data
    cell.x = nn.Linear(SIZE, SIZE, dtype=np.float64, generator=tg.Generator(8))
    cell.generator = tg.Generator(5)
    sees(1)
    cell.gain = 3.0
    sees(2)
    cell.eval()
    sees(3)
    cell.x = nn.Linear(SIZE, SIZE, bias=False, dtype=np.float64, generator=tg.Generator(8))
    sees(4)
    cell.inner = Inner(4)
    sees(5)  # one that has not been told eval()
    monkeypatch.setattr(Inner, "forward", lambda self, x: tg.sin(x @ self.weight))
    sees(6)
    monkeypatch.setattr(Cell, "gain", property(lambda self: 4.0, lambda self, value: None), raising=False)
    sees(7)  # it comes before the module's own
    sees(8)


def counting():
    seen = []
    return lambda x, h: (x, tg.tanh(x + h) if seen.append(1) is None else h)


def nonlocally():
    calls = 0

    def cell(x, h):
        nonlocal calls
        calls = calls + 1
        return x, tg.tanh(x + h)

    return cell


def globally():
    def cell(x, h):
        global count
        count = count + 1
        return x, tg.tanh(x + h)

    return cell


def in_place():
    held = [1.0]

    def cell(x, h):
        alias = held
        alias += [2.0]
        return x, tg.tanh(x + h)

    return cell


def by_item():
    held = {"factor": 2.0}
    return lambda x, h: (x, tg.tanh(x + h) * held["factor"])


def by_attribute():
    def cell(x, h):
        return x, tg.tanh(x + h) * cell.factor

    cell.factor = 2.0
    return cell


def with_an_array():
    held = np.full(SIZE, 2.0)
    return lambda x, h: (x, tg.tanh(x + h) * held)


def with_a_module_of_the_users():
    class Scaled(nn.Module):
        factor = 2.0

        def forward(self, x):
            return x * self.factor

    scaled = Scaled()
    return lambda x, h: (x, tg.tanh(scaled(x + h)))


def with_an_impure_helper():
    helper = counting()
    return lambda x, h: helper(x, h)


def with_a_helper_that_another_trusts():
    counts = counting()

    def a_promise(x, h):
        return counts(x, h)

    a_promise.pure = True  # which speaks for what it calls, where it calls it
    return lambda x, h: (a_promise(x, h)[0], counts(x, h)[1])


def writing_to_its_state():
    def cell(x, state):
        state = {"h": state}
        state["h"] = tg.tanh(x + state["h"])
        return x, state["h"]

    return cell


class Counts(Cell):
    def forward(self, x, h):
        self.gain = self.gain + 1
        return x, self.gain * h


class Lists(Cell):
    def __init__(self):
        super().__init__()
        self.factors = [1.0]

    def forward(self, x, h):
        return x, self.factors[0] * h


class Helps(Cell):
    def helper(self, h):
        return h

    def forward(self, x, h):
        return x, self.helper(h)


class Constant(Cell):
    factor = 2.0

    def forward(self, x, h):
        return x, self.factor * h


class Computed(Cell):
    def __getattr__(self, name):
        if name == "other":
            return 2.0
        raise AttributeError(name)

    def forward(self, x, h):
        return x, self.gain * h


class Called(Cell):
    def __call__(self, x, h):
        return x, tg.tanh(h)


class Derived(nn.GRUCell):
    def __init__(self):
        super().__init__(SIZE, SIZE, dtype=np.float64)

    def forward(self, x, h):
        return super().forward(x, h)


class Counting(Inner):
    calls = 0

    @property
    def gain(self):
        type(self).calls += 1
        return 2.0


class OfAnother(Cell):
    def __init__(self):
        super().__init__()
        self.inner = Counting(3)

    def forward(self, x, h):
        return x, self.inner.gain * h


class Rebinds(Cell):
    def forward(self, x, h):
        inner = self.inner
        self = Counting(3)
        return x, self.gain * inner(h)


class Seeds(Cell):
    """A function of ours that is no operation."""

    def __init__(self):
        super().__init__()
        self.seed = tg.manual_seed

    def forward(self, x, h):
        self.seed(0)
        return x, h


class Declined(Cell):
    pure = False


class Averages(Cell):
    """A method of its own by the name of an operation."""

    def mean(self, h):
        self.gain = self.gain + 1
        return h

    def forward(self, x, h):
        return x, self.mean(h)


class Promising(Averages):
    pure = True  # which speaks for its forward alone


class OfAverages(Cell):
    def __init__(self):
        super().__init__()
        self.inner = Promising()

    def forward(self, x, h):
        return x, self.gain * self.inner.mean(h)


class Noting(tg.Tensor):
    def sum(self, *args, **kwargs):
        raise AssertionError


class OfNoting(Cell):
    def __init__(self):
        super().__init__()
        self.factor = Noting(np.ones(SIZE))

    def forward(self, x, h):
        return x, self.factor * h


class Shadows(OfAnother):
    def forward(self, x, h):
        return x, (lambda self: self.gain)(self.inner) * h


MODULES = (Counts, Lists, Helps, Constant, Computed, Called, Derived, OfAnother, Rebinds, Shadows, Averages)
MODULES += (OfAverages, OfNoting, Seeds, Declined)
IMPURE = {
    **{cls.__name__: cls for cls in MODULES},
    "a list that grows": counting,
    "a variable of an outer function": nonlocally,
    "a global": globally,
    "a list changed in place": in_place,
    "a dict": by_item,
    "an attribute": by_attribute,
    "an array": with_an_array,
    "a module of the user's": with_a_module_of_the_users,
    "a helper": with_an_impure_helper,
    "a helper that another trusts": with_a_helper_that_another_trusts,
    "an item that is set": writing_to_its_state,
    "print": lambda: lambda x, h: (x, tg.tanh(x + h) if print("", end="") is None else h),
    "Python's random numbers": lambda: lambda x, h: (x, tg.tanh(x + h) * random.random()),
    "NumPy's random numbers": lambda: lambda x, h: (x, tg.tanh(x + h) * np.random.default_rng().random()),
    "a clock": lambda: lambda x, h: (x, tg.tanh(x + h) * (time.time() > 0)),
    "a seed that is set": lambda: lambda x, h: (x, tg.tanh(x + h) if tg.manual_seed(0) else h),
    "an import": lambda: lambda x, h: (x, tg.tanh(x + h) * __import__("math").pi),
    "a generator": lambda: lambda x, h: (x, sum(tg.tanh(part) for part in (x, h))),
}


@pytest.mark.parametrize("name", IMPURE)
def test_others_are_not_taken_for_pure(name):
    assert pure.kind_of(IMPURE[name]()) is None


def with_a_tensor_of_the_users():
    held = Noting(np.ones(SIZE))
    return lambda x, h: (x, held * h)


def with_a_module_that_averages():
    held = Promising()
    return lambda x, h: (x, held.mean(h))


@pytest.mark.parametrize("make", [with_a_tensor_of_the_users, with_a_module_that_averages])
def test_methods_by_the_names_of_operations_are_not_trusted(make):
    assert pure.kind_of(make()) is None


def test_a_state_with_methods_of_the_users_is_not_trusted(recorded):
    class State(NamedTuple):
        h: tg.Tensor

        def mean(self):
            return self.h * factors[0]

    factors = [1.0]
    for factor in (1.0, 2.0):
        factors[0] = factor
        xs, state = normal(1, STEPS, ROWS, SIZE), State(normal(2, ROWS, SIZE))
        ys, _ = tg.scan(lambda x, state: (x + state.mean(), state), xs, state, engine="array")
        np.testing.assert_allclose(ys.numpy(), xs.numpy() + factor * state.h.numpy())
    assert len(recorded) == 2

    class Meaning(nn.Module):
        def init_state(self, batch):
            return state

        def forward(self, x, state):
            return x + state.mean(), state

    for factor in (1.0, 2.0):  # in a wrapper of ours, which promises for itself alone
        factors[0] = factor
        ys, _ = tg.scan(nn.Zoneout(Meaning(), 0.1).eval(), xs, state, engine="array")
        np.testing.assert_allclose(ys.numpy(), xs.numpy() + factor * state.h.numpy())
    assert len(recorded) == 4


def test_functions_of_packages_need_a_promise():
    def lent(x, h):
        return x, tg.tanh(x + h)

    code = lent.__code__.replace(co_filename="/usr/lib/python3/site-packages/some_package/cells.py")
    lent.__code__ = code
    assert pure.kind_of(lent) is None
    assert pure.kind_of(lambda x, h: lent(x, h)) is None
