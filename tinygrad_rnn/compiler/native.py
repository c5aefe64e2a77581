"""Compiled functions, called without their compiler.

Numba takes several times as long to be imported and made ready as all else before a first gradient. So what it compiles
(``build``) is kept as plain machine code, which a later process loads by LLVM alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

import numpy as np
from llvmlite import __version__ as llvmlite_version  # type: ignore[import-untyped]
from llvmlite import binding

from tinygrad_rnn.compiler import cache as folder

ENTRY = "entry"
# Where NumPy's C API has the fields of an array, in bytes: behind what every object of Python begins with.
DATA, SHAPE, STRIDES = [object.__basicsize__ + behind for behind in (0, 16, 24)]
FILES = (
    "native",
    "build",
    "product",
    "scalars",
    "philox",
    "passes",
    "board",
    "team",
    "memory",
)  # of which machine code comes

_numba = find_spec("numba")
if _numba is None or _numba.origin is None:
    raise ImportError("there is no Numba")


class Kind(NamedTuple):
    """What is known of an argument when a function is compiled: of a number its dtype, of an array all three."""

    dtype: np.dtype[Any]
    ndim: int = -1
    layout: str = ""  # as Numba has them: C, in C order; A, in any


class Native:
    """A function ``(i, j, *arguments)`` that does rows i to j of something, in machine code once it is needed.

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

    def __call__(self, i: int, j: int, *arguments: Any) -> bool:
        """Call it for rows i to j; whether it has raised."""
        return bool(self.code.call(words(arguments), i, j))

    def bound(self, i: int, j: int, *arguments: Any) -> Callable[[], bool]:
        """A call with these arguments, to be made again and again."""
        call, given = self.code.call, words(arguments)

        def again(held: Any = arguments) -> bool:
            return bool(call(given, i, j))

        return again


def words(arguments: Sequence[Any]) -> bytes:
    """What is handed to machine code: a word for each argument, the bits of a number or where an array is."""
    return pack(f"={len(arguments)}Q", *[id(a) if type(a) is np.ndarray else _bits(a) for a in arguments])


def _bits(number: Any) -> int:
    if type(number) is int and number >= 0:
        return number
    return int.from_bytes(np.asarray(number).tobytes().ljust(8, b"\0"), sys.byteorder)


def address(array: Any) -> int:
    """Where its elements begin; NumPy itself takes a microsecond to say."""
    return ctypes.c_size_t.from_address(id(array) + DATA).value


class Code:
    """Machine code that is loaded.

    Attributes
    ----------
    address
        Where it is.
    call
        Call it with the words of its arguments, and i and j; 0 unless it has raised.
    """

    _TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_ssize_t, ctypes.c_ssize_t)

    def __init__(self, code: bytes) -> None:
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.address = self._engine.get_function_address(ENTRY)
        self.call = self._TYPE(self.address)


@cache
def _loaded(name: str, kinds: tuple[Kind, ...], text: str) -> Code:
    """From the folder, or compiled and kept there."""
    key = "\n".join([name, repr(kinds), text or _file_of(name), surroundings()])
    file = f"{name.rpartition('.')[2]}_{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    content = folder.found(file)
    if content is None or not _all_there(content.partition(b"\n")[0].decode().split()):
        from tinygrad_rnn.compiler.build import machine_code

        externals, code = machine_code(name, kinds, text)
        content = " ".join(externals).encode() + b"\n" + code
        folder.keep(file, content)
    return Code(content.partition(b"\n")[2])


def _all_there(externals: Sequence[str]) -> bool:
    """Whether this process has the functions that machine code calls; LLVM would end it if not."""
    return all(binding.address_of_symbol(name) for name in externals)


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
    settings = sorted([f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_")])
    return "\n".join([*versions, *processor(), str(DATA), *settings, *map(_hash, files)])


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
