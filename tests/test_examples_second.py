"""Examples in quick mode by every engine: what they print and leave behind, their parts, and how they refuse."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections import deque
from datetime import date
from importlib import metadata
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import custom_cell
import numpy as np
import online
import pytest
import seq2seq
import speakers
import streaming

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn

EXAMPLES = Path(__file__).parents[1] / "examples"


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def quick(example, capsys, *arguments):
    """What a quick run prints."""
    capsys.readouterr()
    example.main(["--quick", *map(str, arguments)])
    return capsys.readouterr().out


def refused(example, capsys, *arguments):
    """The last line that a bad call ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        example.main(["--quick", *map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()[-1]


# ---- speakers -------------------------------------------------------------------------------------------------------


def write_ts(path, seed, names=("ann", "bob"), channels=2):
    """Seven utterances of each speaker, of 1 to 5 frames whose values lie around the speaker's number."""
    random = np.random.default_rng(seed)
    lines = ["# made up", "@problemName Made up", f"@classLabel true {' '.join(names)}", "@Data"]
    for i in range(7 * len(names)):
        rows = random.normal(i % len(names), 0.1, (channels, random.integers(1, 6)))
        lines.append(":".join([",".join(f"{value:.4f}" for value in row) for row in rows] + [names[i % len(names)]]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recordings(tmp_path):
    return ["--train", write_ts(tmp_path / "a.ts", 0), "--test", write_ts(tmp_path / "b.ts", 1)]


def test_speakers(engine, recordings, tmp_path, capsys):
    printed = quick(speakers, capsys, *recordings, "--out", tmp_path / "out")
    rows = re.findall(r"^ +(\w+)   (\d+) of 14, [\d.]+%$", printed, re.MULTILINE)
    assert [frames for frames, _ in rows] == ["1", "2", "4", "all"]
    assert is_png(tmp_path / "out" / "speakers.png")
    assert quick(speakers, capsys, *recordings, "--out", tmp_path / "out") == printed


def test_speakers_are_learned(recordings):
    sequences, names = speakers.read_ts(recordings[1])
    targets = np.array([["ann", "bob"].index(name) for name in names])

    def trained(seed):
        model = speakers.Listener(2, 4, 2, generator := tg.Generator(seed))
        speakers.train(model, sequences, targets, 60, generator)
        return model

    model, again, other = trained(0), trained(0), trained(1)
    new, names = speakers.read_ts(recordings[3])
    heard = [speakers.beliefs(model, sequence) for sequence in new]
    assert [["ann", "bob"][belief[-1].argmax()] for belief in heard] == names
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), again.state_dict()[name].numpy())
        assert not np.array_equal(weight.numpy(), other.state_dict()[name].numpy())


def test_beliefs_are_of_beginnings(engine):
    model = speakers.Listener(3, 4, 5, tg.Generator(0)).eval()
    utterance = tg.Generator(1).normal((6, 3)).numpy()
    belief = speakers.beliefs(model, utterance)
    np.testing.assert_allclose(belief.sum(1), 1, rtol=1e-5)
    for frames in (1, 4, 6):
        alone = model(tg.Tensor(utterance[:frames, None]), np.array([frames]))
        np.testing.assert_allclose(belief[frames - 1], F.softmax(alone).numpy()[0], rtol=1e-4)


def test_which_utterances_are_shown():
    def belief(*of_the_second):
        return np.array([[1 - p, p] for p in of_the_second])

    heard = [belief(0.1, 0.9), belief(0.9, 0.1, 0.9), belief(0.8, 0.9), belief(0.2, 0.4), belief(0.7, 0.1)]
    right = np.array([1, 1, 1, 1, 1])
    assert speakers.telling(heard, right) == [1, 0, 4]
    assert speakers.telling(heard[:3], right[:3]) == [1, 0, 2]
    assert speakers.telling(heard[3:], right[3:]) == [1]


def test_a_ts_file(tmp_path):
    path = tmp_path / "a.ts"
    path.write_text("@classLabel true 1 2\n@data\n1,2,3:4,5,6:1\n\n7:8: 2\n")
    sequences, names = speakers.read_ts(path)
    np.testing.assert_array_equal(sequences[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(sequences[1], [[7, 8]])
    assert names == ["1", "2"]
    assert sequences[0].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,2:3,4:a\n", "no sequences after a line @data"),
        ("@data\n1,2:3,4:a\n1,2:3:a\n", "line 3: channels must be numbers, equally many in each"),
        ("@data\n1,x:3,4:a\n", "line 2: channels must be numbers"),
        ("@data\n1,?:3,4:a\n", "line 2: channels must be numbers"),
        ("@data\n1,NaN:3,4:a\n", "line 2: a value is not finite"),
        ("@data\n1,2:3,4:a\n1,2:a\n", "line 3: 1 channels, unlike the lines before"),
        ("@data\na\n", "line 2: 0 channels"),
    ],
)
def test_bad_ts_files(text, reason, recordings, tmp_path, capsys):
    path = tmp_path / "bad.ts"
    path.write_text(text)
    message = refused(speakers, capsys, "--train", path, "--test", recordings[3])
    assert reason in message
    assert str(path) in message


def test_speakers_without_their_recordings(recordings, tmp_path, capsys, monkeypatch):
    assert "both --train and --test" in refused(speakers, capsys, "--train", recordings[1])
    assert "cannot read" in refused(speakers, capsys, "--train", tmp_path / "absent.ts", "--test", recordings[3])
    for other in (write_ts(tmp_path / "c.ts", 2, ("ann", "eve")), write_ts(tmp_path / "d.ts", 2, channels=3)):
        assert "lacks, or another number of" in refused(speakers, capsys, "--train", recordings[1], "--test", other)

    def absent(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", absent)
    assert "pip install --no-deps aeon" in refused(speakers, capsys)
    monkeypatch.setattr(metadata, "files", lambda _: None)
    assert "pip install --no-deps aeon" in refused(speakers, capsys)
    named = {f"JapaneseVowels_{part}.ts": recordings[i] for part, i in (("TRAIN", 1), ("TEST", 3))}
    files = [SimpleNamespace(name=name, locate=lambda path=path: path) for name, path in named.items()]
    monkeypatch.setattr(metadata, "files", lambda package: files if package == "aeon" else None)
    assert "of 14" in quick(speakers, capsys, "--out", tmp_path / "out")


# ---- custom_cell ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _threads():
    before = tg.get_num_threads()
    yield
    tg.set_num_threads(before)


@pytest.mark.usefixtures("uncompiled", "_threads")
def test_custom_cell_without_pytorch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    printed = quick(custom_cell, capsys, "--out", tmp_path / "out")
    assert "pip install torch" in printed
    assert "Threads: 1. NumPy" in printed
    agreed = re.search(r"outputs and gradients agree to (\S+) of the largest", printed)
    assert float(agreed[1]) < 1e-5
    assert re.findall(r"^  ours, (\w+) +[\d.]+ ms", printed, re.MULTILINE) == ["unrolled", "array", "numba"]
    assert "times as fast as ours, numba" in printed
    assert is_png(tmp_path / "out" / "custom_cell.png")


@pytest.mark.usefixtures("_threads")
def test_custom_cell_without_numba(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(custom_cell, "find_spec", lambda _: None)
    printed = quick(custom_cell, capsys, "--out", tmp_path / "out", "--threads", 2)
    assert "pip install 'tinygrad_rnn[fast]'" in printed
    assert "Threads: 2." in printed
    assert re.findall(r"^  ours, (\w+) +[\d.]+ ms", printed, re.MULTILINE) == ["unrolled", "array"]
    assert "--threads must be at least 1, got 0" in refused(custom_cell, capsys, "--threads", 0)


def test_custom_cell_times_nothing_that_differs(monkeypatch):
    monkeypatch.setattr(custom_cell, "TOLERANCE", 0.0)
    monkeypatch.setattr(custom_cell, "alternated", None)
    with pytest.raises(SystemExit, match="nothing to compare"):
        custom_cell.race((2, 3, 2, 4), ["unrolled", "array"], False, 1, 0.0, 0)
    same, other = {"a": np.array([1.0, -4.0])}, {"a": np.array([1.0, -2.0])}
    assert custom_cell.furthest(other, same) == 0.5
    assert np.isnan(custom_cell.furthest({"a": np.full(2, np.nan)}, same))


def test_custom_cell_by_its_equations(backend):
    cell = custom_cell.TwoMemories(3, 4, tg.Generator(0))
    x, fast, slow = (tg.Generator(i).normal((2, size)) for i, size in ((1, 3), (2, 4), (3, 4)))
    y, state = cell(x, (fast, slow))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    W, U, b, rate = (w.numpy() for w in (cell.input.weight, cell.recurrent.weight, cell.input.bias, cell.rate))
    gate, new = np.split(x.numpy() @ W.T + b + fast.numpy() @ U.T, 2, axis=-1)
    kept = 1 - sigmoid(gate)
    expected = kept * fast.numpy() + sigmoid(gate) * np.tanh(new + slow.numpy())
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert state[0] is y
    following = slow.numpy() + sigmoid(rate) * (expected - slow.numpy())
    np.testing.assert_allclose(state[1].numpy(), following, rtol=1e-4, atol=1e-6)


def test_alternation():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = custom_cell.alternated(sides, 3, 0.0)
    assert "".join(calls) == "aabb" * 3  # a warm-up call and a timed one
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


# ---- online ---------------------------------------------------------------------------------------------------------


def test_online(engine, tmp_path, capsys):
    printed = quick(online, capsys, "--out", tmp_path / "out")
    rows = [line.split() for line in printed.splitlines()[-4:-1]]
    assert [row[0] for row in rows] == ["4", "8", "16"]
    assert all(0.3 < float(row[i]) < 1.5 for row in rows for i in (2, 4))  # untrained: about ln 2
    assert is_png(tmp_path / "out" / "online.png")


def test_online_repeats_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(online, "K2S", (8,))
    first, again, other = (quick(online, capsys, "--seed", seed, "--out", tmp_path) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("change", [250, 400])
def test_a_stream_and_its_answers(change):
    pieces = list(islice(online.stream((2, 5), change, tg.Generator(0)), 3))
    assert [bits.shape for bits, _ in pieces] == [(online.PIECE, 1, 1)] * 3
    bits, answers = (np.concatenate([piece[i].reshape(-1) for piece in pieces]) for i in (0, 1))
    assert 0.4 < bits.mean() < 0.6
    np.testing.assert_array_equal(answers[:2], 0)
    np.testing.assert_array_equal(answers[2:change], bits[: change - 2])
    np.testing.assert_array_equal(answers[change:], bits[change - 5 : -5])


def test_online_learns():
    losses = online.learn(4, (1, 2), 1600, 8, seed=0)
    assert losses.shape == (400,)
    assert losses[180:200].mean() < 0.5  # the first rule
    assert losses[200:220].mean() > losses[180:200].mean()


def test_the_state_goes_on_from_piece_to_piece(monkeypatch):
    before, states = tg.tbptt, []

    def watched(*arguments, state, **options):
        states.append(state)
        for update in before(*arguments, state=state, **options):
            yield update
        states.append(update.state)

    monkeypatch.setattr(tg, "tbptt", watched)
    online.learn(4, (1, 2), 3 * online.PIECE, 2, seed=0)
    first, *rest, _ = states
    assert first is None
    assert len(rest) == 4
    for ended, begun in zip(rest[::2], rest[1::2], strict=True):
        assert begun is ended


def test_running_means():
    np.testing.assert_allclose(online.running(np.array([1.0, 3.0, 5.0, 9.0]), 2), [1, 2, 4, 7])
    losses = np.array([1, 1, 1, 0, 0, 0, 1.0])
    assert online.steps_to_learn(losses, 2) == f"{5 * online.K1:,}"
    assert online.steps_to_learn(losses, 4) == "never"


def test_online_refuses(capsys):
    assert "--delays must be from 1 to 200, got 0 3" in refused(online, capsys, "--delays", 0, 3)


# ---- seq2seq --------------------------------------------------------------------------------------------------------

DATES = ["5.3.1987", "Thursday, 5 March 1987", "Thu Mar 5 1987"]


@pytest.fixture
def translator():
    return seq2seq.Translator(8, True, tg.Generator(0))


def test_seq2seq(engine, tmp_path, capsys):
    printed = quick(seq2seq, capsys, "--out", tmp_path / "out")
    lines = printed.splitlines()
    assert lines[1].split() == ["with", "attention", "without"]
    for date_, line in zip(("Thursday, 5 March 1987", "5-Mar-1987", "3/5/1987"), lines[2:5], strict=True):
        assert re.fullmatch(re.escape(f"{date_:28}") + r"[\d-]{10}       [\d-]{10}", line)
    assert re.fullmatch(r"right of 20 held-out +[\d.]+% +[\d.]+%", lines[5])
    assert is_png(tmp_path / "out" / "seq2seq.png")


def test_seq2seq_repeats_itself(tmp_path, capsys):
    first, again, other = (quick(seq2seq, capsys, "--seed", seed, "--out", tmp_path) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_dates():
    generator = tg.Generator(0)
    for held_out in (True, False):
        dates, answers = seq2seq.draw(300, held_out, generator)
        days = [date.fromisoformat(answer) for answer in answers]
        assert {day.toordinal() % 10 == 0 for day in days} == {held_out}
        assert all(
            any(form.format(day) == text for form in seq2seq.FORMATS) for text, day in zip(dates, days, strict=True)
        )
        assert 1899 <= min(days).year < max(days).year <= 2099
        for text in dates:
            seq2seq.LETTERS.encode(text)
    written = [form.format(date(1987, 3, 5)) for form in seq2seq.FORMATS]
    assert {"5 March 1987", "March 5, 1987", *DATES, "5-Mar-1987", "3/5/1987"} == set(written)


def test_attention_is_a_share_of_what_was_read(engine, translator):
    answers, attention = translator.translate(DATES)
    assert [len(answer) for answer in answers] == [10] * 3
    assert attention.shape == (10, max(map(len, DATES)), 3)
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-5)
    for row, text in enumerate(DATES):
        assert (attention[:, : len(text), row] > 0).all()
        assert (attention[:, len(text) :, row] == 0).all()


def test_a_date_is_translated_alike_beside_any_other(translator):
    answers, attention = translator.translate(DATES)
    for row, text in enumerate(DATES):
        (alone,), weights = translator.translate([text])
        assert alone == answers[row]
        np.testing.assert_allclose(weights[..., 0], attention[:, : len(text), row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", [True, False])
def test_the_decoder_against_itself_unrolled(engine, attention):
    model = seq2seq.Translator(8, attention, tg.Generator(0))
    before = tg.Generator(1).integers(0, 11, (4, 3))

    def found(run):
        scores, h = run(*model.read(DATES), model.digits(before))
        gradients = tg.grad(tg.sum(tg.square(scores)) + tg.sum(h), [*model.parameters()], allow_unused=True)
        return [scores, h, *(g for g in gradients if g is not None)]

    def scanned(cell, h, digits):
        written, h = tg.scan(cell, digits, h)
        return written["scores"], h

    def looped(cell, h, digits):
        scores = []
        for digit in tg.unstack(digits):
            written, h = cell(digit, h)
            scores.append(written["scores"])
        return tg.stack(scores), h

    for a, b in zip(found(scanned), found(looped), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", [True, False])
def test_every_part_of_a_translator_is_trained(attention):
    model = seq2seq.Translator(8, attention, tg.Generator(0))
    model.loss(DATES, ["1987-03-05"] * 3).backward()
    for name, parameter in model.named_parameters():
        assert np.abs(parameter.grad.numpy()).max() > 0, name


def test_what_is_written_is_what_comes_next(translator):
    """The loss is that of the scores by which `translate` chooses, if it is given its own answers."""
    answers, _ = translator.translate(DATES)
    cell, h = translator.read(DATES)
    before, losses = tg.full(3, seq2seq.START), []
    for place in range(10):
        step, h = cell(translator.digits(before), h)
        before = tg.Tensor(seq2seq.DIGITS.encode(answer[place] for answer in answers))
        np.testing.assert_array_equal(tg.argmax(step["scores"], axis=-1).numpy(), before.numpy())
        losses.append(F.cross_entropy(step["scores"], before).item())
    np.testing.assert_allclose(translator.loss(DATES, answers).item(), np.mean(losses), rtol=1e-5)


# ---- streaming ------------------------------------------------------------------------------------------------------


def feed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_streaming(engine, tmp_path, capsys, monkeypatch):
    feed(monkeypatch, "1 2\n3.5\nhello 4\n\n1e500\n-6e3\n")
    capsys.readouterr()
    streaming.main(["--quick", "--out", str(tmp_path / "out"), "--save", str(tmp_path / "model")])
    printed, errors = capsys.readouterr()
    head, *rows = [line.split() for line in printed.splitlines()]
    assert head == ["number", "value", "expected", "off", "by", "next"]
    assert [row[:2] for row in rows] == [["1", "1"], ["2", "2"], ["3", "3.5"], ["4", "-6000"]]
    assert rows[0][2:4] == ["-", "-"]
    for before, row in pairwise(rows):
        assert row[2] == before[4]
        assert float(row[3]) == pytest.approx(float(row[1]) - float(row[2]), abs=0.1)
    assert "line 3 is skipped: 'hello'" in errors
    assert "line 5 is skipped: '1e500'" in errors
    assert re.search(r"4 numbers, \d+ microseconds a step", errors)
    assert is_png(tmp_path / "out" / "streaming.png")

    feed(monkeypatch, "1 2 3.5 -6000")
    streaming.main(["--load", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == printed


def test_streaming_repeats_itself(tmp_path, capsys, monkeypatch):
    printed = [quick(streaming, capsys, "--demo", "--seed", seed, "--out", tmp_path) for seed in (3, 3, 4)]
    assert printed[0] == printed[1] != printed[2]
    assert len(printed[0].splitlines()) == 601
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert quick(streaming, capsys, "--seed", 3, "--out", tmp_path) == printed[0]


def test_streaming_of_nothing(tmp_path, capsys, monkeypatch):
    feed(monkeypatch, "\n\nno numbers here\n")
    streaming.main(["--quick", "--out", str(tmp_path / "out")])
    printed, errors = capsys.readouterr()
    assert len(printed.splitlines()) == 1
    assert "line 3 is skipped: 'no'" in errors
    assert errors.endswith("No number came.\n")
    assert not (tmp_path / "out" / "streaming.png").exists()


def test_streaming_refuses(tmp_path, capsys, monkeypatch):
    assert "No such file" in refused(streaming, capsys, "--load", tmp_path / "absent", "--out", tmp_path)
    (tmp_path / "text").write_text("no model")
    assert "--load" in refused(streaming, capsys, "--load", tmp_path / "text", "--out", tmp_path)
    tg.save(tmp_path / "other", model=nn.Linear(1, 1), hidden=3)
    assert "holds no model of this script" in refused(streaming, capsys, "--load", tmp_path / "other")
    tg.save(tmp_path / "another", weights=nn.Linear(1, 1))
    assert "holds no model of this script" in refused(streaming, capsys, "--load", tmp_path / "another")
    assert "no folder" in refused(streaming, capsys, "--save", tmp_path / "absent" / "model", "--out", tmp_path)


class AsBefore(nn.Module):
    """Expects each value again."""

    def init_state(self, batch):
        return tg.zeros((batch, 1), np.float64)

    def forward(self, x, state):
        return x * 1.0, state


def test_what_is_unusual(capsys):
    values = [k % 2 for k in range(150)]  # off by 1 each time
    values[20] = values[100] = 9
    values[130] = 7  # off by 6, which is not more than 6 times the usual
    kept = deque(maxlen=streaming.KEPT)
    streaming.follow(AsBefore(), [" ".join(map(str, values))], kept)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [int(row.split()[0]) for row in rows if row.endswith("unusual")] == [101, 102]
    assert len(kept) == 150
    assert sum(row.unusual for row in kept) == 2


def test_the_stream_follows_the_scan(engine, capsys):
    model = streaming.Predictor(4, tg.Generator(0))
    values = 100 + 5 * tg.Generator(1).normal(30, dtype=np.float64).numpy()
    streaming.follow(model, (f"{float(value)!r}\n" for value in values), kept := deque())
    expected, _ = tg.scan(model, tg.Tensor(values[:, None, None]))
    np.testing.assert_allclose([row.expected for row in kept][1:], expected.numpy()[:-1, 0, 0], rtol=1e-9)
    # On another scale it expects the same.
    scaled, _ = tg.scan(model, tg.Tensor(values[:, None, None] * 1e6 - 3e7))
    np.testing.assert_allclose(scaled.numpy(), expected.numpy() * 1e6 - 3e7, rtol=1e-6)


def test_a_predictor_knows_mean_and_spread():
    model = streaming.Predictor(4, tg.Generator(0))
    values = tg.Generator(1).normal((50, 3, 1), 7, 2, dtype=np.float64)
    _, state = tg.scan(model, values)
    np.testing.assert_allclose(state["mean"].numpy(), values.numpy().mean(0), rtol=1e-9)
    np.testing.assert_allclose(state["variance"].numpy(), values.numpy().var(0), rtol=1e-9)
    for parameter in model.parameters():
        assert parameter.dtype == np.float64


def in_process(tmp_path, *arguments):
    """The script's main in a process of its own, where nothing need be compiled."""
    program = (
        "import sys, streaming, tinygrad_rnn as tg\nwith tg.use_engine('array'):\n    streaming.main(sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "--quick", "--out", str(tmp_path / "out"), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_pipe_is_answered_at_once_and_ctrl_c_ends_it(tmp_path):
    with in_process(tmp_path) as process:
        assert process.stdout.readline().split()[0] == b"number"
        for text, count in ((b"1.5\n", b"1"), (b"\xff 2\n3\n", b"2"), (b"4\n", b"3")):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().split()[0] == count  # while the pipe is open
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert printed == b""
    assert "line 2 is skipped: '\ufffd'".encode() in errors
    assert b"3 numbers" in errors
    assert b"Traceback" not in errors
    assert is_png(tmp_path / "out" / "streaming.png")


def test_a_broken_pipe_ends_quietly(tmp_path):
    with in_process(tmp_path, "--demo") as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0
    assert b"Error" not in errors
    assert b"Traceback" not in errors


def test_ctrl_c_while_learning(tmp_path):
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "streaming.py", "--demo", "--out", tmp_path / "out"],
        env=os.environ | {"TINYGRAD_RNN_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    with process:
        bar = b""
        while b"loss=" not in bar:  # from then on it learns
            character = process.stderr.read(1)
            assert character, f"it ended by itself: {bar}"
            bar += character
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == b""
    assert b"Traceback" not in errors
