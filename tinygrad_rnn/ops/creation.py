"""Tensors from nothing, on the current backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.tensor import Tensor, as_tensor

__all__ = [
    "arange",
    "eye",
    "full",
    "linspace",
    "one_hot",
    "ones",
    "zeros",
]


def zeros(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """Zeros."""
    return Tensor(get_backend().zeros(shape, dtype=dtype))


def ones(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """Ones."""
    return Tensor(get_backend().ones(shape, dtype=dtype))


def full(shape: int | tuple[int, ...], fill_value: float, dtype: Any = None) -> Tensor:
    """One value everywhere; a Python float gives float32."""
    return Tensor(get_backend().full(shape, fill_value, dtype=_dtype(dtype, fill_value)))


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """``start``, ``start + step``, … up to but without ``stop``; with one argument, 0, 1, … up to it."""
    if stop is None:
        start, stop = 0, start
    return Tensor(get_backend().arange(start, stop, step, dtype=_dtype(dtype, start, stop, step)))


def linspace(start: float, stop: float, num: int = 50, dtype: Any = np.float32) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, both included."""
    return Tensor(get_backend().linspace(start, stop, num, dtype=dtype))


def eye(n: int, m: int | None = None, dtype: Any = np.float32) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix of zeros; ``m`` is ``n`` if left out."""
    return Tensor(get_backend().eye(n, m, dtype=dtype))


def one_hot(indices: Any, num_classes: int, dtype: Any = np.float32) -> Tensor:
    """A last axis of length ``num_classes`` that is 1 at each index and 0 elsewhere.

    Raises
    ------
    TypeError
        If ``indices`` are no ints.
    """
    indices = as_tensor(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"one_hot needs int indices, got dtype {indices.dtype}")
    classes = arange(num_classes).to(indices.backend)
    hot: Tensor = indices.reshape((*indices.shape, 1)) == classes
    return hot.astype(dtype)


def _dtype(dtype: Any, *values: Any) -> Any:
    """float32 for Python floats; what NumPy would take for anything else."""
    return np.float32 if dtype is None and any(isinstance(value, float) for value in values) else dtype
