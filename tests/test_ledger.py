"""The gradient-through-time ledger against other ways to the same numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.recurrence import _Run

T, B, D, H = 5, 3, 2, 3


def draw(*shape, seed=0):
    return on_backend(np.random.default_rng(seed).standard_normal(shape))


def layers():
    return {
        "rnn": nn.RNN(D, H, dtype=np.float64, generator=tg.Generator(1)),
        "gru": nn.GRU(D, H, dtype=np.float64, generator=tg.Generator(1)),
        "lstm": nn.LSTM(D, H, dtype=np.float64, generator=tg.Generator(1)),
    }


def unrolled(layer, xs):
    """The loop by hand, with weights of their own and a held state at each step."""
    weights, states = [], []
    (cell,) = next(layer._layers())
    original, state = dict(cell.named_parameters()), cell.init_state(B)
    for t in range(T):
        own = {name: tg.Tensor(p.data.copy(), requires_grad=True) for name, p in original.items()}
        for name, weight in own.items():
            vars(cell)[name] = weight
        _, state = cell(xs[t], state)
        weights.append(own)
        states.append(state if isinstance(state, tuple) else (state,))
    return weights, states


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_against_weights_of_each_steps_own(name, backend, engine):
    layer, xs = layers()[name], draw(T, B, D)
    ledger = tg.gradient_ledger(lambda: (layer(xs)[0][-1] * layer(xs)[0][-1]).sum() / 2)
    assert len(ledger.runs) == 2
    ledger = tg.gradient_ledger(lambda: (layer(xs)[0] * draw(T, B, H, seed=2)).sum(), jacobian=True)
    (run,) = ledger.runs
    weights, states = unrolled(layers()[name], xs)
    heads = tg.stack([state[0] for state in states])
    loss = (heads * draw(T, B, H, seed=2)).sum()
    np.testing.assert_allclose(ledger.loss, loss.item(), rtol=1e-12)
    for i, part in enumerate(["h", "c"][: len(states[0])]):
        found = tg.grad(loss, [state[i] for state in states], retain_graph=True)
        np.testing.assert_allclose(run.state[part], [np.linalg.norm(g.numpy()) for g in found], rtol=1e-10)
    for key, share in run.weights.items():
        attribute = key.split(".")[1].removesuffix("_l0")
        found = tg.grad(loss, [own[attribute] for own in weights], retain_graph=True)
        np.testing.assert_allclose(share, [np.linalg.norm(g.numpy()) for g in found], rtol=1e-10)
    assert len(run.weights) == 4
    squares = np.zeros(T)
    for j in range(H):
        unit = on_backend(np.tile(np.eye(H)[j], (B, 1)))
        found = tg.grad(states[-1][0], [s[0] for s in states], unit, retain_graph=True, allow_unused=True)
        squares += [0.0 if g is None else (g.numpy() ** 2).sum() for g in found]
    np.testing.assert_allclose(run.jacobian, np.sqrt(squares / B), rtol=1e-10)


def test_shares_add_up_and_gradients_are_left_alone(backend, engine):
    layer, xs = layers()["lstm"], draw(T, B, D)
    ledger = tg.gradient_ledger(lambda: layer(xs)[0].sum())
    assert all(parameter.grad is None for parameter in layer.parameters())
    layer(xs)[0].sum().backward()
    total = np.linalg.norm(layer.bias_ih_l0.grad.numpy())
    share = ledger.runs[0].weights["LSTM.bias_ih_l0"]
    assert share.max() < total <= share.sum()


def test_probes_come_near_the_exact_jacobian(backend, engine):
    xs, f = draw(6, 200, D), {}
    for hidden in (64, 65):  # the most that is exact, and the least that is not
        layer = nn.RNN(D, hidden, dtype=np.float64, generator=tg.Generator(1))
        found = tg.gradient_ledger(lambda layer=layer: layer(xs)[0][-1].sum(), jacobian=True, generator=tg.Generator(5))
        f[hidden] = found.runs[0].jacobian / np.sqrt(hidden)
    np.testing.assert_allclose(f[64], f[65], rtol=0.2)
    assert f[64][-1] == 1.0


def test_stacks_directions_lengths_and_gates(backend, engine):
    cells = [nn.LSTMCell(D, H, dtype=np.float64), nn.GRUCell(2 * H, 2, dtype=np.float64)]
    others = [nn.LSTMCell(D, H, dtype=np.float64), nn.GRUCell(2 * H, 2, dtype=np.float64)]
    layer, xs = nn.Recurrent(cells, others), draw(T, B, D)
    ledger = tg.gradient_ledger(lambda: layer(xs, lengths=[3, 2, 1])[0].sum(), gates=("f", "z"))
    assert [list(run.saturation) for run in ledger.runs] == [["f"], ["f"], ["z"], ["z"]]
    for run in ledger.runs:
        for values in run.columns().values():
            assert np.isfinite(values[:3]).all()
            assert np.isnan(values[3:]).all()
    table = str(ledger)
    assert table.count("\n") == 4 * (T + 1) + 3 + 3
    assert "|dL/dc|" in table
    assert "f saturated" in table


def test_saturation_counts_the_extremes(backend, engine):
    layer, xs = layers()["lstm"], draw(T, B, D) * 20
    _, _, [gates] = layer(xs, expose=("o",))
    values = gates["o"].numpy()
    run = tg.gradient_ledger(lambda: layer(xs)[0].sum(), gates=("o",)).runs[0]
    expected = ((values < 0.1) | (values > 0.9)).mean(axis=(1, 2))
    assert 0.2 < expected.mean() < 1
    np.testing.assert_allclose(run.saturation["o"], expected)


def test_a_function_of_ones_own(backend, engine):
    w = tg.Tensor(tg.get_backend().asarray(np.array([[0.5]])), requires_grad=True)

    def cell(x, h):
        h = h @ w + x
        return h, h

    ledger = tg.gradient_ledger(lambda: tg.scan(cell, draw(T, 1, 1), on_backend([[0.0]]))[0][-1].sum(), jacobian=True)
    np.testing.assert_allclose(ledger.runs[0].state["h"], 0.5 ** np.arange(T)[::-1])
    np.testing.assert_allclose(ledger.runs[0].jacobian, 0.5 ** np.arange(T)[::-1])
    assert list(ledger.runs[0].weights) == ["leaf 0 of (1, 1)"]


def test_no_engine_falls_back(engine, monkeypatch):
    layer, xs = nn.LSTM(D, H, 2, bidirectional=True, dtype=np.float64), draw(T, B, D)
    if engine != "unrolled":
        monkeypatch.setattr(_Run, "unrolled", lambda self: pytest.fail("the plain loop ran"))
    f = partial(layer, xs, lengths=[5, 3, 0])
    ledger = tg.gradient_ledger(lambda: f()[0].sum(), gates=("o",), jacobian=True)
    assert [len(run.columns()) for run in ledger.runs] == [8] * 4


def test_a_layer_without_a_gradient_beside_one_with(backend, engine):
    frozen, learned = layers()["gru"], layers()["rnn"]
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    xs = draw(T, B, D)
    with tg.use_engine(engine):
        ledger = tg.gradient_ledger(lambda: tg.sum(frozen(xs)[0] * learned(xs)[0]), jacobian=True)
    without, with_one = ledger.runs
    assert (without.state, without.weights, without.jacobian) == ({}, {}, None)
    assert np.isfinite(with_one.jacobian).all()


def test_refusals(backend):
    x = tg.Tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="no recurrent layer and no scan"):
        tg.gradient_ledger(lambda: x.sum())
    layer = layers()["gru"]
    with pytest.raises(ValueError, match="needs no gradient"):
        tg.gradient_ledger(lambda: layer(draw(T, B, D))[0].sum().detach())


def test_the_picture_shows_every_number(tmp_path):
    layer, xs = nn.LSTM(D, H, 2, dtype=np.float64), draw(T, B, D)
    ledger = tg.gradient_ledger(lambda: layer(xs)[0].sum(), gates=("f",), jacobian=True)
    figure = tg.viz.plot_ledger(ledger)
    lines = {line.get_label(): line.get_ydata() for axis in figure.axes[:3] for line in axis.lines}
    run = ledger.runs[0]
    np.testing.assert_array_equal(lines["|dL/dc|"], run.state["c"])
    np.testing.assert_array_equal(lines["|dh_T/dh_t|"], run.jacobian)
    np.testing.assert_array_equal(lines["f"], run.saturation["f"])
    assert run.weights.keys() <= lines.keys()
    assert len(figure.axes) == 6
    assert figure.axes[0].get_yscale() == "log"
    figure.savefig(tmp_path / "ledger.png")
    assert (tmp_path / "ledger.png").stat().st_size > 10_000


def test_the_picture_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"tinygrad_rnn\[examples\]"):
        tg.viz.plot_ledger(tg.gradient_ledger(lambda: nn.RNN(2, 2)(tg.ones((2, 1, 2)))[0].sum()))
