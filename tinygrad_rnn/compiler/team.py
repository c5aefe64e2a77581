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
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import typeof, types  # type: ignore[import-not-found, unused-ignore]
from numba.core import cgutils  # type: ignore[import-not-found, unused-ignore]
from numba.core.registry import cpu_target  # type: ignore[import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-not-found, unused-ignore]

from tinygrad_rnn.compiler.product import kept
from tinygrad_rnn.threads import get_num_threads

PATIENCE = 40_000  # looks at the board until a helper goes to sleep: a millisecond
POLITE = 100  # looks until whoever waits lets others have the processor
# Where the words of a board are, in lines of the cache of their own as far as they are written at different times:
# from which shard to which they wait, and of which call, in one word; the code and the arguments of that call; how many
# of its shards have ended, and how many failed; and the place of a function that lets others have the processor.
NEXT, CODE, ARGUMENTS, ENDED, FAILED, YIELD, SIZE = 0, 64, 72, 128, 136, 192, 256
MOST = 0xFFFF  # shards of a call

_emitted: Callable[[Callable[..., Any]], Any] = intrinsic
_typeof: Callable[[Any], Any] = typeof
_word = cgutils.intp_t
_shard_code = ir.FunctionType(ir.IntType(1), [_word, _word])
_x86 = cpu_target.target_context.codegen().magic_tuple()[0].startswith("x86_64")


def _at(builder: Any, place: Any) -> Any:
    return builder.inttoptr(place, _word.as_pointer())


@_emitted
def _load(typing: Any, place: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_at(builder, values[0]), "seq_cst", 8)

    return types.intp(types.intp), emit


@_emitted
def _store(typing: Any, place: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], _at(builder, values[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@_emitted
def _add(typing: Any, place: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, values[0]), values[1], "seq_cst")

    return types.intp(types.intp, types.intp), emit


@_emitted
def _replace(typing: Any, place: Any, old: Any, new: Any) -> Any:
    """Write ``new`` if ``old`` is there; whether it was."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, old, new = values
        return builder.extract_value(builder.cmpxchg(_at(builder, place), old, new, "seq_cst", "seq_cst"), 1)

    return types.boolean(types.intp, types.intp, types.intp), emit


@_emitted
def _pause(typing: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if _x86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), emit


@_emitted
def _yield(typing: Any, code: Any) -> Any:
    """Call the function at ``code``, which takes nothing."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.inttoptr(values[0], ir.FunctionType(ir.IntType(32), []).as_pointer())
        return builder.call(function, [])

    return types.int32(types.intp), emit


@_emitted
def _run(typing: Any, code: Any, arguments: Any, shard: Any) -> Any:
    """Run a shard; whether it failed."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code, *rest = values
        return builder.call(builder.inttoptr(code, _shard_code.as_pointer()), rest)

    return types.boolean(types.intp, types.intp, types.intp), emit


@_emitted
def _call_of(typing: Any, function: Any, rows: Any, shards: Any, arguments: Any) -> Any:
    """Code that calls the compiled function at ``function`` for the rows of a shard, and where what it needs for that
    is, until the caller of this returns."""
    kinds = (types.intp, types.intp, *arguments)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = cgutils.pack_struct(builder, values)  # type: ignore[no-untyped-call, unused-ignore]
        memory = cgutils.alloca_once_value(builder, given)  # type: ignore[no-untyped-call, unused-ignore]
        code = ir.Function(builder.module, _shard_code, builder.module.get_unique_name("shard"))
        code.linkage = "internal"
        inside = ir.IRBuilder(code.append_basic_block())
        place, shard = code.args
        given = inside.load(inside.inttoptr(place, memory.type))
        function, rows, shards, packed = [inside.extract_value(given, i) for i in range(4)]
        i, j = [inside.sdiv(inside.mul(rows, k), shards) for k in (shard, inside.add(shard, _word(1)))]
        function = inside.inttoptr(function, context.call_conv.get_function_type(types.none, kinds).as_pointer())
        given = [i, j, *cgutils.unpack_tuple(inside, packed)]  # type: ignore[no-untyped-call, unused-ignore]
        status, _ = context.call_conv.call_function(inside, function, types.none, kinds, given)
        inside.ret(status.is_error)
        places = [builder.ptrtoint(one, _word) for one in (code, memory)]
        return context.make_tuple(builder, signature.return_type, places)

    pair = types.UniTuple(types.intp, 2)  # type: ignore[no-untyped-call, unused-ignore]
    return pair(function, rows, shards, arguments), emit


@kept
def _wait(board: int, looks: int) -> None:
    if looks % POLITE or _load(board + YIELD) == 0:
        _pause()
    else:
        _yield(_load(board + YIELD))


@kept
def _took_one(board: int, last: bool) -> bool:
    """Take the first shard, or the last, and run it; whether there was one."""
    word = _load(board + NEXT)
    first, end = word & MOST, word >> 16 & MOST
    if first >= end:
        return False
    # The word also tells calls apart: once a shard is taken, its call is at the board until the shard has ended.
    if _replace(board + NEXT, word, word - (1 << 16) if last else word + 1):
        if _run(_load(board + CODE), _load(board + ARGUMENTS), end - 1 if last else first):
            _add(board + FAILED, 1)
        _add(board + ENDED, 1)
    return True


@kept
def _help(board: int, patience: int) -> None:
    """Take shards until none has come for so many looks."""
    looks = 0
    while looks < patience:
        looks += 1
        if _took_one(board, True):  # so that, from call to call, it has the same in its cache
            looks = 0
        else:
            _wait(board, looks)


@kept
def _shared(board: int, function: int, rows: int, shards: int, *arguments: Any) -> bool:
    """Have each shard run, here and by whoever looks at the board; whether all went well."""
    code, place = _call_of(function, rows, shards, arguments)
    _store(board + CODE, code)
    _store(board + ARGUMENTS, place)
    _store(board + ENDED, 0)
    _store(board + FAILED, 0)
    calls = (_load(board + NEXT) >> 32) + 1 & 0x7FFFFFFF
    _store(board + NEXT, calls << 32 | shards << 16)
    while _took_one(board, False):
        pass
    looks = 0
    while _load(board + ENDED) < shards:
        looks += 1
        _wait(board, looks)
    return bool(_load(board + FAILED) == 0)


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
            _help(self.board.place, PATIENCE)
            with self.counting:
                self.awake -= 1


_team = Team()


def code_of(function: Any, *arguments: Any) -> int:
    """Where the code of a compiled ``function(i, j, *arguments)`` is, for arguments of these types."""
    key = (function, *map(_kind, arguments))
    if key not in _codes:
        types = tuple([_typeof(argument) for argument in (0, 0, *arguments)])
        function.compile(types)
        found = function.overloads[types]
        _codes[key] = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
    return _codes[key]


_codes: dict[Any, int] = {}


def _kind(argument: Any) -> Any:
    """Tells those apart whose code is not the same, and takes less time for it than Numba's own types."""
    if not isinstance(argument, np.ndarray):
        return type(argument)
    flags = argument.flags
    return argument.dtype, argument.ndim, flags.c_contiguous, flags.f_contiguous


def share(code: int, rows: int, shards: int, *arguments: Any) -> bool:
    """Call ``function(i, j, *arguments)``, whose `code_of` that is, for so many parts i to j of the rows.

    While another thread does so, this one has no helpers.

    Returns
    -------
    bool
        Whether no call has raised.
    """
    team, shards = _team, min(shards, MOST)
    if not team.busy.acquire(blocking=False):
        board = Board()
        return bool(_shared(board.place, code, rows, shards, *arguments))
    try:
        team.wake(shards - 1)
        return bool(_shared(team.board.place, code, rows, shards, *arguments))
    finally:
        team.busy.release()


def over_rows(function: Callable[..., None], rows: int, enough: bool, *arguments: Any) -> bool:
    """Call the compiled ``function(i, j, *arguments)`` for all rows: in parts i to j, if there is ``enough`` to do for
    several threads. Whether no part of it has raised."""
    shards = min(get_num_threads(), rows) if enough else 1
    if shards > 1:
        return share(code_of(function, *arguments), rows, shards, *arguments)
    function(0, rows, *arguments)
    return True


def _after_fork() -> None:
    """In the child, where no other thread survives."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
