"""The example on vanishing gradients: its measurements against their definitions, and that its text follows them."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
import vanishing_gradients as example

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn


def test_a_quick_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vanishing_gradients.py", "--quick", "--out", str(tmp_path / "out")])
    example.main()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for name in example.KINDS:
        plain, clipped = next((a, b) for a, b in pairwise(lines) if a.startswith(f"{name:26}"))
        assert len(plain[26:].split()) == 6
        assert clipped.split()[0] == "clipped"
    for remedy in ("Clipping.", "Activations.", "Initialization.", "Batch normalization.", "Gates.", "The task"):
        assert f"\n{remedy}" in printed
    assert (tmp_path / "out" / "vanishing_gradients.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_must_be_positive(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vanishing_gradients.py", "--jobs", "0"])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_numbers_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(example, "KINDS", {name: example.KINDS[name] for name in ("tanh", "PReLU")})
    # With several jobs all scans run in other processes, by one engine; in this one the tests set another.
    two, three, other = (example.study_all(12, 2, seed, jobs) for seed, jobs in ((3, 2), (3, 3), (4, 2)))
    for name, result in two.items():
        np.testing.assert_array_equal(result.before, three[name].before)
        np.testing.assert_array_equal(result.after, three[name].after)
        assert result.error == three[name].error
        assert not np.array_equal(result.before, result.after)
        assert not np.array_equal(result.after, other[name].after)


def test_every_parameter_is_trained():
    for name, kind in example.KINDS.items():
        cell = kind.make(tg.Generator(0))
        ys, _ = tg.scan(example.Clipped(cell, 1.0), tg.Generator(1).normal((4, 8, example.INPUTS)))
        tg.sum(tg.square(ys)).backward()
        for key, parameter in cell.named_parameters():
            assert parameter.grad is not None, (name, key)
            assert np.abs(parameter.grad.numpy()).max() > 0, (name, key)


@pytest.mark.parametrize("max_norm", [None, 0.003])
def test_gradient_by_lag_against_bptt_by_hand(max_norm):
    task = data.TemporalOrder("pascanu13", 10)
    generator = tg.Generator(0)
    cell = nn.RNNCell(example.INPUTS, example.HIDDEN, generator=generator)
    readout = nn.Linear(example.HIDDEN, 4, generator=generator)
    clipped = cell if max_norm is None else example.Clipped(cell, max_norm)
    found = example.gradient_by_lag(clipped, readout, task, seed=5)

    batch = task.batch(example.BATCH, tg.Generator(5))
    W, U, V = (w.numpy().astype(np.float64) for w in (cell.weight_ih, cell.weight_hh, readout.weight))
    h = np.zeros((example.BATCH, example.HIDDEN))
    hs = [h := np.tanh(x @ W.T + h @ U.T) for x in batch.xs]
    scores = h @ V.T + readout.bias.numpy()
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    g = (p - np.eye(4)[batch.targets]) @ V / example.BATCH
    norms, bites = [np.linalg.norm(g)], 0
    for h in hs[:0:-1]:
        g = g * (1 - h**2) @ U
        if max_norm is not None:
            rows = np.linalg.norm(g, axis=1, keepdims=True)
            bites += int((rows > max_norm).sum())
            g *= np.minimum(1, max_norm / rows)
        norms.append(np.linalg.norm(g))
    assert max_norm is None or bites > 20
    np.testing.assert_allclose(found, norms, rtol=1e-4)


def test_of_an_lstm_it_is_the_gradient_by_c():
    task = data.TemporalOrder("pascanu13", 10)
    cell, readout = nn.LSTMCell(6, 8, generator=tg.Generator(0)), nn.Linear(8, 4, generator=tg.Generator(1))
    found = example.gradient_by_lag(cell, readout, task, seed=5)
    batch = task.batch(example.BATCH, tg.Generator(5))
    _, (_, c), shown = tg.scan(cell, tg.Tensor(batch.xs[:7]), expose=("o",))
    c, o = tg.Tensor(c.numpy(), requires_grad=True), shown["o"].numpy()[-1]
    ys, _ = tg.scan(cell, tg.Tensor(batch.xs[7:]), (o * tg.tanh(c), c))
    (gradient,) = tg.grad(task.loss(readout(ys[-1]), batch), [c])
    np.testing.assert_allclose(found[3], np.linalg.norm(gradient.numpy()), rtol=1e-5)


def test_the_batch_normalized_cell_by_its_equation(backend):
    cell = example.BatchNormRNNCell(0.3, 0.7, tg.Generator(0))
    x, h = (tg.Generator(i).normal((5, size)) for i, size in enumerate((example.INPUTS, example.HIDDEN)))
    y, state = cell(x, h)
    assert y is state

    def bn(sums, gamma):
        return gamma * (sums - sums.mean(0)) / np.sqrt(sums.var(0) + 1e-5)

    W, U = cell.weight_ih.numpy(), cell.weight_hh.numpy()
    expected = np.tanh(bn(x.numpy() @ W.T, 0.7) + bn(h.numpy() @ U.T, 0.3))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_kept_and_fate():
    assert example.kept(np.array([5.0, 2.0, 1.0, 0.5])) == 0.25
    assert np.isnan(example.kept(np.zeros(4)))
    fates = [example.fate(np.array([1.0, 1.0, last])) for last in (1e-4, 0.1, 10.0, 1e4, np.inf, np.nan)]
    assert fates == ["vanishes", "lasts", "lasts", "explodes", "is not finite", "is not finite"]


def line(share):
    return np.array([1.0, 1.0, share])


def made_up(before, after, clipped=None, error=0.75):
    """Results of all cells from what each keeps: ``before`` and ``after`` training, and ``clipped`` before."""
    return {
        name: example.Result(
            [line(before[name]), line((clipped or before)[name])], [line(after[name])] * 2, [error] * 2, [1.0] * 2
        )
        for name in example.KINDS
    }


AS_CLAIMED = dict.fromkeys(example.KINDS, 1e-9) | {
    "IRNN": 1.0,
    "ReLU 2 x orthogonal": 1e8,
    "BN gamma 0.1": 1e-3,
    "BN gamma 0.1 (input 0.02)": 10.0,
}


def test_the_text_where_everything_is_as_claimed():
    after = AS_CLAIMED | {"GRU": 0.1, "LSTM": 0.1}
    text = example.verdict(made_up(AS_CLAIMED, after, AS_CLAIMED | {"ReLU 2 x orthogonal": 1.0}))
    assert not [paragraph for paragraph in text if "against" in paragraph]
    assert "from 1e+08 to 1e+00" in text[1]
    assert "What opens the way in GRU and LSTM is training" in text[5]


def test_the_text_where_nothing_is_as_claimed():
    before = dict.fromkeys(example.KINDS, 0.1) | {"IRNN": 1e-9, "GRU": 1e5}
    clipped = before | {"IRNN": 1e-3}
    text = example.verdict(made_up(before, before, clipped, error=0.0))
    problem, clipping, *others, task = text
    assert "This goes against the claim that in a plain tanh network the gradient vanishes." in problem
    assert "This goes against the claim that it treats explosion." in clipping
    assert "This goes against the claim that it cannot raise a gradient that vanished." in clipping
    assert all("This goes against" in paragraph for paragraph in others)
    assert "This goes against the claim that what counts" in others[2]
    assert "A gradient that vanishes at first does not rule out learning: IRNN" in task


def test_the_text_where_there_is_nothing_to_clip():
    same = dict.fromkeys(example.KINDS, 0.1)
    clipping = example.verdict(made_up(same, same))[1]
    assert "no explosion to treat" in clipping
    assert "remains open" in clipping


def test_the_text_on_what_clipping_did_to_learning():
    results = made_up(AS_CLAIMED, AS_CLAIMED)
    results["IRNN"].error = [0.7, 0.2]
    assert "from 70% to 20% for IRNN" in example.verdict(results)[1]
