"""What `scan` does with a cell, to be read."""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from os.path import basename
from typing import Any

from tinygrad_rnn.compiler.program import Program
from tinygrad_rnn.compiler.run import Compiled
from tinygrad_rnn.compiler.step import Op, Step, Value
from tinygrad_rnn.tensor import Tensor


@dataclass
class Direction:
    """One way through the sequence.

    Attributes
    ----------
    same, before, loop, after, summed
        Lines of text: what is done once, for all steps at once before the loop, at each step, for all steps at once
        after it, and once for the sum over all steps.
    products
        Multiplications and additions of matrix products for a step, in the loop and outside of it.
    source
        The generated loop.
    """

    same: list[str]
    before: list[str]
    loop: list[str]
    after: list[str]
    summed: list[str]
    products: tuple[int, int]
    source: str


@dataclass
class Plan:
    """How `scan` runs a cell; print it.

    Attributes
    ----------
    engine
        Which engine runs it.
    forward, backward
        Both ways; ``backward`` is None if nothing needs a gradient.
    saved
        What is kept of each step for the gradient, with its bytes.
    """

    engine: str
    forward: Direction
    backward: Direction | None
    saved: dict[str, int]
    steps: int

    def __str__(self) -> str:
        lines = [f"scan by the {self.engine} engine, {self.steps} steps"]
        for title, way in (("forwards", self.forward), ("backwards", self.backward)):
            if way is None:
                continue
            inside, outside = way.products
            lines += ["", f"{title}: {inside:,} FLOPs of products a step in the loop, {outside:,} outside of it"]
            for when, work in (
                ("once", way.same),
                ("for all steps at once, before the loop", way.before),
                ("at each step, since the next state depends on it", way.loop),
                ("for all steps at once, after the loop", way.after),
                ("once, as sums over all steps", way.summed),
            ):
                if work:
                    lines += [f"  {when}:", *[f"    {line}" for line in work]]
        if self.saved:
            size = sum(self.saved.values())
            lines += ["", f"saved for the gradient: {size:,} bytes a step, {size * self.steps:,} in all"]
            lines += [f"    {name}: {count:,} bytes a step" for name, count in self.saved.items()]
        lines += ["", "the loop forwards:", "", self.forward.source]
        if self.backward is not None:
            lines += ["", "the loop backwards:", "", self.backward.source]
        return "\n".join(lines)


def planned(step: Step, name: str, engine: Any, groups: Sequence[Sequence[Tensor]], steps: int) -> Plan:
    """The plan for a recorded step whose inputs, state and constants are ``groups``."""
    asked = tuple([tuple([tensor.requires_grad for tensor in group]) for group in groups])
    compiled = Compiled(step, engine, asked)
    called = _Names()
    forward = _direction(compiled.forward, called)
    saved = {called(value): value.bytes for value in compiled.saved}
    backward = next(iter(compiled.programs), None)
    return Plan(name, forward, None if backward is None else _direction(backward, called), saved, steps)


class _Names:
    """What values are called: as the cell does, or by operation and shape, with a number from the second such on."""

    def __init__(self) -> None:
        self.known: dict[Value, str] = {}
        self.used: Counter[str] = Counter()

    def __call__(self, value: Value) -> str:
        if value not in self.known:
            name = value.name or (value.op.rule.name if value.op else "given")
            shape = "" if value.name else "".join([f"×{n}" for n in value.shape])
            self.used[name + shape] += 1
            count = self.used[name + shape]
            self.known[value] = name + (f"#{count}" if count > 1 else "") + shape
        return self.known[value]


def _direction(program: Program, called: _Names) -> Direction:
    split = program.split
    before, after = [op for op, _ in split.before], [op for op, _ in split.after]
    placed = {*split.same, *before, *split.loop, *after}
    summed = [op for op in split.step.pruned() if op not in placed]
    return Direction(
        _lines(split.same, called),
        _lines(before, called),
        _lines(split.loop, called),
        _lines(after, called),
        _lines(summed, called),
        (_flops(split.loop), _flops([*before, *after, *summed])),
        program.loop.source,
    )


def _flops(ops: Iterable[Op]) -> int:
    return sum(2 * prod(op.results[0].shape) * op.operands[0].shape[-1] for op in ops if op.rule.name == "matmul")


def _lines(ops: Iterable[Op], called: _Names) -> list[str]:
    lines = []
    for op in ops:
        operands = ", ".join([called(o) if type(o) is Value else repr(o) for o in op.operands])
        text = f"{', '.join([called(result) for result in op.results])} = {op.rule.name}({operands})"
        lines.append(f"{text:<60}  # {said}" if (said := where(op)) else text)
    return lines


def where(op: Op) -> str:
    """The line of the cell that an operation stands in."""
    if op.place is None:
        return ""
    file, line = op.place
    return f"{basename(file)}:{line}: {linecache.getline(file, line).strip()}"
