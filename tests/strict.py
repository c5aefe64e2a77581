"""A stand-in for CuPy where there is no GPU: NumPy behind a type of its own, with CuPy's names and CuPy's refusals.

What would fail on CuPy fails here: implicit conversion to NumPy, mixing with NumPy arrays or lists, functions and
keywords that CuPy lacks, ``add.at`` on 64-bit ints. What would make the host wait for the device is counted in
``synchronizations``. The tables are held against CuPy itself in ``peers/test_cupy_signatures.py``.

Stricter than CuPy in three points: NumPy's functions are refused where CuPy would take them over, NumPy arrays are
refused as indices, where CuPy would copy them to the device in silence, and an index array out of range raises, where
CuPy wraps it round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_rnn import backend

synchronizations = 0  # how often the host has waited for the device

UFUNCS = {  # how many operands
    **dict.fromkeys(("negative", "exp", "expm1", "log", "log1p", "sqrt", "square", "reciprocal", "abs", "sin"), 1),
    **dict.fromkeys(("cos", "tanh", "sign", "floor", "isnan", "isinf", "isfinite", "logical_not", "invert"), 1),
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "power", "maximum", "minimum"), 2),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), 2),
    **dict.fromkeys(("logical_and", "logical_or", "floor_divide", "remainder", "bitwise_and", "bitwise_or"), 2),
}

# The parameters in CuPy's order; those after * by keyword alone.
FUNCTIONS = {
    "matmul": "a b * out",
    "dot": "a b out",
    "mean": "a axis dtype out keepdims",
    "max": "a axis out keepdims",
    "min": "a axis out keepdims",
    "prod": "a axis dtype out keepdims",
    "cumsum": "a axis dtype out",
    "all": "a axis out keepdims",
    "any": "a axis out keepdims",
    "argmax": "a axis * keepdims",
    "argmin": "a axis * keepdims",
    "argsort": "a axis kind",
    "clip": "a a_min a_max out",
    "where": "condition x y",
    "expand_dims": "a axis",
    "squeeze": "a axis",
    "broadcast_to": "array shape",
    "concatenate": "tup axis out * dtype",
    "stack": "tup axis out * dtype",
    "flip": "a axis",
    "pad": "array pad_width mode * constant_values",
    "tile": "A reps",
    "roll": "a shift axis",
    "take": "a indices axis",
    "take_along_axis": "a indices axis",
    "zeros": "shape dtype",
    "ones": "shape dtype",
    "empty": "shape dtype",
    "full": "shape fill_value dtype",
    "zeros_like": "a dtype",
    "ones_like": "a dtype",
    "arange": "start stop step dtype",
    "linspace": "start stop num endpoint * dtype",
    "eye": "N M k dtype",
}
MUST_BE_ARRAYS = {"a", "b", "array", "A", "condition", "indices"}

METHODS = {  # "*axes" takes any number of positional arguments
    "reshape": "*shape",
    "transpose": "*axes",
    "swapaxes": "axis1 axis2",
    "ravel": "",
    "copy": "",
    "fill": "value",
    "sum": "axis dtype out keepdims",
    "mean": "axis dtype out keepdims",
    "max": "axis out keepdims",
    "min": "axis out keepdims",
    "all": "axis out keepdims",
    "any": "axis out keepdims",
}
PROPERTIES = ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides")

OPERATORS = {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or"},
}
COMPARISONS = {
    **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
}
UNARY_OPERATORS = {"neg": "negative", "abs": "abs", "invert": "invert"}

SCALARS = (bool, int, float, np.generic)
ADDS_ATOMICALLY = tuple(np.dtype(t) for t in ("int32", "uint32", "uint64", "float16", "float32", "float64"))


class StrictArray:
    """An array "on the device"."""

    __slots__ = ("_host",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        self._host = host

    @property
    def base(self) -> StrictArray | None:
        return None if self._host.base is None else StrictArray(np.asarray(self._host.base))

    @property
    def flags(self) -> SimpleNamespace:
        flags = self._host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata)

    @property
    def T(self) -> StrictArray:
        return StrictArray(self._host.T)

    def astype(self, dtype: Any, copy: bool = True) -> StrictArray:
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return StrictArray(self._host.astype(dtype))

    def get(self) -> np.ndarray:
        global synchronizations
        synchronizations += 1
        return self._host.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __repr__(self) -> str:
        return f"strict {self.get()!r}"

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> StrictArray:
        return StrictArray(self._host[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_index(index)] = _operand(value)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a device array does not become a NumPy array by itself: copy it to the host with .get()")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        # NumPy's scalars and arrays come here when they stand to the left of an operator.
        if method != "__call__" or not any(isinstance(x, np.generic) for x in inputs):
            _operand(next((x for x in inputs if isinstance(x, np.ndarray)), None))
            raise TypeError(f"NumPy's {ufunc.__name__} on a device array")
        return getattr(library, ufunc.__name__)(*inputs, **named)

    def __array_function__(self, function: Callable[..., Any], *_: Any) -> Any:
        raise TypeError(f"NumPy's {function.__name__} on a device array")


def _operand(value: Any) -> Any:
    """What NumPy may compute with in place of ``value``, if CuPy would."""
    if isinstance(value, StrictArray):
        return value._host
    if isinstance(value, SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _wrapped(result: Any, out: Any = None) -> StrictArray:
    return StrictArray(np.asarray(result)) if out is None else out


def _index(index: Any) -> tuple[Any, ...]:
    global synchronizations
    items = []
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, StrictArray):
            synchronizations += item.dtype == bool  # how many elements a mask picks is known on the device only
            items.append(item._host)
        elif item is None or item is ... or (isinstance(item, (int, np.integer, slice)) and not isinstance(item, bool)):
            items.append(item)
        else:
            raise TypeError(f"a device array is not indexed by {type(item)}")
    return (*items,) if any(item is ... for item in items) else (*items, ...)  # so that an element stays an array


class Function:
    """One of CuPy's functions by its table entry, computed by NumPy."""

    def __init__(self, name: str, parameters: str) -> None:
        self.name = name
        positional, _, keyword = parameters.partition("*")
        self.positional = positional.split()
        self.keywords = self.positional + keyword.split()

    def __call__(self, *args: Any, **named: Any) -> StrictArray:
        if len(args) > len(self.positional) or not named.keys() <= set(self.keywords[len(args) :]):
            raise TypeError(f"{self.name}() takes {self.keywords}, got {len(args)} positional and {list(named)}")
        args = tuple(self._convert(*pair) for pair in zip(self.positional, args, strict=False))
        named = {key: self._convert(key, value) for key, value in named.items()}
        out = named.get("out")
        if out is not None:
            named["out"] = _operand(out)
        with np.errstate(all="ignore"):
            return _wrapped(getattr(np, self.name)(*args, **named), out)

    def _convert(self, parameter: str, value: Any) -> Any:
        if parameter == "tup":
            return [self._convert("a", item) for item in value]
        if parameter in MUST_BE_ARRAYS and not isinstance(value, StrictArray):
            raise TypeError(f"{self.name}(): {parameter} is of unsupported type {type(value)}")
        if isinstance(value, np.ndarray):
            raise TypeError(f"{self.name}(): {parameter} is of unsupported type {type(value)}")
        return value._host if isinstance(value, StrictArray) and parameter != "out" else value


class Ufunc:
    """One of CuPy's universal functions, computed by NumPy."""

    def __init__(self, name: str, nin: int) -> None:
        self.name = name
        self.nin = nin

    def __call__(self, *args: Any, out: StrictArray | None = None, dtype: Any = None) -> StrictArray:
        if len(args) == self.nin + 1 and out is None:
            *args, out = args
        if len(args) != self.nin:
            raise TypeError(f"{self.name}() takes {self.nin} operands, got {len(args)}")
        if out is not None and not isinstance(out, StrictArray):
            raise TypeError(f"{self.name}(): out is of unsupported type {type(out)}")
        operands = [_operand(arg) for arg in args]
        with np.errstate(all="ignore"):
            return _wrapped(getattr(np, self.name)(*operands, out=None if out is None else out._host, dtype=dtype), out)


class Add(Ufunc):
    def at(self, a: StrictArray, indices: Any, b: Any) -> None:
        if not isinstance(a, StrictArray):
            raise TypeError(f"add.at on unsupported type {type(a)}")
        if a.dtype not in ADDS_ATOMICALLY:
            raise TypeError(f"add.at does not support {a.dtype}")
        np.add.at(a._host, _index(indices), _operand(b))


def asarray(a: Any, dtype: Any = None) -> StrictArray:
    """Copies to the device."""
    if isinstance(a, StrictArray):
        return a if dtype is None else a.astype(dtype, copy=False)
    return StrictArray(np.array(a, dtype=dtype, ndmin=0))


def einsum(subscripts: str, *operands: StrictArray) -> StrictArray:
    if not all(isinstance(operand, StrictArray) for operand in operands):
        raise TypeError(f"einsum of unsupported types {[type(operand) for operand in operands]}")
    return _wrapped(np.einsum(subscripts, *[operand._host for operand in operands]))


class Philox4x3210:
    def __init__(self, seed: int) -> None:
        self.numbers = np.random.Generator(np.random.Philox(seed))


class Generator:
    def __init__(self, bit_generator: Philox4x3210) -> None:
        self._numbers = bit_generator.numbers

    def random(self, size: Any = None, dtype: Any = np.float64) -> StrictArray:
        return _wrapped(self._numbers.random(size, dtype=dtype))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> StrictArray:
        return _wrapped(self._numbers.standard_normal(size, dtype=dtype))


class Random:
    Philox4x3210 = Philox4x3210
    Generator = Generator


class Library:
    """The module, as far as CuPy's goes."""

    random = Random

    def __init__(self) -> None:
        self.asarray = asarray
        self.einsum = einsum
        for name, nin in UFUNCS.items():
            setattr(self, name, Ufunc(name, nin))
        self.add = Add("add", 2)
        for name, parameters in FUNCTIONS.items():
            setattr(self, name, Function(name, parameters))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} is not in the tables of the strict library; if CuPy has it, add it there")


library = Library()


def _method(name: str, parameters: str) -> Callable[..., Any]:
    variadic = parameters.startswith("*")
    names = [] if variadic else parameters.split()

    def method(self: StrictArray, *args: Any, **named: Any) -> StrictArray | None:
        if (not variadic and len(args) > len(names)) or not named.keys() <= set(names[len(args) :]):
            raise TypeError(f"{name}() takes {names}, got {len(args)} positional and {list(named)}")
        if any(isinstance(value, np.ndarray) for value in (*args, *named.values())):
            raise TypeError(f"{name}() of a device array got a NumPy array")
        out = named.get("out")
        if out is not None:
            named["out"] = _operand(out)
        with np.errstate(all="ignore"):
            result = getattr(self._host, name)(*args, **named)
        return None if result is None else _wrapped(result, out)

    return method


def _define() -> None:
    def binary(function: str, reflected: bool) -> Callable[..., Any]:
        def operator(self: StrictArray, other: Any) -> Any:
            if getattr(other, "__array_ufunc__", self) is None:  # such a type computes with us, not we with it
                return NotImplemented
            return getattr(library, function)(*((other, self) if reflected else (self, other)))

        return operator

    def in_place(function: str) -> Callable[..., Any]:
        return lambda self, other: getattr(library, function)(self, other, out=self)

    def unary(function: str) -> Callable[..., Any]:
        return lambda self: getattr(library, function)(self)

    for name, function in OPERATORS.items():
        setattr(StrictArray, f"__{name}__", binary(function, reflected=False))
        setattr(StrictArray, f"__r{name}__", binary(function, reflected=True))
        if name != "matmul":
            setattr(StrictArray, f"__i{name}__", in_place(function))
    for name, function in COMPARISONS.items():
        setattr(StrictArray, f"__{name}__", binary(function, reflected=False))
    for name, function in UNARY_OPERATORS.items():
        setattr(StrictArray, f"__{name}__", unary(function))
    for name, parameters in METHODS.items():
        setattr(StrictArray, name, _method(name, parameters))
    for name in PROPERTIES:
        setattr(StrictArray, name, property(lambda self, name=name: getattr(self._host, name)))


_define()


backend.register(backend.Backend("strict", library, StrictArray))
