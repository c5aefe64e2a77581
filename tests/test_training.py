"""Truncated BPTT against its definition, and losses over padded sequences."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers import on_backend
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_rnn as tg
import tinygrad_rnn.functional as F
from tinygrad_rnn import nn, optim


class Recorder(optim.Optimizer):
    """Takes steps of a size that changes every gradient after it, and remembers the gradients that it saw."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.seen = []

    def step(self):
        self.seen.append([p.grad.numpy().copy() for p in self.param_groups[0]["params"]])
        super().step()

    def update(self, F, p, g, state, group):
        p -= group["lr"] * g


def squares(ys, targets):
    return ((ys - targets) * (ys - targets)).sum()


def by_definition(layer, xs, targets, k1, k2, lr):
    """The gradient of each update as the sum of its truncated sums, one loss and one step of the past at a time.

    For each step s of an update and each j from the window's start to s: the loss at s, by the weights as they are used
    at j alone. The states that enter a window are those that the weights of that time made.
    """
    weights = list(layer.parameters())
    steps, saved, found = xs.shape[0], {0: np.zeros((xs.shape[1], layer.hidden_size))}, []
    for first in range(0, steps, k1):
        stop = min(first + k1, steps)
        start = max(0, stop - k2)
        total = [np.zeros(w.shape) for w in weights]
        for s in range(first, stop):
            for j in range(start, s + 1):
                h = on_backend(saved[start])
                for t in range(start, s + 1):
                    used = weights if t == j else [w.detach() for w in weights]
                    h = tg.tanh(xs[t] @ used[0].T + used[2] + h @ used[1].T + used[3])
                for sum_, g in zip(total, tg.grad(squares(h, targets[s]), weights), strict=True):
                    sum_ += g.numpy()
        following = max(0, min(stop + k1, steps) - k2)
        h = on_backend(saved[start])
        with tg.no_grad():
            for t in range(start, following):
                h = tg.tanh(xs[t] @ weights[0].T + weights[2] + h @ weights[1].T + weights[3])
        saved[following] = h.numpy()
        for w, g in zip(weights, total, strict=True):
            w.data = w.data - lr * tg.get_backend().asarray(g)
        found.append(total)
    return found


def make():
    return nn.RNN(2, 3, dtype=np.float64, generator=tg.Generator(3))


def draw(*shape, seed=0):
    return on_backend(np.random.default_rng(seed).standard_normal(shape))


@given(steps=st.integers(1, 7), k1=st.integers(1, 4), more=st.integers(0, 4))
def test_updates_are_the_sums_of_truncated_sums(engine, steps, k1, more):
    layer, xs, targets = make(), draw(steps, 2, 2), draw(steps, 2, 3, seed=1)
    optimizer = Recorder(layer.parameters())
    updates = list(tg.tbptt(layer, squares, xs, targets, optimizer, k1, k1 + more))
    expected = by_definition(make(), xs, targets, k1, k1 + more, 0.05)
    assert [update.stop for update in updates] == [min(first + k1, steps) for first in range(0, steps, k1)]
    for ours, theirs in zip(optimizer.seen, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_one_window_is_plain_backpropagation(backend, engine):
    layer, xs, targets = make(), draw(6, 2, 2), draw(6, 2, 3, seed=1)
    optimizer = Recorder(layer.parameters())
    (update,) = tg.tbptt(layer, squares, xs, targets, optimizer, k1=6)
    plain = make()
    loss = squares(plain(xs)[0], targets)
    loss.backward()
    assert update.loss.item() == loss.item()
    for seen, parameter in zip(optimizer.seen[0], plain.parameters(), strict=True):
        np.testing.assert_array_equal(seen, parameter.grad.numpy())


def test_the_state_goes_on_from_call_to_call(backend, engine):
    xs, targets = draw(8, 2, 2), draw(8, 2, 3, seed=1)
    whole, halves = make(), make()
    *_, last = tg.tbptt(whole, squares, xs, targets, optim.Adam(whole.parameters()), k1=2)
    optimizer = optim.Adam(halves.parameters())
    *_, update = tg.tbptt(halves, squares, xs[:4], targets[:4], optimizer, k1=2)
    assert not update.state.requires_grad
    *_, update = tg.tbptt(halves, squares, xs[4:], targets[4:], optimizer, k1=2, state=update.state)
    np.testing.assert_array_equal(update.state.numpy(), last.state.numpy())
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_clipping_and_nested_states(backend, engine):
    layer = nn.Recurrent([nn.LSTMCell(2, 3, dtype=np.float64), nn.GRUCell(3, 3, dtype=np.float64)])
    optimizer = Recorder(layer.parameters())
    for update in tg.tbptt(layer, squares, draw(5, 2, 2), draw(5, 2, 3, seed=1), optimizer, 2, 3, max_norm=0.1):
        assert update.norm.item() > 0.1
        norm = np.sqrt(sum((g * g).sum() for g in optimizer.seen[-1]))
        np.testing.assert_allclose(norm, 0.1, rtol=1e-4)


def test_what_tbptt_refuses():
    layer, xs, targets = make(), draw(4, 2, 2), draw(4, 2, 3)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    for k1, k2 in ((0, None), (3, 2)):
        with pytest.raises(ValueError, match="1 <= k1 <= k2, got k1="):
            tg.tbptt(layer, squares, xs, targets, optimizer, k1, k2)
    with pytest.raises(ValueError, match="must have the same steps"):
        tg.tbptt(layer, squares, xs, targets[:3], optimizer, 2)


LOSSES = {
    "cross_entropy": (F.cross_entropy, lambda rng, t, b: rng.integers(0, 5, (t, b))),
    "smoothed": (partial(F.cross_entropy, label_smoothing=0.1), lambda rng, t, b: rng.integers(0, 5, (t, b))),
    "mse": (F.mse_loss, lambda rng, t, b: rng.standard_normal((t, b, 5))),
    "bce": (F.binary_cross_entropy_with_logits, lambda rng, t, b: rng.random((t, b, 5))),
}


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_sequence_loss_is_that_of_the_rows_alone(name, average, backend):
    loss, draw_targets = LOSSES[name]
    rng = np.random.default_rng(0)
    lengths = np.array([4, 0, 2, 1])
    output, target = rng.standard_normal((4, 4, 5)), draw_targets(rng, 4, 4)
    real = np.arange(4)[:, None] < lengths
    output[~real] = np.nan
    if target.dtype.kind == "f":
        target[~real] = np.nan
    y = on_backend(output)
    y.requires_grad = True
    alone = [loss(on_backend(output[:n, r]), on_backend(target[:n, r])).item() for r, n in enumerate(lengths) if n]
    weights = lengths[lengths > 0] if average == "token" else None
    result = tg.sequence_loss(loss, y, on_backend(target), lengths, average=average)
    np.testing.assert_allclose(result.item(), np.average(alone, weights=weights), rtol=1e-12)
    by_mask = tg.sequence_loss(loss, y, on_backend(target), mask=real, average=average)
    assert by_mask.item() == result.item()
    result.backward()
    assert not y.grad.numpy()[~real].any()
    assert y.grad.numpy()[real].all()


def test_what_a_sequence_loss_refuses(backend):
    y, target = draw(3, 2, 5), on_backend(np.zeros((3, 2), int))
    for arguments, message in (
        ({"average": "batch"}, "average must be 'token' or 'sequence', got 'batch'"),
        ({"lengths": [1, 1], "mask": np.ones((3, 2), bool)}, "not both"),
        ({"mask": np.ones((2, 3), bool)}, r"mask must be bools of shape \(3, 2\), got bool of \(2, 3\)"),
        ({"lengths": [0, 0]}, "no step of the 2 rows is real"),
    ):
        with pytest.raises(ValueError, match=message):
            tg.sequence_loss(F.cross_entropy, y, target, **arguments)
    with pytest.raises(ValueError, match=r"output and target must have shapes \(T, B, ...\)"):
        tg.sequence_loss(F.cross_entropy, y, target[:2])
    with pytest.raises(ValueError, match="loss must give one value for each of 6 steps"):
        tg.sequence_loss(lambda a, b, reduction: a.sum(), y, target)
