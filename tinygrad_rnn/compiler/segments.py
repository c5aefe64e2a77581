"""Less memory for more time: the state is kept at the borders of segments only, and what lies between computed again.

Griewank, Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation,
Optimization Methods and Software 1 (1992); with one level of borders, as here, memory grows with the square root.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_rnn.tensor import _wrap

if TYPE_CHECKING:
    from tinygrad_rnn.compiler.program import Arrays
    from tinygrad_rnn.compiler.run import Kept


def check(recompute: Any, engine: str) -> None:
    """Refuse what cannot be the argument ``recompute`` of `tinygrad_rnn.scan`."""
    if recompute is None:
        return
    if engine == "unrolled":
        raise ValueError("recompute needs an engine that is compiled: engine='unrolled' keeps everything")
    if isinstance(recompute, str):
        if recompute != "sqrt":
            raise ValueError(f"recompute must be None, 'sqrt' or an int, got {recompute!r}")
        return
    if not isinstance(recompute, (int, np.integer)) or isinstance(recompute, bool):
        raise TypeError(f"recompute must be None, 'sqrt' or an int, got {recompute!r}, {type(recompute).__name__}")
    if recompute < 1:
        raise ValueError(f"recompute must be at least 1, got {recompute}")


def interval(recompute: int | str, steps: int, grain: int) -> int:
    """Every how many-th state is kept; "sqrt" stands for the square root of the steps, in whole grains."""
    return -(-isqrt(steps) // grain) * grain if isinstance(recompute, str) else int(recompute)


def parts(steps: int, length: int) -> list[slice]:
    """A sequence in parts of ``length`` steps, the last perhaps shorter."""
    return [slice(first, min(first + length, steps)) for first in range(0, steps, length)]


@dataclass
class Segment:
    """Steps of which only the state that they begin with is kept."""

    steps: slice
    state: Arrays


def in_segments(kept: Kept, recompute: int | str) -> tuple[Arrays, Arrays, Arrays]:
    """The results of a run that keeps only the states at the borders of segments, which it adds to ``kept``.

    It goes forwards in pieces that begin where products of the whole sequence are parted anyway, which need not be
    where segments do; so the bits are those of a run in one piece.
    """
    F, plan, reverse = kept.F, kept.compiled, kept.reverse
    program = plan.marking
    every = interval(recompute, kept.steps, program.grain)
    xs, carry, consts = kept.inputs
    segments = kept.segments = [Segment(part, []) for part in parts(kept.steps, every)]
    pieces = parts(kept.steps, -(-every // program.stretch) * program.stretch)
    ys = [F.empty((kept.steps, *value.shape), dtype=value.dtype) for value in plan.step.ys[: plan.size]]

    def run(piece: slice) -> None:  # a function, so that all of a piece is freed before the next
        nonlocal carry
        outs, carry, _ = program(F, piece.stop - piece.start, reverse, [x[piece] for x in xs], carry, consts)
        for y, out in zip(ys, outs, strict=False):
            y[piece] = out
        states = outs[len(plan.step.ys) :]
        for segment in segments[piece.start // every : -(-piece.stop // every)]:
            first = segment.steps.stop - 1 if reverse else segment.steps.start
            if piece.start <= first < piece.stop:
                segment.state = [state[first - piece.start].copy() for state in states]

    for piece in reversed(pieces) if reverse else pieces:
        run(piece)
    return ys, carry, []


def saving(kept: Kept, segment: Segment | None = None) -> Kept:
    """What a run of one segment, or of all steps, keeps if it saves all that its gradient needs."""
    if segment is not None:
        part = segment.steps
        xs, carry = [_wrap(x._data[part]) for x in kept.xs], [_wrap(state) for state in segment.state]
        kept = replace(kept, steps=part.stop - part.start, xs=xs, carry=carry)
    outs, _, _ = kept.compiled.forward(kept.F, kept.steps, kept.reverse, *kept.inputs)
    return replace(kept, saved=outs[kept.compiled.size :], segments=None)
