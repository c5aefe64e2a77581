"""Random numbers of many keys, compiled: the bits of NumPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_rnn as tg
from tinygrad_rnn.backend import NUMPY

jit = pytest.importorskip("tinygrad_rnn.compiler.jit")
keys = st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1)), max_size=4).map(
    lambda pairs: np.array(pairs, np.uint64).reshape(-1, 2)
)


def of_numpy(keys, count, dtype):
    rows = [np.random.Generator(np.random.Philox(key=key)).random(count, dtype) for key in keys]
    return np.array(rows, dtype).reshape(len(keys), count)


@settings(deadline=None)
@given(keys, st.integers(0, 40), st.sampled_from([np.float32, np.float64]))
def test_the_bits_of_numpy(keys, count, dtype):
    out = np.full((len(keys), count), 7, dtype)
    jit.uniform(keys, out)
    np.testing.assert_array_equal(out, of_numpy(keys, count, dtype))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_do_not_depend_on_threads(threads):
    before = tg.get_num_threads()
    tg.set_num_threads(threads)
    try:
        many = np.array([(5, i) for i in range(7)], np.uint64)
        out = np.empty((7, jit.LEAST_NUMBERS // 4), np.float32)
        jit.uniform(many, out)
    finally:
        tg.set_num_threads(before)
    np.testing.assert_array_equal(out, of_numpy(many, out.shape[1], np.float32))


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_backend_draws_the_same_with_and_without_it(monkeypatch, shape, dtype):
    many = np.array([(3, i) for i in range(4)], np.uint64)
    assert NUMPY.uniform_of_keys is jit.uniform
    drawn = NUMPY.uniform(many, shape, dtype)
    monkeypatch.setattr(NUMPY, "uniform_of_keys", None)
    again = NUMPY.uniform(many, shape, dtype)
    assert drawn.shape == again.shape == (4, *shape)
    assert drawn.dtype == again.dtype == dtype
    np.testing.assert_array_equal(drawn, again)
