"""What the threads of a ``team`` run, compiled: how they take work from a board, a few words of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import types  # type: ignore[import-not-found, unused-ignore]
from numba.core import cgutils  # type: ignore[import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-not-found, unused-ignore]

from tinygrad_rnn.compiler.product import kept
from tinygrad_rnn.compiler.team import CODE, ENDED, FAILED, MOST, NEXT, POLITE, ROWS, SHARDS, WORDS, YIELD

_emitted: Callable[[Callable[..., Any]], Any] = intrinsic
_word = cgutils.intp_t
_entry = ir.FunctionType(ir.IntType(32), [_word, _word, _word])
_x86 = binding.get_process_triple().startswith("x86_64")


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
def _call(typing: Any, code: Any, words: Any, i: Any, j: Any) -> Any:
    """Call machine code for rows i to j; not 0 if it has raised."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code, *rest = values
        return builder.call(builder.inttoptr(code, _entry.as_pointer()), rest)

    return types.int32(types.intp, types.intp, types.intp, types.intp), emit


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
        shard = end - 1 if last else first
        rows, shards = _load(board + ROWS), _load(board + SHARDS)
        if _call(_load(board + CODE), _load(board + WORDS), rows * shard // shards, rows * (shard + 1) // shards):
            _add(board + FAILED, 1)
        _add(board + ENDED, 1)
    return True


def serve(i: int, j: int, board: int, patience: int) -> None:
    """Take shards until none has come for so many looks."""
    looks = 0
    while looks < patience:
        looks += 1
        if _took_one(board, True):  # so that, from call to call, it has the same in its cache
            looks = 0
        else:
            _wait(board, looks)


def share(i: int, j: int, words: Any, board: int, code: int, rows: int, shards: int) -> None:
    """Have each shard run, here and by whoever looks at the board."""
    _store(board + CODE, code)
    _store(board + WORDS, words.ctypes.data)
    _store(board + ROWS, rows)
    _store(board + SHARDS, shards)
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
    if _load(board + FAILED):
        raise RuntimeError
