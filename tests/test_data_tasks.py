"""The tasks of the literature, against their papers' definitions written out as plain loops."""

from __future__ import annotations

from collections import Counter
from math import log

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import data

MODERN = {"le15": (0, 60, 0, 60), "arjovsky16": (0, 30, 30, 60), "bai18": (0, 60, 0, 60), "pascanu13": (0, 6, 6, 30)}

TASKS = {
    **{form: lambda form=form: data.Adding(form, 60) for form in ("hochreiter97", *MODERN)},
    "multiplication": lambda: data.Multiplication(60),
    "copy arjovsky16": lambda: data.CopyMemory("arjovsky16", 30),
    "copy bai18": lambda: data.CopyMemory("bai18", 30),
    "parity": lambda: data.Parity(7),
    "running parity": lambda: data.Parity(7, every_step=True),
    "echo": lambda: data.DelayedEcho(20, 3),
    "sine": lambda: data.Sine(40),
    "3a": lambda: data.TwoSequence("3a", 40),
    "3b": lambda: data.TwoSequence("3b", 40),
    "3c": lambda: data.TwoSequence("3c", 40, signal=1),
    "6a": lambda: data.TemporalOrder("6a"),
    "6b": lambda: data.TemporalOrder("6b"),
    "order pascanu13": lambda: data.TemporalOrder("pascanu13", 37),
    "reber": lambda: data.EmbeddedReber(),
    "reber of strings": lambda: data.EmbeddedReber(data.reber_strings(40, tg.Generator(8))),
}
every_task = pytest.mark.parametrize("name", TASKS)


def sequences(batch):
    """Each sequence without its padding, as float64."""
    size = batch.xs.shape[1]
    lengths = [len(batch.xs)] * size if batch.lengths is None else batch.lengths
    for i, length in enumerate(lengths):
        assert not batch.xs[length:, i].any()
        yield batch.xs[:length, i].astype(np.float64)


def close(ours, expected):
    np.testing.assert_allclose(np.ravel(ours), np.ravel(expected), rtol=1e-5, atol=1e-6)


@every_task
def test_interface(name):
    task = TASKS[name]()
    generator = tg.Generator(3)
    batch = task.batch(9, generator)
    xs, targets, lengths = batch
    assert generator.counter == 1
    assert xs.dtype == np.float32
    assert xs.shape == (len(xs), 9, task.input_size)
    shape = (len(xs), 9) if task.every_step else (9,)
    assert targets.shape == (shape if task.classes else (*shape, task.output_size))
    assert targets.dtype == (np.int64 if task.classes else np.float32)
    assert lengths is None or (lengths.dtype == np.int64 and lengths.max() == len(xs) and lengths.min() > 0)
    tg.manual_seed(3)
    assert np.array_equal(task.batch(9).xs, xs)
    again, other = task.batch(9, tg.Generator(3)), task.batch(9, generator)
    assert np.array_equal(xs, again.xs)
    assert np.array_equal(targets, again.targets)
    assert xs.shape != other.xs.shape or not np.array_equal(xs, other.xs)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        task.batch(0)


def perfect(task, batch):
    """Outputs that are all right, of shape (T, B, output_size) and NaN wherever nobody looks."""
    steps, size = batch.xs.shape[:2]
    targets = np.eye(task.output_size)[batch.targets] if task.classes else batch.targets.astype(np.float64)
    if isinstance(task, data.TwoSequence) and task.form == "3c":
        targets = np.where(batch.xs[0] > 0, 0.2, 0.8)
    if isinstance(task, data.EmbeddedReber):
        targets = task.legal(batch).astype(np.float64)
    lengths = np.full(size, steps) if batch.lengths is None else batch.lengths
    outputs = np.full((steps, size, task.output_size), np.nan)
    for i, length in enumerate(lengths):
        if task.every_step:
            outputs[:length, i] = targets[:length, i]
        else:
            outputs[length - 1, i] = targets[i]
    return outputs


@every_task
def test_right_and_wrong(name):
    task = TASKS[name]()
    batch = task.batch(12, tg.Generator(5))
    lengths = np.full(12, len(batch.xs)) if batch.lengths is None else batch.lengths
    outputs = perfect(task, batch)
    assert task.wrong(outputs, batch).tolist() == [False] * 12
    if not isinstance(task, data.EmbeddedReber):
        np.testing.assert_allclose(task.error(outputs, batch), 0, atol=1e-6)
    # Spoil the last step of two sequences, one of them with NaN.
    ends = lengths - 1
    spoilt = outputs.copy()
    of_scores = task.classes or isinstance(task, data.EmbeddedReber)
    spoilt[ends[4], 4] = -spoilt[ends[4], 4] if of_scores else spoilt[ends[4], 4] + 0.5
    spoilt[ends[7], 7, 0] = np.nan
    assert np.flatnonzero(task.wrong(spoilt, batch)).tolist() == [4, 7]
    assert task.error(np.where(np.isnan(spoilt), 9, spoilt), batch)[4] > task.error(outputs, batch)[4]
    if not task.every_step:
        last = spoilt[ends, np.arange(12)]
        assert np.flatnonzero(task.wrong(last, batch)).tolist() == [4, 7]
    with pytest.raises(ValueError, match=r"outputs must have shape \("):
        task.wrong(outputs[:, 1:], batch)


@every_task
def test_loss(name, backend):
    task = TASKS[name]()
    batch = task.batch(6, tg.Generator(2))
    steps = len(batch.xs)
    values = np.random.default_rng(0).standard_normal((steps, 6, task.output_size))
    expected, count = 0.0, 0
    for i in range(6):
        length = steps if batch.lengths is None else batch.lengths[i]
        for t in range(length) if task.every_step else [length - 1]:
            target = batch.targets[t, i] if task.every_step else batch.targets[i]
            y = values[t, i]
            expected += np.log(np.exp(y).sum()) - y[target] if task.classes else ((y - target) ** 2).sum()
            count += 1
        values[length:, i] = np.nan
    outputs = on_backend(values)
    outputs.requires_grad = True
    loss = task.loss(outputs, batch)
    assert (loss.shape, loss.backend) == ((), backend)
    np.testing.assert_allclose(loss.numpy(), expected / count, rtol=1e-6)
    loss.backward()
    gradient = outputs.grad.numpy()
    if not task.every_step:
        ends = np.full(6, steps - 1) if batch.lengths is None else batch.lengths - 1
        assert np.count_nonzero(gradient.any(-1)) == 6
        assert gradient[ends, np.arange(6)].any(-1).all()
        short = on_backend(values[ends, np.arange(6)])
        np.testing.assert_allclose(task.loss(short, batch).numpy(), loss.numpy())
    assert np.isfinite(gradient).all()


@every_task
def test_chance(name):
    """The loss of the best constant, fitted to many sequences; of the best for each step in copying and echo."""
    task = TASKS[name]()
    batch = task.batch(20_000, tg.Generator(1))
    targets = batch.targets
    if task.classes and task.every_step:
        frequencies = np.stack([(targets == k).mean(1) for k in range(task.output_size)])
        entropy = -(frequencies * np.log(np.maximum(frequencies, 1e-300))).sum(0).mean()
        assert entropy == pytest.approx(task.chance, rel=0.02)
    elif task.classes:
        frequencies = np.bincount(targets) / targets.size
        assert -(frequencies * np.log(frequencies)).sum() == pytest.approx(task.chance, rel=0.01)
    elif isinstance(task, data.EmbeddedReber):
        counts = targets.sum((0, 1), dtype=np.float64)
        assert counts.sum() == batch.lengths.sum()
        constant = np.broadcast_to((counts / counts.sum()).astype(np.float32), targets.shape)
        assert task.loss(tg.Tensor(constant), batch).item() == pytest.approx(task.chance, rel=0.005)
    else:
        variance = targets.astype(np.float64).reshape(-1, task.output_size).var(0).sum()
        assert variance == pytest.approx(task.chance, rel=0.03)


def test_published_chance_levels():
    for length, plateau in {100: 0.17329, 200: 0.09452, 500: 0.03999, 1000: 0.02039}.items():
        for form in ("arjovsky16", "bai18"):
            assert data.CopyMemory(form, length).chance == pytest.approx(plateau, abs=5e-6)
    for form in ("le15", "arjovsky16", "bai18"):
        assert data.Adding(form, 50).chance == 1 / 6
    assert data.TemporalOrder("pascanu13", 50).chance == log(4)


@pytest.mark.parametrize("form", MODERN)
def test_adding(form):
    task = data.Adding(form, 60)
    batch = task.batch(3000, tg.Generator(0))
    limit = 0.2 if form == "pascanu13" else 0.04  # the former squared is the latter
    offsets = np.resize([limit - 0.001, -limit - 0.001], (3000, 1))
    assert task.wrong(batch.targets + offsets, batch).tolist() == [False, True] * 1500
    low1, high1, low2, high2 = MODERN[form]
    seen = set()
    for x, target in zip(sequences(batch), batch.targets, strict=True):
        marked = [t for t in range(60) if x[t, 1] == 1]
        assert len(marked) == 2
        assert np.count_nonzero(x[:, 1]) == 2
        first, second = marked
        assert low1 <= first < high1
        assert low2 <= second < high2
        seen |= {(0, first), (1, second)}
        total = x[first, 0] + x[second, 0]
        close(target, total / 2 if form == "pascanu13" else total)
    if form in ("arjovsky16", "pascanu13"):
        assert seen == {(0, t) for t in range(low1, high1)} | {(1, t) for t in range(low2, high2)}
    else:
        assert {t for _, t in seen} == set(range(60))
    values = batch.xs[..., 0]
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["adding", "multiplication"])
def test_adding_and_multiplication_of_1997(name):
    adding = name == "adding"
    task = data.Adding("hochreiter97", 60) if adding else data.Multiplication(60, n_seq=140)
    batch = task.batch(4000, tg.Generator(0))
    assert set(batch.lengths) == set(range(60, 67))
    places, alone = Counter(), 0
    for x, target in zip(sequences(batch), batch.targets, strict=True):
        assert x[0, 1] == x[-1, 1] == -1
        assert np.count_nonzero(x[1:-1, 1]) == (x[1:-1, 1] == 1).sum()
        marked = [t for t in range(len(x)) if x[t, 1] == 1]
        if len(marked) == 1:  # the other is the first pair
            alone += 1
            assert x[0, 0] == (0 if adding else 1)
            marked.append(0)
        a, b = marked
        close(target, 0.5 + (x[a, 0] + x[b, 0]) / 4 if adding else x[a, 0] * x[b, 0])
        places.update(marked)
        assert min(a, b) < 10
        assert max(a, b) <= 29  # the end is at least T/2 = 30 steps away
    assert set(places) == set(range(30))
    assert alone / 4000 == pytest.approx(0.1 + 0.9 / 29, abs=0.02)
    assert places[15] / 4000 == pytest.approx(1 / 29, abs=0.01)
    values = batch.xs[1:60, :, 0]
    np.testing.assert_allclose([values.min(), values.max()], [-1 if adding else 0, 1], atol=1e-3)
    one = batch.targets[:, 0].astype(np.float64)
    one[:3] += 0.039, 0.041, -0.041
    assert np.flatnonzero(task.wrong(one[:, None], batch)).tolist() == [1, 2]


@pytest.mark.parametrize("form", ["arjovsky16", "bai18"])
def test_copy_memory(form):
    delay = 30
    task = data.CopyMemory(form, delay)
    batch = task.batch(200, tg.Generator(0))
    for i in range(200):
        x = batch.xs[:, i]
        codes = x.argmax(-1) if form == "arjovsky16" else x[:, 0]
        assert form == "bai18" or np.array_equal(x, np.eye(10)[codes])
        tail = [9] + [0] * 10 if form == "arjovsky16" else [9] * 11
        assert codes.tolist() == [*codes[:10], *[0] * (delay - 1), *tail]
        assert set(codes[:10]) <= set(range(1, 9))
        assert batch.targets[:, i].tolist() == [0] * (delay + 10) + list(codes[:10])
    assert np.bincount(batch.targets[-10:].ravel(), minlength=9)[1:].min() > 200
    # Only the last ten count.
    outputs = np.eye(task.output_size)[batch.targets]
    outputs[: delay + 10] = outputs[: delay + 10, :, ::-1]
    outputs[-10, 5] = outputs[-10, 5, ::-1]
    assert np.flatnonzero(task.wrong(outputs, batch)).tolist() == [5]
    assert task.error(outputs, batch)[5] == pytest.approx(0.1)


def test_parity_and_echo():
    for task in (data.Parity(9), data.Parity(9, every_step=True), data.DelayedEcho(9, 4)):
        batch = task.batch(500, tg.Generator(0))
        for i in range(500):
            bits = [int(b) for b in batch.xs[:, i, 0]]
            assert set(bits) <= {0, 1}
            if isinstance(task, data.DelayedEcho):
                assert batch.targets[:, i].tolist() == [0] * 4 + bits[:5]
            elif task.every_step:
                assert batch.targets[:, i].tolist() == [sum(bits[: t + 1]) % 2 for t in range(9)]
            else:
                assert batch.targets[i] == sum(bits) % 2
        assert batch.xs.mean() == pytest.approx(0.5, abs=0.03)


def test_sine():
    batch = data.Sine(60).batch(300, tg.Generator(0))
    assert np.array_equal(batch.xs[1:], batch.targets[:-1])
    for i in range(300):
        x = batch.xs[:, i, 0].astype(np.float64)
        # A sine wave is the solution of x[t+1] + x[t-1] = 2 cos(w) x[t].
        middle, around = x[1:-1], x[2:] + x[:-2]
        cosine = (middle @ around) / (middle @ middle) / 2
        np.testing.assert_allclose(around, 2 * cosine * middle, atol=1e-5)
        assert 9.99 < 2 * np.pi / np.arccos(cosine) < 20.01


@pytest.mark.parametrize(("form", "signal"), [("3a", 3), ("3a", 1), ("3b", 3), ("3c", 3)])
def test_two_sequences(form, signal):
    task = data.TwoSequence(form, 50, signal)
    batch = task.batch(4000, tg.Generator(0))
    assert set(batch.lengths) == set(range(50, 56))
    noise, heads, residuals, first = [], [], [], 0
    for x, target in zip(sequences(batch), batch.targets[:, 0], strict=True):
        head = x[:signal, 0]
        one = target == 1 if form == "3b" else head[0] == 1
        first += one
        heads += list(head - (1 if one else -1))
        residuals.append(target - ((0.2 if one else 0.8) if form == "3c" else (1 if one else 0)))
        noise += list(x[signal:, 0])
    assert first / 4000 == pytest.approx(0.5, abs=0.03)
    assert np.mean(noise) == pytest.approx(0, abs=0.01)
    assert np.var(noise) == pytest.approx(0.2, rel=0.02)
    assert np.var(heads) == pytest.approx(0.2 if form == "3b" else 0, rel=0.1)
    assert np.mean(heads) == pytest.approx(0, abs=0.03)
    if form == "3c":
        assert np.var(residuals) == pytest.approx(0.1, rel=0.1)
        assert np.mean(residuals) == pytest.approx(0, abs=0.02)
    else:
        assert not np.any(residuals)
    limit = 0.1 if form == "3c" else 0.2
    right = np.where(batch.xs[0] > 0, 0.2, 0.8) if form == "3c" else batch.targets
    offsets = np.resize([limit - 0.01, -limit + 0.01, limit + 0.01, -limit - 0.01], (4000, 1))
    assert task.wrong(right + offsets, batch).tolist() == [False, False, True, True] * 1000
    assert task.error(right + offsets, batch).mean() == pytest.approx(limit, abs=1e-6)


@pytest.mark.parametrize("form", ["6a", "6b"])
def test_temporal_order_of_1997(form):
    ranges = {"6a": [(10, 20), (50, 60)], "6b": [(10, 20), (33, 43), (66, 76)]}[form]
    classes = {"6a": ["XX", "XY", "YX", "YY"], "6b": ["XXX", "XXY", "XYX", "XYY", "YXX", "YXY", "YYX", "YYY"]}[form]
    task = data.TemporalOrder(form)
    batch = task.batch(4000, tg.Generator(0))
    assert set(batch.lengths) == set(range(100, 111))
    places, counts, letters = [set() for _ in ranges], Counter(), Counter()
    for x, target in zip(sequences(batch), batch.targets, strict=True):
        assert (x.sum(-1) == 1).all()
        text = "".join("EBabcdXY"[k] for k in x.argmax(-1))
        assert text[0] == "E"
        assert text[-1] == "B"
        assert text.count("E") == text.count("B") == 1
        steps = [t + 1 for t, letter in enumerate(text) if letter in "XY"]
        assert len(steps) == len(ranges)
        for step, seen in zip(steps, places, strict=True):
            seen.add(step)
        label = "".join(text[step - 1] for step in steps)
        assert target.tolist() == [float(label == name) for name in classes]
        counts[label] += 1
        letters.update(text)
    assert places == [set(range(low, high + 1)) for low, high in ranges]
    assert all(abs(counts[label] / 4000 - 1 / len(classes)) < 0.03 for label in classes)
    assert max(letters[k] for k in "abcd") < 1.03 * min(letters[k] for k in "abcd")
    outputs = batch.targets.astype(np.float64)
    outputs[0, 0] += 0.29
    outputs[1, 1] += 0.31
    outputs[2, 3] -= 0.31
    assert np.flatnonzero(task.wrong(outputs, batch)).tolist() == [1, 2]


@pytest.mark.parametrize("length", [10, 37, 60])
def test_temporal_order_of_2013(length):
    batch = data.TemporalOrder("pascanu13", length).batch(2000, tg.Generator(0))
    places = [set(), set()]
    for i in range(2000):
        text = "".join("abcdAB"[k] for k in batch.xs[:, i].argmax(-1))
        first, second = (t for t, letter in enumerate(text) if letter in "AB")
        places[0].add(first)
        places[1].add(second)
        assert ["AA", "AB", "BA", "BB"][batch.targets[i]] == text[first] + text[second]
    assert places[0] == set(range(length // 10, 2 * length // 10))
    assert places[1] == set(range(5 * length // 10, 6 * length // 10))
    assert np.bincount(batch.targets).min() > 400


# The grammar written down a second time, as its figure's nodes and the pairs of symbol and node that leave them.
FIGURE = {1: "T2 P3", 2: "S2 X4", 3: "T3 V5", 4: "X3 S6", 5: "P4 V6"}


def inner(text):
    """Whether ``text`` is of the Reber grammar."""
    if text[:1] != "B" or text[-1:] != "E":
        return False
    node = 1
    for symbol in text[1:-1]:
        leaving = dict(FIGURE.get(node, "").split())
        if symbol not in leaving:
            return False
        node = int(leaving[symbol])
    return node == 6


def accepted(text):
    return text[0] == "B" and text[-1] == "E" and text[1] in "TP" and text[-2] == text[1] and inner(text[2:-2])


def spelled(symbols):
    return "".join("BTPSXVE"[k] for k in symbols.argmax(-1))


def test_reber_strings():
    generator = tg.Generator(0)
    strings = data.reber_strings(512, generator)
    assert generator.counter == 1
    assert len(set(strings)) == 512
    assert strings == data.reber_strings(512, tg.Generator(0))
    drawn = data.reber_strings(4000, tg.Generator(0), distinct=False)
    assert len(drawn) == 4000
    assert abs(drawn.count("BTBTXSETE") / 4000 - 1 / 16) < 0.02  # four forks
    assert np.mean([len(string) for string in drawn]) < np.mean([len(string) for string in strings]) - 4
    assert all(map(accepted, strings))
    assert min(map(len, strings)) == 9
    assert not accepted("BTBTXSEPE")
    xs, targets, lengths = data.EmbeddedReber(strings).all()
    for i, string in enumerate(strings):
        n = lengths[i]
        assert n == len(string) - 1
        assert spelled(xs[:n, i]) == string[:-1]
        assert spelled(targets[:n, i]) == string[1:]
        assert not xs[n:, i].any()
        assert not targets[n:, i].any()


@pytest.mark.parametrize("middle", ["BTXSE", "BTSSXXTVVE", "BPVVE", "BTXXVPSE", "BPVPXVPXVPXVVE"])
def test_known_reber_strings(middle):
    assert accepted(f"BT{middle}TE")
    assert data.EmbeddedReber([f"BT{middle}TE", f"BP{middle}PE"]).all().lengths.tolist() == [len(middle) + 3] * 2


def test_reber_forks_are_fair_and_continuations_legal():
    task = data.EmbeddedReber()
    batch = task.batch(3000, tg.Generator(0))
    legal = task.legal(batch)
    assert not legal[np.arange(len(legal))[:, None] >= batch.lengths].any()
    taken, continuations = Counter(), {}
    for i in range(3000):
        text = spelled(batch.xs[: batch.lengths[i], i]) + "E"
        assert accepted(text)
        for t in range(batch.lengths[i]):
            # By the prefix alone: all that was ever seen to follow it must be legal.
            continuations.setdefault(text[: t + 1], set()).add(text[t + 1])
            assert legal[t, i, "BTPSXVE".index(text[t + 1])]
        taken[text[1]] += 1
        taken["inner " + text[3]] += 1
    for i in range(3000):
        text = spelled(batch.xs[:5, i])
        for t in range(5):
            assert {"BTPSXVE"[k] for k in np.flatnonzero(legal[t, i])} == continuations[text[: t + 1]]
    assert taken["T"] / 3000 == pytest.approx(0.5, abs=0.04)
    assert taken["inner T"] / 3000 == pytest.approx(0.5, abs=0.04)


def test_reber_wrong_is_any_legal_symbol_below_any_other():
    task = data.EmbeddedReber(["BTBTXSETE", "BPBPVVEPE"])
    batch = task.all()
    outputs = 0.5 + 0.1 * task.legal(batch)
    assert not task.wrong(outputs, batch).any()
    outputs[4, 0, "BTPSXVE".index("X")] = 0.49  # after BTBTX come X or S
    assert task.wrong(outputs, batch).tolist() == [True, False]
    assert task.wrong(np.full(outputs.shape, 0.5), batch).all()
    assert task.solved([False] * 512)
    assert not task.solved([False] * 511)
    assert not task.solved([False] * 511 + [True])
    drawn = task.batch(50, tg.Generator(0))
    assert {tuple(x) for x in drawn.xs.argmax(-1).T.tolist()} == {tuple(x) for x in batch.xs.argmax(-1).T.tolist()}


def test_solved():
    task = data.Adding("hochreiter97", 100)
    wrong, errors = np.zeros(2500, bool), np.full(2500, 0.009)
    wrong[:500] = True
    errors[:500] = 1
    assert task.solved(wrong, errors)
    assert not task.solved(wrong, errors + 0.002)
    assert not task.solved(wrong[:-1], errors[:-1])
    assert not task.solved([], [])
    assert task.solved(wrong)
    multiplication = data.Multiplication(100, n_seq=140)
    assert multiplication.solved(np.arange(2000) < 139)
    assert not multiplication.solved(np.arange(2000) < 140)
    test = data.TwoSequence("3b", 100)
    assert test.solved(np.arange(256) < 5, np.full(256, 0.039))
    assert not test.solved(np.arange(256) < 5, np.full(256, 0.041))
    assert not test.solved(np.arange(256) < 6)
    fresh = data.TemporalOrder("pascanu13", 50)
    assert fresh.solved(np.arange(10_000) < 99)
    assert not fresh.solved(np.arange(10_000) < 100)
    assert not fresh.solved(np.zeros(9_999, bool))
    with pytest.raises(ValueError, match=r"errors must have the shape of wrong, \(2500,\), got \(2000,\)"):
        task.solved(wrong, errors[:2000])
    with pytest.raises(ValueError, match=r"wrong of shape \(sequences,\), got \(1, 2500\)"):
        task.solved(wrong[None])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: data.Adding("le", 10), ValueError, "form must be one of 'hochreiter97', 'le15', .* got 'le'"),
        (lambda: data.Adding("hochreiter97", 21), ValueError, "length must be at least 22, got 21"),
        (lambda: data.Adding("le15", 10.0), TypeError, "length must be an int, got float"),
        (lambda: data.Multiplication(30, 0), ValueError, "n_seq must be at least 1, got 0"),
        (lambda: data.CopyMemory("le15", 9), ValueError, "form must be one of 'arjovsky16', 'bai18', got 'le15'"),
        (lambda: data.DelayedEcho(3, 3), ValueError, "length must be at least 4, got 3"),
        (lambda: data.TwoSequence("3a", 3), ValueError, "length must be at least 4, got 3"),
        (lambda: data.TemporalOrder("6a", 100), TypeError, "lengths of '6a' are fixed, got length 100"),
        (lambda: data.TemporalOrder("pascanu13"), TypeError, "'pascanu13' needs a length"),
        (lambda: data.EmbeddedReber(["BTBTXSEPE"]), ValueError, "'BTBTXSEPE' is not of the grammar"),
        (lambda: data.EmbeddedReber(["BTBTXSETEE"]), ValueError, "'BTBTXSETEE' is not of the grammar"),
        (lambda: data.EmbeddedReber(["BTBT"]), ValueError, "'BTBT' is not of"),
        (lambda: data.EmbeddedReber([]), ValueError, "at least one string"),
        (lambda: data.EmbeddedReber().all(), ValueError, "give it strings"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
