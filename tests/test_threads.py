"""The threads of compiled loops: their number, and shards run on them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn import threads
from tinygrad_rnn.threads import get_num_threads, run_shards, set_num_threads

PATIENCE = 60.0  # seconds until a test that hangs fails; nothing here takes a tenth of it
ROOT = Path(__file__).parent.parent
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number chosen, no thread made, no library listed."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "_num_threads", None)
    monkeypatch.setattr(threads, "_team", threads._Team())
    monkeypatch.setattr(threads, "_blas", threads._Blas())


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints that runs this code."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_threads(*functions) -> None:
    """Run them at once, each in a thread of its own; the first error is raised here."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    for error in errors:
        raise error


# The number of threads


def test_number_is_what_was_set():
    set_num_threads(3)
    assert get_num_threads() == 3
    set_num_threads(np.int64(5))
    assert (get_num_threads(), type(get_num_threads())) == (5, int)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_none_counts_the_processors_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    set_num_threads(None)
    assert get_num_threads() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        set_num_threads(None)
        assert get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_default_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_usable", lambda: 11)
    assert get_num_threads() == 11


def test_environment_gives_the_first_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_usable", lambda: 11)
    monkeypatch.setenv("TINYGRAD_RNN_NUM_THREADS", "7")
    assert get_num_threads() == 7
    set_num_threads(None)
    assert get_num_threads() == 11
    set_num_threads(2)
    assert get_num_threads() == 2


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-2, ValueError), (True, TypeError), (2.0, TypeError)])
def test_bad_numbers_are_named(value, error):
    set_num_threads(4)
    with pytest.raises(error, match=f"number of threads must be .*got {value}"):
        set_num_threads(value)
    assert get_num_threads() == 4


def test_text_is_no_number():
    with pytest.raises(TypeError, match="got '3' of type str"):
        set_num_threads("3")


@pytest.mark.parametrize("text", ["two", "", "1.5", "0", "-1"])
def test_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch, text):
    monkeypatch.setenv("TINYGRAD_RNN_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"TINYGRAD_RNN_NUM_THREADS must be .*got .*{text}"):
        get_num_threads()
    set_num_threads(2)
    assert get_num_threads() == 2


def test_bad_environment_does_not_hinder_the_import():
    assert python("import tinygrad_rnn.threads; print('done')", TINYGRAD_RNN_NUM_THREADS="two") == "done\n"


def test_import_leaves_out_what_few_need():
    code = "import sys, tinygrad_rnn.threads; print({'threadpoolctl', 'concurrent.futures'} & set(sys.modules))"
    assert python(code) == "set()\n"


# Shards


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_each_shard_is_run_once(number, count):
    set_num_threads(number)
    seen = []
    run_shards(lambda *shard: seen.append(shard), [(i, str(i)) for i in range(count)])
    assert sorted(seen) == [(i, str(i)) for i in range(count)]


@pytest.mark.parametrize(("number", "count"), [(1, 5), (8, 1)])
def test_one_thread_or_one_shard_is_a_plain_call(number, count):
    set_num_threads(number)
    seen = []
    run_shards(lambda: seen.append(threading.get_ident()), [()] * count)
    assert seen == [threading.get_ident()] * count
    assert threads._team.size == 0


@pytest.mark.parametrize("number", [2, 3, 5])
def test_shards_run_at_the_same_time(number):
    set_num_threads(number)
    all_here = threading.Barrier(number)
    idents = set()

    def shard():
        all_here.wait(PATIENCE)
        idents.add(threading.get_ident())

    run_shards(shard, [()] * number)
    assert len(idents) == number
    assert threading.get_ident() in idents


def test_no_more_threads_than_allowed():
    lock, running, most = threading.Lock(), [0], [0]

    def shard():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1

    set_num_threads(4)
    run_shards(shard, [()] * 40)
    assert most[0] == 4
    set_num_threads(2)
    most[0] = 0
    run_shards(shard, [()] * 20)
    assert most[0] == 2


def test_threads_are_made_once_and_are_daemons():
    set_num_threads(3)
    seen = set()
    for _ in range(20):
        all_here = threading.Barrier(3)

        def shard(barrier=all_here):
            barrier.wait(PATIENCE)
            seen.add(threading.current_thread())

        run_shards(shard, [()] * 3)
    others = seen - {threading.current_thread()}
    assert len(others) == threads._team.size == 2
    assert all(thread.daemon for thread in others)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("bad", [{0}, {3}, {7}, {2, 5}, set(range(8))])
def test_error_of_the_first_bad_shard_is_raised(number, bad):
    set_num_threads(number)
    seen = []

    def shard(i):
        seen.append(i)
        if i in bad:
            raise FloatingPointError(f"shard {i}")

    for _ in range(5):
        seen.clear()
        with pytest.raises(FloatingPointError, match=f"^shard {min(bad)}$"):
            run_shards(shard, [(i,) for i in range(8)])
        assert sorted(seen) == list(range(8))
    run_shards(seen.append, [(8,), (9,)])
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("helper_raises", [False, True])
def test_error_is_raised_when_all_have_ended(helper_raises):
    set_num_threads(2)
    caller, both_here, ended = threading.get_ident(), threading.Barrier(2), []

    def shard():
        both_here.wait(PATIENCE)
        if (threading.get_ident() == caller) != helper_raises:
            raise ValueError("at once")
        time.sleep(0.05)
        ended.append(True)

    with pytest.raises(ValueError, match="at once"):
        run_shards(shard, [(), ()])
    assert ended


@pytest.mark.parametrize("helper_raises", [False, True])
def test_interruption_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch, helper_raises):
    set_num_threads(2)
    caller, both_here, failed, begun, ended = threading.get_ident(), threading.Barrier(2), threading.Event(), [], []
    fail = threads._Job.fail

    def fail_and_tell(job, index, error):
        fail(job, index, error)
        failed.set()

    def shard(i):
        begun.append(i)
        if i < 2:
            both_here.wait(PATIENCE)
            if (threading.get_ident() == caller) != helper_raises:
                raise KeyboardInterrupt
            assert failed.wait(PATIENCE)
        ended.append(i)

    monkeypatch.setattr(threads._Job, "fail", fail_and_tell)
    with pytest.raises(KeyboardInterrupt):
        run_shards(shard, [(i,) for i in range(10)])
    assert sorted(begun) == [0, 1]
    assert len(ended) == 1


def test_interruption_comes_before_errors():
    set_num_threads(1)

    def shard(i):
        raise ValueError if i == 0 else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shards(shard, [(0,), (1,), (2,)])


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
def test_waiting_outlasts_interruptions():
    """Whoever presses Ctrl-C gets their arrays back only when no helper writes to them."""
    set_num_threads(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs behind ignore it
    main, helper_here, ended = threading.main_thread().ident, threading.Event(), []
    assert threading.get_ident() == main

    def shard():
        if threading.get_ident() == main:
            assert helper_here.wait(PATIENCE)
            return
        helper_here.set()
        for _ in range(2):
            time.sleep(0.05)
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_shards(shard, [(), ()])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended
    both_here = threading.Barrier(2)
    run_shards(both_here.wait, [(PATIENCE,), (PATIENCE,)])


def test_calls_within_a_shard_stay_in_its_thread():
    """Both in the caller and in a helper, though another helper has nothing to do."""
    set_num_threads(3)
    all_here, both_here, pairs = threading.Barrier(3), threading.Barrier(2), []
    run_shards(all_here.wait, [(PATIENCE,)] * 3)
    assert threads._team.size == 2

    def inner(outer_thread):
        time.sleep(0.01)
        pairs.append((outer_thread, threading.get_ident()))

    def outer():
        both_here.wait(PATIENCE)
        run_shards(inner, [(threading.get_ident(),)] * 4)

    run_shards(outer, [(), ()])
    assert len(pairs) == 8
    assert len(set(pairs)) == 2
    assert all(outer == inner for outer, inner in pairs)


def test_calls_after_a_shard_use_threads_again():
    set_num_threads(2)

    def fail():
        raise ValueError("after a failure too")

    for _ in range(3):
        with pytest.raises(ValueError, match="after a failure"):
            run_shards(fail, [(), ()])
        both_here = threading.Barrier(2)
        run_shards(both_here.wait, [(PATIENCE,), (PATIENCE,)])


def test_many_callers_at_once():
    set_num_threads(3)
    rows = [np.zeros(12) for _ in range(8)]

    def shard(row, start, stop):
        row[start:stop] += 1
        if start == 0 and row[0] % 50 == 0:
            raise ArithmeticError(row[0])

    def caller(row):
        failures = 0
        for _ in range(200):
            try:
                run_shards(shard, [(row, 0, 3), (row, 3, 6), (row, 6, 9), (row, 9, 12)])
            except ArithmeticError:
                failures += 1
        assert failures == 4

    in_threads(*(lambda row=row: caller(row) for row in rows))
    np.testing.assert_array_equal(rows, 200)
    assert threads._team.size == 2


def test_callers_do_not_wait_for_busy_helpers():
    """All helpers are in a long shard of another caller: this one does its work alone."""
    set_num_threads(2)
    busy, release, seen = threading.Barrier(3), threading.Event(), []

    def long():
        busy.wait(PATIENCE)
        assert release.wait(PATIENCE)

    def first():
        run_shards(long, [(), ()])

    def second():
        busy.wait(PATIENCE)
        run_shards(seen.append, [(i,) for i in range(5)])
        release.set()

    in_threads(first, second)
    assert sorted(seen) == list(range(5))


def test_nothing_of_a_call_is_kept():
    class Held:
        pass

    set_num_threads(2)
    both_here, held = threading.Barrier(2), [Held(), Held()]
    watched = [weakref.ref(thing) for thing in held]

    def shard(thing, fails):
        both_here.wait(PATIENCE)
        if fails:
            raise ValueError("held by the traceback")

    gc.disable()
    try:
        run_shards(shard, [(held[0], False), (held.pop(), False)])
        assert watched[1]() is None
        try:
            run_shards(shard, [(held[0], True), (held.pop(), True)])
        except ValueError:
            pass
        else:
            pytest.fail("no error")
        assert watched[0]() is None
        # The helper lets the function go a moment after the call.
        function, deadline = weakref.ref(shard), time.monotonic() + PATIENCE
        del shard
        while function() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert function() is None
    finally:
        gc.enable()


@needs_fork
def test_a_forked_child_makes_its_own_threads():
    printed = python(
        """if True:
        import os, threading
        from tinygrad_rnn import threads

        threads.set_num_threads(3)

        def together():
            here, seen = threading.Barrier(3), set()

            def shard():
                here.wait(20)
                seen.add(threading.get_ident())

            threads.run_shards(shard, [()] * 3)
            with threads.blas_limited():
                return len(seen)

        print("parent", together(), flush=True)
        threads._team.growing.acquire()  # as if another thread were making one
        threads._blas.lock.acquire()  # and another were setting a number
        child = os.fork()
        if child == 0:
            print("child", together(), flush=True)
            grandchild = os.fork()
            if grandchild == 0:
                print("grandchild", together(), flush=True)
            else:
                assert os.waitpid(grandchild, 0)[1] == 0
        else:
            assert os.waitpid(child, 0)[1] == 0
            threads._team.growing.release()
            threads._blas.lock.release()
            print("parent", together(), flush=True)
        """
    )
    assert printed.splitlines() == ["parent 3", "child 3", "grandchild 3", "parent 3"]
