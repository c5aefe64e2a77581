"""`Watch` reaches what a cell of any shape can change, names it, and puts it back."""

from __future__ import annotations

import functools
import itertools
import types

import cell_cases
import numpy as np
import pytest
from watched import Holder, Record, lost, watched

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.compiler import watch as watch_file
from tinygrad_rnn.compiler.watch import Watch

calls = 0
log: list[object] = []
helpers = types.ModuleType("helpers")
exec("scale = 1\nseen = []\ndef bump():\n    global scale\n    scale += 1\n    return scale", helpers.__dict__)


# Each shape of cell


class Counting(nn.Module):
    def __init__(self):
        self.count = 0
        self.weight = nn.Parameter(np.ones(3, np.float32))

    def forward(self, amount=1):
        self.count += amount
        return self.count

    def method(self):
        return self.forward()


class Callable:
    """No module, with something in a slot and something in a class."""

    __slots__ = ("count", "later")
    calls = 0
    log: list[int] = []  # noqa: RUF012 - that it is shared is the point

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count


def test_a_module():
    assert watched(Counting()) == ["attribute 'count' of Counting"]


def test_a_bound_method():
    assert watched(Counting().method) == ["attribute 'count' of Counting"]


def test_a_partial():
    assert watched(functools.partial(Counting(), 2)) == ["attribute 'count' of Counting"]
    assert watched(functools.partial(Counting(), amount=2)) == ["attribute 'count' of Counting"]


def test_the_arguments_of_a_partial():
    def step(held, other):
        held.append(1)
        other.append(2)
        return len(held), len(other)

    step = functools.partial(step, [])
    assert watched(functools.partial(step, other=[])) == ["the cell", "argument 'other' of a partial"]


def test_an_object_that_can_be_called():
    assert watched(Callable()) == ["attribute 'count' of Callable"]


def test_slots_set_for_the_first_time_and_deleted():
    class Later(Callable):
        def __call__(self):
            self.later = self.count
            del self.count
            self.new = 1

    cell = Later()
    names = {f"attribute {name!r} of Later" for name in ("later", "count", "new")}
    watch = Watch(cell)
    cell()
    assert set(watch.changes()) == names
    watch.restore()
    assert cell.count == 0
    assert not hasattr(cell, "later")
    assert vars(cell) == {}


def test_a_function_with_a_closure_variable():
    n = 0

    def step():
        nonlocal n
        n += 1
        return n

    assert watched(step) == ["the closure variable 'n' of step"]


def test_a_closure_variable_without_a_value():
    def step():
        nonlocal n
        n = 1
        return n

    assert watched(step) == ["the closure variable 'n' of step"]
    if False:
        n = 0


def test_a_lambda():
    held = []
    assert watched(lambda: held.append(1) or len(held)) == ["the closure variable 'held' of <lambda>"]


def test_a_global_variable():
    def step():
        global calls
        calls += 1
        return calls

    assert watched(step) == ["the global 'calls' of step"]
    assert calls == 0


def test_a_global_made_and_one_deleted():
    def step():
        global calls, made
        made = calls
        del calls

    watch = Watch(step)
    step()
    assert sorted(watch.changes()) == ["the global 'calls' of step", "the global 'made' of step"]
    watch.restore()
    assert calls == 0
    assert "made" not in globals()


def test_a_global_that_only_a_nested_function_names():
    def step():
        def inner():
            log.append(1)

        inner()
        return [len(log) for _ in range(2)]

    assert watched(step) == ["the global 'log' of step"]


def helper():
    log.append(1)
    return len(log)


def test_functions_that_are_called_by_name():
    def middle():
        return helper()

    assert watched(lambda: middle()) == ["the global 'log' of helper"]


def test_functions_in_containers_and_behind_modules():
    table = {"run": [(helper,)]}
    assert watched(lambda: table["run"][0][0]()) == ["the global 'log' of helper"]
    module = helpers
    assert watched(lambda: module.bump()) == [
        "the global 'scale' of bump",
    ]
    assert watched(lambda: module.seen.append(1)) == ["the global 'seen' of the module helpers"]


def test_an_attribute_of_a_module_object():
    module = helpers

    def step():
        module.scale += 1
        return module.scale

    assert watched(step) == ["the global 'scale' of the module helpers"]


def test_an_import_inside(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "helpers_of_test_watch", helpers)

    def step():
        from helpers_of_test_watch import bump

        return bump()

    assert watched(step) == ["the global 'scale' of bump"]


def test_attributes_and_defaults_of_a_function():
    def step(held=[], *, also={}):  # noqa: B006 - defaults that last are the point
        held.append(1)
        also[len(also)] = 1
        step.count = getattr(step, "count", 0) + 1
        return len(held), len(also), step.count

    assert sorted(watched(step)) == [
        "attribute 'count' of step",
        "the default of 'also' in step",
        "the default of 'held' in step",
    ]


def test_decorated_functions():
    def counted(function):
        @functools.wraps(function)
        def wrapper():
            wrapper.calls += 1
            return function()

        wrapper.calls = 0
        return wrapper

    def step():
        return helper()

    assert set(watched(counted(step))) == {"attribute 'calls' of step", "the global 'log' of helper"}
    assert watched(tg.no_grad()(step)) == ["the global 'log' of helper"]


def test_a_function_behind_a_cache():
    @functools.lru_cache(maxsize=0)
    def step():
        return helper()

    assert watched(step) == ["the global 'log' of helper"]


def test_class_attributes():
    class Cell(Callable):
        def __call__(self):
            Cell.calls += 1
            self.log.append(Cell.calls)
            return self.log[-1]

    assert watched(Cell()) == ["attribute 'calls' of Cell", "attribute 'log' of Callable"]
    assert "calls" not in vars(Cell)  # it was set by the call, and is the parent's now
    assert Callable.calls == 0
    assert watched(lambda: Cell()()) == ["attribute 'calls' of Cell", "attribute 'log' of Callable"]


def test_methods_properties_and_static_methods_are_looked_into():
    class Cell:
        def __call__(self):
            return self.one, self.two(), self.three()

        @property
        def one(self):
            return helper()

        @staticmethod
        def two():
            return helpers_bump()

        @classmethod
        def three(cls):
            held.append(1)
            return len(held)

    held = []
    assert set(watched(Cell())) == {
        "the global 'log' of helper",
        "the global 'scale' of bump",
        "the closure variable 'held' of three",
    }


helpers_bump = helpers.bump


def test_modules_below_also_in_containers():
    class Outer(nn.Module):
        def __init__(self):
            self.one = Counting()
            self.many = [(Counting(),), {"a": Counting()}]
            self.linear = nn.Linear(2, 2)

        def forward(self):
            return self.one(), self.many[0][0](), self.many[1]["a"]()

    outer = Outer()
    assert watched(outer) == ["attribute 'count' of Counting"]
    assert (outer.one.count, outer.many[0][0].count, outer.many[1]["a"].count) == (0, 0, 0)


def test_a_cell_inside_a_wrapper_of_ours():
    class Cell(nn.RNNCell):
        steps = 0

        def forward(self, x, h):
            self.steps += 1
            return super().forward(x, h)

    cell = Cell(2, 2)
    x, h = tg.zeros((3, 2)), tg.zeros((3, 2))
    for outer in (nn.Zoneout(cell), nn.Residual(cell), nn.Zoneout(cell).for_sequence(3)):
        assert watched(outer, x, h) == ["attribute 'steps' of Cell"]


# Tensors


def test_a_tensor_that_is_replaced(backend):
    class Cell(nn.Module):
        def __init__(self):
            self.last = tg.zeros(2)

        def forward(self, x):
            self.last = self.last + x
            return self.last.numpy()

    assert watched(Cell(), tg.ones(2)) == ["attribute 'last' of Cell"]


def test_a_tensor_that_is_written(backend):
    kept = tg.zeros(2)
    weight = nn.Parameter(tg.ones(2))

    def step():
        kept.data = kept.data + 1
        weight.data = weight.data * 2
        return kept.numpy(), weight.numpy()

    assert sorted(watched(step)) == ["the closure variable 'kept' of step", "the closure variable 'weight' of step"]
    assert kept._written == 0


def test_a_tensor_that_is_written_in_place():
    kept, unstamped = tg.zeros(2), tg.zeros(3).detach()

    def step():
        kept.data += 1
        unstamped.data[1] -= 1
        return kept.numpy(), unstamped.numpy()

    assert watched(step) == ["the closure variable 'kept' of step", "the closure variable 'unstamped' of step"]


def test_a_weight_that_is_written_in_place_is_lost():
    weight = nn.Parameter(np.ones(2, np.float32))

    def step():
        weight.data *= 2

    assert lost(step) == ["the closure variable 'weight' of step"]


def test_a_written_weight_is_seen_through_a_detached_one():
    weight = nn.Parameter(np.ones(2, np.float32))
    detached = weight.detach()
    watch = Watch(lambda: detached)
    weight.data *= 2
    assert watch.changes() == ["the closure variable 'detached' of <lambda>"]


def test_whether_a_tensor_is_learned():
    weight = nn.Parameter(np.ones(2, np.float32))

    def step():
        weight.requires_grad = not weight.requires_grad

    assert watched(step) == ["the closure variable 'weight' of step"]
    assert weight.requires_grad


def test_gradients_and_what_backward_leaves_are_no_change():
    weight = nn.Parameter(np.ones(2, np.float32))
    constant = weight * 3
    watch = Watch(lambda: constant * weight)
    (constant * weight).sum().backward()
    assert weight.grad is not None
    assert watch.changes() == []


# Cost and bounds


def test_cycles():
    held = []
    held.append(held)
    record = Record()
    record.value = {"self": record, "held": held}
    cell = Holder(record, lambda held: held.value["held"].append(0))
    cell.self = cell
    assert watched(cell) == ["attribute 'value' of Record"]
    assert held == [held]


def test_arrays_beyond_the_room_are_sampled(monkeypatch):
    monkeypatch.setattr(watch_file, "ROOM", 5000)
    small, large = np.zeros(4000), np.zeros((60, 50))
    for array in (large, large.T):
        held = [small, array]  # in this order there is room for the first
        assert Watch(lambda held=held: held).changes() == []
        watch = Watch(lambda held=held: held)
        small[1234] = 1
        assert len(watch.changes()) == 1
        watch.restore()
        assert small[1234] == 0
        array += 1
        assert len(watch.changes()) == 1
        with pytest.raises(RuntimeError, match="cannot be put back"):
            watch.restore()


def test_many_small_arrays_beyond_the_room(monkeypatch):
    monkeypatch.setattr(watch_file, "ROOM", 5)
    held = [np.zeros(3) for _ in range(3)]
    watch = Watch(lambda: held)
    assert watch.changes() == []
    held[0][1] = 1
    assert len(watch.changes()) == 1
    watch.restore()
    held[2][1] = 1
    assert len(watch.changes()) == 1


def test_libraries_are_not_looked_into():
    def step():
        return np.linalg.norm(tg.ones(2).numpy()) + len(functools.reduce(max, [(1,)])) + len(itertools.__name__)

    assert len(Watch(step)._seen) < 20
    assert len(Watch(nn.LSTMCell(2, 2))._notes) == 6  # attributes, four parameters, and the default generator


def test_an_installed_package_is_looked_into_only_if_the_cell_is_of_it():
    text = "count = 0\ndef step():\n    global count\n    count += 1\n    return count"
    installed = {}
    exec(compile(text, "/lib/site-packages/cells/steps.py", "exec"), installed)
    step = installed["step"]
    assert watched(step) == watched(functools.partial(step)) == ["the global 'count' of step"]
    assert watched(lambda: step() and None) == []


def test_what_is_known_of_code_goes_with_it():
    namespace = {}
    exec("def step(x): return x", namespace)
    Watch(namespace["step"])
    key = id(namespace["step"].__code__)
    assert key in watch_file._code.found
    del namespace["step"]
    assert key not in watch_file._code.found


# The cells that there are


STANDARD = {
    "rnn": lambda **k: nn.RNNCell(2, 2, **k),
    "gru": lambda **k: nn.GRUCell(2, 2, **k),
    "lstm": lambda **k: nn.LSTMCell(2, 2, **k),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*STANDARD, *cell_cases.CELLS])
def test_cells_are_clean(name, training, backend):
    cell = (STANDARD | cell_cases.CELLS)[name]().train(training)
    x, state = tg.ones((3, 2)), cell.init_state(3)
    before = {key: value.numpy().copy() for key, value in cell.state_dict().items()}
    changes = watched(cell, x, state)
    if name == "batch norm" and training:
        assert changes == ["attribute 'mean' of _StepwiseBatchNorm", "attribute 'var' of _StepwiseBatchNorm"]
    else:
        assert changes == []
    for key, value in cell.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert watched(lambda x, state: cell(x, state), x, state) == changes


@pytest.mark.parametrize("wrap", [nn.RecurrentDropout, nn.Zoneout, nn.DropConnect, nn.LearnedState, nn.Residual])
def test_wrappers_are_clean(wrap):
    cell = wrap(nn.LSTMCell(2, 2))
    assert watched(cell, tg.ones((3, 2)), cell.init_state(3)) == []
