"""Operations that leave values as they are and change the gradient on purpose: these VJPs are not derivatives."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn.backend import Array
from tinygrad_rnn.ops.declare import Operand, operation, over_time
from tinygrad_rnn.ops.over_time import shifted
from tinygrad_rnn.tensor import Tensor, TensorLike

__all__ = [
    "clip_gradient",
    "scale_gradient",
    "stop_gradient",
]


def _clipped(F: Any, g: Any, max_norm: float | None, max_value: float | None) -> Any:
    if max_value is not None:
        g = F.clip(g, -max_value, max_value)
    if max_norm is not None:
        squares = F.sum(F.square(g), axis=-1, keepdims=True) if g.ndim else F.square(g)
        g = g * (max_norm / F.sqrt(F.maximum(squares, max_norm * max_norm)))
    return g


@over_time(shifted, jointly=True, alters=True, view=True)
@operation(x=_clipped)
def _clip_gradient(F: Any, x: Operand, /, max_norm: float | None, max_value: float | None) -> Array:
    return x


def clip_gradient(x: TensorLike, max_norm: float | None = None, max_value: float | None = None) -> Tensor:
    """``x``, whose gradient is clipped on its way back.

    On the state of a cell it clips at every step of backpropagation through time, each row by its own norm.

    Parameters
    ----------
    max_norm
        Each row of the gradient, along its last axis, is scaled down to this Euclidean norm if it is longer
        (Pascanu et al. 2013, algorithm 1).
    max_value
        Each element is brought into [-max_value, max_value] (Graves 2013), before the norm is taken.

    Raises
    ------
    ValueError
        If neither limit is given, or one is not positive.
    """
    if max_norm is None and max_value is None:
        raise ValueError("clip_gradient needs max_norm, max_value or both")
    for name, limit in (("max_norm", max_norm), ("max_value", max_value)):
        if limit is not None and not limit > 0:
            raise ValueError(f"clip_gradient: {name} must be positive, got {limit}")
    return _clip_gradient(x, max_norm, max_value)


@over_time(shifted, jointly=True, view=True)
@operation(x=lambda F, g, factor: g * factor)
def scale_gradient(F: Any, x: Operand, /, factor: float) -> Array:
    """``x``, whose gradient is multiplied by ``factor`` on its way back; a negative one reverses it."""
    return x


@over_time(shifted, jointly=True, view=True)
@operation()
def stop_gradient(F: Any, x: Operand, /) -> Array:
    """``x``, through which no gradient passes."""
    return x
