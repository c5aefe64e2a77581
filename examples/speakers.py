"""Tell nine speakers apart by how they say "ae": short recordings of unequal lengths, in a recurrent layer.

    pip install --no-deps aeon
    python examples/speakers.py
    python examples/speakers.py --train MINE_TRAIN.ts --test MINE_TEST.ts

The recordings are Japanese Vowels of Kudo, Toyama & Shimbo 1999: 270 utterances to learn from, 370 to be tested on, of
7 to 29 frames, a frame every 6.4 ms, each of 12 numbers. They come as two .ts files in the package aeon, which is not
imported; any other .ts files with a class at the end of each line will do. Utterances lie side by side, padded, and the
layer is given their lengths.

Expect ten seconds, 98 to 99 % of the test utterances right, three in four after the first frame alone, and in
runs/speakers a picture of who was taken for whom and of how the belief grows with each frame. It needs `pip install
'tinygrad_rnn[examples]'` and the recordings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim
from tinygrad_rnn.data import bucketed, packaged, pad

Utterances = tuple[list[np.ndarray], list[str]]  # arrays of shape (frames, channels), and who speaks


def recordings(part: str) -> Path:
    """The file of that part, TRAIN or TEST, in the installed package aeon."""
    path = packaged("aeon", f"JapaneseVowels_{part}.ts")
    if path is None:
        raise ValueError("the recordings come with aeon: pip install --no-deps aeon; or give --train FILE --test FILE")
    return path


def read_ts(path: Path) -> Utterances:
    """After a line @data each line is a sequence and its class, ``1,2,3:4,5,6:name``: channels stand between colons."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    sequences: list[np.ndarray] = []
    names: list[str] = []
    begun = False
    for number, line in enumerate(lines, 1):
        if begun and line.strip():
            *channels, name = line.split(":")
            try:
                sequence = np.array([channel.split(",") for channel in channels], np.float32).T
            except ValueError:
                raise ValueError(f"{path}, line {number}: channels must be numbers, equally many in each") from None
            if sequence.ndim != 2 or sequence.shape[1:] != (sequences or [sequence])[0].shape[1:]:
                raise ValueError(f"{path}, line {number}: {len(channels)} channels, unlike the lines before")
            if not np.isfinite(sequence).all():
                raise ValueError(f"{path}, line {number}: a value is not finite")
            sequences.append(sequence)
            names.append(name.strip())
        begun = begun or line.strip().lower() == "@data"
    if not sequences:
        raise ValueError(f"{path} holds no sequences after a line @data")
    return sequences, names


class Listener(nn.Module):
    """Scores of the speakers from the mean over an utterance's frames of what both directions put out."""

    def __init__(self, channels: int, hidden: int, speakers: int, generator: tg.Generator) -> None:
        self.layer = nn.GRU(channels, hidden, bidirectional=True, generator=generator)
        self.dropout = nn.Dropout(0.5, generator)
        self.readout = nn.Linear(2 * hidden, speakers, generator=generator)

    def forward(self, xs: tg.Tensor, lengths: np.ndarray) -> tg.Tensor:
        ys, _ = self.layer(xs, lengths=lengths)  # 0 past the end of a row, so that the sum is over its real frames
        mean = tg.sum(ys, axis=0) / tg.Tensor(lengths[:, None].astype(np.float32))
        return self.readout(self.dropout(mean))


def beliefs(model: Listener, utterance: np.ndarray) -> np.ndarray:
    """The probability of each speaker after each frame, (frames, speakers): all beginnings at once, as one batch."""
    frames = len(utterance)
    beginnings = np.broadcast_to(utterance[:, None], (frames, frames, utterance.shape[1]))
    with tg.no_grad():
        return F.softmax(model(tg.Tensor(beginnings), np.arange(1, frames + 1))).numpy()


def train(
    model: Listener, sequences: list[np.ndarray], targets: np.ndarray, epochs: int, generator: tg.Generator
) -> None:
    from tqdm import tqdm

    optimizer = optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.01)
    schedule = optim.CosineAnnealingLR(optimizer, epochs)
    model.train()
    bar = tqdm(range(epochs), unit="epoch")
    for _ in bar:
        losses = []
        for rows in bucketed([len(s) for s in sequences], 16, generator):
            xs, lengths = pad([sequences[row] for row in rows])
            loss = F.cross_entropy(model(tg.Tensor(xs), lengths), tg.Tensor(targets[rows]))
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        bar.set_postfix(loss=f"{np.mean(losses):.4f}", refresh=False)
    model.eval()


def telling(heard: list[np.ndarray], right: np.ndarray) -> list[int]:
    """Three test utterances: two where the network was long in doubt and then right, and one that it got most wrong."""
    doubts, errors = [], []
    for i, belief in enumerate(heard):
        guesses = belief.argmax(1)
        if guesses[-1] == right[i]:
            doubts.append((np.max(np.flatnonzero(guesses != right[i]), initial=-1), i))  # the last frame of doubt
        else:
            errors.append((belief[-1, right[i]], i))
    doubts.sort(key=lambda pair: (-pair[0], pair[1]))
    return [i for _, i in doubts[: 2 if errors else 3] + sorted(errors)[:1]]


def picture(path: Path, names: list[str], right: np.ndarray, heard: list[np.ndarray], shown: list[int]) -> None:
    """The confusion matrix, and how the belief grows for the utterances ``shown``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (right, [belief[-1].argmax() for belief in heard]), 1)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.add_gridspec(len(shown), 2)
    matrix = figure.add_subplot(grid[:, 0])
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(confusion):
        colour = "white" if shares[i, j] > 0.5 else "black"
        matrix.text(j, i, confusion[i, j], ha="center", va="center", color=colour)
    matrix.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    matrix.set(xlabel="speaker recognized", ylabel="speaker", title=f"{len(heard)} test utterances")
    for place, i in enumerate(shown):
        axes = figure.add_subplot(grid[place, 1])
        others = [speaker for speaker in np.argsort(-heard[i].max(0)) if speaker != right[i]][:2]
        for speaker, colour in zip([right[i], *others], ("black", "C0", "C1"), strict=False):
            label = f"speaker {names[speaker]}" + (",\nwho it is" if speaker == right[i] else "")
            frames = np.arange(1, len(heard[i]) + 1)
            axes.plot(frames, heard[i][:, speaker], ".-", color=colour, linewidth=1.5, label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(ylim=(-0.05, 1.05), ylabel="belief", title=f"Utterance {i + 1}")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xlabel("frames heard")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 epochs of a small network: to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/speakers"), help="where the picture goes")
    parser.add_argument("--train", type=Path, metavar="FILE", help="a .ts file to learn from")
    parser.add_argument("--test", type=Path, metavar="FILE", help="a .ts file to be tested on")
    options = parser.parse_args(arguments)
    if (options.train is None) != (options.test is None):
        parser.error("give both --train and --test, or neither")
    try:
        sequences, speakers = read_ts(options.train or recordings("TRAIN"))
        test_sequences, test_speakers = read_ts(options.test or recordings("TEST"))
    except ValueError as error:
        parser.error(str(error))
    names = sorted(set(speakers))
    if not set(test_speakers) <= set(names) or test_sequences[0].shape[1] != sequences[0].shape[1]:
        parser.error(f"{options.test} has speakers that {options.train} lacks, or another number of channels")
    options.out.mkdir(parents=True, exist_ok=True)
    frames = np.concatenate(sequences)
    centre, spread = frames.mean(0), frames.std(0) + 1e-8
    sequences, test_sequences = ([(s - centre) / spread for s in part] for part in (sequences, test_sequences))
    targets, right = (np.array([names.index(name) for name in part]) for part in (speakers, test_speakers))

    generator = tg.Generator(options.seed)
    model = Listener(frames.shape[1], 4 if options.quick else 32, len(names), generator)
    train(model, sequences, targets, 3 if options.quick else 60, generator)

    heard = [beliefs(model, sequence) for sequence in test_sequences]
    longest = max(map(len, heard))
    print("frames heard   test utterances right")
    for count in [c for c in (1, 2, 4, 8, 16) if c < longest] + [longest]:
        guesses = np.array([belief[min(count, len(belief)) - 1].argmax() for belief in heard])
        hits = int((guesses == right).sum())
        print(f"{count if count < longest else 'all':>12}   {hits} of {len(right)}, {hits / len(right):.1%}")
    path = options.out / "speakers.png"
    picture(path, names, right, heard, telling(heard, right))
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
