"""The arguments of `scan`, looked at before anything is done."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_rnn.backend import Array
from tinygrad_rnn.nest import describe, leaves
from tinygrad_rnn.tensor import Tensor


def extent(xs: Any, needs_batch: bool) -> tuple[int, int, str]:
    """Steps, rows (1 if there is no such axis) and backend of the inputs."""
    parts = leaves(xs)
    if not parts:
        raise TypeError("xs: an empty nest, so there is nothing to take steps over")
    axes = 2 if needs_batch else 1
    first = parts[0][1].shape
    for place, leaf in parts:
        shape = leaf.shape
        if len(shape) < axes:
            raise ValueError(f"xs{place} must have shape (T, {'B, ' if needs_batch else ''}...), got {shape}")
        if shape[:axes] != first[:axes]:
            raise ValueError(f"xs{place} has shape {shape}, beside {first}: steps and rows must agree")
    if not first[0]:
        raise ValueError(f"xs has no steps: shape {first}")
    return first[0], first[1] if len(first) > 1 else 1, parts[0][1].backend


def on_host(values: Any) -> np.ndarray[Any, Any]:
    """A tensor or array-like as a NumPy array."""
    return values.numpy() if isinstance(values, Tensor) else np.asarray(values)


def lengths_of_rows(lengths: Any, steps: int, batch: int, hint: str = "") -> tuple[Array, int, int]:
    """How many steps of each row are real, ints (B,); the fewest and the most. ``hint`` is for lengths of another B."""
    lengths = on_host(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), one for each row, got {lengths.shape}{hint}")
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"lengths must be ints, got dtype {lengths.dtype}")
    rows = lengths.tolist()
    shortest, longest = min(rows, default=steps), max(rows, default=0)
    if shortest < 0 or longest > steps:
        wrong = [f"{n} in row {row}" for row, n in enumerate(rows) if not 0 <= n <= steps]
        raise ValueError(f"lengths must be from 0 to the {steps} steps of xs, got {', '.join(wrong)}")
    return lengths, shortest, longest


def rows_alive(lengths: Array, steps: int) -> Array:
    """Bools (steps, B): where a row is within its length."""
    return np.arange(steps)[:, None] < lengths


def rows_beginning(reset: Any, steps: int, batch: int, reached: int, alive: Array | None, reverse: bool) -> Array:
    """Bools (reached, B): which rows, of those that are ``alive`` (None: all), begin anew before a step is taken."""
    reset = on_host(reset)
    if reset.shape != (steps, batch):
        raise ValueError(
            f"reset must have shape ({steps}, {batch}), one for each step and row of xs, got {reset.shape}"
        )
    if reset.dtype.kind != "b":
        raise TypeError(f"reset must be bools, got dtype {reset.dtype}")
    inside = reset[:reached] if alive is None else reset[:reached] & alive
    # Backwards, a row begins anew at the last step before the mark.
    return np.concatenate([inside[1:], np.zeros_like(inside[:1])]) if reverse else inside


def check_batch(state: Any, batch: int) -> None:
    for place, leaf in leaves(state):
        if not leaf.ndim or leaf.shape[0] != batch:
            raise ValueError(f"state{place} must have {batch} rows as xs has, got shape {leaf.shape}")


def alike(state: Any, other: Any, whose: str) -> None:
    """Refuse a state of another nest, shape or dtype."""
    if isinstance(state, Tensor) and isinstance(other, Tensor):
        pairs = [("", state, other)]
    else:
        ours, theirs = leaves(state), leaves(other)
        if [place for place, _ in ours] != [place for place, _ in theirs]:
            raise TypeError(f"{whose} a state {describe(other)}, expected one like {describe(state)}")
        pairs = [(place, a, b) for (place, a), (_, b) in zip(ours, theirs, strict=True)]
    for place, a, b in pairs:
        part = f"state{place}" if place else "a state"
        if not isinstance(b, Tensor):
            hint = "; tg.Tensor makes a tensor of it" if isinstance(b, np.ndarray) else ""
            raise TypeError(f"{whose} {part} that is no tensor: {type(b).__name__}{hint}")
        if a.shape != b.shape:
            raise ValueError(f"{whose} {part} of shape {b.shape}, expected {a.shape}")
        if a.dtype != b.dtype:
            hint = ": has the cell a parameter or an array of float64?" if str(b.dtype) == "float64" else ""
            raise TypeError(f"{whose} {part} of dtype {b.dtype}, expected {a.dtype}{hint}")
