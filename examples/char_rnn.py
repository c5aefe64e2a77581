"""Train a character model on the source code of Python's standard library, or on any text.

    python examples/char_rnn.py
    python examples/char_rnn.py --text book.txt --cell lstm --hidden 512 --updates 5000
    python examples/char_rnn.py --resume runs/char_rnn/checkpoint.safetensors

A recurrent network reads a text one character at a time and after each says how likely every character is to come
next. Its loss, the mean of -log(probability of the character that came), is held against Markov models of order 0, 1
and 2, which look back at no more than that many characters and count.

Read from top to bottom: data, baselines, model, training, sampling, main. It needs `pip install
'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
UNKNOWN = "\ufffd"  # stands for characters that the training text lacks


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what, in one line."""


# ---- Data -----------------------------------------------------------------------------------------------------------


def standard_library(limit: int = 1_500_000) -> list[str]:
    """Train, valid and test text: whole files of Python's own source, in alphabetical order, 8 : 1 : 1."""
    parts = ["", "", ""]
    # The build writes _sysconfigdata*.py: it differs from machine to machine.
    files = [f for f in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) if "_sysconfigdata" not in f.name]
    for i, file in enumerate(files):
        if sum(map(len, parts)) >= limit:
            break
        parts[{8: 1, 9: 2}.get(i % 10, 0)] += file.read_text(encoding="utf-8")
    return parts


def text_file(path: str) -> list[str]:
    """Train, valid and test text: the first 80 %, the next 10 % and the last 10 % of a file."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    if not text:
        raise BadInput(f"{path} is empty")
    ends = [0, len(text) * 8 // 10, len(text) * 9 // 10, len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


def encode(text: str, characters: str) -> np.ndarray[Any, Any]:
    """Each character's index in ``characters``, which are sorted but for the last, UNKNOWN."""
    known, points = (np.frombuffer(t.encode("utf-32-le"), np.uint32) for t in (characters[:-1], text))
    indices = np.searchsorted(known, points)
    found = known[np.minimum(indices, len(known) - 1)] == points
    return np.where(found, indices, len(known))


def lanes(ids: np.ndarray[Any, Any], batch: int) -> np.ndarray[Any, Any]:
    """The stream cut into ``batch`` pieces that are read side by side: shape (steps, batch)."""
    steps = len(ids) // batch
    return np.ascontiguousarray(ids[: steps * batch].reshape(batch, steps).T)


# ---- Baselines ------------------------------------------------------------------------------------------------------


def markov_losses(train: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any], size: int) -> list[float]:
    """Loss of Markov models of order 0, 1 and 2 over ``size`` characters, in nats a character.

    Interpolated as Witten & Bell (1991, method C) do. Where c follows context h n(h, c) times, any character n(h)
    times, and d(h) different characters do::

        p(c | h) = (n(h, c) + d(h) p(c | h without its oldest character)) / (n(h) + d(h))

    and below order 0 all characters are equally likely.
    """
    probability = np.full(len(held_out) - 2, 1 / size)
    losses = []
    for order in range(3):
        seen, n_hc = np.unique(grams(train, order + 1, size), return_counts=True)
        contexts, first, d_h = np.unique(seen // size, return_index=True, return_counts=True)
        n_h = np.add.reduceat(n_hc, first)
        asked = grams(held_out, order + 1, size)[2 - order :]  # the same characters for every order
        n_hc, n_h, d_h = look_up(asked, seen, n_hc), *(look_up(asked // size, contexts, v) for v in (n_h, d_h))
        probability = np.where(n_h > 0, (n_hc + d_h * probability) / np.maximum(n_h + d_h, 1), probability)
        losses.append(float(-np.log(probability).mean()))
    return losses


def grams(ids: np.ndarray[Any, Any], length: int, size: int) -> np.ndarray[Any, Any]:
    """Every run of ``length`` characters as one number, its digits in base ``size``."""
    ends = len(ids) - length + 1
    return sum(ids[i : i + ends] * size ** (length - 1 - i) for i in range(length))


def look_up(keys: np.ndarray[Any, Any], table: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Any:
    """The value that belongs to each key in a sorted table, 0 for a key that is not there."""
    indices = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[indices] == keys, values[indices], 0)


# ---- Model ----------------------------------------------------------------------------------------------------------


class CharRNN(nn.Module):
    """Embedding, a stack of recurrent cells, and a linear layer that scores every character."""

    def __init__(self, characters: int, cell: str, hidden: int, layers: int, generator: tg.Generator) -> None:
        self.embedding = nn.Embedding(characters, hidden, generator=generator)
        self.cells = nn.ModuleList(CELLS[cell](hidden, hidden, generator=generator) for _ in range(layers))
        self.output = nn.Linear(hidden, characters, generator=generator)

    def init_state(self, batch: int) -> list[Any]:
        return [cell.init_state(batch) for cell in self.cells]

    def forward(self, ids: tg.Tensor, state: list[Any]) -> tuple[tg.Tensor, list[Any]]:
        """From ids of shape (steps, batch) to scores of shape (steps * batch, characters), and the next state."""
        outputs = tg.unstack(self.embedding(ids))
        next_state = []
        for cell, h in zip(self.cells, state, strict=True):
            for t, x in enumerate(outputs):
                outputs[t], h = cell(x, h)
            next_state.append(h)
        hidden = tg.stack(outputs)
        return self.output(hidden.reshape(-1, hidden.shape[-1])), next_state


def detach(state: Any) -> Any:
    """The same state, out of the graph: truncated BPTT carries values from window to window, but no gradient."""
    return type(state)(map(detach, state)) if isinstance(state, (list, tuple)) else state.detach()


def window_loss(model: CharRNN, window: np.ndarray[Any, Any], state: list[Any]) -> tuple[tg.Tensor, list[Any]]:
    """Mean loss at each of the ``len(window) - 1`` steps, in which every character predicts the one after it."""
    ids = tg.Tensor(window).to(model.output.weight.backend)
    scores, state = model(ids[:-1], state)
    return F.cross_entropy(scores, ids[1:].reshape(-1)), state


@tg.no_grad()
def held_out_loss(model: CharRNN, ids: np.ndarray[Any, Any]) -> float:
    """Mean loss over a text, in nats a character, in up to 128 pieces at a time of no less than 1000 characters."""
    data = lanes(ids, min(max(len(ids) // 1000, 1), 128))
    state, total = model.init_state(data.shape[1]), 0.0
    for start in range(0, len(data) - 1, 100):
        window = data[start : start + 101]
        loss, state = window_loss(model, window, state)
        total += loss.item() * (len(window) - 1)
    return total / (len(data) - 1)


# ---- Training -------------------------------------------------------------------------------------------------------


class Run:
    """All that changes while a model is trained, so that it can be saved and gone on with."""

    def __init__(self, options: dict[str, Any], characters: int) -> None:
        self.options = options
        self.generator = tg.Generator(options["seed"])
        self.model = CharRNN(characters, options["cell"], options["hidden"], options["layers"], self.generator)
        self.optimizer = optim.Adam(self.model.parameters(), lr=options["lr"])
        self.schedule = optim.CosineAnnealingLR(self.optimizer, T_max=max(options["updates"], 1))
        self.state: list[Any] = self.model.init_state(options["batch"])
        self.train_losses: list[float] = []  # one an update, so their number is the position in the training text
        self.valid_losses: list[list[float]] = []  # pairs of the number of updates and the loss

    def save(self, path: Path) -> None:
        tg.save(path, **vars(self))

    def restore(self, saved: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "schedule", "generator"):
            getattr(self, name).load_state_dict(saved[name])
        self.state = saved["state"]
        self.train_losses, self.valid_losses = saved["train_losses"], saved["valid_losses"]

    def update(self, data: np.ndarray[Any, Any]) -> float:
        """Train on the next window of ``data``, shape (steps, batch), and return its loss."""
        seq_len = self.options["seq_len"]
        window = len(self.train_losses) % ((len(data) - 1) // seq_len)
        if window == 0:  # at the start of the text nothing has been read yet
            self.state = self.model.init_state(data.shape[1])
        piece = data[window * seq_len : (window + 1) * seq_len + 1]
        loss, state = window_loss(self.model, piece, self.state)
        self.optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(self.model.parameters(), self.options["clip"])
        self.optimizer.step()
        self.schedule.step()
        self.state = detach(state)
        self.train_losses.append(loss.item())
        return self.train_losses[-1]


def train(run: Run, train_ids: np.ndarray[Any, Any], valid_ids: np.ndarray[Any, Any], checkpoint: Path) -> bool:
    """Train until all updates are done (True) or Ctrl-C is pressed (False); either way ``checkpoint`` is written."""
    from tqdm import tqdm

    interrupted = False

    def on_interrupt(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True  # finish the update: half of one cannot be resumed
        signal.signal(signal.SIGINT, signal.default_int_handler)  # unless asked again

    before = signal.signal(signal.SIGINT, on_interrupt)
    data = lanes(train_ids, run.options["batch"])
    updates, an_update = run.options["updates"], run.options["batch"] * run.options["seq_len"]
    done = len(run.train_losses)
    bar = tqdm(total=updates * an_update, initial=done * an_update, unit="char", unit_scale=True, dynamic_ncols=True)
    with bar:
        while done < updates and not interrupted:
            run.update(data)
            done += 1
            if done % max(updates // 10, 1) == 0 or done == updates:
                run.valid_losses.append([done, held_out_loss(run.model, valid_ids)])
                run.save(checkpoint)
            valid = f"{run.valid_losses[-1][1]:.3f}" if run.valid_losses else "-"
            bar.set_postfix_str(f"train {np.mean(run.train_losses[-50:]):.3f}, valid {valid} nats", refresh=False)
            bar.update(an_update)
    run.save(checkpoint)
    signal.signal(signal.SIGINT, before)
    return not interrupted


# ---- Sampling and drawing -------------------------------------------------------------------------------------------


@tg.no_grad()
def sample(run: Run, characters: str, length: int, temperature: float) -> str:
    """``length`` characters drawn from the model, each fed back to draw the next; it begins as if after a newline."""
    state = run.model.init_state(1)
    index = max(characters.find("\n"), 0)
    text = ""
    for uniform in run.generator.uniform(length, dtype=np.float64).numpy():
        scores, state = run.model(tg.full((1, 1), index), state)
        heaps = np.cumsum(F.softmax(scores[0].astype(np.float64) / temperature).numpy())
        index = int(np.searchsorted(heaps, uniform * heaps[-1], side="right"))
        text += characters[index]
    return text


def draw(run: Run, baselines: list[float], path: Path) -> None:
    """The loss curves, and the baselines as lines, both on the valid text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    losses = np.array(run.train_losses)
    width = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
    axes.plot(np.arange(width, len(losses) + 1), smooth, label="train" + f", mean of {width} updates" * (width > 1))
    axes.plot(*np.array(run.valid_losses).T, "o-", label="valid")
    for order, (loss, style) in enumerate(zip(baselines, (":", "-.", "--"), strict=True)):
        axes.axhline(loss, color="0.4", linestyle=style, label=f"Markov model of order {order}, valid: {loss:.2f}")
    axes.set(xlabel="updates", ylabel="loss, nats a character", title=f"char_rnn: {run.options['cell']}, ")
    axes.secondary_yaxis("right", functions=(lambda nats: nats / log(2), lambda bits: bits * log(2))).set_ylabel(
        "bits a character"
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
