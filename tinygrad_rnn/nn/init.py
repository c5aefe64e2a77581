"""Initial values, written in place; each function returns the tensor it was given."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tensor import Tensor

T = TypeVar("T", bound=Tensor)


def uniform_(tensor: T, low: float = 0.0, high: float = 1.0, generator: Generator | None = None) -> T:
    """Numbers spread evenly from ``low`` to ``high``."""
    numbers = get_backend(tensor.backend).uniform(default_generator(generator).next_key(), tensor.shape, tensor.dtype)
    return _write(tensor, numbers * (high - low) + low)


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> T:
    """Normally distributed numbers."""
    numbers = get_backend(tensor.backend).normal(default_generator(generator).next_key(), tensor.shape, tensor.dtype)
    return _write(tensor, numbers * std + mean)


def constant_(tensor: T, value: float) -> T:
    """One value everywhere."""
    return _write(tensor, value)


def orthogonal_(tensor: T, gain: float = 1.0, blocks: int = 1, generator: Generator | None = None) -> T:
    """Rows or columns, whichever are fewer, orthonormal times ``gain`` (Saxe et al. 2014).

    Parameters
    ----------
    blocks
        How many matrices are stacked along the first axis, each to be orthogonal by itself: the gates of a cell.
    """
    columns, rows = _fans("orthogonal_", tensor, blocks)
    source = default_generator(generator)
    parts = []
    for _ in range(blocks):
        # QR runs on the host: it is done once, and gives the same numbers for every backend.
        numbers = get_backend("numpy").normal(source.next_key(), (max(rows, columns), min(rows, columns)), np.float64)
        q, r = np.linalg.qr(numbers)
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        parts.append(gain * (q if rows >= columns else q.T))
    return _write(tensor, get_backend(tensor.backend).asarray(np.concatenate(parts), dtype=tensor.dtype))


def xavier_uniform_(tensor: T, gain: float = 1.0, blocks: int = 1, generator: Generator | None = None) -> T:
    """Evenly from +-``gain * sqrt(6 / (fan_in + fan_out))`` (Glorot & Bengio 2010, equation 16); see `orthogonal_`."""
    fan_in, fan_out = _fans("xavier_uniform_", tensor, blocks)
    bound = gain * (6 / (fan_in + fan_out)) ** 0.5
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: T, gain: float = 1.0, blocks: int = 1, generator: Generator | None = None) -> T:
    """Normal with standard deviation ``gain * sqrt(2 / (fan_in + fan_out))`` (Glorot & Bengio 2010, equation 12)."""
    fan_in, fan_out = _fans("xavier_normal_", tensor, blocks)
    return normal_(tensor, 0.0, gain * (2 / (fan_in + fan_out)) ** 0.5, generator)


def kaiming_uniform_(tensor: T, a: float = 0.0, generator: Generator | None = None) -> T:
    """Evenly, with the variance that keeps a leaky ReLU of slope ``a`` from shrinking its input (He et al. 2015)."""
    bound = (6 / ((1 + a * a) * _fans("kaiming_uniform_", tensor, 1)[0])) ** 0.5
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(tensor: T, a: float = 0.0, generator: Generator | None = None) -> T:
    """Normal, with standard deviation ``sqrt(2 / ((1 + a**2) * fan_in))`` (He et al. 2015, equation 15)."""
    return normal_(tensor, 0.0, (2 / ((1 + a * a) * _fans("kaiming_normal_", tensor, 1)[0])) ** 0.5, generator)


def eye_(tensor: T, scale: float = 1.0, blocks: int = 1) -> T:
    """``scale`` on the diagonal of each block, 0 elsewhere: the recurrent weight of an IRNN (Le et al. 2015)."""
    columns, rows = _fans("eye_", tensor, blocks)
    block = scale * np.eye(rows, columns)
    return _write(tensor, get_backend(tensor.backend).asarray(np.concatenate([block] * blocks), dtype=tensor.dtype))


def forget_bias_(bias: T, value: float = 1.0) -> T:
    """``value`` for the forget gates of an LSTM's stacked bias i, f, g, o, 0 for the others (Gers et al. 2000).

    A cell has two biases that are added: give one of them this, and the other zeros.
    """
    hidden = _quarter("forget_bias_", bias)
    _write(bias, 0.0)
    bias._data[hidden : 2 * hidden] = value
    return bias


def chrono_(bias: T, max_steps: int, generator: Generator | None = None) -> T:
    """Biases of an LSTM for memories of up to ``max_steps`` steps (Tallec & Ollivier 2018).

    The forget gates get ``b_f = log(u)`` with u evenly from 1 to ``max_steps - 1``, the input gates ``-b_f``, the
    others 0. A cell has two biases that are added: give one of them this, and the other zeros.
    """
    hidden = _quarter("chrono_", bias)
    if max_steps < 3:
        raise ValueError(f"chrono_: max_steps must be at least 3, got {max_steps}")
    backend = get_backend(bias.backend)
    numbers = backend.uniform(default_generator(generator).next_key(), (hidden,), bias.dtype)
    times = backend.log(1 + numbers * (max_steps - 2))
    _write(bias, 0.0)
    bias._data[:hidden] = -times
    bias._data[hidden : 2 * hidden] = times
    return bias


def _fans(name: str, tensor: Tensor, blocks: int) -> tuple[int, int]:
    """Columns, and rows of one block."""
    if tensor.ndim != 2 or tensor.shape[0] % blocks:
        raise ValueError(f"{name} needs a matrix of {blocks} stacked blocks, got shape {tensor.shape}")
    return tensor.shape[1], tensor.shape[0] // blocks


def _quarter(name: str, bias: Tensor) -> int:
    if bias.ndim != 1 or bias.shape[0] % 4:
        raise ValueError(f"{name} needs the bias of 4 stacked gates, got shape {bias.shape}")
    return bias.shape[0] // 4


def _write(tensor: T, value: object) -> T:
    tensor._data[...] = value
    tensor._touch()
    return tensor
