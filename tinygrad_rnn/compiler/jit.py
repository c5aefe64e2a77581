"""The Numba engine, second half: the generated loop compiled, cached and run.

See ``loops`` for the source, ``scalars`` and ``product`` for what it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numba import njit
from numba.core.compiler import Compiler

from tinygrad_rnn.compiler.loops import AFTER, BEFORE, SCRATCH, STACK, Generator
from tinygrad_rnn.compiler.product import aligned, multiply_add, pack, packed_size
from tinygrad_rnn.compiler.record import Unrecordable
from tinygrad_rnn.compiler.scalars import SCALARS
from tinygrad_rnn.compiler.split import Run, Split

FUSES = True


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


@cache
def _compiled(text: str) -> Callable[..., None]:
    space = dict(SPACE)
    exec(compile(text, "<loop>", "exec"), space)
    return njit(nogil=True, error_model="numpy", pipeline_class=_NoAlias)(space["loop"])


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
        if run.F.name != "numpy":
            raise Unrecordable(f"the numba engine runs on NumPy, not on {run.F.name}")
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
                arguments.append(np.ascontiguousarray(run[value]))
        arguments += [packed_weight(run[value]) for value in code.packed]
        _compiled(code.text)(steps, reverse, 0, code.rows, *arguments, *self.numbers, *code.sizes)
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
