"""The Numba engine: memory for its loops."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.pool import BLOCK, POOL
from tinygrad_rnn.compiler.product import to_aligned

SHARING = BLOCK // 4  # up to this size arrays share a block


class Places:
    """Where arrays of certain shapes and dtypes lie: small ones side by side, each large one in a block of its own."""

    def __init__(self, forms: Iterable[tuple[tuple[int, ...], Any]]) -> None:
        self._places: list[tuple[tuple[int, ...], Any, int]] = []
        self._shared = 0  # bytes
        for shape, dtype in forms:
            size = prod(shape) * dtype.itemsize
            shares = size <= SHARING
            self._places.append((shape, dtype, self._shared if shares else -1))
            self._shared += -(-size // 64) * 64 if shares else 0

    def arrays(self) -> list[Any]:
        """New arrays, uninitialized, which begin at multiples of 64 bytes."""
        block, start = _bytes(self._shared)
        return [
            np.ndarray(shape, dtype, block, start + at) if at >= 0 else _alone(shape, dtype)
            for shape, dtype, at in self._places
        ]


def _alone(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array in a block of its own."""
    return np.ndarray(shape, dtype, *_bytes(prod(shape) * dtype.itemsize))


def _bytes(size: int) -> tuple[np.ndarray[Any, Any], int]:
    """A block, and where in it so many bytes begin at a multiple of 64."""
    if size > BLOCK:
        return POOL.take(size)
    block = np.empty(size + 64, np.uint8)
    return block, to_aligned(block)
