"""Memory for compiled loops: used again when nobody has it any more, and never before; and its order."""

import threading

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import nn

pytest.importorskip("numba")
from tinygrad_rnn.compiler.jit import HOST, in_order
from tinygrad_rnn.compiler.memory import Places
from tinygrad_rnn.compiler.pool import Pool

FLOAT = np.dtype(np.float32)


def address(array):
    return array.__array_interface__["data"][0]


def test_arrays_are_aligned_and_apart():
    shapes = (3,), (5, 7), (), (0, 4), (40_000,), (2, 3), (300, 300), *[(8000,)] * 6
    places = Places([(shape, FLOAT) for shape in shapes])
    arrays = [*places.arrays(), *places.arrays()]
    for i, (array, shape) in enumerate(zip(arrays, shapes * 2, strict=True)):
        assert array.shape == shape
        assert address(array) % 64 == 0
        assert array.flags.c_contiguous
        array[...] = i
    for i, array in enumerate(arrays):
        assert (array == i).all()


def test_a_block_comes_back_when_nothing_lies_in_it():
    pool = Pool()
    block, _ = pool.take(1000)
    assert block.size >= 1000
    array = np.ndarray((10, 10), FLOAT, block)
    first = address(block)
    part = array[3:].T
    for name in ("block", "array"):
        assert address(pool.take(1000)[0]) != first, name
        if name == "block":
            del block
    del array
    assert address(pool.take(1000)[0]) != first  # a view of a view is enough
    del part
    assert first in [address(block) for block, _ in [pool.take(1000) for _ in range(4)]]


def test_sizes_nearly_alike_share_blocks():
    pool = Pool()
    first = address(pool.take(100_000)[0])
    assert address(pool.take(99_000)[0]) == first
    assert address(pool.take(50_000)[0]) != first


def test_what_is_remembered_is_bounded():
    pool = Pool()
    pool.MOST = 10_000
    blocks = [pool.take(4096)[0] for _ in range(5)]
    assert sum(size for size, *_ in pool.blocks) <= pool.MOST
    for i, block in enumerate(blocks):  # those that it forgot are still their holders'
        block[...] = i
    assert [int(block[7]) for block in blocks] == [0, 1, 2, 3, 4]
    pool.take(20_000)
    assert not pool.blocks


def test_threads_get_blocks_of_their_own():
    pool = Pool()
    mixed = []

    def work(number):
        for _ in range(2000):
            blocks = [pool.take(256)[0] for _ in range(3)]
            for i, block in enumerate(blocks):
                block[...] = 3 * number + i
            mixed.extend(i for i, block in enumerate(blocks) if (block != 3 * number + i).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mixed


def test_results_outlive_the_calls_after_them():
    layer = nn.LSTM(3, 40, generator=tg.Generator(0))
    kept = []
    for seed in range(4):
        xs = tg.Generator(seed).normal((200, 8, 3))
        with tg.use_engine("numba"):
            ys, (h, c) = layer(xs)
        kept.append((xs, [ys, h, c], [part.numpy().copy() for part in (ys, h, c)]))
    for xs, results, copies in kept:
        with tg.use_engine("numba"):
            again = layer(xs)
        for one, copy, other in zip(results, copies, (again[0], *again[1]), strict=True):
            np.testing.assert_array_equal(one.numpy(), copy)
            np.testing.assert_array_equal(other.numpy(), copy)


@pytest.mark.parametrize(("batch", "hidden"), [(1, 8), (32, 5), (40, 100)])
def test_what_is_kept_of_a_call_holds_no_memory_but_its_own(batch, hidden):
    ys, (h, c) = nn.LSTM(3, hidden, generator=tg.Generator(0))(tg.zeros((20, batch, 3)))
    for part in (ys, h, c):
        owner = part.data if part.data.base is None else part.data.base
        assert owner.nbytes < 1.5 * part.data.nbytes + 64


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 2), (8, 4, 5), (21, 33, 2), (9, 0, 4), (9, 4, 0)])
def test_orders_and_sums_are_those_of_numpy(dtype, shape):
    """Whichever axis lies along memory, and for a part of an array too."""
    steps, rows, features = shape
    values = (100 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    rows_last = np.empty((features, steps + 1, rows), dtype)[:, 1:].transpose(1, 2, 0)
    rows_last[...] = values
    for array in (values, rows_last, np.ascontiguousarray(values.transpose(2, 0, 1)).transpose(1, 2, 0)):
        copied = in_order(array)
        assert copied.flags.c_contiguous
        np.testing.assert_array_equal(copied, values)
        for axis, keepdims in ((0, False), (0, True), (1, False), ((0, 1), False)):
            found, expected = HOST.sum(array, axis, keepdims), np.sum(values, axis, keepdims=keepdims)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            # They are not added up in the same order.
            np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-4)
