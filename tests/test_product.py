"""The packed product of the compiled loops: its numbers, its edges, and what it must not touch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError

from tinygrad_rnn.compiler import product

FLOATS = [np.float32, np.float64]
GUARD = 7.5


def packed(B, dtype):
    """B as ``multiply_add`` wants it; nothing before or after it may be written."""
    size = product.packed_size(*B.shape, np.dtype(dtype).itemsize)
    buffer = np.full(size + 128, GUARD, dtype)
    inner = buffer[64 : 64 + size]
    inner[:] = np.nan
    product.pack(B, inner)
    np.testing.assert_array_equal(np.delete(buffer, np.s_[64 : 64 + size]), GUARD)
    assert np.isnan(inner).sum() == np.isnan(B).sum()
    return inner


def weight(values, dtype, transposed):
    """The same matrix, as a C-contiguous array or as the transpose of one."""
    return np.asfortranarray(values, dtype) if transposed else np.ascontiguousarray(values, dtype)


def within(values, dtype, columns):
    """A view of these values with guards around it: whole rows, or some columns of a larger array."""
    M, N = values.shape
    around = np.full((M + 4, N + 2 * columns), GUARD, dtype)
    view = around[2 : 2 + M, columns : columns + N]
    view[:] = values
    return around, view


def eighths(generator, shape):
    """Numbers whose products and sums are exact in either dtype, so that no order of summing is favoured."""
    return generator.integers(-32, 33, shape) / 8


@given(
    st.integers(0, 20),
    st.integers(0, 40) | st.integers(60, 70) | st.integers(250, 270),
    st.integers(0, 150),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.integers(0, 2**32 - 1),
)
@example(1, 32, 128, np.float32, True, 0, 0)
@example(16, 128, 512, np.float64, False, 0, 0)
@example(3, 2, 1, np.float32, False, 3, 0)
def test_it_is_the_product_for_any_shape_and_writes_nowhere_else(M, K, N, dtype, transposed, columns, seed):
    generator = np.random.default_rng(seed)
    A, B, C = eighths(generator, (M, K)), eighths(generator, (K, N)), eighths(generator, (M, N))
    rows_around, rows = within(A, dtype, columns)
    around, out = within(C, dtype, columns)
    expected, _ = within(C + A @ B, dtype, columns)
    product.multiply_add(rows, packed(weight(B, dtype, transposed), dtype), out)
    np.testing.assert_array_equal(around, expected)
    np.testing.assert_array_equal(rows_around, within(A, dtype, columns)[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N", [1, 5, 16, 21])
def test_what_lies_beside_a_weight_is_not_packed(dtype, N):
    values = np.random.default_rng(N).standard_normal((7, N)).astype(dtype)
    for shape, order in (((9, N + 4), (0, 1)), ((N + 4, 9), (1, 0))):
        around = np.full(shape, np.nan, dtype).transpose(order)
        around[1:8, 3 : 3 + N] = values
        inner = packed(around[1:8, 3 : 3 + N], dtype)
        np.testing.assert_array_equal(inner, packed(values, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [1, 2, 7])
@pytest.mark.parametrize("N", [1, 17, 64, 71])
def test_what_is_not_a_number_stays_where_numpy_has_it(dtype, M, N):
    generator = np.random.default_rng(N)
    A, B, C = eighths(generator, (M, 9)), eighths(generator, (9, N)), eighths(generator, (M, N))
    A[0, 4] = np.inf  # times the zeros that pad B it is NaN
    B[3, N // 2] = np.nan
    B[5, N - 1] = -np.inf
    C[M - 1, 0] = np.nan
    around, out = within(C, dtype, 0)
    with np.errstate(invalid="ignore"):
        expected, _ = within(C + A @ B, dtype, 0)
    product.multiply_add(A.astype(dtype), packed(weight(B, dtype, False), dtype), out)
    np.testing.assert_array_equal(around, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N", [5, 64, 203])
def test_a_row_has_the_same_bits_in_any_shard(dtype, N):
    generator = np.random.default_rng(N)
    M, K = 19, 133
    A, start = generator.standard_normal((M, K)).astype(dtype), generator.standard_normal((M, N)).astype(dtype)
    B = packed(generator.standard_normal((K, N)).astype(dtype), dtype)
    whole = start.copy()
    product.multiply_add(A, B, whole)
    for first in range(M):
        for end in range(first + 1, M + 1):
            shard = start.copy()
            product.multiply_add(A[first:end], B, shard[first:end])
            np.testing.assert_array_equal(shard[first:end], whole[first:end])
            np.testing.assert_array_equal(np.delete(shard, np.s_[first:end], 0), np.delete(start, np.s_[first:end], 0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_columns_can_be_multiplied_apart_with_the_same_bits(dtype):
    generator = np.random.default_rng(0)
    M, K, N = 4, 21, 100
    lanes = product.BYTES // np.dtype(dtype).itemsize
    A = generator.standard_normal((M, K)).astype(dtype)
    B = packed(generator.standard_normal((K, N)).astype(dtype), dtype)
    whole, parts = np.zeros((M, N), dtype), np.zeros((M, N), dtype)
    product.multiply_add(A, B, whole)
    for first, end in ((0, lanes), (lanes, 3 * lanes), (3 * lanes, N)):
        panels = B[K * first : K * end] if end < N else B[K * first :]
        product.multiply_add(A, panels, parts[:, first:end])
    np.testing.assert_array_equal(parts, whole)


@njit(nogil=True, error_model="numpy")
def steps(h, W, scratch, gates, first, end):
    """A loop over time as the engine writes it: each step's rows are a shard of the step before."""
    product.pack(W.T, scratch)
    for t in range(gates.shape[0]):
        product.multiply_add(h[t, first:end], scratch, gates[t, first:end])


@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_loops_call_it_from_several_threads(dtype):
    generator = np.random.default_rng(0)
    h, W = eighths(generator, (5, 9, 12)).astype(dtype), eighths(generator, (50, 12)).astype(dtype)
    gates = np.zeros((5, 9, 50), dtype)

    def shard(rows):
        scratch = np.empty(product.packed_size(12, 50, W.itemsize), dtype)
        steps(h, W, scratch, gates, *rows)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(shard, [(0, 2), (2, 3), (3, 9)]))
    np.testing.assert_array_equal(gates, h @ W.T)


def multiply(A, B, C):
    """`product`, in memory that holds something else."""
    size = product.packed_size(min(len(B), product.DEPTH), B.shape[1], C.itemsize)
    product.product(A, B, C, np.full(size + product.BYTES, np.nan, C.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 5, 9), (100, 600, 33), (1, 300, 16), (0, 3, 2), (3, 0, 2), (193, 257, 70)])
def test_a_product_of_any_strides(shape, dtype):
    """Whole numbers, so that the sums are exact; each row has the same bits by itself."""
    M, K, N = shape
    draw = np.random.default_rng(M)
    a, b = draw.integers(-3, 4, (M, K)).astype(dtype), draw.integers(-3, 4, (K, N)).astype(dtype)
    for A in (a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
        for B in (b, np.asfortranarray(b)):
            C = np.full((M, N), np.nan, dtype)
            multiply(A, B, C)
            np.testing.assert_array_equal(C, a @ b)
    C, alone = np.empty((M, N), dtype), np.empty((1, N), dtype)
    a = draw.standard_normal((M, K)).astype(dtype)
    multiply(a, b, C)
    for m in range(0, M, 50):
        multiply(a[m : m + 1], b, alone)
        np.testing.assert_array_equal(alone[0], C[m])


@pytest.mark.parametrize("dtype", FLOATS)
def test_long_sums_are_as_exact_as_those_of_their_stretches(dtype):
    """Added up one by one, these would lose 1.5e-4 of the sum in float32."""
    K = 1 << 14
    A, B = np.full((7, K), 0.1, dtype), np.ones((K, 5), dtype)
    sums, product_ = np.zeros((2, 7, 5), dtype)
    product.multiply_add(A, packed(B, dtype), sums)
    multiply(A, B, product_)
    right = K * float(dtype(0.1))
    bound = right * (product.STRETCH + K / product.STRETCH) * np.finfo(dtype).eps / 2
    assert abs(sums - right).max() <= bound
    assert abs(product_ - right).max() <= bound


def test_what_does_not_fit_is_refused():
    A, C = np.zeros((2, 3)), np.zeros((2, 5))
    B = packed(np.zeros((3, 5)), np.float64)
    with pytest.raises(ValueError, match="do not fit"):
        product.multiply_add(A, B[:-1], C)
    with pytest.raises(ValueError, match="do not fit"):
        product.multiply_add(A[:1], B, C)
    with pytest.raises(ValueError, match="contiguous"):
        product.multiply_add(np.zeros((2, 4))[:, :3], B, np.zeros((2, 10))[:, ::2])
    with pytest.raises(ValueError, match="packed_size"):
        product.pack(np.zeros((4, 5)), B)
    with pytest.raises(TypingError, match="all float64"):
        product.multiply_add(A.astype(np.float32), B, C)
    with pytest.raises(TypingError, match="all float64"):
        product.multiply_add(A.astype(np.int64), B.astype(np.int64), C.astype(np.int64))


NARROWER = {16: "", 32: "+avx2,+fma"}


@pytest.mark.parametrize("width", [width for width in NARROWER if width <= product.BYTES])
def test_the_same_holds_on_narrower_processors(width):
    """These tests again in a process where Numba compiles for a processor with fewer or smaller registers."""
    script = (
        f"import sys, pytest; from tinygrad_rnn.compiler import product; assert product.BYTES == {width};"
        f"sys.exit(pytest.main([{__file__!r}, '-k', 'not narrower', '-p', 'no:cacheprovider']))"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": NARROWER[width]}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
