"""`compile_step` beside the cell itself, step by step, by each engine."""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from random import Random

import numpy as np
import pytest
from cell_cases import BATCH, CELLS, HIDDEN, INPUT
from helpers import on_backend
from interpreted import interpreted
from random_steps import Runner
from step_drawing import drawn
from streams import F64, STEPS, follows, inputs, of_one_step, same, settled, values

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nest import leaves, map_nest
from tinygrad_rnn.streaming import compile_step

Pair = namedtuple("Pair", "fast slow")
MORE_CELLS = {
    "rnn": lambda **k: nn.RNNCell(INPUT, HIDDEN, **k),
    "rnn relu": lambda **k: nn.RNNCell(INPUT, HIDDEN, nonlinearity="relu", **k),
    "gru": lambda **k: nn.GRUCell(INPUT, HIDDEN, **k),
    "lstm": lambda **k: nn.LSTMCell(INPUT, HIDDEN, **k),
    "lstm with projection": lambda **k: nn.LSTMCell(INPUT, 3, proj_size=2, **k),
    "lstm without biases": lambda **k: nn.LSTMCell(INPUT, HIDDEN, bias=False, **k),
    "zoneout": lambda **k: nn.Zoneout(nn.LSTMCell(INPUT, HIDDEN, **k), (0.3, 0.1)),
    "recurrent dropout": lambda **k: nn.RecurrentDropout(nn.GRUCell(INPUT, HIDDEN, **k)),
    "drop connect": lambda **k: nn.DropConnect(nn.LSTMCell(INPUT, HIDDEN, **k)),
    "learned state": lambda **k: nn.LearnedState(nn.LSTMCell(INPUT, HIDDEN, **k)),
    "residual": lambda **k: nn.Residual(nn.GRUCell(INPUT, INPUT, **k)),
}


# Values


@pytest.mark.parametrize("name", [*CELLS, *MORE_CELLS])
def test_cells(name, backend, engine):
    cell = settled((CELLS | MORE_CELLS)[name](**F64))
    start = cell.init_state(BATCH)
    step = compile_step(cell, inputs()[0])
    assert step.engine == engine
    follows(step, cell, inputs(), start)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "projected"])
def test_layers(kind, layers, backend, engine):
    options = {"proj_size": 1} if kind == "projected" else {}
    layer = settled(getattr(nn, "LSTM" if kind == "projected" else kind)(INPUT, HIDDEN, layers, **options, **F64))
    start = map_nest(lambda part: on_backend(values(*part.shape)), layer.init_state(BATCH))
    step = compile_step(layer, inputs()[0], start)
    same(step.state, start)
    with tg.use_engine("unrolled"):
        follows(step, lambda x, s: of_one_step(layer, x, s), inputs(), start)


@pytest.mark.parametrize("stacked", [True, False])
def test_stacks_of_other_cells(stacked, backend, engine):
    made = [nn.GRUCell(INPUT, HIDDEN, **F64), nn.Zoneout(nn.LSTMCell(HIDDEN, HIDDEN, **F64))]
    layer = settled(nn.Recurrent(made if stacked else made[0], residual=stacked, dropout=0.5))
    step = compile_step(layer, inputs()[0])
    with tg.use_engine("unrolled"):
        follows(step, lambda x, s: of_one_step(layer, x, s), inputs(), layer.init_state(BATCH))


def swapping(x, s):
    return s[0] * x, (s[1], s[2] + x, s[0])


ODD = {
    "the state before as output": (lambda x, s: (s, tg.tanh(x * s)), 1),
    "the state before and after": (lambda x, s: ((s, s + x, s), s + x), 1),
    "an output that is the input": (lambda x, s: ((x, x[:, :1]), s * x), 1),
    "a state that is the input": (lambda x, s: (s * x, x), 1),
    "a state that stays": (lambda x, s: (x + s, s), 1),
    "states that swap": (swapping, 3),
    "an output that is a constant": (lambda x, s: ((tg.zeros_like(x) + 3, tg.zeros((2,))), s * x), 1),
    "a state of parts": (lambda x, s: (s[:, 1:], tg.concatenate([s[:, 1:], x[:, :1]], 1)), 1),
    "a mean over rows": (lambda x, s: (s - s.mean(0), s + x.sum(0, keepdims=True)), 1),
}


@pytest.mark.parametrize("name", ODD)
def test_functions(name, backend, engine):
    cell, parts = ODD[name]
    start = tuple([on_backend(values(BATCH, INPUT, seed=9 + k)) for k in range(parts)])
    start = start if parts > 1 else start[0]
    follows(compile_step(cell, inputs()[0], start), cell, inputs(), start)


def test_nests(backend, engine):
    def cell(x, s):
        fast = tg.tanh(x["a"] + s["p"].fast * x["b"][0])
        return [fast, {"sum": fast + s["p"].slow}], {"p": Pair(fast, s["p"].slow + 1), "t": s["t"] + 1}

    def nested(x):
        return {"a": x, "b": (x * 2,)}

    start = {"p": Pair(*inputs(BATCH, INPUT)[:2]), "t": on_backend(np.zeros((), np.int64))}
    step = compile_step(cell, nested(inputs()[0]), start)
    last = follows(step, cell, [nested(x) for x in inputs()], start)
    assert type(step.state["p"]) is Pair
    assert step.state["t"].item() == last["t"].item() == STEPS


def test_inputs_without_axes(backend, engine):
    start = on_backend(values(2))
    follows(compile_step(lambda x, s: (s * x, s + x), inputs()[0][0, 0], start), lambda x, s: (s * x, s + x), [
        x[0, 0] for x in inputs()
    ], start)  # fmt: skip


def test_integers(backend, engine):
    table = settled(nn.Embedding(4, INPUT, dtype=np.float64))
    cell = settled(nn.GRUCell(INPUT, HIDDEN, **F64))

    def model(x, s):
        return cell(table(x), s)

    xs = [on_backend(np.array([t % 4, 3, (t + 1) % 4])) for t in range(STEPS)]
    start = cell.init_state(BATCH)
    step = compile_step(model, xs[0], start)
    state = follows(step, model, xs, start)
    with pytest.raises(IndexError):
        step(on_backend(np.array([0, 4, 1])))
    same(step.state, state)
    follows(step, model, xs, state)


def test_arrays_and_tensors_of_any_kind_are_inputs(engine):
    cell = nn.LSTMCell(INPUT, HIDDEN, generator=tg.Generator(0))
    x = np.float32([[1, 2], [3, 4], [5, 6]])
    step = compile_step(cell, x)
    expected = cell(tg.Tensor(x), cell.init_state(3))[0].numpy()
    for form in (x, x.T.copy().T, tg.Tensor(x), tg.Tensor(x, requires_grad=True), nn.Parameter(x)):
        y = step(form)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5)
        assert not y.requires_grad
        step.reset()


# The state


def test_a_state_that_is_passed_leaves_the_one_inside(backend, engine):
    for module in (nn.LSTMCell(INPUT, HIDDEN, **F64), nn.LSTM(INPUT, HIDDEN, 2, **F64)):
        cell = settled(module)
        reference = cell if isinstance(cell, nn.LSTMCell) else partial(of_one_step, cell)
        step = compile_step(cell, inputs()[0])
        with tg.use_engine("unrolled"):
            inside = follows(step, reference, inputs(), cell.init_state(BATCH))
            state = map_nest(lambda part: on_backend(values(*part.shape, seed=8)), inside)
            for x in inputs():
                before = state
                y, state = step(x, before)
                same((y, state), reference(x, before))
                same(step.state, inside)
            follows(step, reference, inputs(), inside)


def test_results_are_the_callers_to_keep(engine):
    cell = settled(nn.LSTM(INPUT, HIDDEN, **F64))
    step = compile_step(cell, inputs()[0])
    kept = [step(inputs()[0]), step.state, *step(inputs()[1], step.state)]
    arrays = [part.numpy() for _, part in leaves(kept)]
    copies = [array.copy() for array in arrays]
    for x in inputs():
        step(x)
        step(x, step.state)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    state = step.state
    for array in [part.numpy() for _, part in leaves(step.state)]:
        array[...] = 7
    same(step.state, state)


def test_set_and_reset(backend, engine):
    cell = settled(nn.LearnedState(nn.GRUCell(INPUT, HIDDEN, **F64)))
    step = compile_step(cell, inputs()[0])
    follows(step, cell, inputs(), cell.init_state(BATCH))
    state = on_backend(values(BATCH, HIDDEN, seed=5))
    step.state = state
    follows(step, cell, inputs(), state)
    cell.start_0.data = on_backend(values(HIDDEN, seed=6)).data
    step.reset()
    follows(step, cell, inputs(), cell.init_state(BATCH).detach())
    given = compile_step(cell, inputs()[0], state)
    expected = on_backend(state.numpy().copy())
    given(inputs()[0])
    state.data[...] = 9
    given.reset()
    same(given.state, expected)


# Compiled


def compiled_beside_the_cell(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path))
    x = np.random.default_rng(0).standard_normal((STEPS, 2, 9)).astype(np.float32)
    step = compile_step(module, x[0], engine="numba")
    for _ in range(2):
        state = step.state
        for one in x:
            y, state = of_one_step(module, tg.Tensor(one), state)
            np.testing.assert_allclose(step(one).numpy(), y.numpy(), rtol=1e-4, atol=1e-6)
            for (_, a), (_, b) in zip(leaves(step(one, state)[1]), leaves(step.state), strict=True):
                assert a.shape == b.shape
        for (_, a), (_, b) in zip(leaves(step.state), leaves(state), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)
        for parameter in module.parameters():
            parameter.data = parameter.data * np.float32(0.9)


def test_a_compiled_lstm(tmp_path, monkeypatch):
    compiled_beside_the_cell(nn.LSTM(9, 17, generator=tg.Generator(0)), tmp_path, monkeypatch)


def test_a_compiled_stack(tmp_path, monkeypatch):
    compiled_beside_the_cell(nn.GRU(9, 17, 2, generator=tg.Generator(0)), tmp_path, monkeypatch)


# Random cells


def test_random_cells(monkeypatch):
    scan, counts = tg.scan, {"array": 0, "numba": 0}

    def beside(cell, xs, state=None, reverse=False, lengths=None, reset=None, expose=(), engine="auto"):
        """What `scan` gives, with which that of a compiled step is compared if it can take the same steps."""
        ys, last, *rest = scan(cell, xs, state, reverse, lengths, reset, expose, engine="unrolled")
        times = range(leaves(xs)[0][1].shape[0])
        for name in counts if lengths is None and reset is None else ():
            try:
                step = compile_step(cell, map_nest(lambda x: x[0].detach(), xs), state, name)
            except TypeError as error:  # the engine has no code for it, or it draws
                assert "cannot run this cell" in str(error) or "draws random" in str(error)  # noqa: PT017
                continue
            for t in reversed(times) if reverse else times:
                same(step(map_nest(lambda x, t=t: x[t].detach(), xs)), map_nest(lambda y, t=t: y[t].detach(), ys))
            same(step.state, tg.detach(last))
            counts[name] += 1
        return ys, last, *rest

    monkeypatch.setattr(tg, "scan", beside)
    with interpreted():
        for seed in range(80):
            Runner(drawn(Random(seed))).run("unrolled")
    assert counts["array"] > 20
    assert counts["numba"] > 5
