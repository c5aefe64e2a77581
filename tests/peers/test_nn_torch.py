"""Cells against PyTorch's: outputs, states, all gradients, Hessian-vector products, and state dicts both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tinygrad_rnn as tg
from tinygrad_rnn import nn

PAIRS = {
    "rnn": (lambda **k: nn.RNNCell(3, 4, **k), lambda **k: torch.nn.RNNCell(3, 4, **k)),
    "relu": (
        lambda **k: nn.RNNCell(3, 4, nonlinearity="relu", **k),
        lambda **k: torch.nn.RNNCell(3, 4, nonlinearity="relu", **k),
    ),
    "gru": (lambda **k: nn.GRUCell(3, 4, **k), lambda **k: torch.nn.GRUCell(3, 4, **k)),
    "lstm": (lambda **k: nn.LSTMCell(3, 4, **k), lambda **k: torch.nn.LSTMCell(3, 4, **k)),
}


def close(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-12)


def losses(cell, peer, steps=6):
    """The same weighted sum of outputs on both sides, and the inputs."""
    rng = np.random.default_rng(0)
    xs, weights = rng.standard_normal((steps, 2, 3)), rng.standard_normal((steps, 2, 4))
    ours, theirs = tg.Tensor(xs, requires_grad=True), torch.tensor(xs, requires_grad=True)
    state, peer_state, outputs, peer_outputs = cell.init_state(2), None, [], []
    for x, t in zip(tg.unstack(ours), theirs.unbind(), strict=True):
        y, state = cell(x, state)
        peer_state = peer(t, peer_state)
        outputs.append(y)
        peer_outputs.append(peer_state[0] if isinstance(peer_state, tuple) else peer_state)
    for a, b in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, peer_state)), strict=True):
        close(a, b)
    out, peer_out = tg.stack(outputs), torch.stack(peer_outputs)
    close(out, peer_out)
    return (out * out * weights).sum(), (peer_out * peer_out * torch.tensor(weights)).sum(), ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_cells(name, bias):
    make, make_peer = PAIRS[name]
    torch.manual_seed(0)
    peer = make_peer(bias=bias).double()
    cell = make(bias=bias, dtype=np.float64)
    cell.load_state_dict(peer.state_dict())
    assert list(cell.state_dict()) == list(peer.state_dict())
    ours, theirs, x, t = losses(cell, peer)
    inputs, peer_inputs = [x, *cell.parameters()], [t, *peer.parameters()]
    first = tg.grad(ours, inputs, create_graph=True)
    expected = torch.autograd.grad(theirs, peer_inputs, create_graph=True)
    for g, h in zip(first, expected, strict=True):
        close(g, h)
    vectors = [np.random.default_rng(k).standard_normal(g.shape) for k, g in enumerate(first)]
    product = tg.grad(sum((g * v).sum() for g, v in zip(first, vectors, strict=True)), inputs)
    wanted = torch.autograd.grad(
        sum((h * torch.tensor(v)).sum() for h, v in zip(expected, vectors, strict=True)), peer_inputs
    )
    for g, h in zip(product, wanted, strict=True):
        np.testing.assert_allclose(g.numpy(), h.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_our_weights_load_into_pytorch(name):
    make, make_peer = PAIRS[name]
    cell, peer = make(), make_peer()
    peer.load_state_dict({key: torch.tensor(value.numpy()) for key, value in cell.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    theirs = peer(torch.tensor(x))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    np.testing.assert_allclose(cell(tg.Tensor(x))[0].numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_layers():
    x = np.random.default_rng(0).standard_normal((5, 3))
    for ours, theirs in (
        (nn.Linear(3, 2, dtype=np.float64), torch.nn.Linear(3, 2)),
        (nn.LayerNorm(3, dtype=np.float64), torch.nn.LayerNorm(3)),
    ):
        theirs.double()
        ours.load_state_dict(theirs.state_dict())
        close(ours(tg.Tensor(x)), theirs(torch.tensor(x)))
    table = torch.nn.Embedding(7, 3, padding_idx=2)
    ours = nn.Embedding(7, 3, padding_idx=2)
    ours.load_state_dict(table.state_dict())
    close(ours([[0, 2], [6, 1]]), table(torch.tensor([[0, 2], [6, 1]])))
