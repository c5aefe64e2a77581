"""Initial values, written in place; each function returns the tensor it was given."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tensor import Tensor

T = TypeVar("T", bound=Tensor)


def uniform_(tensor: T, low: float = 0.0, high: float = 1.0, generator: Generator | None = None) -> T:
    """Numbers spread evenly from ``low`` to ``high``."""
    numbers = get_backend(tensor.backend).uniform(default_generator(generator).next_key(), tensor.shape, tensor.dtype)
    return _write(tensor, numbers * (high - low) + low)


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> T:
    """Normally distributed numbers."""
    numbers = get_backend(tensor.backend).normal(default_generator(generator).next_key(), tensor.shape, tensor.dtype)
    return _write(tensor, numbers * std + mean)


def constant_(tensor: T, value: float) -> T:
    """One value everywhere."""
    return _write(tensor, value)


def orthogonal_(tensor: T, gain: float = 1.0, blocks: int = 1, generator: Generator | None = None) -> T:
    """Rows or columns, whichever are fewer, orthonormal times ``gain`` (Saxe et al. 2014).

    Parameters
    ----------
    blocks
        How many matrices are stacked along the first axis, each to be orthogonal by itself: the gates of a cell.
    """
    if tensor.ndim != 2 or tensor.shape[0] % blocks:
        raise ValueError(f"orthogonal_ needs a matrix of {blocks} stacked blocks, got shape {tensor.shape}")
    rows, columns = tensor.shape[0] // blocks, tensor.shape[1]
    source = default_generator(generator)
    parts = []
    for _ in range(blocks):
        # QR runs on the host: it is done once, and gives the same numbers for every backend.
        numbers = get_backend("numpy").normal(source.next_key(), (max(rows, columns), min(rows, columns)), np.float64)
        q, r = np.linalg.qr(numbers)
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        parts.append(gain * (q if rows >= columns else q.T))
    return _write(tensor, get_backend(tensor.backend).asarray(np.concatenate(parts), dtype=tensor.dtype))


def _write(tensor: T, value: object) -> T:
    tensor._data[...] = value
    tensor._touch()
    return tensor
