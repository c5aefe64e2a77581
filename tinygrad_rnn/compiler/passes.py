"""Passes over arrays, to be compiled: what NumPy is slow at when rows are last in memory."""

from __future__ import annotations

from typing import Any


def copy_rows(i: int, j: int, array: Any, out: Any) -> None:
    """Write to ``out`` (T, B, features), in C order, what lies in memory with its rows last: of steps i to j."""
    for t in range(i, j):
        for f in range(array.shape[2]):
            for b in range(array.shape[1]):
                out[t, b, f] = array[t, b, f]


def sum_steps(first: int, end: int, array: Any, out: Any) -> None:
    """The sums along the middle axis of three: eight steps are added up, and then that to the others."""
    _, steps, last = array.shape
    out[first:end, :] = 0
    whole = steps // 8 * 8
    for i in range(first, end):
        for t in range(0, whole, 8):
            for j in range(last):
                total = array[i, t, j]
                for s in range(1, 8):
                    total += array[i, t + s, j]
                out[i, j] += total
        for t in range(whole, steps):
            for j in range(last):
                out[i, j] += array[i, t, j]
