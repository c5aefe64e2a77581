"""Sequences of unequal lengths, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.data.tasks import Ints, at_least, random_numbers
from tinygrad_rnn.random import Generator


def pad(sequences: Sequence[npt.ArrayLike], value: float = 0) -> tuple[npt.NDArray[Any], Ints]:
    """Put sequences side by side, the shorter ones filled up at their ends.

    Parameters
    ----------
    sequences
        B arrays of shapes (length, ...), alike but for their lengths.
    value
        What follows the end; for class indices take the ``ignore_index`` of the loss.

    Returns
    -------
    An array of shape (T, B, ...), T being the greatest length, and the lengths, int64 of shape (B,).
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("pad needs at least one sequence, got none")
    for i, array in enumerate(arrays):
        if not array.ndim:
            raise ValueError(f"pad: sequences must have shape (length, ...), number {i} has no dimension")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"pad: all sequences must have shape (length, *{arrays[0].shape[1:]}), number {i} has {array.shape}"
            )
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    shape = (int(lengths.max()), len(arrays), *arrays[0].shape[1:])
    padded = np.full(shape, value, dtype=np.result_type(*arrays))
    for i, array in enumerate(arrays):
        padded[: len(array), i] = array
    return padded, lengths


def bucketed(lengths: npt.ArrayLike, batch: int, generator: Generator | None = None, pool: int = 16) -> list[Ints]:
    """One epoch's batches of sequences of about one length, in random order; each sequence is in one of them.

    Sequences are shuffled and cut into pools; each pool is sorted by length and cut into batches; then all batches
    are shuffled. The larger the pools, the less padding, and the more alike the batches of two epochs::

        for rows in bucketed([len(s) for s in sequences], 8, generator):
            xs, lengths = pad([sequences[row] for row in rows])

    Parameters
    ----------
    lengths
        Of all sequences, shape (N,).
    batch
        Sequences in a batch; one batch is smaller if it does not divide N.
    pool
        Batches in a pool.

    Returns
    -------
    Arrays of indices, int64.
    """
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise ValueError(f"bucketed takes lengths as ints of shape (N,), got {sizes.dtype} of shape {sizes.shape}")
    at_least("batch", batch, 1)
    at_least("pool", pool, 1)
    random = random_numbers(generator)
    rows = random.permutation(sizes.size)
    batches = []
    for start in range(0, sizes.size, pool * batch):
        some = rows[start : start + pool * batch]
        some = some[np.argsort(sizes[some], kind="stable")]
        batches += [some[i : i + batch] for i in range(0, some.size, batch)]
    return [batches[i] for i in random.permutation(len(batches))]
