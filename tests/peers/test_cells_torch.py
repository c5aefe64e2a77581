"""Cells of the literature against the same equations in PyTorch: values, gradients, second gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tinygrad_rnn as tg
from tinygrad_rnn.nest import leaves, map_nest
from tinygrad_rnn.nn.gated import ChoGRUCell, LSTM97Cell, MGUCell, MinGRUCell, NoForgetLSTMCell, PeepholeLSTMCell
from tinygrad_rnn.nn.normalized import BatchNormLSTMCell, LayerNormGRUCell, LayerNormLSTMCell
from tinygrad_rnn.nn.simple import IndRNNCell, PReLU

STEPS, BATCH, INPUT, HIDDEN = 6, 4, 3, 5
Weights = dict[str, torch.Tensor]
sigmoid, tanh = torch.sigmoid, torch.tanh


def sums(p: Weights, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p["weight_ih"], p["bias_ih"]) + F.linear(h, p["weight_hh"], p["bias_hh"])


def no_forget(p: Weights, x: torch.Tensor, state: Any) -> Any:
    h, c = state
    i, g, o = sums(p, x, h).chunk(3, dim=1)
    c = c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return h, (h, c)


def peepholes(p: Weights, x: torch.Tensor, state: Any) -> Any:
    h, c = state
    i, f, g, o = sums(p, x, h).chunk(4, dim=1)
    past = c
    c = sigmoid(f + past * p["peephole_f"]) * past + sigmoid(i + past * p["peephole_i"]) * tanh(g)
    h = sigmoid(o + c * p["peephole_o"]) * tanh(c)
    return h, (h, c)


def lstm97(truncated: bool) -> Any:
    def step(p: Weights, x: torch.Tensor, state: Any) -> Any:
        y, s = state
        net = F.linear(x, p["weight_ih"]) + F.linear(y.detach() if truncated else y, p["weight_hh"])
        net = net + torch.cat([p["bias_gates"], p["bias_cells"]])
        gates = sigmoid(net[:, :4])
        per_cell = gates.repeat_interleave(3, dim=1)  # two blocks of three cells
        s = s + per_cell[:, :6] * 2 * tanh(net[:, 4:] / 2)
        y_c = per_cell[:, 6:] * tanh(s / 2)
        return y_c, (torch.cat([gates, y_c], dim=1), s)

    return step


def cho(p: Weights, x: torch.Tensor, h: Any) -> Any:
    W, U, b = p["weight_ih"], p["weight_hh"], p["bias_ih"] + p["bias_hh"]
    k = 2 * HIDDEN
    r, z = sigmoid(F.linear(x, W[:k], b[:k]) + F.linear(h, U[:k])).chunk(2, dim=1)
    n = tanh(F.linear(x, W[k:], b[k:]) + F.linear(r * h, U[k:]))
    h = z * h + (1 - z) * n
    return h, h


def mgu(p: Weights, x: torch.Tensor, h: Any) -> Any:
    W, U, b = p["weight_ih"], p["weight_hh"], p["bias_ih"] + p["bias_hh"]
    f = sigmoid(F.linear(x, W[:HIDDEN], b[:HIDDEN]) + F.linear(h, U[:HIDDEN]))
    n = tanh(F.linear(x, W[HIDDEN:], b[HIDDEN:]) + F.linear(f * h, U[HIDDEN:]))
    h = (1 - f) * h + f * n
    return h, h


def mingru(p: Weights, x: torch.Tensor, h: Any) -> Any:
    z, n = F.linear(x, p["weight_ih"], p["bias_ih"]).chunk(2, dim=1)
    h = torch.lerp(h, n, sigmoid(z))
    return h, h


def indrnn(p: Weights, x: torch.Tensor, h: Any) -> Any:
    a = F.linear(x, p["weight_ih"], p["bias_ih"]) + p["weight_hh"] * h
    h = torch.where(a > 0, a, p["activation.weight"] * a)
    return h, h


def layer_norm_lstm(p: Weights, x: torch.Tensor, state: Any) -> Any:
    h, c = state
    size = (4 * HIDDEN,)
    gates = F.layer_norm(F.linear(x, p["weight_ih"]), size, p["norm_ih.weight"], p["bias_ih"])
    gates = gates + F.layer_norm(F.linear(h, p["weight_hh"]), size, p["norm_hh.weight"], p["bias_hh"])
    i, f, g, o = gates.chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(F.layer_norm(c, (HIDDEN,), p["norm_c.weight"], p["norm_c.bias"]))
    return h, (h, c)


def layer_norm_gru(p: Weights, x: torch.Tensor, h: Any) -> Any:
    W, U, b, d, k = p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"], 2 * HIDDEN
    gates = F.layer_norm(F.linear(x, W[:k]), (k,), p["norm_ih.weight"], b[:k])
    gates = gates + F.layer_norm(F.linear(h, U[:k]), (k,), p["norm_hh.weight"], d[:k])
    r, z = sigmoid(gates).chunk(2, dim=1)
    from_h = F.layer_norm(F.linear(h, U[k:]), (HIDDEN,), p["norm_hn.weight"], d[k:])
    n = tanh(F.layer_norm(F.linear(x, W[k:]), (HIDDEN,), p["norm_in.weight"], b[k:]) + r * from_h)
    h = (1 - z) * n + z * h
    return h, h


def batch_norm_lstm(p: Weights, x: torch.Tensor, state: Any) -> Any:
    def bn(name: str, a: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(a, None, None, p[f"{name}.weight"], p.get(f"{name}.bias"), training=True)

    h, c, step = state
    gates = bn("bn_ih", F.linear(x, p["weight_ih"])) + bn("bn_hh", F.linear(h, p["weight_hh"])) + p["bias_ih"]
    i, f, g, o = gates.chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(bn("bn_c", c))
    return h, (h, c, step + 1)


def options(**k: Any) -> dict[str, Any]:
    return {"dtype": np.float64, "generator": tg.Generator(0), **k}


CASES: dict[str, tuple[Any, Any]] = {
    "no forget gate": (lambda: NoForgetLSTMCell(INPUT, HIDDEN, **options()), no_forget),
    "peepholes": (lambda: PeepholeLSTMCell(INPUT, HIDDEN, **options()), peepholes),
    "lstm 97": (lambda: LSTM97Cell(INPUT, 2, 3, **options()), lstm97(True)),
    "lstm 97, whole gradient": (lambda: LSTM97Cell(INPUT, 2, 3, **options(truncated=False)), lstm97(False)),
    "cho": (lambda: ChoGRUCell(INPUT, HIDDEN, **options()), cho),
    "mgu": (lambda: MGUCell(INPUT, HIDDEN, **options()), mgu),
    "mingru": (lambda: MinGRUCell(INPUT, HIDDEN, **options()), mingru),
    "indrnn": (lambda: IndRNNCell(INPUT, HIDDEN, **options(activation=PReLU(HIDDEN, dtype=np.float64))), indrnn),
    "layer norm lstm": (lambda: LayerNormLSTMCell(INPUT, HIDDEN, **options()), layer_norm_lstm),
    "layer norm gru": (lambda: LayerNormGRUCell(INPUT, HIDDEN, **options()), layer_norm_gru),
    "batch norm": (lambda: BatchNormLSTMCell(INPUT, HIDDEN, **options()), batch_norm_lstm),
}


def run(step: Any, xs: Any, state: Any) -> list[Any]:
    outputs = []
    for x in xs:
        y, state = step(x, state)
        outputs.append(y)
    return [torch.stack(outputs), *(part for _, part in leaves(state))]


@pytest.mark.parametrize("name", CASES)
def test_a_sequence_to_second_order(name: str, engine: str) -> None:
    make, reference = CASES[name]
    cell = make()
    draw = np.random.default_rng(1)
    for parameter in cell.parameters():
        parameter.data = 0.6 * draw.standard_normal(parameter.shape)
    xs = draw.standard_normal((STEPS, BATCH, INPUT))
    state = map_nest(
        lambda part: draw.standard_normal(part.shape) if part.dtype.kind == "f" else part.numpy(),
        cell.init_state(BATCH),
    )

    ours_xs = tg.Tensor(xs, requires_grad=True)
    ours_state = map_nest(lambda part: tg.Tensor(part, requires_grad=part.dtype.kind == "f"), state)
    ys, last = tg.scan(cell, ours_xs, ours_state)
    ours = [ys, *(part for _, part in leaves(last))]
    weights = {key: torch.tensor(value.numpy(), requires_grad=True) for key, value in cell.named_parameters()}
    theirs_xs = torch.tensor(xs, requires_grad=True)
    theirs_state = map_nest(lambda part: torch.tensor(part, requires_grad=part.dtype.kind == "f"), state)
    theirs = run(lambda x, s: reference(weights, x, s), theirs_xs, theirs_state)

    total, total_t = tg.zeros((), np.float64), torch.zeros((), dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-11, atol=1e-12)
        if a.dtype.kind == "f":
            cotangent = draw.standard_normal(a.shape)
            total = total + (a * tg.Tensor(cotangent)).sum()
            total_t = total_t + (b * torch.tensor(cotangent)).sum()

    sources = [ours_xs, *(s for _, s in leaves(ours_state) if s.requires_grad), *cell.parameters()]
    sources_t = [theirs_xs, *(s for _, s in leaves(theirs_state) if s.requires_grad), *weights.values()]
    unused = {"allow_unused": True}  # the truncated gradient does not see the first y
    first = tg.grad(total, sources, create_graph=True, **unused)
    first_t = torch.autograd.grad(total_t, sources_t, create_graph=True, **unused)
    slope, slope_t = tg.zeros((), np.float64), torch.zeros((), dtype=torch.float64)
    for a, b in zip(first, first_t, strict=True):
        if b is None:
            assert a is None or not a.numpy().any()
        else:
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-9, atol=1e-11)
            direction = draw.standard_normal(a.shape)
            slope = slope + (a * tg.Tensor(direction)).sum()
            slope_t = slope_t + (b * torch.tensor(direction)).sum()
    second = tg.grad(slope, sources, **unused)
    for a, b in zip(second, torch.autograd.grad(slope_t, sources_t, **unused), strict=True):
        ours_second = 0.0 if a is None else a.numpy()
        theirs_second = torch.zeros(()) if b is None else b
        np.testing.assert_allclose(ours_second, theirs_second.numpy(), rtol=1e-8, atol=1e-9)


def test_kept_statistics_are_those_of_batch_norm() -> None:
    cell = BatchNormLSTMCell(INPUT, HIDDEN, max_steps=2, **options())
    x = np.random.default_rng(0).standard_normal((BATCH, INPUT))
    cell(tg.Tensor(x))
    norm = torch.nn.BatchNorm1d(4 * HIDDEN, dtype=torch.float64)
    norm(F.linear(torch.tensor(x), torch.tensor(cell.weight_ih.numpy())))
    np.testing.assert_allclose(cell.bn_ih.mean.numpy()[0], norm.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(cell.bn_ih.var.numpy()[0], norm.running_var.numpy(), rtol=1e-12)
    assert not cell.bn_ih.mean.numpy()[1].any()
