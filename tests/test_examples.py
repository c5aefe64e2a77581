"""The examples, in a short form: what they leave behind, how they go on, and how they refuse."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import char_rnn
import founding_article
import numpy as np
import pytest
import safetensors.numpy

import tinygrad_rnn as tg

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--hidden", "8", "--batch", "2", "--seq-len", "8", "--updates", "6", "--sample", "20"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60, encoding="utf-8")
    return path


def run(*arguments):
    return char_rnn.main([str(a) for a in arguments])


def stop_after(updates, monkeypatch):
    """Press Ctrl-C in that update."""
    update = char_rnn.Run.update

    def pressed(self):
        loss = update(self)
        if len(self.losses) == updates:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(char_rnn.Run, "update", pressed)


def test_a_run_leaves_a_checkpoint_a_picture_and_the_baselines(text, tmp_path, capsys):
    assert run("--text", text, *SMALL, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    for order in range(3):
        assert f"Markov model of order {order}" in printed
    assert "bits a character" in printed
    assert (tmp_path / "out" / "char_rnn.png").read_bytes().startswith(b"\x89PNG")
    saved = tg.load(tmp_path / "out" / "checkpoint.safetensors")
    assert saved["losses"].shape == (6,)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_stopped_run_goes_on_to_the_same_bits(cell, text, tmp_path, monkeypatch, capsys):
    options = ["--text", text, *SMALL, "--cell", cell, "--layers", 2]
    assert run(*options, "--out", tmp_path / "straight") == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        assert run(*options, "--out", tmp_path / "stopped") == 130
    checkpoint = tmp_path / "stopped" / "checkpoint.safetensors"
    assert str(checkpoint) in capsys.readouterr().err
    assert tg.load(checkpoint)["losses"].shape == (3,)
    assert run("--resume", checkpoint, "--sample", 0) == 0  # writes where it was
    straight, stopped = (tg.load(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "stopped"))
    assert leaves(straight) == leaves(stopped)


def leaves(value):
    """A nest with its tensors as bytes, so that == compares bits."""
    if isinstance(value, dict):
        return {key: leaves(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [leaves(item) for item in value]
    return (value.shape, np.asarray(value).tobytes()) if isinstance(value, (tg.Tensor, np.ndarray)) else value


def test_ctrl_c_in_a_process(text, tmp_path):
    options = ["--text", text, *SMALL[:-4], "--updates", "1000000", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "char_rnn.py", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    bar = ""
    while "loss=" not in bar:  # from then on it trains
        character = process.stderr.read(1)
        assert character, f"it ended by itself: {bar}"
        bar += character
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    assert f"--resume {checkpoint}" in errors
    assert tg.load(checkpoint)["losses"].size > 0


def refused(capsys, *arguments):
    """The one line that a bad call ends in."""
    capsys.readouterr()
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_bad_texts(text, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert "No such file" in refused(capsys, "--text", tmp_path / "absent.txt", *SMALL, *out)
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in refused(capsys, "--text", tmp_path / "empty.txt", *SMALL, *out)
    (tmp_path / "short.txt").write_text("short")
    assert "too short" in refused(capsys, "--text", tmp_path / "short.txt", *SMALL, *out)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 500)
    (tmp_path / "unknown.txt").write_text(char_rnn.UNKNOWN * 3000, encoding="utf-8")
    assert "U+FFFD" in refused(capsys, "--text", tmp_path / "unknown.txt", *SMALL, *out)
    assert "not UTF-8: byte 3" in refused(capsys, "--text", tmp_path / "latin.txt", *SMALL, *out)
    assert not (tmp_path / "out").exists()
    assert run("--text", text, *SMALL, *out) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    refused(capsys, "--text", tmp_path / "short.txt", *SMALL, *out)
    refused(capsys, "--text", text, *SMALL, *out, "--hidden", "none")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_bad_folders_and_numbers(text, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(capsys, "--text", text, *SMALL, "--out", tmp_path / "file" / "out")
    assert "--hidden" in refused(capsys, "--text", text, "--hidden", "0")
    assert "--lr" in refused(capsys, "--text", text, "--lr", "nan")
    assert "--temperature" in refused(capsys, "--text", text, "--temperature", "0")
    assert "--cell" in refused(capsys, "--text", text, "--cell", "transformer")
    assert "--seed" in refused(capsys, "--text", text, "--seed", "9" * 30)
    for option in ("--batch", "--seq-len", "--layers", "--updates", "--sample", "--seed", "--clip"):
        assert option in refused(capsys, "--text", text, option, "-1")
        assert option in refused(capsys, "--text", text, option, "many")


def test_more_memory_than_there_is(text, tmp_path, capsys, monkeypatch):
    def model(*_):
        raise MemoryError("Unable to allocate 715 GiB")

    monkeypatch.setattr(char_rnn, "CharRNN", model)
    assert "715 GiB" in refused(capsys, "--text", text, *SMALL, "--out", tmp_path / "out")


def test_a_gpu_that_is_not_there(text, capsys, backend):
    if backend == "cupy":
        pytest.skip("there is one")
    line = refused(capsys, "--text", text, *SMALL, "--backend", "cupy")
    assert "cuda12" in line or "driver" in line


def test_bad_checkpoints_overwrite_nothing(text, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--text", text, *SMALL, "--out", out) == 0
    checkpoint = out / "checkpoint.safetensors"
    before = {path: path.read_bytes() for path in out.iterdir()}
    for option, value in (("--hidden", 16), ("--cell", "lstm"), ("--updates", 9)):
        assert f"{option} {value} does not fit" in refused(capsys, "--resume", checkpoint, option, value, "--out", out)
    (tmp_path / "garbage").write_bytes(b"garbage")
    assert "garbage" in refused(capsys, "--resume", tmp_path / "garbage", "--out", out)
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "foreign")
    assert "foreign" in refused(capsys, "--resume", tmp_path / "foreign", "--out", out)
    (tmp_path / "cut").write_bytes(checkpoint.read_bytes()[:-1])
    assert "cut" in refused(capsys, "--resume", tmp_path / "cut", "--out", out)
    tg.save(tmp_path / "other", model=tg.nn.Linear(2, 2))
    assert "no checkpoint of this script" in refused(capsys, "--resume", tmp_path / "other", "--out", out)
    tg.save(tmp_path / "other", settings=3)
    assert "no checkpoint of this script" in refused(capsys, "--resume", tmp_path / "other", "--out", out)
    assert "cannot resume" in refused(capsys, "--resume", tmp_path / "absent", "--out", out)
    text.write_text("another text, of the same length or not\n" * 70)
    assert "another text" in refused(capsys, "--resume", checkpoint, "--out", out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def witten_bell(train, held_out, size, order):
    """The definition, one character at a time."""
    counts = Counter(tuple(train[i : i + k + 1]) for k in range(order + 1) for i in range(len(train) - k))

    def probability(context, c):
        followers = [counts[(*context, other)] for other in range(size) if counts[(*context, other)]]
        lower = probability(context[1:], c) if context else 1 / size
        if not followers:
            return lower
        return (counts[(*context, c)] + len(followers) * lower) / (sum(followers) + len(followers))

    context = tuple(held_out[:order])
    assert math.isclose(sum(probability(context, c) for c in range(size)), 1)
    asked = range(2, len(held_out))
    return -sum(math.log(probability(tuple(held_out[i - order : i]), int(held_out[i]))) for i in asked) / len(asked)


def test_markov_models_by_definition():
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 4, 60), rng.integers(0, 5, 30)  # a fifth character that training lacks
    expected = [witten_bell(train.tolist(), held_out.tolist(), 5, order) for order in range(3)]
    np.testing.assert_allclose(char_rnn.markov_losses(train, held_out, 5), expected, rtol=1e-12)


def test_markov_probabilities_sum_to_one():
    rng = np.random.default_rng(1)
    train = rng.integers(0, 5, 40)
    for a, b in np.ndindex(6, 6):  # 5 never occurs in training
        losses = np.array([char_rnn.markov_losses(train, np.array([a, b, c]), 6) for c in range(6)])
        np.testing.assert_allclose(np.exp(-losses).sum(0), 1, rtol=1e-12)


def test_grams_and_their_counts():
    grams = char_rnn.grams(np.array([1, 2, 3, 4]), 2, 10)
    assert grams.tolist() == [12, 23, 34]
    assert char_rnn.look_up(np.array([5, 12, 23, 99]), grams, np.array([7, 8, 9])).tolist() == [0, 7, 8, 0]


def test_text_as_indices():
    characters = "abc" + char_rnn.UNKNOWN
    assert char_rnn.encode("cab?é", characters).tolist() == [2, 0, 1, 3, 3]
    assert char_rnn.lanes(np.arange(7), 2).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_the_standard_library_is_text_enough():
    train, valid, test = char_rnn.standard_library()
    assert len(train) > 800_000
    assert min(len(valid), len(test)) > 50_000


def test_the_founding_article(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["founding_article.py", "--quick", "--out", str(tmp_path)])
    founding_article.main()
    assert "ln 2 is 0.6931" in capsys.readouterr().out
    assert (tmp_path / "founding_article.png").stat().st_size > 10_000


def test_the_articles_gradient_is_wrong_and_ours_is_not():
    errors = founding_article.gradient_errors(seed=0)
    for name, (without, full) in errors.items():
        assert full < 1e-8
        assert (without > 0.1) == name.startswith("cell")
