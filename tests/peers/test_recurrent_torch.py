"""Recurrent layers beside PyTorch's: names, outputs, states and all gradients, in every combination of options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tinygrad_rnn as tg
from tinygrad_rnn import nn

GROUPS, CONFIGURATIONS = 20, 500


def draw(rng):
    """A kind of layer, its arguments, and the layout of its input."""
    kind = rng.choice(["RNN", "GRU", "LSTM"])
    options = {
        "num_layers": int(rng.integers(1, 4)),
        "bias": bool(rng.integers(2)),
        "batch_first": bool(rng.integers(2)),
        "bidirectional": bool(rng.integers(2)),
    }
    inputs, hidden = int(rng.integers(1, 6)), int(rng.integers(2, 6))
    if kind == "RNN":
        options["nonlinearity"] = str(rng.choice(["tanh", "relu"]))
    if kind == "LSTM" and rng.integers(2):
        options["proj_size"] = int(rng.integers(1, hidden))
    return kind, inputs, hidden, options


def states(kind, shape_h, shape_c, rng):
    h, c = rng.standard_normal(shape_h), rng.standard_normal(shape_c)
    return (h, c) if kind == "LSTM" else h


def as_torch(nest):
    if isinstance(nest, tuple):
        return tuple(map(as_torch, nest))
    return torch.tensor(nest, requires_grad=True)


def as_ours(nest):
    return tuple(map(as_ours, nest)) if isinstance(nest, tuple) else tg.Tensor(nest, requires_grad=True)


def flat(nest):
    return [leaf for part in nest for leaf in flat(part)] if isinstance(nest, (tuple, list)) else [nest]


def close(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-9, atol=1e-9)


def pair(rng):
    """The same layer in both libraries, with PyTorch's random weights."""
    kind, inputs, hidden, options = draw(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    theirs = getattr(torch.nn, kind)(inputs, hidden, dtype=torch.float64, **options)
    ours = getattr(nn, kind)(inputs, hidden, dtype=np.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return kind, ours, theirs, options


def compare(ours, theirs, inputs, outputs):
    """Outputs, and gradients of a random weighted sum of them by the inputs and by the weights."""
    rng = np.random.default_rng(1)
    our_loss, their_loss = 0.0, 0.0
    for a, b in outputs:
        close(a, b)
        weights = rng.standard_normal(a.shape)
        our_loss = our_loss + (a * tg.Tensor(weights)).sum()
        their_loss = their_loss + (b * torch.tensor(weights)).sum()
    our_loss.backward()
    their_loss.backward()
    for a, b in inputs:
        close(a.grad, b.grad)
    their_parameters = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(their_parameters)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, their_parameters[name].grad)


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_configurations(group, engine):
    for seed in range(group, CONFIGURATIONS, GROUPS):
        rng = np.random.default_rng(seed)
        kind, ours, theirs, options = pair(rng)
        steps, batch = int(rng.integers(1, 13)), int(rng.integers(1, 5))
        directions = 1 + options["bidirectional"]
        alone = not rng.integers(4)
        rows = () if alone else (batch,)
        shape = (steps,) if alone else (batch, steps) if options["batch_first"] else (steps, batch)
        x = rng.standard_normal((*shape, ours.input_size))
        our_x, their_x = tg.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        first = directions * options["num_layers"]
        width = options.get("proj_size", ours.hidden_size)
        state = states(kind, (first, *rows, width), (first, *rows, ours.hidden_size), rng) if rng.integers(2) else None
        our_state, their_state = (None, None) if state is None else (as_ours(state), as_torch(state))
        our_results, their_results = ours(our_x, our_state), theirs(their_x, their_state)
        inputs = [(our_x, their_x)]
        if state is not None:
            inputs += list(zip(flat(our_state), flat(their_state), strict=True))
        compare(ours, theirs, inputs, list(zip(flat(our_results), flat(their_results), strict=True)))


@pytest.mark.parametrize("seed", range(60))
def test_lengths_are_packed_sequences(seed, engine):
    rng = np.random.default_rng(seed)
    kind, ours, theirs, options = pair(rng)
    steps, batch = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    lengths = rng.integers(1, steps + 1, batch)
    x = rng.standard_normal(
        (batch, steps, ours.input_size) if options["batch_first"] else (steps, batch, ours.input_size)
    )
    our_x, their_x = tg.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        their_x, torch.tensor(lengths), batch_first=options["batch_first"], enforce_sorted=False
    )
    first = (1 + options["bidirectional"]) * options["num_layers"]
    width = options.get("proj_size", ours.hidden_size)
    state = states(kind, (first, batch, width), (first, batch, ours.hidden_size), rng)
    our_state, their_state = as_ours(state), as_torch(state)
    output, final = theirs(packed, their_state)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output, options["batch_first"], total_length=steps)
    our_results = ours(our_x, our_state, lengths=lengths)
    inputs = [(our_x, their_x), *zip(flat(our_state), flat(their_state), strict=True)]
    compare(ours, theirs, inputs, list(zip(flat(our_results), flat((padded, final)), strict=True)))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_state_dicts_go_both_ways(kind):
    ours = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True, generator=tg.Generator(0))
    theirs = getattr(torch.nn, kind)(3, 4, num_layers=2, bidirectional=True)
    theirs.load_state_dict({name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(tg.Tensor(x))[0].numpy(), theirs(torch.tensor(x))[0].detach().numpy(), atol=1e-6)


def test_initial_values_of_pytorch():
    ours = nn.LSTM(30, 40, generator=tg.Generator(0), init="torch")
    theirs = torch.nn.LSTM(30, 40)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        ours_at_most, theirs_at_most = np.abs(a.numpy()).max(), float(b.detach().abs().max())
        assert abs(ours_at_most - theirs_at_most) < 0.05 * 40**-0.5 + 0.02 * (a.ndim == 1), name
        assert abs(a.numpy().std() - 40**-0.5 / 3**0.5) < 0.02
