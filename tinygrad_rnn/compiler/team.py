"""Threads for compiled functions, which share out their work without Python.

To wake a thread that sleeps takes a tenth of a millisecond, and one that needs Python's lock waits for whoever has it.
So helpers wait awake, in compiled code, for as long as more work is likely to come, and take it by themselves from a
board: a few words of memory that are only read and written atomically. The caller works too, and waits only for what a
helper has begun; without helpers it does everything, with the same bits.
"""

from __future__ import annotations

import ctypes
import os
import threading
from queue import SimpleQueue
from typing import Any

import numpy as np

from tinygrad_rnn.compiler.native import Kind, Native
from tinygrad_rnn.threads import get_num_threads

PATIENCE = 40_000  # looks at the board until a helper goes to sleep: a millisecond
POLITE = 100  # looks until whoever waits lets others have the processor
# Where the words of a board are, in lines of the cache of their own as far as they are written at different times:
# from which shard to which they wait, and of which call, in one word; the code, the arguments, the rows and the shards
# of that call; how many of its shards have ended, and how many failed; and the place of a function that lets others
# have the processor.
NEXT, CODE, WORDS, ROWS, SHARDS, ENDED, FAILED, YIELD, SIZE = 0, 64, 72, 80, 88, 128, 136, 192, 256
MOST = 0xFFFF  # shards of a call

_int = np.dtype(np.int64)
_serve = Native(f"{__package__}.board.serve", [Kind(_int)] * 2)
_share = Native(f"{__package__}.board.share", [Kind(_int, 1, "C"), *[Kind(_int)] * 4])


class Board:
    """Memory for one call at a time."""

    def __init__(self) -> None:
        self._memory = np.zeros(SIZE + 64, np.uint8)
        self.place = -(-self._memory.ctypes.data // 64) * 64
        ctypes.c_ssize_t.from_address(self.place + YIELD).value = _OTHERS_FIRST


def _address(name: str) -> int:
    """Where a function of the C library is; 0 if there is none of this name."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


_OTHERS_FIRST = _address("sched_yield")


class Team:
    """A board, and threads that look at it: daemons, which the end of the program need not wait for."""

    def __init__(self) -> None:
        self.board = Board()
        self.busy = threading.Lock()  # held by whose call is at the board
        self.tickets: SimpleQueue[None] = SimpleQueue()
        self.counting = threading.Lock()
        self.size = self.awake = 0

    def wake(self, helpers: int) -> None:
        """See that so many helpers are awake, or will be soon."""
        if self.awake >= helpers:
            return
        _ = _serve.call  # to be compiled by a thread that the end of the program waits for
        with self.counting:
            while self.size < helpers:
                threading.Thread(target=self._serve, name="tinygrad_rnn", daemon=True).start()
                self.size += 1
            while self.awake < helpers:
                self.awake += 1
                self.tickets.put(None)

    def _serve(self) -> None:
        while True:
            self.tickets.get()
            _serve.call(0, 1, self.board.place, PATIENCE)
            with self.counting:
                self.awake -= 1


_team = Team()


def share(function: Native, rows: int, shards: int, *arguments: Any) -> bool:
    """Call it for so many parts i to j of the rows.

    While another thread does so, this one has no helpers.

    Returns
    -------
    bool
        Whether no call has raised.
    """
    team, shards = _team, min(shards, MOST)
    code, words = function.code.shared, function.words(0, rows, *arguments)
    if not team.busy.acquire(blocking=False):
        return not _share.call(0, 1, words, Board().place, code, rows, shards)
    try:
        team.wake(shards - 1)
        return not _share.call(0, 1, words, team.board.place, code, rows, shards)
    finally:
        team.busy.release()


def over_rows(function: Native, rows: int, shards: int, *arguments: Any) -> bool:
    """Call it for all rows, in so many shards; whether no part of it has raised."""
    if shards > 1:
        return share(function, rows, shards, *arguments)
    return not function.call(0, rows, *arguments)


def shards_of(rows: int, enough: bool) -> int:
    """In how many shards to do them, if there is ``enough`` to do for several threads."""
    return min(get_num_threads(), rows) if enough else 1


def _after_fork() -> None:
    """In the child, where no other thread survives."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
