"""The strict stand-in itself: what CuPy would refuse it refuses, what CuPy would do it does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strict

DEVICE = strict.asarray(np.array([1.0, 2.0], np.float32))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda x: np.asarray(x),
        lambda x: np.array([x, x]),
        lambda x: np.exp(x),
        lambda x: np.sum(x),
        lambda x: np.concatenate([x, x]),
        lambda x: x + np.ones(2),
        lambda x: np.ones(2) + x,
        lambda x: x.__add__([1.0, 2.0]),
        lambda x: x.__radd__([1.0, 2.0]),
        lambda x: np.matmul(np.ones(2), x),
        lambda x: x.__iadd__(np.ones(2)),
        lambda x: x == np.ones(2),
        lambda x: x[np.array([0])],
        lambda x: x[[0]],
        lambda x: x[True],
        lambda x: x.__setitem__(0, np.ones(())),
        lambda x: np.ones(2).__setitem__(slice(None), x),
        lambda x: strict.library.exp(np.ones(2)),
        lambda x: strict.library.add(x, x, where=True),
        lambda x: strict.library.exp(x, out=np.ones(2)),
        lambda x: strict.library.max(x, initial=0),
        lambda x: strict.library.sum,
        lambda x: strict.library.mean(np.ones(2)),
        lambda x: strict.library.mean([1.0]),
        lambda x: strict.library.concatenate([x, np.ones(2)]),
        lambda x: strict.library.where(True, x, x),
        lambda x: strict.library.where(x > 0, np.ones(2), x),
        lambda x: strict.library.einsum("i,i", x, np.ones(2)),
        lambda x: strict.library.einsum("i,i", x, x, optimize=True),
        lambda x: strict.library.add.at(strict.asarray([1, 2]), (strict.asarray([0]),), 1),
        lambda x: strict.library.add.at(x, (np.array([0]),), 1.0),
        lambda x: x.sum(where=True),
        lambda x: x.reshape(np.array([2, 1])),
        lambda x: x.tofile("x"),
        lambda x: x.flat,
        lambda x: range(strict.asarray(2)),
        lambda x: hash(x),
    ],
)
def test_what_would_fail_on_a_device_fails(attempt: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        attempt(DEVICE)


def test_what_works_on_a_device_works() -> None:
    x = strict.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (2 * x + np.float32(1)).dtype == np.float32
    assert (np.float32(2) * x).tolist() == (x * 2).tolist()
    assert (np.float64(2) * x).dtype == np.float64  # NumPy's scalars are as wide as they say
    assert x.sum().shape == ()
    assert x[0, 0].shape == ()
    assert x[x > 2].tolist() == [3, 4, 5]
    assert x.T.base is not None
    assert (x + 1).base is None
    row = x[1]
    row *= 2
    row[0, ...] = -1
    assert x.tolist() == [[0, 1, 2], [-1, 8, 10]]
    first = x[0, 0]
    first += 7
    assert x[0, 0].item() == 7
    assert x.astype(np.float32, copy=False) is x
    assert (strict.library.exp(x, out=x)) is x
    assert strict.asarray(x) is x
    assert [len(part) for part in x] == [3, 3]


def synchronizations(run: Callable[[], Any]) -> int:
    before = strict.synchronizations
    run()
    return strict.synchronizations - before


def test_reading_a_value_is_a_synchronization() -> None:
    x = strict.asarray(1.0)
    mask = DEVICE > 1
    for read in (x.get, x.item, x.tolist, lambda: float(x), lambda: int(x), lambda: bool(x), lambda: DEVICE[mask]):
        assert synchronizations(read) == 1
    assert synchronizations(lambda: x + x) == 0
