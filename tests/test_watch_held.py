"""What a cell may hold: `Watch` sees and puts back each kind of container, generator and iterator."""

from __future__ import annotations

import functools
import itertools
import random
import re
import types
from collections import Counter, OrderedDict, UserDict, defaultdict, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched import HELD, Holder, Record, lost, watched

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.compiler.watch import Watch

# Each kind of thing that is held


class Items(list):
    """A list that must not be asked."""

    def __eq__(self, other):
        raise AssertionError

    def __iter__(self):
        raise AssertionError

    __hash__ = None


class Hostile:
    """Running any of its code is a mistake."""

    def __init__(self):
        self.value = 0

    def __eq__(self, other):
        raise AssertionError

    def __hash__(self):
        return 1

    def __repr__(self):
        raise AssertionError

    def __bool__(self):
        raise AssertionError

    @property
    def peek(self):
        raise AssertionError

    def __getattr__(self, name):
        raise AssertionError(name)


hostile = Hostile()
MUTATIONS = {
    "list": ([1], lambda held: held.append(2)),
    "list, an item": ([1.0, 2.0], lambda held: held.__setitem__(0, 1.5)),
    "list, turned round": ([[1], [2]], list.reverse),
    "list of lists": ([[[[1]]]], lambda held: held[0][0][0].append(2)),
    "list with overridden methods": (Items([1]), lambda held: held.append(2)),
    "dict": ({"a": 1}, lambda held: held.__setitem__("a", 2)),
    "dict, a key more": ({"a": 1}, lambda held: held.__setitem__("b", 1)),
    "dict, a key renamed": ({"a": 1}, lambda held: held.update(b=held.pop("a"))),
    "dict, a key less": ({"a": 1, "b": 2}, lambda held: held.pop("a")),
    "dict, the order": ({"a": 1, "b": 2}, lambda held: held.__setitem__("a", held.pop("a"))),
    "dict by foreign keys": ({hostile: 1}, lambda held: held.__setitem__(hostile, 2)),
    "ordered dict": (OrderedDict(a=1, b=2), lambda held: held.move_to_end("a")),
    "default dict": (defaultdict(list), lambda held: held["a"].append(1)),
    "counter": (Counter("aab"), lambda held: held.update("b")),
    "user dict": (UserDict(a=1), lambda held: held.update(a=2)),
    "set": ({1, 2}, lambda held: held.add(3)),
    "set, exchanged": ({1.0, 2.0}, lambda held: held.remove(1.0) or held.add(3.0)),
    "deque": (deque([1, 2], maxlen=2), lambda held: held.append(3)),
    "deque, turned": (deque([1, 2]), lambda held: held.rotate()),
    "bytearray": (bytearray(b"ab"), lambda held: held.extend(b"c")),
    "tuple of lists": (([1],), lambda held: held[0].append(2)),
    "object": (Record(), lambda held: setattr(held, "value", 1)),
    "object, an attribute more": (Record(), lambda held: setattr(held, "other", 1)),
    "object, an attribute less": (Record(), lambda held: delattr(held, "value")),
    "object that answers nothing": (Hostile(), lambda held: held.__dict__.update(value=1)),
    "namespace": (types.SimpleNamespace(a=1), lambda held: setattr(held, "a", 2)),
    "array": (np.zeros(3), lambda held: held.__setitem__(1, 1.0)),
    "array of one": (np.zeros(()), lambda held: held.__setitem__((), np.nan)),
    "array, minus zero": (np.zeros(2), lambda held: np.negative(held, out=held)),
    "array, transposed": (np.arange(6.0).reshape(2, 3).T, lambda held: held.sort(axis=0) or held.fill(1)),
    "array of objects": (np.array([None, [1]], object), lambda held: held.__setitem__(0, [2])),
    "array of objects, inside": (np.array([None, [1]], object), lambda held: held[1].append(2)),
    "array of words": (np.array(["a", "b"]), lambda held: held.__setitem__(0, "c")),
    "list iterator": (iter([1, 2, 3]), next),
    "tuple iterator": (iter((1, 2, 3)), next),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_held(name):
    held, act = MUTATIONS[name]
    (change,) = watched(Holder(held, lambda held: (act(held), None)[1]))
    if hasattr(held, "__dict__") and not isinstance(held, (list, dict)):
        assert re.fullmatch(f"attribute '(value|other|a|data)' of {type(held).__name__}", change) or change == HELD
    else:
        assert change == HELD


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_held_by_a_function(name):
    held, act = MUTATIONS[name]
    assert len(watched(lambda: (act(held), None)[1])) == 1


def test_contents_are_put_back_in_order():
    cell = Holder({"a": 1, "b": [3, 1]}, lambda held: (held.pop("a"), held["b"].sort(), held.update(c=0, a=1)))
    inner = cell.held["b"]
    watch = Watch(cell)
    cell()
    watch.restore()
    assert [*cell.held.items()] == [("a", 1), ("b", [3, 1])]
    assert cell.held["b"] is inner


def test_plain_values_are_compared_by_value():
    class Cell(nn.Module):
        def __init__(self):
            self.values = (1000.5, (float("nan"), "ab" * 3), np.float32(2.5))

        def forward(self):
            number, (nan, word), scalar = self.values
            self.values = (number * 1, (nan * 1, word[:3] + word[3:]), scalar * 1)

    assert watched(Cell()) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0.0, -0.0),
        (1, True),
        (1, 1.0),
        ((1,), (1.0,)),
        ("1", 1),
        (0, None),
        (1 + 0j, 1),
        (np.float32(1), np.int32(0x3F800000)),
        (np.float32(1), 1),
    ],
)
def test_values_that_only_look_equal(before, after):
    cell = Holder(before, lambda _: setattr(cell, "held", after))
    assert watched(cell) == [HELD]
    assert type(cell.held) is type(before)


def test_attributes_added_deleted_and_moved():
    class Cell(nn.Module):
        def __init__(self):
            self.a, self.b, self.c = 1, 2, 3

        def forward(self):
            del self.a
            self.d = 4

    cell = Cell()
    assert watched(cell) == ["attribute 'a' of Cell", "attribute 'd' of Cell"]
    assert [*vars(cell)] == ["a", "b", "c"]
    cell.forward = lambda: vars(cell).update(a=vars(cell).pop("a"))
    assert watched(cell) == ["the order of the attributes of Cell"]


def test_a_dict_of_attributes_that_is_replaced():
    cell = Record()
    step = Holder(cell, lambda held: setattr(held, "__dict__", {"value": 5}))
    before = vars(cell)
    assert watched(step) == ["attribute 'value' of Record"]
    assert vars(cell) is before


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, lambda seed: np.random.PCG64(seed)])
def test_generators_of_numpy(make):
    rng = make(0)
    name = "random_raw" if isinstance(rng, np.random.BitGenerator) else "standard_normal"
    assert watched(Holder(rng, lambda held: getattr(held, name)(3))) == ["NumPy's random generator 'held'"]
    draw = getattr(rng, name)
    assert watched(lambda: draw(3)) == ["NumPy's random generator 'draw'"]


def test_a_mersenne_twister_under_a_generator():
    rng = np.random.Generator(np.random.MT19937(0))
    assert watched(lambda: rng.standard_normal(3)) == ["NumPy's random generator 'rng'"]


def test_the_second_of_a_pair_of_normal_numbers():
    rng = np.random.RandomState(0)
    rng.standard_normal()  # the other half is kept, so the next draw leaves the twister alone
    assert watched(lambda: rng.standard_normal()) == ["NumPy's random generator 'rng'"]


def test_generators_of_python():
    rng = random.Random(0)
    assert watched(lambda: rng.random()) == ["Python's random generator 'rng'"]
    assert watched(lambda: rng.gauss(0, 1)) == ["Python's random generator 'rng'"]
    method = rng.random
    assert watched(lambda: method()) == ["Python's random generator 'method'"]


uniform = random.uniform
rand = np.random.rand


@pytest.mark.parametrize(
    ("cell", "module"),
    [
        (lambda: random.random(), "random"),
        (lambda: uniform(0, 1), "random"),
        (random.random, "random"),
        (lambda: np.random.rand(), "numpy.random"),  # noqa: NPY002
        (lambda: rand(), "numpy.random"),
        (np.random.rand, "numpy.random"),
        (Holder(np.random, lambda held: held.rand()), "numpy.random"),
        (Holder(random, lambda held: held.random()), "random"),
    ],
)
def test_the_global_states(cell, module):
    assert watched(cell) == [f"the state of {module} (the module)"]


def test_the_global_states_by_an_import_inside():
    def of_python():
        from random import random as draw

        return draw()

    def of_numpy():
        from numpy import random as draws

        return draws.rand()  # noqa: NPY002

    assert watched(of_python) == ["the state of random (the module)"]
    assert watched(of_numpy) == ["the state of numpy.random (the module)"]


@pytest.mark.parametrize("module", ["random", "numpy.random"])
def test_the_global_states_by_way_of_another_package(module):
    installed = {}
    text = (
        f"from {module} import normalvariate as draw" if module == "random" else f"from {module} import normal as draw"
    )
    exec(compile(f"{text}\ndef step(): return draw(0, 1)", "/lib/site-packages/draws.py", "exec"), installed)
    step = installed["step"]
    assert watched(lambda: step()) == [f"the state of {module} (the module)"]


def test_our_own_generators_are_put_back_but_are_no_change():
    own = tg.random.Generator(3)
    dropout = nn.Dropout(0.5)
    x = tg.ones((4, 4))
    before = own.counter, tg.random.default_generator().counter

    def step():
        return own.uniform((2,)).numpy(), dropout(x).numpy()

    assert watched(step) == []
    assert (own.counter, tg.random.default_generator().counter) == before
    watch = Watch(step)
    own.seed = 4
    assert watch.changes() == ["the closure variable 'own' of step"]
    watch.restore()
    assert own.seed == 3


# Iterators


class ByIndex:
    """A sequence that must not be asked how long it is."""

    def __getitem__(self, index):
        return [1, 1, 1][index]

    def __len__(self):
        raise AssertionError


def naturals():
    n = 0
    while True:
        yield n
        n += 1


def repeated():
    for each in [1, 1, 1, 1]:  # noqa: UP028 - the iterator is to be the generator's own
        yield each


def delegating():
    yield from [1, 1, 1, 1]


ITERATORS = {
    "count": lambda: itertools.count(),
    "count by steps": lambda: itertools.count(0.5, 2),
    "generator": naturals,
    "generator with like variables": repeated,
    "generator that delegates": delegating,
    "generator expression": lambda: (each for each in (1, 1, 1)),
    "range": lambda: iter(range(5)),
    "dict": lambda: iter({"a": 1, "b": 2}),
    "word": lambda: iter("aaa"),
    "repeat": lambda: itertools.repeat(1, 3),
    "reversed": lambda: reversed([1, 1, 1]),
    "reversed tuple": lambda: reversed((1, 1, 1)),
    "sequence": lambda: iter(ByIndex()),
    "enumerate": lambda: enumerate([1, 1]),
    "zip": lambda: zip([1, 1], (2, 2), strict=True),
    "map": lambda: map(abs, [1, 1]),
    "chain": lambda: itertools.chain([1, 1], [1]),
    "islice": lambda: itertools.islice([1, 1, 1], 2),
    "takewhile": lambda: itertools.takewhile(bool, [1, 1, 0, 1]),
    "accumulate": lambda: itertools.accumulate([1, 0, 0]),
    "cycle": lambda: itertools.cycle([1, 1]),
    "tee": lambda: itertools.tee([1, 1])[0],
    "product": lambda: itertools.product([1, 2], repeat=2),
}


@pytest.mark.parametrize("started", [0, 1])
@pytest.mark.parametrize("name", ITERATORS)
def test_iterators(name, started):
    source, twin = ITERATORS[name](), ITERATORS[name]()
    for _ in range(started):
        assert next(source) == next(twin)
    step = functools.partial(next, source, None)
    watch = Watch(step)
    assert watch.changes() == (["the cell"] if name in ("cycle", "islice", "takewhile", "tee") else [])
    step()
    assert watch.changes() == ["the cell"]
    try:
        watch.restore()
    except RuntimeError:
        return
    assert [*itertools.islice(source, 5)] == [*itertools.islice(twin, 5)]


@pytest.mark.parametrize("name", ["count", "generator", "cycle", "dict"])
def test_iterators_that_cannot_be_put_back(name):
    source = ITERATORS[name]()
    assert lost(lambda: next(source)) == ["the closure variable 'source' of <lambda>"]
    advance = source.__next__
    assert lost(lambda: advance()) == ["the closure variable 'advance' of <lambda>"]


def test_an_iterator_over_a_list_that_was_emptied():
    over = [1, 2, 3]
    along = iter(over)
    next(along), next(along)

    def step():
        value = next(along)
        over.clear()
        return value

    assert watched(step) == ["the closure variable 'along' of step", "the closure variable 'over' of step"]


def test_an_iterator_that_came_to_its_end_is_lost():
    source = iter([1])
    next(source)
    assert lost(lambda: next(source, None)) == ["the closure variable 'source' of <lambda>"]


def test_what_can_be_put_back_is_when_something_else_cannot():
    source, held = itertools.count(), []
    watch = Watch(lambda: (source, held))
    held.append(next(source))
    with pytest.raises(RuntimeError, match="'source'") as error:
        watch.restore()
    assert "held" not in str(error.value)
    assert held == []


# Random cells, which change this and that


class Everything(nn.Module):
    def __init__(self, seed):
        self.number, self.word, self.items = 1, "a", [1, [2]]
        self.table = OrderedDict(a=1, b=2)
        self.members, self.queue = {1, 2}, deque([1, 2, 3], maxlen=4)
        self.array, self.buffer = np.arange(4.0), tg.zeros(3)
        self.numpy, self.python = np.random.default_rng(seed), random.Random(seed)
        self.record, self.order = Record(), []

    def forward(self):
        return [getattr(self, name)(argument) for name, argument in self.order]

    def state(self):
        """All of it, in words."""
        special = {
            "numpy": self.numpy.bit_generator.state,
            "python": self.python.getstate(),
            "members": sorted(self.members),
            "record": vars(self.record),
        }
        return repr(vars(self) | special)

    def set_number(self, n):
        self.number += n - 2
        return self.number

    def set_word(self, n):
        self.word = "a" * n
        return self.word

    def change_items(self, n):
        self.items[1].append(n)
        self.items.extend([n, [n]])
        return repr(self.items)

    def change_table(self, n):
        self.table.pop("a", None) if n % 2 else self.table.update(a=n - 1, c=n)
        return repr(self.table)

    def move(self, n):
        self.table.move_to_end("b", last=bool(n % 2))
        return repr(self.table)

    def change_members(self, n):
        self.members ^= {n}
        return sorted(self.members)

    def change_queue(self, n):
        self.queue.rotate(n)
        return repr(self.queue)

    def write(self, n):
        self.array[n % 4] += n
        self.buffer.data[n % 3] -= n
        return self.array.tolist(), self.buffer.numpy().tolist()

    def draw(self, n):
        return self.numpy.normal(size=n - 1).tolist(), [self.python.gauss(0, 1) for _ in range(n - 1)]

    def replace(self, n):
        self.record = Record(self.record.value + n)
        self.array = self.array + n
        return self.record.value, self.array.tolist()

    def make(self, n):
        setattr(self, f"made_{n}", [n])
        self.record.__dict__.setdefault("made", []).append(n)
        return [*vars(self)], repr(vars(self.record))

    def nothing(self, n):
        self.number, self.word = self.number * 1, "".join([*self.word])
        return n


ACTIONS = [name for name in vars(Everything) if not name.startswith("__") and name not in ("forward", "state")]


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 5)), max_size=8), st.integers(0, 9))
def test_any_changes_are_seen_and_put_back(order, seed):
    cell = Everything(seed)
    cell.order += order
    initial = cell.state()
    watch = Watch(cell)
    expected = cell()
    assert bool(watch.changes()) == (cell.state() != initial)
    for _ in range(2):
        cell()
        watch.restore()
        assert watch.changes() == []
        assert cell.state() == initial
        assert cell() == expected
