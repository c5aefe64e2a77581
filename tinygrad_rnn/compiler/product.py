"""A matrix product for loops that multiply by the same weight at every step.

A library's product copies both operands into the order that its kernel reads, at every call; with the few rows of a
state that costs as much as the arithmetic. Here ``pack`` copies the weight once a sequence, and ``multiply_add`` reads
it at every step. Compiled loops call them; both release the GIL.

A packed weight is a sequence of panels. A panel holds as many columns as a vector register has lanes: its K rows, one
after another, with zeros for the columns that N lacks. A kernel keeps a block of C, a few rows by a few vectors, in
registers while it runs down K (Goto and van de Geijn, 2008, without the blocking that larger A would need).

Each element of C is one sum over K in ascending order, whatever block it falls in. So a row has the same bits in a
batch of any size and in any shard of it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.errors import TypingError
from numba.extending import intrinsic

from tinygrad_rnn.compiler import memory
from tinygrad_rnn.compiler.memory import BYTES, DEPTH
from tinygrad_rnn.compiler.native import surroundings

# The vectors in a row of a block: the sums of six rows, the vectors of B that they share and an element of A fill the
# registers: 32, or 16 of them.
VECTORS = 4 if BYTES == 64 or binding.get_process_triple().startswith(("aarch64", "arm64")) else 2
ROWS = 6
# Each addition waits for the one before it in its sum: a row alone needs eight sums to keep the processor busy.
VECTORS_OF_ONE_ROW = 8
# So many products are added up from 0, and then that to the others: each addition rounds to the size of its sum.
STRETCH = 64
# The rows of A that a packed part of B is multiplied by while they are at hand.
HEIGHT = 96
# The rows of B that are packed together, so that a line of the cache is read while its page is at hand.
TILE = 32

_int32 = ir.IntType(32)


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Numba's cache of a function, which begins anew where its files are damaged, or a file of those changes that
    machine code comes of: Numba itself looks at the function's own alone."""

    def _index_key(self, *arguments: Any) -> Any:
        return super()._index_key(*arguments), surroundings()  # type: ignore[no-untyped-call, unused-ignore]

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)  # type: ignore[no-untyped-call, unused-ignore]
        except Exception:
            self.flush()  # type: ignore[no-untyped-call, unused-ignore]
            return None


def kept(function: Any) -> Any:
    """Compile a function that others call, and keep that for other processes if there is a folder to keep it in."""
    dispatcher: Any = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call, unused-ignore]
    return dispatcher


packed_size = kept(memory.packed_size)


@intrinsic
def _itemsize(typing: Any, array: Any) -> Any:
    """``array.itemsize`` as a constant: a loop over a fixed number of lanes is vectorized."""
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, array.dtype.bitwidth // 8)


def _write_row(context: Any, builder: Any, packed: Any, array: Any, at: Any, source: Any, left: Any = None) -> Any:
    registers = _Registers(builder, context.get_value_type(packed.dtype), packed.dtype.bitwidth // 8)
    target = builder.gep(context.make_array(packed)(context, builder, array).data, [at])
    registers.store(registers.load(source, left), builder.ptrtoint(target, source.type))
    return context.get_dummy_value()


@intrinsic
def _write_whole_row(typing: Any, packed: Any, at: Any, source: Any) -> Any:
    """Write a row of a panel from ``packed[at]`` on: what lies at ``source``."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> ir.Value:
        return _write_row(context, builder, packed, *values)

    return types.void(packed, types.intp, types.intp), emit


@intrinsic
def _write_last_row(typing: Any, packed: Any, at: Any, source: Any, left: Any) -> Any:
    """The same of a row that has only so many bytes ``left``, and then zeros."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> ir.Value:
        return _write_row(context, builder, packed, *values)

    return types.void(packed, types.intp, types.intp, types.intp), emit


@kept
def pack(B: Any, packed: Any) -> None:
    """Copy a matrix into the order that ``multiply_add`` reads.

    Parameters
    ----------
    B
        (K, N).
    packed
        (``packed_size(K, N, itemsize)``,), ``aligned``. Columns i to j of B are ``packed[K * i : K * j]``, where i and
        j are multiples of ``BYTES // itemsize``.
    """
    K, N = B.shape
    itemsize: int = _itemsize(packed)  # type: ignore[call-arg]
    lanes = BYTES // itemsize
    if packed.size != packed_size(K, N, itemsize):
        raise ValueError("packed has not the size that packed_size gives")
    whole = N // lanes * lanes
    source = B.ctypes.data
    if B.strides[1] == itemsize:
        for n in range(0, whole, lanes):
            for k in range(K):
                _write_whole_row(packed, n * K + k * lanes, source + k * B.strides[0] + n * itemsize)
        for k in range(K if whole < N else 0):
            at = source + k * B.strides[0] + whole * itemsize
            _write_last_row(packed, whole * K + k * lanes, at, (N - whole) * itemsize)
        return
    for top in range(0, K, TILE):
        for n in range(0, whole, lanes):
            for k in range(top, min(top + TILE, K)):
                for j in range(lanes):
                    packed[n * K + k * lanes + j] = B[k, n + j]
    for k in range(K if whole < N else 0):
        _write_last_row(packed, whole * K + k * lanes, source, 0)
    for j in range(whole, N):
        for k in range(K):
            packed[whole * K + k * lanes + j - whole] = B[k, j]


@kept
def multiply_add(A: Any, packed: Any, C: Any) -> None:
    """``C += A @ B`` for a packed B.

    Parameters
    ----------
    A, C
        (M, K) and (M, N), which is contiguous along its rows. They must not overlap.
    packed
        What ``pack`` made of B, which is (K, N). All three are float32, or all float64.
    """
    M, K = A.shape
    N = C.shape[1]
    itemsize: int = _itemsize(C)  # type: ignore[call-arg]
    lanes = BYTES // itemsize
    if C.shape[0] != M or packed.size != packed_size(K, N, itemsize):
        raise ValueError("the shapes of A, packed and C do not fit each other")
    if N > 1 and C.strides[1] != itemsize:
        raise ValueError("the rows of C must be contiguous")
    vectors = VECTORS if M > 1 else VECTORS_OF_ONE_ROW
    n = 0
    while n < N:
        while vectors > 1 and n + vectors * lanes > N:
            vectors //= 2
        m = 0
        for blocks in range((M + ROWS - 1) // ROWS, 0, -1):
            rows = (M - m + blocks - 1) // blocks
            a = A.ctypes.data + m * A.strides[0]
            b = packed.ctypes.data + n * itemsize * K
            c = C.ctypes.data + m * C.strides[0] + n * itemsize
            for k in range(0, K, STRETCH):
                depth = min(STRETCH, K - k)
                at = (a + k * A.strides[1], A.strides[0], A.strides[1], b + k * BYTES, K * BYTES, depth)
                _block(A, packed, C, rows, vectors, (*at, c, C.strides[0], (N - n) * itemsize))
            m += rows
        n += vectors * lanes


@kept
def product(A: Any, B: Any, C: Any, buffer: Any) -> None:
    """``C = A @ B`` where neither is used again: B is packed on the way, so much at a time as stays in the cache.

    Parameters
    ----------
    A, B, C
        (M, K), (K, N) and (M, N); C is contiguous along its rows. All three are float32, or all float64.
    buffer
        Memory to pack in, ``packed_size(min(K, DEPTH), N, itemsize)`` elements and as many more as fill a vector.
    """
    M, K = A.shape
    N = B.shape[1]
    itemsize: int = _itemsize(C)  # type: ignore[call-arg]
    start = -buffer.ctypes.data % BYTES // itemsize  # so that no vector lies across two lines of the cache
    if K == 0:
        C[:, :] = 0
    for k in range(0, K, DEPTH):
        depth = min(DEPTH, K - k)
        packed = buffer[start : start + packed_size(depth, N, itemsize)]
        pack(B[k : k + depth], packed)
        for m in range(0, M, HEIGHT):
            if k == 0:  # not before, so that it is at hand
                C[m : m + HEIGHT, :] = 0
            multiply_add(A[m : m + HEIGHT, k : k + depth], packed, C[m : m + HEIGHT])


@kept
def share_of(i: int, rows: int, shares: int) -> int:
    """Which of so many shares of the rows begins with row i."""
    return (i * shares + rows - 1) // max(rows, 1)


def rows_of_product(i: int, j: int, A: Any, B: Any, C: Any, buffers: Any) -> None:
    """Rows i to j of `product`, which are one of as many shares as there are buffers."""
    product(A[i:j], B, C[i:j], buffers[share_of(i, len(A), len(buffers))])


def columns_of_pack(i: int, j: int, B: Any, packed: Any) -> None:
    """The panels of `pack` that begin in columns i to j."""
    K, N = B.shape
    itemsize: int = _itemsize(packed)  # type: ignore[call-arg]
    lanes = BYTES // itemsize
    first, end = (i + lanes - 1) // lanes * lanes, (j + lanes - 1) // lanes * lanes
    pack(B[:, first : min(end, N)], packed[K * first : K * end])


@intrinsic
def _block(typing: Any, A: Any, packed: Any, C: Any, rows: Any, vectors: Any, place: Any) -> Any:
    """Call the kernel of this size with ``place``; the arrays only say of which type."""
    if A.dtype not in (types.float32, types.float64) or not A.dtype == packed.dtype == C.dtype:
        raise TypingError(f"all must be float32 or all float64, not {A.dtype}, {packed.dtype} and {C.dtype}")
    if packed.ndim != 1 or packed.layout != "C":
        raise TypingError("packed must be contiguous and have one axis")

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> ir.Value:
        rows, vectors, place = values[3:]
        arguments = [builder.extract_value(place, i) for i in range(9)]
        after = builder.append_basic_block()
        choice = builder.switch(builder.add(builder.mul(rows, rows.type(16)), vectors), after)
        for r in range(1, ROWS + 1):
            v = VECTORS if r > 1 else VECTORS_OF_ONE_ROW
            while v:
                kernel = _kernel(builder.module, context.get_value_type(A.dtype), A.dtype.bitwidth // 8, r, v)
                case = builder.append_basic_block()
                choice.add_case(rows.type(16 * r + v), case)
                builder.position_at_end(case)
                builder.call(kernel, arguments)
                builder.branch(after)
                v //= 2
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(A, packed, C, types.intp, types.intp, place), emit


def _kernel(module: ir.Module, real: ir.Type, itemsize: int, rows: int, vectors: int) -> ir.Function:
    """The function that adds A B to a block of this size; only a single vector may have fewer columns than lanes.

    Its arguments are where A's first row is, and the bytes from one row and from one column to the next; where B's
    first panel is, the bytes from one panel to the next, and how far to run down K; where the block is, the bytes from
    one row of C to the next, and the bytes from the block's first column to C's end.
    """
    size = cgutils.intp_t
    name = module.get_unique_name(f"product_{rows}x{vectors}")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [size] * 9), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    a, a_stride, a_step, b, b_stride, depth, c, c_stride, left = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    registers = _Registers(builder, real, itemsize)
    left = left if vectors == 1 else None

    def add(x: ir.Value, y: ir.Value, times: int) -> ir.Value:
        return builder.add(x, builder.mul(y, size(times)))

    block = [(r, v) for r in range(rows) for v in range(vectors)]
    places = {(r, v): add(add(c, c_stride, r), size(v), BYTES) for r, v in block}
    a_rows = [add(a, a_stride, r) for r in range(rows)]
    panels = [add(b, b_stride, v) for v in range(vectors)]
    sums = {rv: builder.alloca(registers.vector) for rv in block}
    for rv in block:
        builder.store(registers.vector(None), sums[rv])

    def step(k: ir.Value) -> None:
        lines = [registers.load(add(panel, k, BYTES)) for panel in panels]
        for r, a_row in enumerate(a_rows):
            element = registers.spread(registers.number(builder.add(a_row, builder.mul(k, a_step))))
            for v, line in enumerate(lines):
                builder.store(registers.multiply_add(element, line, builder.load(sums[r, v])), sums[r, v])

    # Enough products a turn to hide the loop's own instructions.
    unroll = min(4, max(1, 24 // (rows * vectors)))
    turns = builder.udiv(depth, size(unroll))
    with cgutils.for_range(builder, turns) as turn:
        for u in range(unroll):
            step(add(size(u), turn.index, unroll))
    with cgutils.for_range(builder, builder.urem(depth, size(unroll))) as turn:
        step(add(turn.index, turns, unroll))

    for rv, place in places.items():
        registers.store(builder.fadd(registers.load(place, left), builder.load(sums[rv])), place, left)
    builder.ret_void()
    return function


class _Registers:
    """Instructions on vectors as wide as a register, and on the numbers that they hold.

    Places are addresses. Where so many bytes are ``left``, what lies further on is neither read, but 0, nor written.
    """

    def __init__(self, builder: ir.IRBuilder, real: ir.Type, itemsize: int) -> None:
        self.builder, self.real, self.itemsize = builder, real, itemsize
        self.lanes = BYTES // itemsize
        self.vector = ir.VectorType(real, self.lanes)

    def _call(self, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
        pointed = any(isinstance(operand.type, ir.PointerType) for operand in operands)
        name = f"llvm.{name}.v{self.lanes}{self.real.intrinsic_name}" + (".p0" if pointed else "")
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return self.builder.call(self.builder.module.declare_intrinsic(name, (), kind), operands)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Fused where the processor can; ``llvm.fma`` would call the C library where it cannot."""
        return self._call("fmuladd", self.vector, x, y, z)

    def spread(self, number: ir.Value) -> ir.Value:
        first = self.builder.insert_element(ir.VectorType(number.type, self.lanes)(ir.Undefined), number, _int32(0))
        return self.builder.shuffle_vector(first, first, ir.VectorType(_int32, self.lanes)(None))

    def number(self, place: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.inttoptr(place, self.real.as_pointer()), align=self.itemsize)

    def load(self, place: ir.Value, left: ir.Value | None = None) -> ir.Value:
        address = self.builder.inttoptr(place, self.vector.as_pointer())
        if left is None:
            return self.builder.load(address, align=self.itemsize)
        operands = address, _int32(self.itemsize), self._within(left), self.vector(None)
        return self._call("masked.load", self.vector, *operands)

    def store(self, value: ir.Value, place: ir.Value, left: ir.Value | None = None) -> None:
        address = self.builder.inttoptr(place, self.vector.as_pointer())
        if left is None:
            self.builder.store(value, address, align=self.itemsize)
        else:
            self._call("masked.store", ir.VoidType(), value, address, _int32(self.itemsize), self._within(left))

    def _within(self, left: ir.Value) -> ir.Value:
        offsets = ir.VectorType(left.type, self.lanes)([lane * self.itemsize for lane in range(self.lanes)])
        return self.builder.icmp_signed("<", offsets, self.spread(left))
