"""Memory that is used again: for arrays so large that the system would hand out new pages for each of them."""

from __future__ import annotations

import sys
from itertools import count
from math import prod
from typing import Any

import numpy as np

BLOCK = 1 << 17  # from about this size on memory comes from the system each time


class Pool:
    """Large blocks of bytes, each used again as soon as no array lies in it any more.

    The system hands out what is new to a process page by page, when these are first touched. For what a long sequence
    needs, that took a tenth of the time of the whole computation, again at each call; by NumPy's calls alone, a third.

    Attributes
    ----------
    blocks
        By size, the place where they begin at a multiple of 64, and number; what was taken last at the end.
    """

    MOST = 1 << 28  # bytes that are remembered

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}
        self._number = count().__next__

    def take(self, size: int) -> tuple[np.ndarray[Any, Any], int]:
        """A block, and where in it at least so many bytes begin at a multiple of 64.

        It is the caller's as long as he, or an array in it, holds it. Other threads may do the same: who has popped a
        block from the dict looks at it alone.
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
                    return popped[0], key[1]
        block = np.empty(size + 64, np.uint8)  # which owns its memory: that is what arrays in it refer to
        start = -block.ctypes.data % 64
        self.blocks[size, start, self._number()] = block
        kept = 0
        for key in reversed(list(self.blocks)):
            kept += key[0]
            if kept > self.MOST:
                self.blocks.pop(key, None)
        return block, start


def _references(of: list[Any]) -> int:
    """How many hold what the list holds. What Python itself adds depends on its version, so only compare."""
    return sys.getrefcount(of[0])


# Without a lock around Python's objects their count is no proof.
_ALONE = _references([np.empty(0, np.uint8)]) if getattr(sys, "_is_gil_enabled", lambda: True)() else -1
POOL = Pool()


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """As NumPy's, in a block of the pool if it is large."""
    size = prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size <= BLOCK else np.ndarray(shape, dtype, *POOL.take(size))
