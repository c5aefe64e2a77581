"""The Numba engine: memory for its loops."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.native import address, processor
from tinygrad_rnn.compiler.pool import BLOCK, POOL

# The bytes of a vector register: of one that the compiler has features for, not of the processor's own, so that kept
# code never meets a weight packed for another width.
_features = set(processor()[1].split(","))
BYTES = 64 if "+avx512f" in _features else 32 if {"+avx2", "+fma"} <= _features else 16
DEPTH = 256  # so many rows of a matrix that is multiplied by once are packed at a time
SHARING = BLOCK // 4  # up to this size arrays share a block


def packed_size(K: int, N: int, itemsize: int) -> int:
    """How many elements of ``itemsize`` bytes a (K, N) matrix has when packed; see ``product``."""
    lanes = BYTES // itemsize
    return K * lanes * ((N + lanes - 1) // lanes)


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
    return block, -address(block) % 64
