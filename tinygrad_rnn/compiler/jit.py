"""The Numba engine, third part: the generated loop compiled, cached and run.

See ``loops`` for the source, ``scalars`` and ``product`` for what it calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.compiler import Compiler

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler import philox, team
from tinygrad_rnn.compiler.cache import module_of
from tinygrad_rnn.compiler.layout import BY_ROW, CONSTANT, SCRATCH, STACK, STREAM, SUM, Store
from tinygrad_rnn.compiler.loops import Generator
from tinygrad_rnn.compiler.memory import SHARING, Places
from tinygrad_rnn.compiler.pool import empty
from tinygrad_rnn.compiler.product import kept, multiply_add, pack, packed_size, product_of_rows
from tinygrad_rnn.compiler.record import Unrecordable
from tinygrad_rnn.compiler.scalars import SCALARS, plus, where
from tinygrad_rnn.compiler.split import Run, Split
from tinygrad_rnn.compiler.step import Value
from tinygrad_rnn.threads import blas_limited

FUSES = True
ROWS_APART = True  # the rows of its products have the same bits among any other rows
LEAST_WORK = 5 << 20  # multiplications of a loop that are worth a second thread
LEAST_PRODUCT = 2 << 20  # and of a product, which hands nothing from step to step that another core would have to fetch

NUMPY.uniform_of_keys = philox.uniform


def backend(F: Any) -> Any:
    """What computes outside of the loop."""
    if F is not NUMPY:
        raise Unrecordable(f"the numba engine runs on NumPy, not on {F.name}")
    return HOST


def context() -> Any:
    """What a step is recorded in."""
    return blas_limited()


def in_order(array: Any) -> Any:
    """``array`` in C order, whichever the loop had for it, and apart from the block that it shares if it is small."""
    if array.flags.c_contiguous:
        return array if array.base is None or array.nbytes > SHARING else array.copy()
    if array.ndim != 3 or array.strides[1] != array.itemsize or array.dtype not in (np.float32, np.float64):
        return array.copy()
    out = np.empty(array.shape, array.dtype)
    _copy_rows(array, out)
    return out


@kept
def _copy_rows(array: Any, out: Any) -> None:
    """Write to ``out`` (T, B, features), in C order, what lies in memory with its rows last."""
    for t in range(array.shape[0]):
        for j in range(array.shape[2]):
            for b in range(array.shape[1]):
                out[t, b, j] = array[t, b, j]


class _NoAlias(Compiler):  # type: ignore[misc, unused-ignore]
    """Tells LLVM that no memory is reached through two arguments, without which it would not vectorize the loops."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


OUT_OF_RANGE = "an index of the cell is out of range"


@kept
def _row(index: int, rows: int) -> int:
    """An index as NumPy takes it."""
    if index < -rows or index >= rows:
        raise IndexError(OUT_OF_RANGE)
    return index + rows if index < 0 else index


SPACE: dict[str, Any] = {
    **SCALARS,
    "multiply_add": multiply_add,
    "plus": plus,
    "row": _row,
    "where": where,
    "unsigned": np.uint64,
    "zero_step": np.uint64(0),
    "one_step": np.uint64(1),
    "float32": np.float32,
    "float64": np.float64,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Numba's cache of a function, which begins anew where its files are damaged."""

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)  # type: ignore[no-untyped-call, unused-ignore]
        except Exception:
            self.flush()  # type: ignore[no-untyped-call, unused-ignore]
            return None


HEAD = "from tinygrad_rnn.compiler.jit import SPACE\n\nglobals().update(SPACE)\n\n\n"


@cache
def _compiled(text: str) -> Callable[..., None]:
    """The generated function, ready to be compiled for the types that it is called with."""
    module = module_of(HEAD + text, _called())
    space = {} if module is None else vars(module)
    if module is None:
        exec(compile(HEAD + text, "<loop>", "exec"), space)
    loop = njit(nogil=True, error_model="numpy", pipeline_class=_NoAlias)(space["loop"])
    if module is not None:
        loop._cache = _Cache(space["loop"])  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    return loop


@cache
def _called() -> str:
    """Stands for all code that generated source calls, which Numba's cache does not look at."""
    folder = Path(__file__).parent
    files = [folder / name for name in ("jit.py", "product.py", "scalars.py")]
    return "\n".join([numba.__version__, *[hashlib.sha256(file.read_bytes()).hexdigest() for file in files]])


@kept
def _sum_steps(array: Any, out: Any) -> None:
    """The sums along the middle axis of three: eight steps are added up, and then that to the others."""
    first, steps, last = array.shape
    out[:, :] = 0
    whole = steps // 8 * 8
    for i in range(first):
        for t in range(0, whole, 8):
            for j in range(last):
                total = array[i, t, j]
                for s in range(1, 8):
                    total += array[i, t + s, j]
                out[i, j] += total
        for t in range(whole, steps):
            for j in range(last):
                out[i, j] += array[i, t, j]


class _Host(type(NUMPY)):  # type: ignore[misc]
    """NumPy, with matrix products by our own kernel, shared out over our threads.

    A row of a product has the same bits in any share. What is left to BLAS it does by one thread: its own would go on
    spinning after each product, on the cores that the loop needs. What feeds the loop is needed no longer than that
    runs, so its memory is that of the loops.
    """

    def __init__(self, feeding: bool = False, transposed: bool = False) -> None:
        super().__init__()
        self.feeding = feeding
        self.matmul = self._transposed if transposed else self._matmul
        self.einsum = blas_limited()(np.einsum)

    def _matmul(self, a: Any, b: Any) -> Any:
        if not (a.ndim == b.ndim == 2 and a.dtype == b.dtype and a.dtype in (np.float32, np.float64)):
            with blas_limited():
                return np.matmul(a, b)
        shape = a.shape[0], b.shape[1]
        out = (empty if self.feeding else np.empty)(shape, a.dtype)
        if not team.over_rows(product_of_rows, len(a), a.size * b.shape[1] > LEAST_PRODUCT, a, b, out):
            raise MemoryError("no memory to pack a matrix")
        return out

    def sum(self, array: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        if axis in (0, (0,)) and array.ndim > 1 and array.dtype in (np.float32, np.float64) and not keepdims:
            if len(array) == 1:
                return array[0].copy()
            if array.ndim == 3 and array.flags.c_contiguous:
                out = np.empty(array.shape[1:], array.dtype)
                _sum_steps(array.reshape(1, len(array), -1), out.reshape(1, -1))
                return out
            if array.ndim == 3 and (rows_last := array.transpose(2, 0, 1)).flags.c_contiguous:
                out = np.empty(rows_last.shape[::2], array.dtype)
                _sum_steps(rows_last, out)
                return out.T
        return super().sum(array, axis, keepdims)

    def _transposed(self, a: Any, b: Any) -> Any:
        """The product, its columns in memory one after the other."""
        return self._matmul(b.T, a.T).T if a.ndim == b.ndim == 2 else self._matmul(a, b)


HOST, FEEDING, FEATURES_FIRST = _Host(), _Host(feeding=True), _Host(feeding=True, transposed=True)


GIVEN = (CONSTANT, STREAM, BY_ROW)  # kinds of memory that are there before the loop


class _Slot:
    """What an argument of the loop is, and how it lies in memory.

    Attributes
    ----------
    first, last
        Its axes there before and after that of time.
    there, back
        The order of the axes of an array (T, B, ...), or of a constant or a sum (B, ...), there, and the way back;
        empty if it is the same.
    """

    def __init__(self, value: Value, store: Store, rows_last: bool) -> None:
        self.value = value
        self.store = store
        self.first: tuple[int, ...] = ()
        self.last, self.there, self.back = value.shape, self.first, self.first
        if store.kind == BY_ROW:
            self.there = (*range(1, value.ndim), 0)
        elif rows_last and store.kind != CONSTANT:
            self.first, self.last = value.shape[1:], value.shape[:1]
            axes, at = range(value.ndim + (store.kind != SUM)), value.ndim - 1
            self.there, self.back = (*axes[2:], 0, 1), (*axes[at:], *axes[:at])

    def shape(self, steps: int) -> tuple[int, ...]:
        """Of what the loop makes."""
        store = self.store
        if store.kind in (SCRATCH, SUM):
            return *self.first, *self.last
        return *self.first, steps if store.kind == STACK else steps + 1 if store.kept else 2, *self.last


class Loop:
    """The loop of a split step; see `tinygrad_rnn.compiler.array.Loop`."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.code = code = Generator(split).generated()
        self.source = code.text
        self.constants = [*[np.dtype(dtype).type(number) for number, dtype in code.numbers], *code.sizes]
        # What each argument is: where its memory comes from, and of which part of the state it is, which comes once.
        slots = {
            (store.part if store.part >= 0 else value): _Slot(value, store, code.rows_last)
            for value, store in code.memory.items()
        }
        self.slots = list(slots.values())
        self.stacks = [slot.value for slot in self.slots if slot.store.kind == STACK]
        self.places = 0, Places([])  # for so many steps, as they were last
        self.packs = [((packed_size(*value.shape, value.dtype.itemsize),), value.dtype) for value in code.packed]

    def feeding(self, F: Any) -> Any:
        """What computes for the loop, before it."""
        return FEATURES_FIRST if self.code.rows_last else FEEDING

    def __call__(self, run: Run, reverse: bool, carry: Sequence[Any]) -> list[Any]:
        """Run it; what is wanted of all steps is added to ``run``, and the last state returned."""
        code, steps, reverse = self.code, run.steps, bool(reverse)
        arguments, states = self.laid_out(run)
        for k, part in states.items():
            part[steps if reverse and code.kept[k] else 0] = carry[k]
        arguments += self.constants
        enough = steps * code.rows * code.work > LEAST_WORK
        if not team.over_rows(_compiled(code.text), code.rows, enough, steps, reverse, *arguments):
            raise IndexError(OUT_OF_RANGE)
        return [self._last(run, reverse, k, states[k]) for k in range(len(carry))]

    def laid_out(self, run: Run) -> tuple[list[Any], dict[int, Any]]:
        """The arrays that the loop is called with, weights packed, and which of them are the parts of the state.

        What the loop makes for all steps is added to ``run``.
        """
        steps, places = self.places
        if steps != run.steps:
            steps = run.steps
            made = [slot for slot in self.slots if slot.store.kind not in GIVEN]
            places = Places([*[(slot.shape(steps), slot.value.dtype) for slot in made], *self.packs])
            self.places = steps, places
        values = run.values
        arrays = iter(places.arrays())
        arguments: list[Any] = []
        states: dict[int, Any] = {}
        for slot in self.slots:
            kind = slot.store.kind
            if kind in GIVEN:
                array = values[slot.value]
                arguments.append(np.asarray(array.transpose(slot.there) if slot.there else array, order="C"))
                continue
            array = next(arrays)
            arguments.append(array)
            if kind == SCRATCH:
                continue
            ordered = array.transpose(slot.back) if slot.back else array
            if kind == STACK:
                values[slot.value] = ordered
            elif kind == SUM:
                array[...] = 0
                run.sums[self.code.sums_over_time[slot.value]] = ordered
            else:
                states[slot.store.part] = ordered
        for value, array in zip(self.code.packed, arrays, strict=True):
            pack(values[value], array)
            arguments.append(array)
        return arguments, states

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
