"""The Numba engine with its generated source run by Python, uncompiled: slow for arrays, quick for many small cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from operator import add
from typing import Any

import numpy as np

from tinygrad_rnn.compiler import build, jit, layout, run
from tinygrad_rnn.compiler.native import Native
from tinygrad_rnn.compiler.split import Run


def multiply_add(a: Any, b: Any, c: Any) -> None:
    c += a @ b


def row(index: int, rows: int) -> int:
    return int(index) % rows


SPACE = build.SPACE | {
    "multiply_add": multiply_add,
    "row": row,
    "plus": add,
    "unsigned": int,
    "zero_step": 0,
    "one_step": 1,
}


@cache
def uncompiled(text: str) -> Callable[..., None]:
    space = dict(SPACE)
    exec(compile(text, "<loop>", "exec"), space)

    def run(*arguments: Any) -> None:
        with np.errstate(all="ignore"):
            space["loop"](*arguments)

    return run


def filled(self: jit.Places) -> list[Any]:
    """Memory in which what nobody wrote shows."""
    return [np.full(shape, np.nan if dtype.kind == "f" else 77, dtype) for shape, dtype, _ in self._places]


def laid_out(self: jit.Loop, run: Run) -> tuple[list[Any], dict[int, Any]]:
    """Weights as they are."""
    arguments, states = compiled_laid_out(self, run)
    return [*arguments[: len(self.slots)], *[run.values[value] for value in self.code.packed]], states


compiled_laid_out = jit.Loop.laid_out


def one_after_the_other(native: Native, rows: int, shards: int, *arguments: Any) -> bool:
    """As `over_rows` of ``team``, in this thread."""
    parts = [(rows * shard // shards, rows * (shard + 1) // shards) for shard in range(shards)]
    failed = [native.call(i, j, *arguments) for i, j in parts]
    return not any(failed)


@contextmanager
def alone() -> Iterator[None]:
    """Inside the ``with`` block shards are run one after the other."""
    before = jit.over_rows
    jit.over_rows = one_after_the_other
    try:
        yield
    finally:
        jit.over_rows = before


def check(native: Native, *arguments: Any) -> None:
    """Machine code believes its arguments; what is not of their kinds it would read as something else."""
    for argument, kind in zip(arguments, native.kinds, strict=True):
        if kind.ndim < 0:
            assert isinstance(argument, float if kind.dtype.kind == "f" else int)
        else:
            assert type(argument) is np.ndarray
            assert (argument.dtype, argument.ndim) == (kind.dtype, kind.ndim)
            assert kind.layout == "A" or argument.flags.c_contiguous


def checked(native: Native, i: int, j: int, *arguments: Any) -> bool:
    check(native, *arguments)
    return native.code.call(i, j, *arguments)


def checked_words(native: Native, i: int, j: int, *arguments: Any) -> Any:
    check(native, *arguments)
    return words(native, i, j, *arguments)


words = Native.words


def check_all() -> None:
    """Whoever calls machine code from now on is checked."""
    Native.call, Native.words = property(lambda native: partial(checked, native)), checked_words


def call(native: Native, i: int, j: int, *arguments: Any) -> bool:
    """Generated source is run by Python; what else is compiled stays so."""
    if not native.text:
        return checked(native, i, j, *arguments)
    given = [
        kind.dtype.type(a) if kind.ndim < 0 and kind.dtype.kind != "i" else a
        for kind, a in zip(native.kinds, arguments, strict=True)
    ]
    uncompiled(native.text)(i, j, *given)
    return False


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside the ``with`` block the engine compiles nothing that it generates."""
    before = jit.pack, jit.Loop.laid_out, jit.Places.arrays
    jit.pack, jit.Loop.laid_out, jit.Places.arrays = lambda *_: None, laid_out, filled
    compiled = Native.call
    Native.call = property(lambda native: partial(call, native))
    try:
        with alone():
            yield
    finally:
        Native.call = compiled
        jit.pack, jit.Loop.laid_out, jit.Places.arrays = before


@contextmanager
def rows_last() -> Iterator[None]:
    """Inside the ``with`` block the engine has rows last in memory wherever it can, not only where they are many."""
    before = layout.FEW, layout.MANY
    run._known.clear()
    layout.FEW, layout.MANY = 1 << 30, 2
    try:
        yield
    finally:
        layout.FEW, layout.MANY = before
        run._known.clear()
