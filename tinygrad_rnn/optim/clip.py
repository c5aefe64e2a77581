"""Clipping of gradients, in place, between ``backward`` and ``step``."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np

from tinygrad_rnn.backend import Array, Backend, get_backend
from tinygrad_rnn.tensor import Tensor, _backend, _wrap


@np.errstate(over="ignore", invalid="ignore")  # what is not finite shows in the norm
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor such that their joint norm is at most ``max_norm``.

    The factor is ``min(1, max_norm / (norm + 1e-6))``; Pascanu, Mikolov and Bengio (2013), arXiv:1211.5063,
    Algorithm 1.

    Parameters
    ----------
    parameters
        A tensor or several; those without a gradient are passed over.
    max_norm
        Bound on the norm; ``inf`` only measures.
    norm_type
        The p of the p-norm; ``inf`` for the largest absolute value.
    error_if_nonfinite
        Raise if the norm is infinite or NaN. This is the one thing here that waits for the device.

    Returns
    -------
    The norm before clipping, 0-d.

    Raises
    ------
    ValueError
        If ``max_norm`` is negative, or ``norm_type`` not positive.
    RuntimeError
        If ``error_if_nonfinite`` and the norm is not finite; the gradients are then as they were.
    """
    max_norm, norm_type = float(max_norm), float(norm_type)
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be at least 0, got {max_norm}")
    if not norm_type > 0:
        raise ValueError(f"norm_type must be above 0, got {norm_type}")
    owners = _with_gradient(parameters)
    if not owners:
        return Tensor(get_backend().zeros((), dtype=np.float32))
    gradients = [p.grad._data for p in owners if p.grad is not None]
    F = _backend(owners[0])
    total = F.asarray(_norm(F, gradients, norm_type))
    if error_if_nonfinite and not F.isfinite(total):
        raise RuntimeError(f"the norm of order {norm_type} of the gradients is {_wrap(total).item()}, not finite")
    factor = F.minimum(max_norm / (total + 1e-6), 1.0)
    for p in owners:
        g = _writable_gradient(p)
        g *= factor
    return _wrap(total)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Cut every element of every gradient to the range from ``-clip_value`` to ``clip_value``.

    Parameters
    ----------
    parameters
        A tensor or several; those without a gradient are passed over.
    clip_value
        Bound on the absolute value.

    Raises
    ------
    ValueError
        If ``clip_value`` is negative.
    """
    clip_value = float(clip_value)
    if not clip_value >= 0:
        raise ValueError(f"clip_value must be at least 0, got {clip_value}")
    for p in _with_gradient(parameters):
        g = _writable_gradient(p)
        g[...] = _backend(p).clip(g, -clip_value, clip_value)


def _norm(F: Backend, gradients: list[Array], order: float) -> Array:
    if order == inf:
        largest = F.zeros((), dtype=gradients[0].dtype)
        for g in gradients:
            if g.size:
                largest = F.maximum(largest, F.max(F.abs(g)))
        return largest
    if order == 1:
        return sum(F.sum(F.abs(g)) for g in gradients)
    if order == 2:
        return F.sqrt(sum(F.sum(g * g) for g in gradients))
    return sum(F.sum(F.abs(g) ** order) for g in gradients) ** (1 / order)


def _with_gradient(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters[{i}] must be a Tensor, got {type(p).__name__}")
    return [p for p in tensors if p.grad is not None]


def _writable_gradient(p: Tensor) -> Array:
    grad = p.grad
    assert grad is not None
    if grad._node is not None:  # made with create_graph: that graph may need the values as they are
        grad = p.grad = _wrap(grad._data.copy())
    grad._touch()
    return grad._data
