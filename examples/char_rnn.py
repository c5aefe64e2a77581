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
import os
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

# A second thread of OpenBLAS, NumPy's matrix library, makes this a quarter faster on an idle machine, and many times
# slower on a busy one, since it waits by spinning. It reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim
from tinygrad_rnn.data import lanes

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
        text = file.read_text(encoding="utf-8")
        if sum(map(len, parts)) + len(text) <= limit:
            parts[{8: 1, 9: 2}.get(i % 10, 0)] += text
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


# ---- Baselines ------------------------------------------------------------------------------------------------------


def markov_losses(train: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any], size: int) -> list[float]:
    """Loss of Markov models of order 0, 1 and 2 with ``size`` symbols, in nats a character.

    Interpolated as Witten & Bell (1991, method C) do. With n(h, c) for how often character c follows context h,
    n(h) = sum_c n(h, c), and d(h) for how many different characters follow h::

        p(c | h) = (n(h, c) + d(h) p(c | h without its oldest character)) / (n(h) + d(h))

    and below order 0 all characters are equally likely.
    """
    probability = np.full(len(held_out) - 2, 1 / size)
    losses = []
    for order in range(3):
        seen, n_seen = np.unique(grams(train, order + 1, size), return_counts=True)
        contexts, followed_by = np.unique(seen // size, return_inverse=True)
        n_context, d_context = np.bincount(followed_by, weights=n_seen), np.bincount(followed_by)
        asked = grams(held_out, order + 1, size)[2 - order :]  # every order predicts the same characters
        n_hc = look_up(asked, seen, n_seen)
        n_h, d_h = (look_up(asked // size, contexts, values) for values in (n_context, d_context))
        probability = np.where(n_h > 0, (n_hc + d_h * probability) / np.maximum(n_h + d_h, 1), probability)
        losses.append(float(-np.log(probability).mean()))
    return losses


def grams(ids: np.ndarray[Any, Any], n: int, size: int) -> np.ndarray[Any, Any]:
    """Each run of ``n`` characters as one number, whose last digit in base ``size`` is the last character."""
    count = len(ids) - n + 1
    code = np.zeros(count, np.int64)
    for k in range(n):
        code = code * size + ids[k : k + count]
    return code


def look_up(asked: np.ndarray[Any, Any], keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Any:
    """The value that belongs to each key asked for, 0 for those not among the sorted ``keys``."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0)


# ---- Model ----------------------------------------------------------------------------------------------------------


class CharRNN(nn.Module):
    """Characters to vectors, a stack of cells, and scores for the next character."""

    def __init__(self, cell: str, size: int, hidden: int, layers: int, generator: tg.Generator) -> None:
        self.embedding = nn.Embedding(size, 64, generator=generator)
        self.cells = nn.ModuleList(
            CELLS[cell](hidden if layer else 64, hidden, generator=generator) for layer in range(layers)
        )
        self.readout = nn.Linear(hidden, size, generator=generator)

    def init_state(self, batch: int) -> list[Any]:
        return [cell.init_state(batch) for cell in self.cells]

    def forward(self, ids: tg.Tensor, states: list[Any]) -> tuple[tg.Tensor, list[Any]]:
        """Scores of shape (steps * batch, size) for what follows each of ``ids``, (steps, batch), and the states."""
        outputs, after = self.embedding(ids), []
        for cell, state in zip(self.cells, states, strict=True):
            outputs, state = tg.scan(cell, outputs, state)
            after.append(state)
        return self.readout(outputs.reshape((-1, outputs.shape[-1]))), after


# ---- Training -------------------------------------------------------------------------------------------------------


class Run:
    """All that a training run is made of; `save` keeps it and `load` goes on from it, to the same bits."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        texts = text_file(settings["text"]) if settings["text"] else standard_library()
        least = settings["batch"] * (settings["seq_len"] + 1)
        if len(texts[0]) < least or min(map(len, texts[1:])) < 100:
            raise BadInput(
                f"the text is too short: {len(texts[0])} of {sum(map(len, texts))} characters are for training, and "
                f"--batch {settings['batch']} --seq-len {settings['seq_len']} need {least}; the others 100 each"
            )
        self.fingerprint = zlib.crc32("\0".join(texts).encode())
        self.characters = "".join(sorted(set(texts[0]) - {UNKNOWN})) + UNKNOWN
        if len(self.characters) == 1:
            raise BadInput(f"the text has no character but U+{ord(UNKNOWN):04X}, which stands for unknown ones")
        self.train, self.valid, self.test = (encode(text, self.characters) for text in texts)
        self.lanes = lanes(self.train, settings["batch"])
        self.generator = tg.Generator(settings["seed"])
        size = len(self.characters)
        self.model = CharRNN(settings["cell"], size, settings["hidden"], settings["layers"], self.generator)
        self.optimizer = optim.Adam(self.model.parameters(), lr=settings["lr"])
        warm_up = max(min(50, settings["updates"] // 10), 1)
        rest = max(settings["updates"] - warm_up, 1)
        self.schedule = optim.SequentialLR(
            self.optimizer,
            [
                optim.LinearLR(self.optimizer, start_factor=0.02, total_iters=warm_up),
                optim.CosineAnnealingLR(self.optimizer, rest, eta_min=settings["lr"] / 20),
            ],
            milestones=[warm_up],
        )
        self.state = self.model.init_state(settings["batch"])
        self.position = 0
        self.losses: list[float] = []
        self.valid_losses: list[tuple[int, float]] = []

    def save(self, path: Path) -> None:
        tg.save(
            path,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            generator=self.generator,
            state=self.state,
            position=self.position,
            losses=np.array(self.losses),
            valid_losses=self.valid_losses,
            settings=self.settings,
            text=self.fingerprint,
        )

    @classmethod
    def load(cls, path: str, given: dict[str, Any]) -> Run:
        """The run that ``path`` holds; ``given`` are the settings asked for, which must be those it has."""
        try:
            saved = tg.load(path)
        except (OSError, tg.CheckpointError) as error:
            raise BadInput(f"cannot resume: {error}") from None
        settings = saved.get("settings")
        if not isinstance(settings, dict) or set(settings) != set(DEFAULTS):
            raise BadInput(f"cannot resume: {path} is no checkpoint of this script")
        for name, value in given.items():
            if value != settings[name]:
                option = name.replace("_", "-")
                raise BadInput(f"--{option} {value} does not fit {path}, which has {option} {settings[name]}")
        run = cls(settings)
        if run.fingerprint != saved["text"]:
            raise BadInput(f"cannot resume: {path} was trained on another text")
        for part in ("model", "optimizer", "schedule", "generator"):
            getattr(run, part).load_state_dict(saved[part])
        run.state = saved["state"]
        run.position = saved["position"]
        run.losses = saved["losses"].tolist()
        run.valid_losses = [tuple(pair) for pair in saved["valid_losses"]]
        return run

    def update(self) -> float:
        """One window of every lane: forward, backward through its steps, one step of the optimizer."""
        steps = self.settings["seq_len"]
        if self.position + steps + 1 > len(self.lanes):
            self.position, self.state = 0, self.model.init_state(self.settings["batch"])
        window = self.lanes[self.position : self.position + steps + 1]
        self.position += steps
        # The state goes on from window to window, the gradient does not: truncated backpropagation through time.
        scores, self.state = self.model(on_device(window[:-1]), self.state)
        self.state = tg.detach(self.state)
        loss = F.cross_entropy(scores, on_device(window[1:].reshape(-1)))
        self.optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        return self.losses[-1]

    def loss_on(self, ids: np.ndarray[Any, Any], batch: int = 50, steps: int = 100) -> float:
        """Loss on a held-out stream, in nats a character."""
        stream = lanes(ids, max(min(batch, len(ids) // steps), 1))
        state = self.model.init_state(stream.shape[1])
        total = 0.0
        with tg.no_grad():
            for start in range(0, len(stream) - 1, steps):
                window = stream[start : start + steps + 1]
                scores, state = self.model(on_device(window[:-1]), state)
                total += F.cross_entropy(scores, on_device(window[1:].reshape(-1)), reduction="sum").item()
        return total / stream[1:].size


def on_device(ids: np.ndarray[Any, Any]) -> tg.Tensor:
    return tg.Tensor(ids).to(tg.get_backend().name)


def train(run: Run, checkpoint: Path) -> bool:
    """Train to the end; False if Ctrl-C came before. Either way the run is saved."""
    from tqdm import tqdm

    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    before = signal.signal(signal.SIGINT, stop)
    settings = run.settings
    every = max(settings["updates"] // 10, 1)
    per_update = settings["batch"] * settings["seq_len"]
    bar = tqdm(
        total=settings["updates"] * per_update, initial=len(run.losses) * per_update, unit="char", unit_scale=True
    )
    with bar:
        while len(run.losses) < settings["updates"] and not stopped:
            loss = run.update()
            bar.update(per_update)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if len(run.losses) % every == 0:
                run.valid_losses.append((len(run.losses), run.loss_on(run.valid[:50_000])))
                bar.write(f"update {len(run.losses):5}: valid {run.valid_losses[-1][1]:.3f} nats a character")
                run.save(checkpoint)
    signal.signal(signal.SIGINT, before)
    run.save(checkpoint)
    return not stopped


# ---- What comes of it -----------------------------------------------------------------------------------------------


def sample(run: Run, length: int, temperature: float) -> Iterator[str]:
    """Characters drawn one after the other, each by what the model expects after those before."""
    generator = tg.Generator(run.settings["seed"] + 1)
    state = run.model.init_state(1)
    index = max(run.characters.find("\n"), 0)
    with tg.no_grad():
        for _ in range(length):
            scores, state = run.model(on_device(np.array([[index]])), state)
            probabilities = F.softmax(scores[0, :-1].astype(np.float64) / temperature)  # all but UNKNOWN
            index = int((tg.cumsum(probabilities, 0) < generator.uniform(dtype=np.float64)).sum().item())
            index = min(index, len(run.characters) - 2)
            yield run.characters[index]


def picture(path: Path, run: Run, test: float, markov: list[float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    width = max(len(run.losses) // 50, 1)
    smooth = np.convolve(run.losses, np.full(width, 1 / width), "valid")
    axes.plot(np.arange(width, len(run.losses) + 1), smooth, label=f"train, mean of {width} updates")
    axes.plot(*zip(*run.valid_losses, strict=True), "o-", label="valid")
    axes.plot(len(run.losses), test, "k*", markersize=11, label=f"test, {test:.3f}")
    for order, loss in enumerate(markov):
        axes.axhline(loss, color=f"C{order + 3}", linestyle="--", label=f"Markov, order {order}, test: {loss:.3f}")
    axes.set_xlabel("update")
    axes.set_ylabel("nats a character")
    axes.set_title(f"{run.settings['cell'].upper()}, {run.settings['layers']} x {run.settings['hidden']} units")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(run: Run, test: float, markov: list[float]) -> None:
    print(f"\nHeld-out text, {len(run.test):,} characters{'':10}nats{'':6}bits a character")
    rows = [(f"Markov model of order {order}", loss) for order, loss in enumerate(markov)]
    for name, loss in [*rows, (f"{run.settings['cell'].upper()} of {run.settings['hidden']} units", test)]:
        print(f"  {name:36}{loss:8.3f}{loss / log(2):10.3f}")
    print("The losses above, while it learned, are those of another part of the text.")


# ---- Options --------------------------------------------------------------------------------------------------------


DEFAULTS: dict[str, Any] = {
    **{"text": None, "cell": "gru", "hidden": 256, "layers": 1, "seq_len": 64, "batch": 32},
    **{"updates": 900, "lr": 4e-3, "clip": 1.0, "seed": 0},
}
QUICK = {"hidden": 32, "seq_len": 20, "batch": 8, "updates": 20}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def absolute(path: str) -> str:
    return str(Path(path).resolve())  # so that a checkpoint finds its text from any folder


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an int from 1 on, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an int from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    # Without a default, so that --resume can tell what was asked for from what was not.
    for name, kind, text in (
        ("text", absolute, "a UTF-8 text to learn; without it, the source of Python's standard library"),
        ("hidden", count, "units in a layer (%d)"),
        ("layers", count, "cells on top of each other (%d)"),
        ("seq-len", count, "steps that a gradient goes back (%d)"),
        ("batch", count, "lanes of text read side by side (%d)"),
        ("updates", count, "steps of the optimizer (%d)"),
        ("lr", positive, "learning rate of Adam, after a warm-up and before it falls to a twentieth (%g)"),
        ("clip", positive, "largest norm of the gradient (%g)"),
        ("seed", whole, "of all random numbers (%d)"),
    ):
        default = DEFAULTS[name.replace("-", "_")]
        text = text if default is None else text % default
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--cell", choices=CELLS, default=argparse.SUPPRESS, help=f"({DEFAULTS['cell']})")
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy", help="where to compute")
    parser.add_argument(
        "--out",
        type=Path,
        default=argparse.SUPPRESS,
        help="folder of checkpoint and picture (runs/char_rnn, or that of --resume)",
    )
    parser.add_argument("--quick", action="store_true", help="a few updates of a small network: to see that it runs")
    parser.add_argument("--resume", metavar="FILE", help="go on from a checkpoint, with its settings")
    parser.add_argument("--sample", type=whole, default=500, metavar="N", help="characters to write at the end")
    parser.add_argument("--temperature", type=positive, default=0.7, metavar="X", help="below 1 the sample is tamer")
    return parser.parse_args(arguments)


def needs_extras() -> None:
    try:
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise BadInput(f"{error.name} is missing: pip install 'tinygrad_rnn[examples]'") from None


def writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    try:
        chosen = options(arguments)
        try:
            tg.set_backend(chosen.backend)
        except (ImportError, RuntimeError) as error:
            raise BadInput(str(error)) from None
        needs_extras()
        given = {name: value for name, value in vars(chosen).items() if name in DEFAULTS}
        start = DEFAULTS | (QUICK if chosen.quick else {})
        run = Run.load(chosen.resume, given) if chosen.resume else Run(start | given)
        default = Path(chosen.resume).parent if chosen.resume else Path("runs/char_rnn")
        out = getattr(chosen, "out", default)
        writable(out)
    except (BadInput, MemoryError) as problem:
        print(f"char_rnn: {problem}", file=sys.stderr)
        return 2
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists() and not chosen.resume:
        checkpoint.replace(out / "checkpoint.before.safetensors")
        print(f"{checkpoint}, from a run before, is checkpoint.before.safetensors now.")
    print(f"{run.model}\n{len(run.train):,} characters to learn from, {len(run.characters)} different ones")
    if not train(run, checkpoint):
        command = f"{sys.executable} {sys.argv[0]} --resume {checkpoint}"
        print(f"\nStopped after {len(run.losses)} updates. Saved; to go on: {command}", file=sys.stderr)
        return 130
    test = run.loss_on(run.test)
    markov = markov_losses(run.train, run.test, len(run.characters))
    report(run, test, markov)
    if chosen.sample:
        print(f"\nA sample, at temperature {chosen.temperature:g}:\n")
        for character in sample(run, chosen.sample, chosen.temperature):
            print(character, end="", flush=True)
        print()
    png = out / "char_rnn.png"
    picture(png, run, test, markov)
    print(f"\nCheckpoint: {checkpoint}\nPicture: {png}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # outside training there is nothing to save
        sys.exit(130)
