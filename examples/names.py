"""Invent names: a network learns a list of names letter by letter, then writes some of its own.

    python examples/names.py
    python examples/names.py --names my_list.txt --temperature 0.6

Without a list it takes the places that Python's time zones are named after. After each letter the network says how
likely every letter is to come next; to invent a name, a letter is drawn by that and fed back, in a `tg.scan` too.

Expect ten seconds. After some 20 epochs names held out cost 2.6 nats a letter, less than by a table of which letter
follows which, 2.8; after that the network learns its list by heart and gets worse on others. The best is kept, and
hardly a name that it invents is in the list. It needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import os
import zoneinfo
from pathlib import Path
from typing import Any

# NumPy's OpenBLAS reads this when it is loaded; more of its threads wait by spinning, slow on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F

REGIONS = {"Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific"}
END = "\n"  # what comes after the last letter, and before the first
Codes = list[np.ndarray]  # names as numbers of letters, with END before and after


def places() -> list[str]:
    """The last part of each time zone's name, but not of those that are no places, as Etc/GMT+3 or Australia/NSW."""
    zones = (zone.split("/") for zone in zoneinfo.available_timezones())
    return sorted({z[-1].replace("_", " ") for z in zones if z[0] in REGIONS and len(z) > 1 and not z[-1].isupper()})


def one_hot(codes: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[codes]


class Letters(nn.Module):
    """Scores for the letter that comes next, after each letter of names side by side."""

    def __init__(self, kind: str, size: int, hidden: int, generator: tg.Generator) -> None:
        self.cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](size, hidden, generator=generator)
        self.dropout = nn.Dropout(0.3, generator=generator)
        self.readout = nn.Linear(hidden, size, generator=generator)
        self.size = size

    def forward(self, codes: Codes) -> tuple[tg.Tensor, tg.Tensor, np.ndarray]:
        """Scores (T, B, size), the letters that came (T, B), and how many of each column are real, (B,)."""
        padded, lengths = data.pad(codes)
        outputs, _ = tg.scan(self.cell, tg.Tensor(one_hot(padded[:-1], self.size)), lengths=lengths - 1)
        return self.readout(self.dropout(outputs)), tg.Tensor(padded[1:]), lengths - 1

    def loss(self, codes: Codes) -> tg.Tensor:
        """Nats a letter, the end of a name counted as one."""
        scores, came, lengths = self(codes)
        return tg.sequence_loss(F.cross_entropy, scores, came, lengths=lengths)

    def invent(self, luck: tg.Tensor, temperature: float, end: int) -> np.ndarray:
        """Codes of shape (steps, names), drawn by ``luck``, numbers from 0 to 1 of shape (steps, names, size).

        With u spread evenly, the letter of the largest score - log(-log u) is one drawn by the softmax of the scores.
        """

        def step(u: tg.Tensor, state: Any) -> tuple[tg.Tensor, Any]:
            letter, h = state
            y, h = self.cell(letter, h)
            scores = self.readout(y) / temperature - tg.log(-tg.log(u))
            letter = (scores == tg.max(scores, axis=-1, keepdims=True)).astype(np.float32)
            return letter, (letter, h)

        count = luck.shape[1]
        first = tg.Tensor(one_hot(np.full(count, end), self.size))
        letters, _ = tg.scan(step, luck, (first, self.cell.init_state(count)))
        return letters.numpy().argmax(axis=-1)


def train(model: Letters, codes: Codes, held_out: Codes, epochs: int, generator: tg.Generator) -> np.ndarray:
    """The losses on both lists after each epoch, (epochs, 2); the model is left as it was best on ``held_out``."""
    optimizer = optim.Adam(model.parameters(), lr=4e-3)
    losses = np.zeros((0, 2))
    best: dict[str, np.ndarray] = {}
    bar = tqdm(range(epochs), unit="epoch")
    for _ in bar:
        model.train()
        for rows in data.bucketed([len(code) for code in codes], 32, generator):
            loss = model.loss([codes[row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with tg.no_grad():
            losses = np.vstack([losses, [model.loss(codes).item(), model.loss(held_out).item()]])
        bar.set_postfix(loss=f"{losses[-1, 0]:.3f}", held_out=f"{losses[-1, 1]:.3f}")
        if losses[:, 1].argmin() == len(losses) - 1:
            best = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return losses


def loss_of_pairs(codes: Codes, held_out: Codes, size: int) -> float:
    """Nats a letter of a table of which letter follows which; each pair counts 0.3 more than it came."""
    counts = np.full((size, size), 0.3)
    for code in codes:
        np.add.at(counts, (code[:-1], code[1:]), 1)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    return -float(np.concatenate([logs[code[:-1], code[1:]] for code in held_out]).mean())


def picture(path: Path, losses: np.ndarray, pairs: float, likely: np.ndarray, came: np.ndarray, letters: str) -> None:
    """Left the ``losses``; right how ``likely`` each of the ``letters`` was, (steps, size), where ``came`` came."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs, best = np.arange(1, len(losses) + 1), losses[:, 1].argmin()
    left.plot(epochs, losses, label=["names it learns from", "held-out names"])
    left.plot(best + 1, losses[best, 1], "k*", markersize=11, label=f"kept, epoch {best + 1}")
    left.axhline(pairs, color="gray", linestyle="--", label="held out, table of pairs")
    left.set(xlabel="epoch", ylabel="loss, nats a letter")
    left.legend()
    shown = np.union1d(np.argsort(-likely.max(axis=0))[:20], came)  # letters that are likely somewhere, or came
    image = right.imshow(likely[:, shown].T, cmap="Blues", vmin=0, aspect="auto")
    right.scatter(range(len(came)), np.searchsorted(shown, came), s=70, facecolors="none", edgecolors="tab:red")
    names = [{" ": "space", END: "end"}.get(letter, letter) for letter in letters]
    right.set_xticks(range(len(came)), [names[i] for i in came])
    right.set_yticks(range(len(shown)), [names[i] for i in shown], fontsize=8)
    right.set(title="along a held-out name", xlabel="what came (red circles)", ylabel="what might have come")
    figure.colorbar(image, label="probability, given the letters before")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", metavar="FILE", help="names to learn, one a line, in UTF-8; without it, places")
    parser.add_argument("--cell", choices=("gru", "lstm"), default="gru")
    parser.add_argument("--count", type=int, default=24, help="how many names to invent (24)")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 the names are tamer (0.8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small network, 2 epochs: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/names"), help="where the picture goes")
    options = parser.parse_args(arguments)
    if options.count < 1 or not 0 < options.temperature < float("inf"):
        parser.error("--count and --temperature must be above 0")
    try:
        lines = Path(options.names).read_text(encoding="utf-8").splitlines() if options.names else places()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {options.names}: {error}")
    listed = sorted({line.strip() for line in lines} - {""})
    if len(listed) < 20:
        remedy = "" if options.names else ": pip install tzdata, or give --names FILE"
        parser.error(f"{options.names or 'the time zones of this machine'}: {len(listed)} names, too few{remedy}")
    options.out.mkdir(parents=True, exist_ok=True)

    generator = tg.Generator(options.seed)
    letters = data.Vocabulary("".join(listed) + END)
    codes = [letters.encode(END + listed[i] + END) for i in generator.permutation(len(listed)).numpy()]
    held_out, codes = codes[: len(codes) // 10], codes[len(codes) // 10 :]
    model = Letters(options.cell, len(letters), 16 if options.quick else 96, generator)
    losses = train(model, codes, held_out, 2 if options.quick else 40, generator)
    best, pairs = int(losses[:, 1].argmin()), loss_of_pairs(codes, held_out, len(letters))
    print(f"\n{len(codes)} names to learn from, {len(held_out)} held out, {len(letters) - 1} different letters")
    print(f"Loss on names held out, in nats a letter: {losses[best, 1]:.3f} after epoch {best + 1}, the best, which")
    print(f"is kept; {losses[-1, 1]:.3f} after the last; {pairs:.3f} by a table of which letter follows which.")

    luck = generator.uniform((max(map(len, listed)), options.count, len(letters)), low=1e-9)
    with tg.no_grad():
        drawn = model.invent(luck, options.temperature, int(codes[0][0])).T
        example = min(held_out, key=lambda code: abs(len(code) - 12))  # a name of about ten letters
        likely = F.softmax(model([example])[0])[:, 0].numpy()
    invented = [letters.decode(code).partition(END)[0] for code in drawn]
    print(f"\nInvented at temperature {options.temperature:g}; a * marks those that the list has:")
    for i in range(0, len(invented), 5):
        print("  " + "".join(f"{name + '*' * (name in listed):18}" for name in invented[i : i + 5]).rstrip())
    print(f"{len({*invented} - {*listed, ''})} different new names among {len(invented)}.")
    path = options.out / "names.png"
    picture(path, losses, pairs, likely, example[1:], letters.characters)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
