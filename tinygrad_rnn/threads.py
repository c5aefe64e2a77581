"""The threads of the compiled loops: how many there may be, shards of a batch spread over them, and BLAS held to one.

A shard is a part of a batch whose loop needs nothing of the others. Compiled code releases the GIL, so the shards of a
batch run at the same time on Python's own threads. The caller runs shards too and waits only for those that another
thread has begun. So nothing can wait in a circle, whoever calls, and busy threads cost no more than their absence.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue
from threading import get_ident
from typing import Any, SupportsIndex

VARIABLE = "TINYGRAD_RNN_NUM_THREADS"
_num_threads: int | None = None  # None until someone asks, so that importing cannot fail


def set_num_threads(n: int | None) -> None:
    """Let compiled loops use at most ``n`` threads each, the calling one among them.

    Until this is called the environment variable ``TINYGRAD_RNN_NUM_THREADS`` decides, and without it ``None``.

    Parameters
    ----------
    n
        At least 1. ``None`` means as many as the process may use now.
    """
    global _num_threads
    if n is None:
        _num_threads = _usable()
    elif isinstance(n, bool) or not isinstance(n, SupportsIndex):
        raise TypeError(f"the number of threads must be an int or None, got {n!r} of type {type(n).__name__}")
    else:
        _num_threads = _checked(operator.index(n), "the number of threads")


def get_num_threads() -> int:
    """How many threads a compiled loop may use."""
    if _num_threads is None:
        text = os.environ.get(VARIABLE)
        set_num_threads(None if text is None else _parsed(text))
        return get_num_threads()
    return _num_threads


def _parsed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"the environment variable {VARIABLE} must be a whole number, got {text!r}") from None
    return _checked(number, f"the environment variable {VARIABLE}")


def _checked(number: int, name: str) -> int:
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _usable() -> int:
    """The processors that this process may run on, which may be fewer than the machine has."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Shards


def cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """``n`` in so many nearly equal parts: from and to."""
    ends = [n * k // parts for k in range(parts + 1)]
    return [(i, j) for i, j in pairwise(ends) if i < j]


class _Local(threading.local):
    in_shard = False


_local = _Local()


class _Job:
    """The shards of one call, which any thread may take from."""

    def __init__(self, function: Callable[..., object], shards: Sequence[tuple[Any, ...]]) -> None:
        self.function = function
        self.waiting = deque(enumerate(shards))
        self.errors: list[tuple[bool, int, BaseException]] = []
        self.limit_helpers = False

    def work(self) -> None:
        """Run shards until none waits."""
        while self.waiting:
            try:
                index, shard = self.waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self.function(*shard)
            except BaseException as error:
                self.fail(index, error)

    def help(self) -> None:
        """Work in a thread other than the caller's."""
        if not self.limit_helpers:
            self.work()
            return
        try:
            with blas_limited():
                self.work()
        except BaseException as error:
            self.fail(-1, error)

    def work_with_help(self, helpers: int) -> None:
        """Work while up to so many other threads help; returns when none is at work."""
        self.limit_helpers = _blas.must_limit_helpers()
        locks = [threading.Lock() for _ in range(helpers)]
        _local.in_shard = True
        try:
            _team.ask(self, locks)
            self.work()
        except BaseException as interruption:
            self.fail(-1, interruption)
        finally:
            _local.in_shard = False
        # No shard waits any more: a helper that comes now finds none, and one at work holds its lock.
        for lock in locks:
            while True:
                try:
                    with lock:
                        break
                except BaseException as interruption:  # the helpers still write to what the caller may use next
                    self.fail(-1, interruption)
        del self.function  # a helper that comes too late need not keep its arrays alive

    def fail(self, index: int, error: BaseException) -> None:
        """Keep the error for the caller; an interruption also takes the waiting shards away."""
        if not isinstance(error, Exception):
            self.waiting.clear()
        self.errors.append((isinstance(error, Exception), index, error))


class _Team:
    """Threads that wait for jobs: daemons, which the end of the program need not wait for."""

    def __init__(self) -> None:
        self.tickets: SimpleQueue[tuple[_Job, threading.Lock]] = SimpleQueue()
        self.size = 0
        self.growing = threading.Lock()

    def ask(self, job: _Job, locks: list[threading.Lock]) -> None:
        """Ask for a helper for each lock, which it holds while it works."""
        if self.size < len(locks):
            with self.growing:
                while self.size < len(locks):
                    threading.Thread(target=_serve, args=(self.tickets,), name="tinygrad_rnn", daemon=True).start()
                    self.size += 1
        for lock in locks:
            self.tickets.put((job, lock))


def _serve(tickets: SimpleQueue[tuple[_Job, threading.Lock]]) -> None:
    _local.in_shard = True
    while True:
        job, lock = tickets.get()
        with lock:
            job.help()
        del job  # or its function would live until the next one comes


_team = _Team()


def run_shards(function: Callable[..., object], shards: Sequence[tuple[Any, ...]]) -> None:
    """Call ``function(*shard)`` for each shard, on at most `get_num_threads` threads.

    It returns when all shards have ended. Every shard is run, also after another has raised; then the error of the
    first shard that raised, in the order of ``shards``, is raised. An interruption, such as ``KeyboardInterrupt``, is
    raised as soon as the shards already begun have ended.

    A call from within a shard runs in its own thread alone. So do one shard, and all of them where one thread is
    allowed. Other threads see no context variable of the caller; under `blas_limited` they are limited too.

    Parameters
    ----------
    function
        It gains from several threads only while it releases the GIL.
    shards
        The arguments of each call.
    """
    if len(shards) == 1:
        function(*shards[0])
        return
    job = _Job(function, shards)
    helpers = min(len(shards), get_num_threads()) - 1
    if helpers < 1 or _local.in_shard:
        job.work()
    else:
        job.work_with_help(helpers)
    if job.errors:
        errors, job.errors = job.errors, []
        try:
            raise min(errors, key=lambda entry: entry[:2])[2]
        finally:
            del errors  # or the error would hold this frame, and this frame the error


# BLAS


class _Blas:
    """The BLAS libraries of the process, and who wants them to use one thread.

    OpenBLAS with threads of its own has one number for the whole process: the first to come sets it to one, the last to
    go sets it back. The others may have a number for each thread: each thread sets its own, and sets it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: list[int] = []  # the threads, once for each block they are in
        self.former: list[tuple[Any, int]] = []
        self.libraries: list[Any] = []
        self.modules = 0

    def find(self) -> None:
        """List the libraries, if a module was imported since: a listing takes half a millisecond, this look no time."""
        if self.modules == len(sys.modules):
            return
        try:
            import threadpoolctl  # type: ignore
        except ImportError:
            self.modules = len(sys.modules)
            self.libraries = []
        else:
            self.modules = len(sys.modules)
            every = threadpoolctl.ThreadpoolController().lib_controllers
            self.libraries = [library for library in every if library.user_api == "blas"]

    def enter(self) -> list[tuple[Any, int]]:
        """Limit all libraries; returns those that this thread must set back, with their numbers."""
        own: list[tuple[Any, int]] = []
        with self.lock:
            self.find()
            for library in self.libraries:
                former = library.get_num_threads()
                if former is None or former <= 1:
                    continue
                _set(library, 1)
                if library.get_num_threads() == 1:  # not where another thread limits it through threadpoolctl
                    (self.former if _one_number(library) else own).append((library, former))
            self.inside.append(get_ident())
        return own

    def leave(self, thread: int, own: list[tuple[Any, int]]) -> None:
        for library, former in own:
            _set(library, former)
        with self.lock:
            self.inside.remove(thread)
            self.restore_if_empty()

    def restore_if_empty(self) -> None:
        if not self.inside:
            for library, former in self.former:
                _set(library, former)
            self.former.clear()

    def must_limit_helpers(self) -> bool:
        """Whether a thread that helps this one has to limit a number of its own."""
        return get_ident() in self.inside and not all(map(_one_number, self.libraries))

    def after_fork(self) -> None:
        """In the child: the other threads that were inside are not there to leave."""
        self.lock = threading.Lock()
        self.inside = [thread for thread in self.inside if thread == get_ident()]
        self.restore_if_empty()


def _one_number(library: Any) -> bool:
    return bool(library.internal_api == "openblas" and library.threading_layer != "openmp")


def _set(library: Any, number: int) -> None:
    library.set_num_threads(number)
    # From 3.8 on the first thread to set a number would be the only one that can, and another may be the last to go.
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread()


_blas = _Blas()


@contextmanager
def blas_limited() -> Iterator[None]:
    """Let BLAS use one thread inside the ``with`` block, as befits products within shards.

    It is for one's own loops: OpenBLAS has one number for all threads, so others are limited meanwhile as well. Blocks
    may be nested and may overlap in several threads; the last to end sets the former number back. A library that is
    loaded within the block is limited from the next block on.

    Without threadpoolctl (``pip install tinygrad_rnn[fast]``) it does nothing: results are the same, but the threads
    of BLAS and those of the shards may then compete for the processors.
    """
    thread, own = get_ident(), _blas.enter()
    try:
        yield
    finally:
        _blas.leave(thread, own)


def _after_fork() -> None:
    """In the child, where no other thread survives."""
    global _team
    _team = _Team()
    _blas.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
