"""`compile_step`: what it sees when a cell changes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from cell_cases import BATCH, CELLS, HIDDEN, INPUT
from helpers import on_backend
from streams import F64, follows, inputs, of_one_step, same, settled, values

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.compiler import lanes
from tinygrad_rnn.nest import leaves, map_nest
from tinygrad_rnn.streaming import compile_step

# What changes


def optimized(cell):
    tg.manual_seed(0)
    optimizer = tg.optim.SGD(cell.parameters(), lr=0.5)
    cell(inputs()[0])[0].sum().backward()
    optimizer.step()


def loaded(cell):
    cell.load_state_dict({name: parameter.numpy() * 0.5 for name, parameter in cell.named_parameters()})


def replaced(cell):
    cell.weight_hh = nn.Parameter(cell.weight_hh.detach() * -1)


def assigned(cell):
    cell.bias_ih.data = cell.bias_ih.data + 1


def activation(cell):
    cell.activation = tg.sin


CHANGES = [optimized, loaded, replaced, assigned, activation]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_and_the_state_stays(change, backend, engine):
    cell = settled(nn.LSTMCell(INPUT, HIDDEN, **F64))
    step = compile_step(cell, inputs()[0])
    state = follows(step, cell, inputs(), cell.init_state(BATCH))
    y, _ = step(inputs()[0], state)
    change(cell)
    expected = cell(inputs()[0], state)
    assert not np.allclose(y.numpy(), expected[0].numpy())
    same(step(inputs()[0], step.state), map_nest(tg.Tensor.detach, expected))
    follows(step, lambda x, s: map_nest(tg.Tensor.detach, cell(x, s)), inputs(), step.state)


@pytest.mark.parametrize("change", ["weight", "replaced", "deeper"])
def test_a_change_of_a_layer_is_seen(change, backend, engine):
    layer = settled(nn.GRU(INPUT, HIDDEN, 2, **F64))
    if change == "deeper":
        layer = nn.Recurrent([settled(nn.GRUCell(INPUT, HIDDEN, **F64)), settled(nn.GRUCell(HIDDEN, HIDDEN, **F64))])
    step = compile_step(layer, inputs()[0])
    step(inputs()[0])
    if change == "weight":
        layer.weight_ih_l1.data = layer.weight_ih_l1.data * 2
    elif change == "replaced":
        layer.weight_hh_l1 = nn.Parameter(layer.weight_hh_l1.detach() * 2)
    else:
        layer.cell_1 = settled(nn.GRUCell(HIDDEN, HIDDEN, **F64, generator=tg.Generator(5)))
        layer.cell_1.bias_ih.data = layer.cell_1.bias_ih.data + 1
    with tg.use_engine("unrolled"):
        detached = lambda x, s: map_nest(tg.Tensor.detach, of_one_step(layer, x, s))  # noqa: E731
        follows(step, detached, inputs(), step.state)


def test_changes_of_what_a_function_reaches(backend, engine):
    weight = on_backend(values(INPUT))
    held = {"scale": on_backend(values(INPUT, seed=1)), "names": ["a"]}
    listed = [on_backend(values(INPUT, seed=2))]

    def cell(x, s):
        s = tg.tanh(s * weight + x * held["scale"] + sum(listed))
        return s, s

    start = on_backend(values(BATCH, INPUT))
    step = compile_step(cell, inputs()[0], start)
    state = follows(step, cell, inputs(), start)
    weight.data = weight.data * 2
    state = follows(step, cell, inputs(), state)
    weight = on_backend(values(INPUT, seed=4))
    state = follows(step, cell, inputs(), state)
    held["scale"] = weight
    state = follows(step, cell, inputs(), state)
    listed.append(weight)
    state = follows(step, cell, inputs(), state)
    listed.pop()
    follows(step, cell, inputs(), state)


def test_a_mode_that_changes_is_seen(engine):
    class Moded(nn.Module):
        def forward(self, x, s):
            return (x + s if self.training else x - s), s + x

    cell, start = Moded(), tg.Tensor(values(BATCH, INPUT))
    step = compile_step(cell, inputs()[0], start)
    assert "training" not in vars(cell)
    state = follows(step, cell, inputs(), start)
    follows(step, cell.eval(), inputs(), state)


def test_raw_writes_need_a_refresh(engine):
    cell = settled(nn.GRUCell(INPUT, HIDDEN, **F64))
    step = compile_step(cell, inputs()[0])
    state = follows(step, cell, inputs(), cell.init_state(BATCH))
    cell.weight_hh.data[...] *= 2
    step.refresh()
    follows(step, cell, inputs(), state)


def test_without_a_change_nothing_is_recorded_again(monkeypatch):
    cell = settled(nn.LSTM(INPUT, HIDDEN, 2, **F64))
    step = compile_step(cell, inputs()[0])
    recordings = []
    monkeypatch.setattr(type(step), "refresh", lambda self: recordings.append(self))
    optimizer = tg.optim.SGD(cell.parameters(), lr=0.5)
    for x in inputs():
        of_one_step(cell, x, step.state)[0].sum().backward()
        optimizer.zero_grad()
        step(x)
    assert not recordings
    optimizer.step()
    of_one_step(cell, inputs()[0], None)[0].sum().backward()
    optimizer.step()
    step(inputs()[0])
    assert recordings == [step]


def test_the_same_loop_serves_new_weights(monkeypatch):
    cell = settled(nn.LSTMCell(INPUT, HIDDEN, **F64))
    step = compile_step(cell, inputs()[0])
    monkeypatch.setattr(lanes, "Split", None)  # to part a step again would fail
    assigned(cell)
    follows(step, cell, inputs(), step.state)


# What is refused

DRAWING = {
    "zoneout": lambda generator: nn.Zoneout(nn.GRUCell(INPUT, HIDDEN, **F64), 0.5, generator),
    "recurrent dropout": lambda generator: nn.RecurrentDropout(nn.GRUCell(INPUT, HIDDEN, **F64), 0.5, generator),
    "drop connect": lambda generator: nn.DropConnect(nn.GRUCell(INPUT, HIDDEN, **F64), 0.5, generator),
    "layer": lambda generator: nn.LSTM(INPUT, HIDDEN, 2, dropout=0.5, generator=generator, **F64),
}


@pytest.mark.parametrize("name", DRAWING)
def test_random_draws_are_refused(name, engine):
    generator = tg.Generator(1)
    cell = DRAWING[name](generator)
    before = generator.counter
    with pytest.raises(TypeError, match=r"cell: it draws random numbers.* call its eval\(\) first"):
        compile_step(cell, inputs()[0])(inputs()[0])
    assert generator.counter == before
    step = compile_step(cell.eval(), inputs()[0])
    step(inputs()[0])
    state = step.state
    cell.train()
    for _ in range(2):  # it goes on being refused
        with pytest.raises(TypeError, match="draws random numbers"):
            step(inputs()[0])
    same(step.state, state)
    assert generator.counter == before
    cell.eval()
    step(inputs()[0])


def test_statistics_are_refused(engine):
    with pytest.raises(TypeError, match=r"cell: it keeps statistics.* call its eval\(\) first"):
        compile_step(CELLS["batch norm"](**F64), inputs()[0])(inputs()[0])


WRONG = {
    "x of another batch": (
        lambda step, s: step(values(4, INPUT)),
        ValueError,
        r"x must have shape \(3, 2\).* got \(4, 2\)",
    ),
    "x that would broadcast": (lambda step, s: step(values(1, INPUT)), ValueError, r"x must have shape"),
    "x of another dtype": (
        lambda step, s: step(np.float32(values(3, INPUT))),
        TypeError,
        "x must be float64.* got float32",
    ),
    "x in a tuple": (lambda step, s: step((values(3, INPUT),)), TypeError, "x: the nests differ"),
    "x that is no number": (lambda step, s: step("ab"), TypeError, "x: "),
    "a state of one part": (lambda step, s: step(values(3, INPUT), s[0]), TypeError, "state: the nests differ"),
    "a list": (lambda step, s: step(values(3, INPUT), list(s)), TypeError, "state: the nests differ"),
    "a state of another size": (
        lambda step, s: step(values(3, INPUT), (s[0], s[1][:, :1])),
        ValueError,
        r"state\[1\] must have shape \(3, 2\).* got \(3, 1\)",
    ),
    "a state of another dtype": (
        lambda step, s: step(values(3, INPUT), (s[0].astype(np.float32), s[1])),
        TypeError,
        r"state\[0\] must be float64",
    ),
    "a state to be set": (
        lambda step, s: setattr(step, "state", (s[0], s[1][:1])),
        ValueError,
        r"state\[1\] must have",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named_and_change_nothing(name, engine):
    call, error, message = WRONG[name]
    cell = settled(nn.LSTMCell(INPUT, HIDDEN, **F64))
    step = compile_step(cell, inputs()[0])
    state = follows(step, cell, inputs(), cell.init_state(BATCH))
    with pytest.raises(error, match=message):
        call(step, state)
    follows(step, cell, inputs(), state)


def test_arguments_that_cannot_be_compiled():
    x = inputs()[0]
    with pytest.raises(ValueError, match="two directions"):
        compile_step(nn.LSTM(INPUT, HIDDEN, bidirectional=True, **F64), x)
    with pytest.raises(TypeError, match="state: the cell has no init_state"):
        compile_step(lambda x, s: (x, s), x)
    with pytest.raises(ValueError, match="engine must be one of auto, numba, array, unrolled, got 'fast'"):
        compile_step(nn.LSTMCell(INPUT, HIDDEN, **F64), x, engine="fast")
    with pytest.raises(TypeError, match="x: an empty nest"):
        compile_step(nn.LSTMCell(INPUT, HIDDEN, **F64), ())
    with pytest.raises(ValueError, match=r"compile_step got state\[0\] of shape"):
        compile_step(nn.LSTM(INPUT, HIDDEN, **F64), x, (tg.zeros((1, 1, 1)), tg.zeros((1, 1, 1))))
    with pytest.raises(ValueError, match="takes x of shape"):
        compile_step(nn.LSTMCell(INPUT, HIDDEN, **F64), values(3, 7))
    with pytest.raises(ValueError, match="the cell returned a state of shape"):
        compile_step(lambda x, s: (x, s[:1]), x, x)


def test_a_cell_that_looks_at_values_is_called_itself(backend):
    calls = []

    class Deciding(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(on_backend(values(INPUT)))

        def forward(self, x, s):
            calls.append(1)
            s = s + x * self.weight if float(s.sum()) > 0 else s - x
            return s, s

    cell, start = Deciding(), on_backend(values(BATCH, INPUT))
    with pytest.raises(TypeError, match="engine 'array' cannot run this cell: the cell makes a float"):
        compile_step(cell, inputs()[0], start, engine="array")
    why = "cannot run this cell by an engine.*: the cell makes a float"
    with tg.use_engine("auto"), pytest.warns(UserWarning, match=why) as warned:
        step = compile_step(cell, inputs()[0], start)
    with tg.use_engine("auto"), pytest.warns(UserWarning, match=why) as again:
        step.refresh()
    assert step.engine == "unrolled"
    assert [(one.filename, one.lineno - warned[0].lineno) for one in [*warned, *again]] == [
        (__file__, 0),
        (__file__, 2),
    ]
    detached = lambda x, s: map_nest(tg.Tensor.detach, cell(x, s))  # noqa: E731
    state = follows(step, detached, inputs(), start)
    cell.weight = nn.Parameter(cell.weight.detach() * 2)
    follows(step, detached, inputs(), state)
    assert calls


def test_a_counting_cell_is_called_itself():
    counted = []

    def cell(x, s):
        counted.append(x)
        return x * len(counted), s + 1

    with tg.use_engine("auto"), pytest.warns(UserWarning, match="changes something of its own"):
        step = compile_step(cell, inputs()[0], inputs()[1])
    counted.clear()
    for t, x in enumerate(inputs()):
        np.testing.assert_allclose(step(x).numpy(), x.numpy() * (t + 1))


def test_a_recorded_cell_may_not_call_a_compiled_step(engine):
    inner = compile_step(lambda x, s: (s, s + x), np.ones(2), np.zeros(2))

    def cell(x, s):
        return x + inner(np.ones(2)), s

    xs, start = tg.Tensor(np.zeros((4, 2))), tg.Tensor(np.zeros(2))
    with tg.use_engine("unrolled"):
        expected = [[t, t] for t in range(4)]
        assert tg.scan(cell, xs, start)[0].numpy().tolist() == expected
    inner.reset()
    if engine != "unrolled":
        with pytest.raises(TypeError, match="calls a compiled step"):
            tg.scan(cell, xs, start)


def test_no_graph_is_made_and_no_gradient_flows(engine):
    cell = settled(nn.LSTM(INPUT, HIDDEN, **F64))
    start = map_nest(lambda part: tg.Tensor(part.numpy(), requires_grad=True), cell.init_state(BATCH))
    step = compile_step(cell, inputs()[0], start)
    x = tg.Tensor(values(BATCH, INPUT), requires_grad=True)
    for _, part in leaves([step(x), step(x, start), step.state]):
        assert part._node is None
        assert not part.requires_grad
