"""The encoder-decoder of Cho et al. 2014, on a task that can be made here: writing a word backwards."""

from __future__ import annotations

from functools import partial

import numpy as np

import tinygrad_rnn as tg
from examples.papers.trials import Paper, Setting, Trial, dots
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

LETTERS, HIDDEN, BATCH = 26, 128, 64
START, END = LETTERS, LETTERS  # the first input of the decoder, and its last output
CELLS = {"tanh": nn.RNNCell, "gated unit": nn.ChoGRUCell}


def words(size: int, least: int, most: int, generator: tg.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random words, shape (most, size), what is to be written, (most + 1, size), and the words' lengths.

    Filled up with END.
    """
    lengths = generator.integers(least, most + 1, (size,)).numpy()
    codes = generator.integers(0, LETTERS, (most, size)).numpy()
    real = np.arange(most)[:, None] < lengths
    codes = np.where(real, codes, END)
    back = np.maximum(lengths - 1 - np.arange(most)[:, None], 0)
    reversed_ = np.where(real, np.take_along_axis(codes, back, axis=0), END)
    return codes, np.concatenate([reversed_, np.full((1, size), END)]), lengths


class Decoder(nn.Module):
    """A cell that sees the letter before, a summary of the word, and if asked what it attends to in the word.

    Attention is that of a dot product with a projection of the state. Its memory, one entry for each letter, is set
    before each sequence: ``memory`` of shape (letters, B, hidden), ``real`` of shape (letters, B).
    """

    def __init__(self, unit: str, attends: bool, generator: tg.Generator) -> None:
        inputs = HIDDEN * (2 + attends)
        self.cell = CELLS[unit](inputs, HIDDEN, generator=generator)
        self.query = nn.Linear(HIDDEN, HIDDEN, bias=False, generator=generator) if attends else None
        self.memory = self.real = self.summary = None

    def forward(self, x: tg.Tensor, h: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        seen = [x, self.summary]
        if self.query is not None:
            scores = tg.where(self.real, tg.sum(self.memory * self.query(h), axis=-1), -1e9)
            weights = F.softmax(scores, axis=0)
            seen.append(tg.sum(tg.expand_dims(weights, -1) * self.memory, axis=0))
        return self.cell(tg.concatenate(seen, axis=-1), h)


class Model(nn.Module):
    """Encoder, summary, decoder."""

    def __init__(self, unit: str, attends: bool, generator: tg.Generator) -> None:
        self.embedding = nn.Embedding(LETTERS + 1, HIDDEN, generator=generator)
        self.encoder = nn.Recurrent(CELLS[unit](HIDDEN, HIDDEN, generator=generator))
        self.decoder = Decoder(unit, attends, generator)
        self.begin = nn.Linear(HIDDEN, HIDDEN, generator=generator)
        self.out = nn.Linear(HIDDEN, LETTERS + 1, generator=generator)

    def encode(self, codes: np.ndarray, lengths: np.ndarray) -> tg.Tensor:
        """Tell the decoder of the words; returns its first state."""
        memory, summary = self.encoder(self.embedding(tg.Tensor(codes)), lengths=lengths)
        self.decoder.summary, self.decoder.memory = summary, memory
        self.decoder.real = tg.Tensor(np.arange(len(codes))[:, None] < lengths)
        return tg.tanh(self.begin(summary))

    def loss(self, codes: np.ndarray, wanted: np.ndarray, lengths: np.ndarray) -> tg.Tensor:
        """The mean cross-entropy of a letter, each told the right one before; up to END, and END once."""
        before = np.concatenate([np.full((1, codes.shape[1]), START), wanted[:-1]])
        h = self.encode(codes, lengths)
        ys, _ = tg.scan(self.decoder, self.embedding(tg.Tensor(before)), h)
        return tg.sequence_loss(F.cross_entropy, self.out(ys), tg.Tensor(wanted), lengths=lengths + 1)

    def write(self, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Each time the most likely letter, told what it wrote before."""
        with tg.no_grad():
            h = self.encode(codes, lengths)
            letter, written = np.full(codes.shape[1], START), []
            for _ in range(len(codes) + 1):
                y, h = self.decoder(self.embedding(tg.Tensor(letter)), h)
                letter = self.out(y).numpy().argmax(-1)
                written.append(letter)
        return np.stack(written)


def trial(unit: str, attends: bool, updates: int, seed: int, quick: bool) -> Trial:
    """Train on fresh words of up to ten letters; test words are right if all letters and the end are."""
    generator = tg.Generator(seed)
    model = Model(unit, attends, generator)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2 if quick else updates):
        codes, wanted, lengths = words(BATCH, 3, 10, generator)
        loss = model.loss(codes, wanted, lengths)
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = {}
    for name, least, most in (("short", 3, 10), ("long", 11, 20)):
        codes, wanted, lengths = words(20 if quick else 1000, least, most, generator)
        counted = np.arange(len(wanted))[:, None] <= lengths
        found[name] = float(((model.write(codes, lengths) == wanted) | ~counted).all(0).mean())
    return found


def shares(trials: list[Trial]) -> tuple[str, ...]:
    return tuple(f"{100 * np.mean([trial[name] for trial in trials]):.1f} %" for name in ("short", "long"))


PAPERS = {
    "cho14": Paper(
        "Encoder and decoder: words written backwards",
        "after Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, arXiv:1406.1078",
        ("right, 3 to 10 letters", "right, 11 to 20 letters"),
        tuple(
            Setting(f"{unit}, {'attention' if attends else 'one vector'}", ("-", "-"), 1, partial(trial, *way, 6000))
            for way in (("tanh", False), ("gated unit", False), ("tanh", True), ("gated unit", True))
            for unit, attends in [way]
        ),
        shares,
        dots("short", "right, 3 to 10 letters"),
        "An architecture, not a figure of the paper, which translated phrases. Its gated unit (reset before the "
        "product), and its decoder, which sees the summary of the word at every step; 128 units, 6,000 batches of 64 "
        "fresh random words of 3 to 10 letters; Adam, where the paper had Adadelta. A word is right if all its "
        "letters and its end are. On this task tanh units do about as well as gated ones; the paper found gates "
        "crucial on its own. Attention, which came later (Bahdanau, Cho & Bengio 2015), is by dot product.",
    )
}
