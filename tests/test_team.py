"""Threads that help compiled functions: each row is done once, whoever takes its shard, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest
from running import PATIENCE, in_threads, needs_fork, python

from tinygrad_rnn.compiler import board, team
from tinygrad_rnn.compiler.native import Kind, Native

LOOKS = 20_000_000  # of a shard at what another is to write; it gives up then, and the test fails


def count(i, j, counts):
    counts[i:j] += 1


def meet(i, j, here):
    """Wait until all others are here too."""
    place = here.ctypes.data
    board._store(place + 8 * i, 1)
    for other in range(len(here)):
        looks = 0
        while board._load(place + 8 * other) == 0:
            looks += 1
            board._pause()
            if looks == LOOKS:
                raise IndexError("the others do not come")


def fail(i, j, bad, counts):
    counts[i:j] += 1
    if bad[i:j].any():
        raise IndexError("this one")


def add_all(i, j, a, b, c, strided, word, n, x, flag):
    """Of all kinds of arguments that loops have."""
    for k in range(i, j):
        a[k, 0] = b[k] + c[0, 0, k] + n + x + flag + strided[k] + word[k]


def kind(argument):
    array = np.asarray(argument)
    if array is not argument:
        return Kind(array.dtype)
    return Kind(array.dtype, array.ndim, "C" if array.flags.c_contiguous else "A")


def shared(function, rows, shards, *arguments):
    """Whether all went well."""
    native = Native(f"test_team.{function.__name__}", map(kind, arguments))
    given = [a if isinstance(a, np.ndarray) else np.asarray(a).item() for a in arguments]
    return team.share(native, rows, shards, *given)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A team that nobody knows."""
    monkeypatch.setattr(team, "_team", team.Team())


def together(threads: int) -> None:
    """Fails unless so many threads run at the same time. Helpers that sleep may come too late for one call."""
    for _ in range(100):
        team._team.wake(threads - 1)
        while team._team.tickets.qsize():
            time.sleep(0.001)
        if shared(meet, threads, threads, np.zeros(threads, np.int64)):
            return
    pytest.fail("the helpers never come")


@pytest.mark.parametrize("rows", [8, 50, 1000])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_each_row_is_in_one_shard(rows, shards):
    counts = np.zeros(rows, np.int64)
    for _ in range(100):
        assert shared(count, rows, shards, counts)
    np.testing.assert_array_equal(counts, 100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arguments_come_as_they_were_given(dtype):
    draw = np.random.default_rng(0)
    b, c, n, x, flag = draw.random(9).astype(dtype), draw.random((2, 3, 9)).astype(dtype), 3, dtype(0.5), True
    strided, word = np.asfortranarray(draw.random((9, 2)).astype(dtype))[:, 1][::-1], np.arange(9, dtype=np.uint64)
    for threads in (1, 2, 4):
        a = np.zeros((9, 2), dtype)
        assert shared(add_all, 9, threads, a, b, c, strided, word, n, x, flag)
        np.testing.assert_allclose(a[:, 0], b + c[0, 0] + n + x + flag + strided + word)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_shards_run_at_the_same_time(threads):
    together(threads)
    assert team._team.size == threads - 1


def test_threads_are_made_once_and_are_daemons():
    before = set(threading.enumerate())
    for _ in range(50):
        shared(count, 3, 3, np.zeros(3, np.int64))
    made = set(threading.enumerate()) - before
    assert len(made) == team._team.size == 2
    assert all(thread.daemon for thread in made)


@pytest.mark.parametrize("bad", [{0}, {3}, {7}, {2, 5}, set(range(8))])
def test_failures_reach_the_caller_when_all_shards_have_ended(bad):
    fails = np.isin(np.arange(8), list(bad))
    for _ in range(50):
        counts = np.zeros(8, np.int64)
        assert not shared(fail, 8, 4, fails, counts)
        np.testing.assert_array_equal(counts, 1)
        assert shared(fail, 8, 4, np.zeros(8, np.bool_), counts)
        np.testing.assert_array_equal(counts, 2)


def test_helpers_go_to_sleep_and_come_again():
    for _ in range(3):
        together(2)
        deadline = time.monotonic() + PATIENCE
        while team._team.awake and time.monotonic() < deadline:
            time.sleep(0.001)
        assert team._team.awake == 0


def test_without_helpers_the_caller_does_all():
    """Another thread has the board."""
    with team._team.busy:
        counts = np.zeros(5, np.int64)
        assert shared(count, 5, 5, counts)
        np.testing.assert_array_equal(counts, 1)
    assert team._team.size == 0
    together(2)


def test_many_callers_at_once():
    rows = [np.zeros(4, np.int64) for _ in range(6)]

    def caller(row):
        for _ in range(500):
            assert shared(count, 4, 4, row)

    in_threads(*(lambda row=row: caller(row) for row in rows))
    np.testing.assert_array_equal(rows, 500)
    assert not team._team.busy.locked()


def test_nothing_of_a_call_is_kept():
    counts = np.zeros(4, np.int64)
    watched = weakref.ref(counts)
    shared(count, 4, 4, counts)
    del counts
    assert watched() is None


def test_a_program_ends_while_helpers_are_awake():
    code = """if True:
        import numpy as np
        from test_team import count, shared, team

        counts = np.zeros(4, np.int64)
        for _ in range(2000):
            shared(count, 4, 4, counts)
        print(team._team.awake, counts.sum())
    """
    assert python(code) == "3 8000\n"


@needs_fork
def test_a_forked_child_makes_its_own_threads():
    printed = python(
        """if True:
        import os
        from test_team import team, together

        together(3)
        print("parent", team._team.size, flush=True)
        team._team.busy.acquire()  # as if another thread were at it
        team._team.counting.acquire()
        child = os.fork()
        if child == 0:
            together(3)
            print("child", team._team.size, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        team._team.busy.release()
        team._team.counting.release()
        together(3)
        print("parent", team._team.size)
        """
    )
    assert printed.splitlines() == ["parent 2", "child 2", "parent 2"]
