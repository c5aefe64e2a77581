"""Uniform random numbers of many keys at once, compiled: the bits are those of NumPy's ``Philox``.

A draw of every step of a sequence has a key of its own, and NumPy takes microseconds to begin with one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import types  # type: ignore[import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-not-found, unused-ignore]

from tinygrad_rnn.compiler.product import kept, share_of

# Philox4x64-10: Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.3.
ROUNDS = 10
FACTORS = np.uint64(0xCA5A826395121157), np.uint64(0xD2E7470EE14C6C93)
BUMPS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
# An integer of so many bits less, times this, is a number in [0, 1).
SINGLE, DOUBLE = (np.uint32(8), np.float32(2.0**-24)), (np.uint64(11), np.float64(2.0**-53))


@intrinsic
def _high(typing: Any, a: Any, b: Any) -> Any:
    """The upper half of the product of two unsigned integers of 64 bits."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        long = ir.IntType(128)
        whole = builder.mul(*[builder.zext(value, long) for value in values])
        return builder.trunc(builder.lshr(whole, long(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


@kept
def _stream(key: Any, words: Any) -> None:
    """The first integers of 64 bits of a key, a multiple of four."""
    f, g = FACTORS
    zero, one = np.uint64(0), np.uint64(1)
    for block in range(len(words) // 4):
        a, b, c, d = np.uint64(block) + one, zero, zero, zero  # NumPy counts from 1
        k, m = key
        for _ in range(ROUNDS):
            a, b, c, d = _high(f, c) ^ b ^ k, f * c, _high(g, a) ^ d ^ m, g * a  # type: ignore[call-arg]
            k += BUMPS[0]
            m += BUMPS[1]
        words[4 * block], words[4 * block + 1], words[4 * block + 2], words[4 * block + 3] = a, b, c, d


@kept
def _singles(keys: Any, out: Any, words: Any) -> None:
    shift, scale = SINGLE
    halves = words.view(np.uint32)
    for row in range(len(keys)):
        _stream((keys[row, 0], keys[row, 1]), words)
        for i in range(out.shape[1]):
            out[row, i] = np.float32(halves[i] >> shift) * scale


@kept
def _doubles(keys: Any, out: Any, words: Any) -> None:
    shift, scale = DOUBLE
    for row in range(len(keys)):
        _stream((keys[row, 0], keys[row, 1]), words)
        for i in range(out.shape[1]):
            out[row, i] = np.float64(words[i] >> shift) * scale


def rows_of_uniform(i: int, j: int, keys: Any, out: Any, words: Any) -> None:
    """Fill rows i to j of ``out``, one of as many shares as ``words`` has rows, each with the numbers of its key."""
    share = words[share_of(i, len(keys), len(words))]
    if out.itemsize == 4:
        _singles(keys[i:j], out[i:j], share)
    else:
        _doubles(keys[i:j], out[i:j], share)
