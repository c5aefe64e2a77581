"""Which array library holds the data.

A backend is an array library seen through NumPy's names, plus the few functions that libraries spell
differently. This is the only file that imports CuPy, and it does so when CuPy is first asked for.

Where CuPy differs from NumPy, and what this file does about it:

* adding at repeated indices: both have ``add.at``; NumPy's is slow for whole rows, see ``add_at``;
* random numbers: CuPy's generators cannot be saved, so every draw starts from its own key (``uniform``, ``normal``);
* 0-d results: NumPy's functions return scalars, CuPy's return arrays; ``asarray`` makes them one;
* ufunc ``where=``: absent in CuPy and not used here; ``einsum`` takes no path there and is given none;
* the host: ``to_numpy`` is the one way from the device to the host, and ``asarray`` the one way back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, TypeAlias

import numpy as np

from tinygrad_rnn.outer_sum import OuterSum

Array: TypeAlias = Any  # an array of whichever library is in use
Key: TypeAlias = "tuple[int, int] | Array"  # of a stream of random numbers, or of several: uint64 (n, 2), on the host

# What operations and their vector-Jacobian products may call on a raw array, under NumPy's names.
FUNCTIONS = (
    *("add", "subtract", "multiply", "divide", "negative", "power", "exp", "expm1", "log", "log1p", "sqrt"),
    *("square", "reciprocal", "abs", "sin", "cos", "tanh", "maximum", "minimum", "clip", "where", "sign", "floor"),
    *("isnan", "isinf", "isfinite", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_not", "floor_divide", "remainder"),
    *("mean", "max", "min", "prod", "cumsum", "all", "any", "argmax", "argmin", "argsort"),
    *("expand_dims", "squeeze", "broadcast_to", "concatenate", "stack", "flip"),
    *("pad", "tile", "roll", "matmul", "einsum", "take", "take_along_axis"),
    *("zeros", "ones", "full", "empty", "arange", "zeros_like", "ones_like", "linspace", "eye"),
)


class Hole:
    """Stands in an index where an array belongs, so that the rest of it is static."""

    def __repr__(self) -> str:
        return "array"


HOLE = Hole()


def fill(index: tuple[Any, ...], arrays: Sequence[Array]) -> tuple[Any, ...]:
    """``index`` with its holes filled with ``arrays``."""
    remaining = iter(arrays)
    return tuple(next(remaining) if item is HOLE else item for item in index)


class Backend:
    """One array library: its functions as attributes, and what has to be said in each library's own way.

    Parameters
    ----------
    name
        What ``set_backend`` calls it.
    library
        A module with NumPy's names.
    array_type
        The type of its arrays.
    """

    def __init__(self, name: str, library: Any, array_type: type) -> None:
        self.name = name
        self.library = library
        self.array_type = array_type
        for function in FUNCTIONS:
            setattr(self, function, getattr(library, function))

    def __getattr__(self, name: str) -> Any:  # reached only for names that __init__ did not set
        raise AttributeError(f"the {self.name} backend has no function {name!r}")

    def __repr__(self) -> str:
        return f"<backend {self.name}>"

    def asarray(self, value: Any, dtype: Any = None) -> Array:
        return self.library.asarray(value, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = array.get()
        return host

    def to_backend(self, array: Array, name: str) -> Array:
        return get_backend(name).asarray(self.to_numpy(array))

    def astype(self, array: Array, dtype: Any) -> Array:
        return array.astype(dtype, copy=False)

    def in_order(self, array: Array) -> Array:
        """``array`` in C order, copied if need be."""
        return array if array.flags.c_contiguous else array.copy()

    # Methods where NumPy's functions take longer to find them than they run.
    def reshape(self, array: Array, shape: int | tuple[int, ...]) -> Array:
        return array.reshape(shape)

    def transpose(self, array: Array, axes: tuple[int, ...] | None = None) -> Array:
        return array.T if axes is None else array.transpose(axes)

    def swapaxes(self, array: Array, axis1: int, axis2: int) -> Array:
        return array.swapaxes(axis1, axis2)

    def sum(self, array: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return array.sum(axis=axis, keepdims=keepdims)

    def getitem(self, array: Array, index: Any) -> Array:
        return array[index]

    def split(self, array: Array, sections: int | tuple[int, ...], axis: int) -> list[Array]:
        axis %= array.ndim
        length = array.shape[axis]
        cuts = tuple(range(0, length, length // sections or 1))[1:] if isinstance(sections, int) else sections
        if isinstance(sections, int) and length == 0:
            cuts = (0,) * (sections - 1)
        lead = (slice(None),) * axis
        return [array[(*lead, slice(a, b))] for a, b in zip((0, *cuts), (*cuts, length), strict=True)]

    def unstack(self, array: Array, axis: int = 0) -> list[Array]:
        if not array.ndim:
            raise ValueError("unstack of a 0-d tensor: it has no axis to take apart")
        axis %= array.ndim
        if axis == 0 and array.ndim > 1:
            return list(array)  # in a third of the time
        lead = (slice(None),) * axis
        return [array[(*lead, i, ...)] for i in range(array.shape[axis])]  # with ... an element stays an array

    def sigmoid(self, x: Array, out: Array = None) -> Array:
        # exp(-x) may overflow to infinity, whose reciprocal is the right answer, 0.
        with np.errstate(over="ignore"):
            return self.sigmoid_unguarded(x, out)

    def sigmoid_unguarded(self, x: Array, out: Array = None) -> Array:
        """The same, for whoever ignores overflow already."""
        return self.reciprocal(self.add(self.exp(self.negative(x)), 1), out=out)

    def erf(self, x: Array) -> Array:
        return _erf(self, x)

    def outer_sum(self, a: Array, b: Array) -> OuterSum:
        return OuterSum(self, a, b)

    def place(self, values: Array, *arrays: Array, shape: tuple[int, ...], index: Any) -> Array:
        """Zeros of ``shape`` with ``values`` added at an index; see `tinygrad_rnn.ops.indexing`."""
        result = self.zeros(shape, dtype=values.dtype)
        if arrays:
            self.add_at(result, fill(index, arrays), values)
        else:
            result[index] = values
        return result

    def check_range(self, indices: Array, limit: int, what: str) -> None:
        """Raise IndexError unless all ``indices`` are in [0, limit).

        Only where looking at them is free: on a device it would mean to wait for all that was started before.
        """

    def add_at(self, array: Array, index: tuple[Any, ...], values: Array) -> None:
        """Add ``values`` into ``array`` at ``index``; repeated indices add up."""
        self.library.add.at(array, index, values)

    def uniform(self, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        """Uniform numbers in [0, 1), the same for the same ``key``; of several keys one after the other."""
        return self._drawn("random", key, shape, dtype)

    def normal(self, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        """Standard normal numbers, the same for the same ``key``; of several keys one after the other."""
        return self._drawn("standard_normal", key, shape, dtype)

    def _drawn(self, method: str, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        if not isinstance(key, tuple):
            return self.stack([self._drawn(method, (seed, counter), shape, dtype) for seed, counter in key.tolist()], 0)
        return getattr(self._generator(key), method)(shape, dtype=dtype)

    def _generator(self, key: tuple[int, int]) -> Any:
        random = self.library.random
        mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        return random.Generator(random.Philox4x3210(int(mixed)))


# NumPy takes longer to convert a Python number than to add an array of no dimensions.
_ONE = {dtype: np.ones((), dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


_NO_STRIDES = [(0,) * axes for axes in range(65)]  # made once: Python keeps tuples that are let go
_streams = threading.local()


class _NumPy(Backend):
    # Another way to the same numbers, once there is one that is faster: fills a row for each key.
    uniform_of_keys: Callable[[Array, Array], None] | None = None

    def __init__(self) -> None:
        super().__init__("numpy", np, np.ndarray)
        self.where = self._where
        self.broadcast_to = self._broadcast_to

    def asarray(self, value: Any, dtype: Any = None) -> Array:
        return value if dtype is None and type(value) is np.ndarray else np.asarray(value, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def _broadcast_to(self, array: Array, shape: Any) -> Array:
        if type(array) is not np.ndarray or array.size != 1 or type(shape) is not tuple or array.ndim > len(shape):
            return np.broadcast_to(array, shape)
        spread = np.ndarray(shape, array.dtype, array, 0, _NO_STRIDES[len(shape)])  # in a tenth of the time
        spread.setflags(write=False)
        return spread

    def sum(self, array: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return np.add.reduce(array, axis, keepdims=keepdims)  # type: ignore[call-overload]

    def sigmoid_unguarded(self, x: Array, out: Array = None) -> Array:
        out = np.asarray(np.negative(x, out))
        np.exp(out, out)
        np.add(out, _ONE.get(out.dtype, 1), out)
        return np.reciprocal(out, out)

    def _where(self, condition: Any, x: Any, y: Any) -> Array:
        if type(y) in (int, float) and _chooses_rows(condition, x):
            # Whole rows of x or of a number, as past the end of sequences, which NumPy chooses element by element.
            result = np.array(x, order="C")
            row = np.dtype((np.void, x.shape[-1] * x.itemsize))
            result.view(row)[..., 0][~condition[..., 0]] = np.full(x.shape[-1], y, x.dtype).view(row)
            return result
        return np.where(condition, x, y)

    def check_range(self, indices: Array, limit: int, what: str) -> None:
        if indices.size and (indices.min() < 0 or indices.max() >= limit):
            wrong = indices[(indices < 0) | (indices >= limit)]
            raise IndexError(f"{what} must be from 0 to {limit - 1}, got {wrong.ravel()[0]}")

    def add_at(self, array: Array, index: tuple[Any, ...], values: Array) -> None:
        rows = index[0] if len(index) == 1 else None
        if rows is not None and rows.dtype.kind == "i" and rows.size and array.ndim > 1 and array.size:
            # Sort equal rows together and sum each run: many times faster than add.at.
            rows = rows.reshape(-1) % array.shape[0]
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
            starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
            values = np.reshape(values, (rows.size, *array.shape[1:]))
            array[rows[starts]] += np.add.reduceat(values[order], starts, axis=0)
        else:
            np.add.at(array, index, values)

    def _drawn(self, method: str, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        if isinstance(key, tuple):
            return super()._drawn(method, key, shape, dtype)
        numbers = np.empty((len(key), prod(shape)), dtype)
        if method == "random" and self.uniform_of_keys is not None:
            self.uniform_of_keys(key, numbers)
            return numbers.reshape(len(key), *shape)
        for one, row in zip(key, numbers, strict=True):
            getattr(self._generator(one), method)(dtype=dtype, out=row)
        return numbers.reshape(len(key), *shape)

    def _generator(self, key: tuple[int, int]) -> np.random.Generator:
        """The stream of a key; good until the next is asked for, as a new one takes ten times as long to make."""
        if not hasattr(_streams, "generator"):
            _streams.bits = np.random.Philox(key=0)
            _streams.generator = np.random.Generator(_streams.bits)
            _streams.start = _streams.bits.state
        _streams.start["state"]["key"][:] = key
        _streams.bits.state = _streams.start
        generator: np.random.Generator = _streams.generator
        return generator


def _chooses_rows(condition: Any, x: Any) -> bool:
    return (
        type(condition) is type(x) is np.ndarray
        and condition.dtype.kind == "b"
        and x.dtype.kind == "f"
        and x.ndim > 0
        and x.size > 0
        and condition.shape == (*x.shape[:-1], 1) != x.shape
    )


class _CuPy(Backend):
    def __init__(self) -> None:
        try:
            import cupy  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError(
                "the cupy backend needs CuPy: pip install 'tinygrad_rnn[cuda12]' or 'tinygrad_rnn[cuda13]', "
                "after the CUDA version that nvidia-smi prints"
            ) from error
        if not cupy.cuda.is_available():
            raise RuntimeError("CuPy is installed but finds no GPU: is there one, and is NVIDIA's driver installed?")
        super().__init__("cupy", cupy, cupy.ndarray)


_by_name: dict[str, Backend] = {}
BY_TYPE: dict[type, Backend] = {}


def register(backend: Backend) -> Backend:
    """Make ``backend`` known by its name and by the type of its arrays."""
    _by_name[backend.name] = backend
    BY_TYPE[backend.array_type] = backend
    return backend


NUMPY = _NumPy()
register(NUMPY)


def get_backend(name: str | None = None) -> Backend:
    """The backend of that name, or the current one."""
    if name is None:
        return _current.get() or _default()
    if name not in _by_name and name == "cupy":
        register(_CuPy())
    if name not in _by_name:
        raise ValueError(f"backend must be one of {sorted({*_by_name, 'cupy'})}, got {name!r}")
    return _by_name[name]


def backend_of(array: Array) -> Backend | None:
    """The backend that ``array`` lives on, or None if it is no array of a known library."""
    backend = BY_TYPE.get(type(array))
    if backend is None:
        if type(array).__module__.partition(".")[0] == "cupy" and hasattr(array, "get"):
            return get_backend("cupy")  # the user's own CuPy array, before anyone set the backend
        if isinstance(array, np.ndarray):
            return NUMPY
    return backend


_current: ContextVar[Backend | None] = ContextVar("tinygrad_rnn_backend", default=None)
_process_default: Backend | None = None


def _default() -> Backend:
    global _process_default
    if _process_default is None:
        name = os.environ.get("TINYGRAD_RNN_BACKEND", "numpy")
        try:
            _process_default = get_backend(name)
        except ValueError as error:
            raise ValueError(f"the environment variable TINYGRAD_RNN_BACKEND: {error}") from None
    return _process_default


def set_backend(name: str) -> None:
    """Make new tensors on ``name`` (``"numpy"`` or ``"cupy"``) from now on.

    The environment variable ``TINYGRAD_RNN_BACKEND`` sets the same when the process starts. Operations run where
    their operands are, whatever is set here.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError, RuntimeError
        If CuPy is asked for and is not installed, or finds no GPU.
    """
    global _process_default
    _process_default = get_backend(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make new tensors on ``name`` inside the ``with`` block, in this thread or asyncio task."""
    token = _current.set(get_backend(name))
    try:
        yield
    finally:
        _current.reset(token)


# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969): erf on
# [0, 0.5], erfc on (0.5, 4] and erfc on (4, inf), numerator and denominator, highest power first.
_ERF_SMALL = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_ERFC_MIDDLE = (
    (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1),
        *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
        1.23033935479799725e3,
    ),
    (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3),
        *(3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
    ),
)
_ERFC_LARGE = (
    (
        *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1),
        *(1.60837851487422766e-2, 6.58749161529837803e-4),
    ),
    (
        *(1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1),
        *(6.05183413124413191e-2, 2.33520497626869185e-3),
    ),
)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    numerator, denominator = coefficients
    top: Array = numerator[0] * x + numerator[1]
    for coefficient in numerator[2:]:
        top = top * x + coefficient
    bottom: Array = denominator[0] * x + denominator[1]
    for coefficient in denominator[2:]:
        bottom = bottom * x + coefficient
    return top / bottom


def _erf(F: Backend, x: Array) -> Array:
    size = F.abs(x)
    small = F.minimum(size, 0.5)
    middle = F.clip(size, 0.5, 4.0)
    large = F.clip(size, 4.0, 30.0)  # erfc underflows long before 30
    inverse_square = 1.0 / (large * large)
    tail = (0.56418958354775628695 - inverse_square * _ratio(_ERFC_LARGE, inverse_square)) / large
    erfc = F.where(
        size <= 4.0,
        F.exp(-middle * middle) * _ratio(_ERFC_MIDDLE, middle),
        F.exp(-large * large) * tail,
    )
    return F.where(size <= 0.5, F.sign(x) * small * _ratio(_ERF_SMALL, small * small), F.sign(x) * (1.0 - erfc))
