"""Translate dates as people write them, "Thursday, 5 March 1987", to 1987-03-05, with and without attention.

    python examples/seq2seq.py

A bidirectional GRU reads the date, character by character. A decoder writes the answer, one character at a time: its
cell looks at all that the encoder put out, weighted by an attention that it computes anew at each step (Bahdanau, Cho &
Bengio 2015), and at the character before. Without attention it must make do with the encoder's last state. Both learn
with the right character before, and are tested with the one that they wrote themselves, on days that they never saw.

Expect a minute, and a picture in runs/seq2seq of what the decoder looked at and of both accuracies. With attention all
of 1,000 dates are right after 250 updates; without it 72 % are after 1,000, and 17 and 22 % with two other seeds. It
needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim
from tinygrad_rnn.data import Vocabulary, pad

FORMATS = (  # of a Python date; "%B" is a month's name, "%A" a weekday's
    "{0.day} {0:%B} {0.year}",
    "{0:%B} {0.day}, {0.year}",
    "{0:%A}, {0.day} {0:%B} {0.year}",
    "{0:%a} {0:%b} {0.day} {0.year}",
    "{0.day}-{0:%b}-{0.year}",
    "{0.day}.{0.month}.{0.year}",
    "{0.month}/{0.day}/{0.year}",  # where there are slashes the month comes first
)
FIRST, LAST = (date(year, 1, 1).toordinal() // 10 for year in (1900, 2100))
LETTERS = Vocabulary(ascii_letters + digits + " ,.-/")
DIGITS = Vocabulary(digits + "-")
Pairs = tuple[list[str], list[str]]  # dates, and the answers
START, LENGTH = len(DIGITS), 10  # what stands before an answer, and how long it is


def draw(count: int, held_out: bool, generator: tg.Generator) -> Pairs:
    """Dates in formats drawn at random, and the same in ISO's. Every tenth day is held out."""
    offset = 0 if held_out else generator.integers(1, 10, count).numpy()
    days = [date.fromordinal(day) for day in (10 * generator.integers(FIRST, LAST, count).numpy() + offset).tolist()]
    formats = generator.integers(0, len(FORMATS), count).numpy()
    return [FORMATS[k].format(day) for k, day in zip(formats, days, strict=True)], [day.isoformat() for day in days]


class Translator(nn.Module):
    """Encoder and decoder; `cell` is a step of the latter."""

    def __init__(self, hidden: int, attention: bool, generator: tg.Generator) -> None:
        self.attention = attention
        self.letters = nn.Embedding(len(LETTERS), hidden // 2, generator=generator)
        self.encoder = nn.GRU(hidden // 2, hidden // 2, bidirectional=True, generator=generator)
        self.first = nn.Linear(hidden, hidden, generator=generator)
        self.digits = nn.Embedding(len(DIGITS) + 1, hidden // 4, generator=generator)
        self.decoder = nn.GRUCell(hidden // 4 + hidden * attention, hidden, generator=generator)
        self.readout = nn.Linear(hidden, len(DIGITS), generator=generator)
        if attention:
            self.key = nn.Linear(hidden, hidden, generator=generator)
            self.query = nn.Linear(hidden, hidden, bias=False, generator=generator)
            self.energy = nn.Linear(hidden, 1, bias=False, generator=generator)

    def read(self, dates: list[str]) -> tuple[Callable[[Any, Any], Any], tg.Tensor]:
        """The cell that writes the answers to these dates, and the state that it starts from."""
        letters, lengths = pad([LETTERS.encode(text) for text in dates])
        memory, last = self.encoder(self.letters(tg.Tensor(letters)), lengths=lengths)  # (S, B, hidden)
        start = tg.tanh(self.first(tg.concatenate([last[0], last[1]], axis=-1)))
        if not self.attention:
            return self.cell, start
        keys = self.key(memory)  # the same at each step
        real = tg.Tensor(np.arange(len(letters))[:, None] < lengths)
        return lambda digit, h: self.cell(digit, h, memory, keys, real), start

    def cell(self, digit: tg.Tensor, h: tg.Tensor, memory: Any = None, keys: Any = None, real: Any = None) -> Any:
        """One step: scores of the next character and the attention (S, B), and the state."""
        weights = None
        if memory is not None:
            energy = tg.squeeze(self.energy(tg.tanh(keys + self.query(h))), axis=-1)
            weights = F.softmax(tg.where(real, energy, -1e9), axis=0)  # exactly 0 on padding
            context = tg.sum(tg.expand_dims(weights, -1) * memory, axis=0)
            digit = tg.concatenate([digit, context], axis=-1)
        h, _ = self.decoder(digit, h)
        return {"scores": self.readout(h)} | ({} if weights is None else {"attention": weights}), h

    def loss(self, dates: list[str], answers: list[str]) -> tg.Tensor:
        """With the right character before each: all steps of the decoder in one scan."""
        targets = np.stack([DIGITS.encode(answer) for answer in answers], axis=1)
        before = np.concatenate([np.full((1, len(answers)), START), targets[:-1]])
        cell, start = self.read(dates)
        written, _ = tg.scan(cell, self.digits(tg.Tensor(before)), start)
        return F.cross_entropy(written["scores"].reshape((-1, len(DIGITS))), tg.Tensor(targets.reshape(-1)))

    def translate(self, dates: list[str]) -> tuple[list[str], np.ndarray | None]:
        """Answers, each character the likeliest after those written before, and the attention (LENGTH, S, B)."""
        with tg.no_grad():
            cell, h = self.read(dates)
            written, attention = [tg.full(len(dates), START)], []
            for _ in range(LENGTH):
                step, h = cell(self.digits(written[-1]), h)
                written.append(tg.argmax(step["scores"], axis=-1))
                attention.append(step.get("attention"))
        codes = tg.stack(written[1:], axis=1).numpy()
        return [DIGITS.decode(row) for row in codes], tg.stack(attention).numpy() if self.attention else None


def train(
    model: Translator,
    name: str,
    updates: int,
    batch: int,
    held_out: tuple[list[str], list[str]],
    generator: tg.Generator,
) -> list[tuple[int, float]]:
    """Train, and return the share of held-out dates that are right after so many updates, 20 times."""
    from tqdm import tqdm

    optimizer = optim.Adam(model.parameters(), lr=0.005)
    schedule = optim.CosineAnnealingLR(optimizer, updates, eta_min=0.0002)
    curve = []
    bar = tqdm(range(1, updates + 1), desc=name, unit="update")
    for update in bar:
        loss = model.loss(*draw(batch, False, generator))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % max(updates // 20, 1) == 0:
            answers, _ = model.translate(held_out[0])
            curve.append((update, float(np.mean([a == b for a, b in zip(answers, held_out[1], strict=True)]))))
            bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{curve[-1][1]:.1%}", refresh=False)
    return curve


def picture(
    path: Path, dates: list[str], answers: list[str], attention: np.ndarray, curves: dict[str, list[tuple[int, float]]]
) -> None:
    """The attention of some dates, and the accuracy as it grew."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axes, text, answer, weights in zip(panels.flat, dates, answers, np.moveaxis(attention, -1, 0), strict=False):
        axes.imshow(weights[:, : len(text)], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(text)), text, family="monospace")
        axes.set_yticks(range(LENGTH), answer, family="monospace")
        axes.set(xlabel="read", ylabel="written")
    for name, curve in curves.items():
        panels[1, 1].plot(*zip(*curve, strict=True), ".-", label=name)
    panels[1, 1].set(xlabel="update", ylabel="share of held-out dates right", ylim=(-0.03, 1.03))
    panels[1, 1].legend(loc=(0.3, 0.62))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 updates of a small network: to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/seq2seq"), help="where the picture goes")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    updates, batch, hidden, count = (4, 3, 8, 20) if options.quick else (1000, 32, 64, 1000)
    generator = tg.Generator(options.seed)
    held_out = draw(count, True, generator)
    models, curves = {}, {}
    for name in ("with attention", "without"):
        models[name] = Translator(hidden, name == "with attention", generator)
        curves[name] = train(models[name], name, updates, batch, held_out, generator)
    shown = [FORMATS[k].format(date(1987, 3, 5)) for k in (2, 4, 6)]
    answers, attention = models["with attention"].translate(shown)
    others, _ = models["without"].translate(shown)
    print(f"\n{'':28}with attention   without")
    for text, *both in zip(shown, answers, others, strict=True):
        print(f"{text:28}{both[0]:17}{both[1]}")
    ends = [f"{curve[-1][1]:.1%}" for curve in curves.values()]
    print(f"{f'right of {count} held-out':28}{ends[0]:17}{ends[1]}")
    path = options.out / "seq2seq.png"
    picture(path, shown, answers, attention, curves)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
