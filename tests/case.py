"""What a case is: how to call an operation, on which operands, and what is right.

A case holds one expression ``f(F, *operands)``. With ``tinygrad_rnn`` for ``F`` it is what is tested, with ``numpy``
it is the reference for values, unless the case gives another. ``torch`` is the same in PyTorch's words, for
the comparison in ``tests/peers``; a case that has none has no gradient.

Operands are drawn where the operation is smooth: away from kinks, ties, poles and the ends of its domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn.backend import get_backend

Draw = Callable[[np.random.Generator], np.ndarray]


def real(*shape):
    return lambda rng: rng.standard_normal(shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.5, 2.0, shape)


def nonzero(*shape):
    return lambda rng: rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def apart(*shape, offset=0.0):
    """Numbers in random order, 0.2 from each other and 0.02 or more from 0, 0.5 and those of another offset."""
    size = math.prod(shape)
    return lambda rng: (rng.permutation(size).reshape(shape) - size // 2) * 0.2 + 0.03 + offset


def grid(*shape):
    """Multiples of 1/64, which float32 holds exactly."""
    return lambda rng: rng.integers(-64, 65, shape) / 64


def ints(high, *shape):
    """Indices into an axis of length ``high``, negative ones among them."""
    return lambda rng: rng.integers(-high, high, shape)


def flags(*shape):
    return lambda rng: rng.random(shape) < 0.5


def fixed(values):
    return lambda rng: np.array(values)


@dataclass(frozen=True)
class Case:
    op: str
    note: str
    operands: tuple[Draw, ...]
    f: Callable[..., Any]
    numpy: Callable[..., Any] | None
    torch: Callable[..., Any] | None
    eps: float

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    def draw(self, dtype=np.float64, seed=0) -> list[np.ndarray]:
        """The operands, those of floats with ``dtype``."""
        rng = np.random.default_rng(seed)
        drawn = [np.asarray(draw(rng)) for draw in self.operands]
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in drawn]

    def ours(self, *operands):
        return self.f(tg, *operands)

    def reference(self, *operands) -> list[np.ndarray]:
        result = (self.numpy or partial(self.f, np))(*operands)
        return [np.asarray(r) for r in (result if isinstance(result, (list, tuple)) else [result])]


def tensors(arrays, requires_grad=False) -> list[tg.Tensor]:
    """Arrays as tensors on the current backend; those of floats may require a gradient."""
    made = [tg.Tensor(get_backend().asarray(x)) for x in arrays]
    for tensor in made:
        tensor.requires_grad = requires_grad and tensor.dtype.kind == "f"
    return made


def results(value) -> list[tg.Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def dims(x, axis):
    """``axis`` as PyTorch wants it."""
    return tuple(range(x.ndim)) if axis is None else axis


CASES: dict[str, list[Case]] = {}


def case(op, operands, f, torch=None, numpy=None, note="", eps=1e-6):
    cases = CASES.setdefault(op, [])
    shapes = ",".join("x".join(map(str, np.shape(draw(np.random.default_rng(0))))) or "0d" for draw in operands)
    cases.append(Case(op, f"{note or shapes}-{len(cases)}", tuple(operands), f, numpy, torch, eps))


def named(name):
    """The function of that name, whatever the namespace."""
    return lambda F, *operands: getattr(F, name)(*operands)
