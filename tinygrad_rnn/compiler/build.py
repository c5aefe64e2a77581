"""What `native` calls, compiled by Numba; only a process that finds no machine code of it imports this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import from_dtype, njit, types  # type: ignore[import-not-found, unused-ignore]
from numba.core import cgutils as _cgutils  # type: ignore[import-not-found, unused-ignore]
from numba.core.compiler import Compiler  # type: ignore[import-not-found, unused-ignore]
from numba.core.compiler_lock import global_compiler_lock  # type: ignore[import-not-found, unused-ignore]
from numba.np import arrayobj as _arrayobj  # type: ignore[import-not-found, unused-ignore]

from tinygrad_rnn.compiler.native import CALL, DATA, SHAPE, SHARED, STRIDES, Kind, machine
from tinygrad_rnn.compiler.product import kept, multiply_add
from tinygrad_rnn.compiler.scalars import SCALARS, plus, where

cgutils: Any = _cgutils  # whose functions have no types
arrayobj: Any = _arrayobj
_word = cgutils.intp_t
_failed = ir.IntType(32)
# Numba has arrays count who holds their memory. Of those that are given here nobody does, so that it is never called.
_NEVER_CALLED = "NRT_MemInfo_call_dtor"


@kept
def _row(index: int, rows: int) -> int:
    """An index as NumPy takes it."""
    if index < -rows or index >= rows:
        raise IndexError
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
"""What generated source may call."""


class _Only(Compiler):  # type: ignore[misc, unused-ignore]
    """Compiles to LLVM's code, without what Python would call it by."""

    def define_pipelines(self) -> Any:
        flags = self.state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        return super().define_pipelines()  # type: ignore[no-untyped-call, unused-ignore]


class _NoAlias(_Only):
    """Tells LLVM that no memory is reached through two arguments, without which it would not vectorize the loops."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def machine_code(name: str, kinds: Sequence[Kind], text: str) -> bytes:
    """A line with the functions that the code of a `Native` calls in turn, and the code, which has two entries."""
    module = llvm_code(name, kinds, text)
    externals = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    code: bytes = machine().emit_object(module)
    return " ".join(externals).encode() + b"\n" + code


def llvm_code(name: str, kinds: Sequence[Kind], text: str) -> Any:
    """The same for LLVM."""
    signature = (types.intp, types.intp, *map(_type, kinds))
    pipeline = _NoAlias if text else _Only
    dispatcher: Any = njit(nogil=True, error_model="numpy", pipeline_class=pipeline)(_function(name, text))
    with global_compiler_lock:
        found = dispatcher._compiler.compile(signature, types.none)
        found.library.finalize()
    module = binding.parse_assembly(found.library.get_llvm_str())
    module.link_in(binding.parse_assembly(str(_entrances(found, signature))))
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in (CALL, SHARED):
            value.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(machine(), binding.create_pipeline_tuning_options()))
    return module


def _function(name: str, text: str) -> Callable[..., None]:
    where, _, name = name.rpartition(".")
    space: dict[str, Any] = {**SPACE} if text else vars(import_module(where))
    if text:
        exec(compile(text, "<loop>", "exec"), space)
    return space[name]  # type: ignore[no-any-return]


def _type(kind: Kind) -> Any:
    dtype = from_dtype(kind.dtype)
    array: Any = types.Array
    return dtype if kind.ndim < 0 else array(dtype, kind.ndim, kind.layout)


def _entrances(found: Any, signature: tuple[Any, ...]) -> ir.Module:
    """The functions by which a `Native` is called, which find the arguments of another by their words and call it."""
    module = ir.Module()
    context = found.target_context
    function = ir.Function(
        module, context.call_conv.get_function_type(types.none, signature), found.fndesc.llvm_func_name
    )
    shared = ir.Function(module, ir.FunctionType(_failed, [_word.as_pointer(), _word, _word]), SHARED)
    builder = ir.IRBuilder(shared.append_basic_block())
    words, *rows = shared.args
    given = [
        _argument(context, builder, kind, cgutils.gep_inbounds(builder, words, n))
        for n, kind in enumerate(signature[2:], 2)
    ]
    status, _ = context.call_conv.call_function(builder, function, types.none, signature, [*rows, *given])
    builder.ret(builder.zext(status.is_error, _failed))

    _called(module, shared, signature, context)
    never = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()]), _NEVER_CALLED)
    ir.IRBuilder(never.append_basic_block()).unreachable()
    return module


def _called(module: ir.Module, shared: ir.Function, signature: tuple[Any, ...], context: Any) -> None:
    """The function by which Python calls it, which does so without Python's lock."""
    object_, number = ir.IntType(8).as_pointer(), ir.DoubleType()

    def python(name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        return ir.Function(module, ir.FunctionType(result, arguments), name)

    as_int, as_float = python("PyLong_AsSsize_t", _word, object_), python("PyFloat_AsDouble", number, object_)
    release, take = python("PyEval_SaveThread", object_), python("PyEval_RestoreThread", ir.VoidType(), object_)
    answer = python("PyBool_FromLong", object_, _word)

    call = python(CALL, object_, object_, object_.as_pointer(), _word)
    builder = ir.IRBuilder(call.append_basic_block())
    words = builder.alloca(_word, len(signature))
    rows = []
    for n, kind in enumerate(signature):
        given = builder.load(cgutils.gep_inbounds(builder, call.args[1], n))
        at = cgutils.gep_inbounds(builder, words, n)
        if isinstance(kind, types.Array):
            builder.store(builder.ptrtoint(given, _word), at)
        elif isinstance(kind, types.Float):
            value = context.cast(builder, builder.call(as_float, [given]), types.float64, kind)
            builder.store(value, builder.bitcast(at, value.type.as_pointer()))
        else:
            value = builder.call(as_int, [given])
            builder.store(value, at)
            rows.append(value)
    thread = builder.call(release, [])
    failed = builder.call(shared, [words, *rows[:2]])
    builder.call(take, [thread])
    builder.ret(builder.call(answer, [builder.sext(failed, _word)]))


def _argument(context: Any, builder: ir.IRBuilder, kind: Any, at: ir.Value) -> ir.Value:
    """The argument whose word is there."""
    word = builder.load(at)
    if not isinstance(kind, types.Array):
        value = builder.load(builder.bitcast(at, context.get_data_type(kind).as_pointer()))
        return context.data_model_manager[kind].from_data(builder, value)

    def read(place: ir.Value) -> ir.Value:
        return builder.load(builder.inttoptr(place, _word.as_pointer()))

    def several(place: int) -> list[ir.Value]:
        first = read(builder.add(word, _word(place)))
        return [read(builder.add(first, _word(axis * _word.width // 8))) for axis in range(kind.ndim)]

    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(read(builder.add(word, _word(DATA))), array.data.type)
    shape, strides = [cgutils.pack_array(builder, several(place), _word) for place in (SHAPE, STRIDES)]
    arrayobj.populate_array(array, data, shape, strides, np.dtype(str(kind.dtype)).itemsize, meminfo=None)
    return array._getvalue()
