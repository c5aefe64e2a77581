"""The Numba engine: memory for its loops."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import count
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.product import to_aligned


class Pool:
    """Large blocks of bytes, each used again as soon as no array lies in it any more.

    The system hands out what is new to a process page by page, when these are first touched. For what a long sequence
    needs, that took a tenth of the time of the whole computation, again at each call.

    Attributes
    ----------
    blocks
        By size and number, what was taken last at the end.
    """

    MOST = 1 << 28  # bytes that are remembered

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
        self._number = count().__next__

    def take(self, size: int) -> np.ndarray[Any, Any]:
        """A block of at least so many bytes, which is the caller's as long as he, or an array in it, holds it.

        Other threads may do the same: who has popped a block from the dict looks at it alone.
        """
        unit = 1 << max(size.bit_length() - 4, 0)
        size = -(-size // unit) * unit  # so that sequences nearly as long find it again
        for key in reversed(list(self.blocks)):  # what was taken last may still be in the processor's caches
            if key[0] != size:
                continue
            popped = [self.blocks.pop(key, None)]
            if popped[0] is not None:
                free = _references(popped) == _ALONE
                self.blocks[key] = popped[0]
                if free:
                    return popped[0]
        block = np.empty(size, np.uint8)
        self.blocks[size, self._number()] = block
        kept = 0
        for key in reversed(list(self.blocks)):
            kept += key[0]
            if kept > self.MOST:
                self.blocks.pop(key, None)
        return block


def _references(of: list[Any]) -> int:
    """How many hold what the list holds. What Python itself adds depends on its version, so only compare."""
    return sys.getrefcount(of[0])


# Without a lock around Python's objects their count is no proof.
_ALONE = _references([np.empty(0, np.uint8)]) if getattr(sys, "_is_gil_enabled", lambda: True)() else -1
POOL = Pool()
BLOCK = 1 << 17  # from about this size on memory comes from the system each time
SHARING = BLOCK // 4  # up to this size arrays share a block


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """As NumPy's, in a block of the pool if it is large."""
    return np.empty(shape, dtype) if prod(shape) * dtype.itemsize <= BLOCK else _alone(shape, dtype)


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
        block = _bytes(self._shared)
        start = to_aligned(block)
        return [
            np.ndarray(shape, dtype, block, start + at) if at >= 0 else _alone(shape, dtype)
            for shape, dtype, at in self._places
        ]


def _alone(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array in a block of its own."""
    block = _bytes(prod(shape) * dtype.itemsize)
    return np.ndarray(shape, dtype, block, to_aligned(block))


def _bytes(size: int) -> np.ndarray[Any, Any]:
    """A block in which so many bytes begin at a multiple of 64."""
    return np.empty(size + 64, np.uint8) if size <= BLOCK else POOL.take(size + 64)
