"""The Numba engine, second half: the generated loop compiled, cached and run.

See ``loops`` for the source, ``scalars`` and ``product`` for what it calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit
from numba.core.compiler import Compiler

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler.cache import module_of
from tinygrad_rnn.compiler.layout import AFTER, BEFORE, SCRATCH, STACK
from tinygrad_rnn.compiler.loops import Generator
from tinygrad_rnn.compiler.product import aligned, multiply_add, pack, packed_size
from tinygrad_rnn.compiler.record import Unrecordable
from tinygrad_rnn.compiler.scalars import SCALARS
from tinygrad_rnn.compiler.split import Run, Split
from tinygrad_rnn.threads import blas_limited, get_num_threads, run_shards

FUSES = True
LEAST_WORK = 1 << 20  # multiplications of a run that are worth a second thread


def backend(F: Any) -> Any:
    """What computes outside of the loop."""
    if F is not NUMPY:
        raise Unrecordable(f"the numba engine runs on NumPy, not on {F.name}")
    return HOST


def context() -> Any:
    """What all of a run is done in."""
    return blas_limited()


class _NoAlias(Compiler):  # type: ignore[misc, unused-ignore]
    """Tells LLVM that no memory is reached through two arguments, without which it would not vectorize the loops."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


@njit(nogil=True, error_model="numpy", cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _row(index: int, rows: int) -> int:
    """An index as NumPy takes it."""
    if index < -rows or index >= rows:
        raise IndexError("an index of the cell is out of range")
    return index + rows if index < 0 else index


SPACE: dict[str, Any] = {
    **SCALARS,
    "multiply_add": multiply_add,
    "row": _row,
    "unsigned": np.uint64,
    "zero_step": np.uint64(0),
    "one_step": np.uint64(1),
    "float32": np.float32,
    "float64": np.float64,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}


HEAD = "from tinygrad_rnn.compiler.jit import SPACE\n\nglobals().update(SPACE)\n\n\n"


@cache
def _compiled(text: str) -> Callable[..., None]:
    """The generated function, ready to be compiled for the types that it is called with."""
    module = module_of(HEAD + text, _called())
    space = {} if module is None else vars(module)
    if module is None:
        exec(compile(HEAD + text, "<loop>", "exec"), space)
    jitted = njit(nogil=True, error_model="numpy", pipeline_class=_NoAlias, cache=module is not None)
    return jitted(space["loop"])


@cache
def _called() -> str:
    """Stands for all code that generated source calls, which Numba's cache does not look at."""
    folder = Path(__file__).parent
    files = [folder / name for name in ("jit.py", "product.py", "scalars.py")]
    return "\n".join([numba.__version__, *[hashlib.sha256(file.read_bytes()).hexdigest() for file in files]])


class _Host(type(NUMPY)):  # type: ignore[misc]
    """NumPy, with matrix products shared out over our threads.

    BLAS is held to one thread meanwhile: its own would go on spinning after each product, on the cores that the loop
    needs. Products are parted in the same way however many threads there are, so that the bits are the same.
    """

    LEAST = 1 << 21  # multiplications; below that it is not worth while

    def __init__(self) -> None:
        super().__init__()
        self.matmul = self._matmul

    def _matmul(self, a: Any, b: Any) -> Any:
        if a.ndim != 2 or b.ndim != 2 or a.size * b.shape[1] < self.LEAST:
            return np.matmul(a, b)
        rows, columns = a.shape[0], b.shape[1]
        out = np.empty((rows, columns), np.result_type(a, b))
        if rows >= columns:
            cuts = _cuts(rows, 4)
            shards = [(a[i:j], b, out[i:j]) for i, j in cuts]
        else:
            shards = [(a, b[:, i:j], out[:, i:j]) for i, j in _cuts(columns, 4)]
        run_shards(np.matmul, shards)
        return out


def _cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """``n`` in so many nearly equal parts: from and to."""
    ends = [n * k // parts for k in range(parts + 1)]
    return [(i, j) for i, j in pairwise(ends) if i < j]


HOST = _Host()


class Memory:
    """Uninitialized arrays that begin at multiples of 64 bytes; small ones share a block."""

    BLOCK = 1 << 17

    def __init__(self) -> None:
        self.free = 0
        self.block: Any = None
        self.at = 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array."""
        size = prod(shape) * dtype.itemsize
        if size > self.free:
            whole = max(size, self.BLOCK)
            block = np.empty(whole + 64, np.uint8)
            at = -block.__array_interface__["data"][0] % 64
            if size > self.BLOCK // 4:
                return np.ndarray(shape, dtype, block, at)
            self.block, self.at, self.free = block, at, whole
        array = np.ndarray(shape, dtype, self.block, self.at)
        size = -(-size // 64) * 64
        self.at += size
        self.free -= size
        return array


def packed_weight(weight: Any) -> Any:
    """A weight in the order in which ``multiply_add`` reads it."""
    size: Any = packed_size
    result = aligned(size(*weight.shape, weight.itemsize), weight.dtype)
    pack(weight, result)
    return result


class Loop:
    """The loop of a split step; see `tinygrad_rnn.compiler.array.Loop`."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.code = Generator(split).generated()
        self.source = self.code.text
        self.numbers = [np.dtype(dtype).type(number) for number, dtype in self.code.numbers]

    def __call__(self, run: Run, reverse: bool, carry: Sequence[Any]) -> list[Any]:
        """Run it; what is wanted of all steps is added to ``run``, and the last state returned."""
        code, steps = self.code, run.steps
        states: dict[int, Any] = {}
        arguments: list[Any] = []
        memory = Memory()
        for value, store in code.memory.items():
            if store.kind in (BEFORE, AFTER):
                if store.part not in states:
                    arguments.append(memory.array((steps + 1 if store.kept else 2, *value.shape), value.dtype))
                    states[store.part] = arguments[-1]
                    arguments[-1][steps if reverse and store.kept else 0] = carry[store.part]
            elif store.kind == STACK:
                run.values[value] = memory.array((steps, *value.shape), value.dtype)
                arguments.append(run.values[value])
            elif store.kind == SCRATCH:
                arguments.append(memory.array(value.shape, value.dtype))
            else:
                arguments.append(np.asarray(run[value], order="C"))
        arguments += [packed_weight(run[value]) for value in code.packed]
        loop = _compiled(code.text)
        shards = get_num_threads() if code.rows and steps * code.rows * code.work > LEAST_WORK else 1
        run_shards(
            lambda b0, b1: loop(steps, reverse, b0, b1, *arguments, *self.numbers, *code.sizes),
            _cuts(code.rows, shards) if code.rows else [(0, 0)],
        )
        return [self._last(run, reverse, k, states[k]) for k in range(len(carry))]

    def _last(self, run: Run, reverse: bool, k: int, memory: Any) -> Any:
        """One part of the last state; if it is wanted of all steps, these are added to ``run``."""
        steps, stacked = run.steps, self.split.stacked
        if not self.code.kept[k]:
            return memory[steps % 2]
        before, after = (memory[1:], memory[:-1]) if reverse else (memory[:-1], memory[1:])
        for value, states in ((self.split.step.carry[k], before), (self.split.step.following[k], after)):
            if value in stacked:
                run.values.setdefault(value, states)
        return memory[0 if reverse else steps]
