"""How many threads compiled loops may use, and BLAS held to one."""

from __future__ import annotations

import operator
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Let BLAS use one thread inside the ``with`` block: its own go on spinning, on the cores that loops need.

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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _blas.after_fork())
