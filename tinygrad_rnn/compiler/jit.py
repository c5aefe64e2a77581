"""The Numba engine, third part: the generated loop run, and what computes beside it.

See ``loops`` for the source, ``scalars`` and ``product`` for what it calls, ``native`` for how it comes to be compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler.layout import BY_ROW, CONSTANT, SCRATCH, STACK, STREAM, SUM, Store
from tinygrad_rnn.compiler.loops import Generator
from tinygrad_rnn.compiler.memory import BYTES, DEPTH, SHARING, Places, packed_size
from tinygrad_rnn.compiler.native import Kind, Native
from tinygrad_rnn.compiler.pool import empty
from tinygrad_rnn.compiler.record import Unrecordable
from tinygrad_rnn.compiler.split import Run, Split
from tinygrad_rnn.compiler.step import Value
from tinygrad_rnn.compiler.team import over_rows, shards_of
from tinygrad_rnn.threads import blas_limited

FUSES = True
ROWS_APART = True  # the rows of its products have the same bits among any other rows
LEAST_WORK = 5 << 20  # multiplications of a loop that are worth a second thread
LEAST_PRODUCT = 2 << 20  # and of a product, which hands nothing from step to step that another core would have to fetch
LEAST_NUMBERS = 1 << 16  # and random numbers
LEAST_PACKED = 1 << 18  # and elements of a weight
OUT_OF_RANGE = "an index of the cell is out of range"

FLOATS = np.dtype(np.float32), np.dtype(np.float64)


def _of_floats(name: str, *forms: tuple[int, str]) -> dict[Any, Native]:
    """A compiled function of arrays, of as many axes and laid out in memory as the forms say, for either dtype."""
    return {dtype: Native(f"{__package__}.{name}", [Kind(dtype, *form) for form in forms]) for dtype in FLOATS}


_product = _of_floats("product.rows_of_product", (2, "A"), (2, "A"), (2, "C"), (2, "C"))
_pack = _of_floats("product.columns_of_pack", (2, "A"), (1, "C"))
_copy_rows = _of_floats("passes.copy_rows", (3, "A"), (3, "C"))
_sum_steps = _of_floats("passes.sum_steps", (3, "C"), (2, "C"))
_int = Kind(np.dtype(np.int64))
_words = Kind(np.dtype(np.uint64), 2, "C")
_uniform = {
    dtype: Native(f"{__package__}.philox.rows_of_uniform", [_words, Kind(dtype, 2, "C"), _words]) for dtype in FLOATS
}


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
    if array.ndim != 3 or array.strides[1] != array.itemsize or array.dtype not in FLOATS:
        return array.copy()
    out = np.empty(array.shape, array.dtype)
    over_rows(_copy_rows[array.dtype], len(array), 1, array, out)
    return out


def uniform(keys: Any, out: Any) -> None:
    """Fill each row of ``out``, float32 or float64, with the numbers of its key, a row of ``keys``."""
    shards = shards_of(len(keys), out.size >= LEAST_NUMBERS)
    words = np.empty((shards, (out[:1].nbytes + 31) // 32 * 4), np.uint64)
    over_rows(_uniform[out.dtype], len(keys), shards, keys, out, words)


NUMPY.uniform_of_keys = uniform


def pack(B: Any, packed: Any) -> None:
    """See ``product``; B may be shared out over our threads."""
    columns = B.shape[1]
    over_rows(_pack[packed.dtype], columns, shards_of(columns, B.size >= LEAST_PACKED), B, packed)


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
        if not (a.ndim == b.ndim == 2 and a.dtype == b.dtype and a.dtype in FLOATS):
            with blas_limited():
                return np.matmul(a, b)
        (M, K), N = a.shape, b.shape[1]
        out = (empty if self.feeding else np.empty)((M, N), a.dtype)
        shards = shards_of(M, a.size * N > LEAST_PRODUCT)
        buffers = empty((shards, packed_size(min(K, DEPTH), N, a.itemsize) + BYTES // a.itemsize), a.dtype)
        over_rows(_product[a.dtype], M, shards, a, b, out, buffers)
        return out

    def sum(self, array: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        if axis in (0, (0,)) and array.ndim > 1 and array.dtype in FLOATS and not keepdims:
            if len(array) == 1:
                return array[0].copy()
            if array.ndim == 3 and array.flags.c_contiguous:
                out = np.empty(array.shape[1:], array.dtype)
                over_rows(_sum_steps[array.dtype], 1, 1, array.reshape(1, len(array), -1), out.reshape(1, -1))
                return out
            if array.ndim == 3 and (rows_last := array.transpose(2, 0, 1)).flags.c_contiguous:
                out = np.empty(rows_last.shape[::2], array.dtype)
                over_rows(_sum_steps[array.dtype], len(out), 1, rows_last, out)
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
    ndim
        How many axes it has there.
    first, last
        Its axes there before and after that of time.
    there, back
        The order of the axes of an array (T, B, ...), or of a constant or a sum (B, ...), there, and the way back;
        empty if it is the same.
    """

    def __init__(self, value: Value, store: Store, rows_last: bool) -> None:
        self.value = value
        self.store = store
        self.ndim = value.ndim + (store.kind not in (CONSTANT, BY_ROW, SCRATCH, SUM))
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
        self.numbers = [*[np.dtype(dtype).type(number).item() for number, dtype in code.numbers], *code.sizes]
        # What each argument is: where its memory comes from, and of which part of the state it is, which comes once.
        slots = {
            (store.part if store.part >= 0 else value): _Slot(value, store, code.rows_last)
            for value, store in code.memory.items()
        }
        self.slots = list(slots.values())
        kinds = [Kind(slot.value.dtype, slot.ndim, "C") for slot in self.slots]
        kinds += [Kind(value.dtype, 1, "C") for value in code.packed]
        kinds += [_int, _int, *[Kind(np.dtype(dtype)) for _, dtype in code.numbers], *[_int for _ in code.sizes]]
        self.native = Native("loop", kinds, self.source)
        self.stacks = [slot.value for slot in self.slots if slot.store.kind == STACK]
        self.places = 0, Places([])  # for so many steps, as they were last
        sizes = [packed_size(value.shape[0], value.shape[1], value.dtype.itemsize) for value in code.packed]
        self.packs = [((size,), value.dtype) for size, value in zip(sizes, code.packed, strict=True)]

    def feeding(self, F: Any) -> Any:
        """What computes for the loop, before it."""
        return FEATURES_FIRST if self.code.rows_last else FEEDING

    def __call__(self, run: Run, reverse: bool, carry: Sequence[Any]) -> list[Any]:
        """Run it; what is wanted of all steps is added to ``run``, and the last state returned."""
        code, steps = self.code, run.steps
        arguments, states = self.laid_out(run)
        for k, part in states.items():
            part[steps if reverse and code.kept[k] else 0] = carry[k]
        shards = shards_of(code.rows, steps * code.rows * code.work > LEAST_WORK)
        if not over_rows(self.native, code.rows, shards, *arguments, steps, int(reverse), *self.numbers):
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
                if slot.there:
                    array = array.transpose(slot.there)
                arguments.append(array if array.flags.c_contiguous else np.asarray(array, order="C"))
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
