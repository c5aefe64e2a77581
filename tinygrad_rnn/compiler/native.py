"""Compiled functions, called without their compiler.

Numba takes several times as long to be imported and made ready as all else before a first gradient. So what it compiles
(``build``) is kept as plain machine code, which a later process loads by LLVM alone. Python calls it as it does a
function of a C extension, and the code finds where an array's elements are as C extensions do, in its object.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import __version__ as llvmlite_version  # type: ignore[import-untyped]
from llvmlite import binding

from tinygrad_rnn.compiler import cache as folder

CALL, SHARED = "call", "shared"
# Where NumPy's C API has the fields of an array, in bytes: behind what every object of Python begins with.
DATA, SHAPE, STRIDES = [object.__basicsize__ + behind for behind in (0, 16, 24)]
# The files that machine code comes of.
FILES = "native", "build", "product", "scalars", "philox", "passes", "board", "team", "memory"

_numba = find_spec("numba")
if _numba is None or _numba.origin is None:
    raise ImportError("there is no Numba")


class Kind(NamedTuple):
    """What is known of an argument when a function is compiled: of a number its dtype, of an array all three."""

    dtype: np.dtype[Any]
    ndim: int = -1
    layout: str = ""  # as Numba has them: C, in C order; A, in any


class Native:
    """A function ``(i, j, *arguments)`` that does rows i to j of something, in machine code when it is needed.

    Parameters
    ----------
    name
        Of a function that Numba can compile, and of the module that it is in: "module.function".
    kinds
        Of its arguments.
    text
        Source that has a function of this name, if it is in no module.
    """

    def __init__(self, name: str, kinds: Iterable[Kind], text: str = "") -> None:
        self.name = name
        self.kinds = tuple(kinds)
        self.text = text

    @cached_property
    def code(self) -> Code:
        return _loaded(self.name, self.kinds, self.text)

    @cached_property
    def call(self) -> Callable[..., bool]:
        """Call it with i, j and the arguments, NumPy's arrays and Python's numbers; whether it has raised."""
        call: Callable[..., bool] = self.code.call
        return call

    def words(self, i: int, j: int, *arguments: Any) -> Any:
        """What its code reads: a word for each of these, the bits of a number or where an array is."""
        given = zip(self.kinds, arguments, strict=True)
        return np.array([i, j, *[_bits(a, kind.dtype) if kind.ndim < 0 else id(a) for kind, a in given]], np.int64)


def _bits(number: Any, dtype: np.dtype[Any]) -> int:
    return int.from_bytes(np.array(number, dtype).tobytes().ljust(8, b"\0"), sys.byteorder, signed=True)


def address(array: Any) -> int:
    """Where its elements begin; NumPy itself takes a microsecond to say."""
    return ctypes.c_size_t.from_address(id(array) + DATA).value


class _Method(ctypes.Structure):
    """A function as Python's C API describes it."""

    _fields_ = (("name", ctypes.c_char_p), ("code", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_FAST = 0x80  # METH_FASTCALL: it is given an array of its arguments
_function = ctypes.pythonapi.PyCFunction_NewEx
_function.argtypes, _function.restype = [ctypes.POINTER(_Method), ctypes.py_object, ctypes.c_void_p], ctypes.py_object


class Code:
    """Machine code that is loaded.

    Attributes
    ----------
    call
        The function, for Python.
    shared
        Where the code is that is called with the place of words, and with other rows i to j than they say.
    """

    def __init__(self, content: bytes) -> None:
        """Load what `build` made; `LookupError` if it calls what this process has not: LLVM would end it."""
        externals, _, code = content.partition(b"\n")
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
        missing = [name for name in externals.decode().split() if not binding.address_of_symbol(name)]
        if missing:
            raise LookupError(f"compiled code calls {', '.join(missing)}, which is not there")
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.shared = self._engine.get_function_address(SHARED)
        self._method = _Method(b"native", self._engine.get_function_address(CALL), _FAST, None)
        self.call = _function(ctypes.byref(self._method), self, None)  # which holds this, and so the code, as its self


@cache
def _loaded(name: str, kinds: tuple[Kind, ...], text: str) -> Code:
    """From the folder, or compiled and kept there."""
    key = "\n".join([name, repr(kinds), text or _file_of(name), surroundings()])
    file = f"{name.rpartition('.')[2]}_{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    content = folder.found(file)
    if content is not None:
        with suppress(LookupError):
            return Code(content)
    from tinygrad_rnn.compiler.build import machine_code

    content = machine_code(name, kinds, text)
    folder.keep(file, content)
    return Code(content)


@cache
def processor() -> tuple[str, str]:
    """The name and features of the processor to compile for, which Numba lets be overridden."""
    features = os.environ.get("NUMBA_CPU_FEATURES")
    return (
        os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten() if features is None else features,
    )


def machine() -> Any:
    """What LLVM is to make code for."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    name, features = processor()
    reloc = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(
        cpu=name, features=features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True
    )


def _file_of(name: str) -> str:
    """The hash of the file that a function of a module is in."""
    spec = find_spec(name.rpartition(".")[0])
    assert spec is not None
    assert spec.origin is not None
    return _hash(Path(spec.origin))


@cache
def surroundings() -> str:
    """Stands for all that machine code depends on besides its source."""
    assert _numba is not None
    assert _numba.origin is not None
    files = [Path(__file__).with_name(f"{name}.py") for name in FILES]
    versions = llvmlite_version, np.__version__, _hash(Path(_numba.origin).with_name("_version.py"))
    given = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    settings = [f"{name}={given[name]}" for name in sorted(given) if name != "NUMBA_CACHE_DIR"]
    return "\n".join([*versions, *processor(), str(DATA), *settings, *map(_hash, files)])


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
