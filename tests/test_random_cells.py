"""`scan` with cells that nobody would write: random programs, held against each row alone in a plain loop.

The loop runs twice: on tensors, for every value and gradient; and on complex arrays of NumPy, whose imaginary part,
begun as a tiny step along a random direction, ends as the derivative along it without any tape.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from helpers import on_backend
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinygrad_rnn as tg

TINY = 1e-30
NUMPY = SimpleNamespace(
    concatenate=np.concatenate,
    matmul=np.matmul,
    sigmoid=lambda x: 1 / (1 + np.exp(-x)),
    split=np.split,
    tanh=np.tanh,
    zeros=np.zeros,
)


@dataclass
class Program:
    """One step: what it makes of a list of values, which begins as the input and the parts of the state."""

    features: int
    sizes: list[int]  # of the parts of the state
    shapes: list[tuple[int, ...]]  # of the weights; the last parts begin the state if ``begins``
    lines: list[tuple[str, tuple[int, ...]]]
    outputs: list[int]
    following: list[int]
    begins: bool

    def __call__(self, F: Any, weights: Any, x: Any, state: Any) -> Any:
        values = [x, *state]
        for line, (a, *rest) in self.lines:
            b = rest[0] if rest else 0
            if line in ("tanh", "sigmoid"):
                values.append(getattr(F, line)(values[a]))
            elif line == "add":
                values.append(values[a] + values[b])
            elif line == "subtract":
                values.append(values[a] - values[b])
            elif line == "multiply":
                values.append(values[a] * values[b])
            elif line == "concatenate":
                values.append(F.concatenate([values[a], values[b]], axis=-1))
            elif line == "split":
                values.extend(F.split(values[a], [b], axis=-1))
            elif line == "bias":
                values.append(values[a] + weights[b])
            elif line == "gain":
                values.append(values[a] * weights[b])
            elif line == "constant":
                values.append(F.zeros((x.shape[0], weights[b].shape[0]), np.float64) + weights[b])
            elif line == "matmul":
                values.append(F.matmul(values[a], weights[b]))
            elif line == "transposed":
                values.append(F.matmul(values[a], weights[b].T))
            else:
                assert line == "squashed"
                values.append(F.matmul(values[a], F.tanh(weights[b])))
        return [values[i] for i in self.outputs], [values[i] for i in self.following]

    def fresh(self, F: Any, weights: Any, batch: int) -> Any:
        """A learned state."""
        begin = weights[len(weights) - len(self.sizes) :]
        return [F.zeros((batch, n), np.float64) + w for n, w in zip(self.sizes, begin, strict=True)]


@st.composite
def programs(draw: Any) -> Program:
    small = st.integers(1, 3)
    features, sizes = draw(small), draw(st.lists(small, min_size=1, max_size=2))
    widths = [features, *sizes]
    tame = {0}  # values that stay between -1 and 1; one factor of a product is, or powers would pile up over the steps
    shapes: list[tuple[int, ...]] = []
    lines: list[tuple[str, tuple[int, ...]]] = []

    def weight(*shape: int) -> int:
        """A new weight, or one that is in use: then it is tied."""
        known = [i for i, other in enumerate(shapes) if other == shape]
        chosen: int = draw(st.sampled_from([*known, len(shapes)]))
        if chosen == len(shapes):
            shapes.append(shape)
        return chosen

    def add(line: str, places: tuple[int, ...], *made: int, is_tame: bool = False) -> None:
        lines.append((line, places))
        for width in made:
            if is_tame:
                tame.add(len(widths))
            widths.append(width)

    names = ["tanh", "sigmoid", "add", "subtract", "multiply", "concatenate", "split", "bias", "gain", "constant"]
    products = ["matmul", "transposed", "squashed"]
    for line in draw(st.lists(st.sampled_from([*names, *products, *products]), min_size=3, max_size=9)):
        a = draw(st.integers(0, len(widths) - 1))
        width = widths[a]
        alike = [i for i, other in enumerate(widths) if other == width]
        if line in ("add", "subtract"):
            add(line, (a, draw(st.sampled_from(alike))), width)
        elif line == "multiply" and (factors := [i for i in alike if i in tame]):
            add(line, (a, draw(st.sampled_from(factors))), width, is_tame=a in tame)
        elif line == "concatenate":
            b = draw(st.integers(0, len(widths) - 1))
            add(line, (a, b), width + widths[b], is_tame={a, b} <= tame)
        elif line == "split" and width > 1:
            cut = draw(st.integers(1, width - 1))
            add(line, (a, cut), cut, width - cut, is_tame=a in tame)
        elif line in ("bias", "gain"):
            add(line, (a, weight(width)), width)
        elif line == "constant":
            n = draw(small)
            add(line, (a, weight(n)), n)
        elif line in ("matmul", "squashed"):
            n = draw(small)
            add(line, (a, weight(width, n)), n)
        elif line == "transposed":
            turned = [i for i, shape in enumerate(shapes) if len(shape) == 2 and shape[1] == width]
            chosen = draw(st.sampled_from(turned)) if turned else weight(draw(small), width)
            add(line, (a, chosen), shapes[chosen][0])
        else:
            add("sigmoid" if line == "sigmoid" else "tanh", (a,), width, is_tame=True)
    # The latest values first in line, so that programs are seldom dead code; x and the old state are among them.
    everything = list(range(len(widths)))[::-1]
    outputs = draw(st.lists(st.sampled_from(everything), min_size=1, max_size=2))
    following = [draw(st.sampled_from([i for i in everything if widths[i] == n])) for n in sizes]
    shapes.append((2, 2))  # never used
    begins = draw(st.booleans())
    shapes += [(n,) for n in sizes] if begins else []
    return Program(features, sizes, shapes, lines, outputs, following, begins)


@dataclass
class Run:
    """A sequence for a program: how long each row is, where it begins anew, and the numbers."""

    lengths: list[int] | None
    marks: Any
    reverse: bool
    weights: list[Any]
    xs: Any
    start: list[Any]
    random: np.random.Generator


@st.composite
def runs(draw: Any, program: Program) -> Run:
    # What Hypothesis takes for the simplest comes first and often, so it should be of use.
    steps, batch = draw(st.sampled_from([3, 6, 5, 4, 2, 1])), draw(st.sampled_from([2, 3, 1]))
    lengths = marks = None
    if not draw(st.booleans()):
        lengths = [draw(st.sampled_from([steps, *range(steps)])) for _ in range(batch)]
    if not draw(st.booleans()):
        marks = np.array([draw(st.booleans()) for _ in range(steps * batch)]).reshape(steps, batch)
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = [random.uniform(-1, 1, shape) for shape in program.shapes]
    xs = random.uniform(-1, 1, (steps, batch, program.features))
    for row, n in enumerate(lengths or ()):
        xs[n:, row] = np.nan
    start = [random.uniform(-1, 1, (batch, n)) for n in program.sizes]
    return Run(lengths, marks, draw(st.booleans()), weights, xs, start, random)


def scanned(program: Program, run: Run, weights: Any, xs: Any, start: Any) -> Any:
    def cell(x: Any, state: Any) -> Any:
        return program(tg, weights, x, state)

    if program.begins:
        cell.init_state = lambda batch: program.fresh(tg, weights, batch)  # type: ignore[attr-defined]
    return tg.scan(cell, xs, start, run.reverse, run.lengths, run.marks)


def plain(F: Any, program: Program, run: Run, weights: Any, xs: Any, start: Any) -> tuple[dict[Any, Any], list[Any]]:
    """The definition: outputs by step and row, and last states by row."""
    steps, batch = run.xs.shape[:2]
    ys, last = {}, []
    for row in range(batch):
        n = steps if run.lengths is None else run.lengths[row]
        begin = [part[row : row + 1] for part in start]
        state = begin
        for t in reversed(range(n)) if run.reverse else range(n):
            # The mark stands between a step and the one before it in time, whichever way we go.
            mark = t + 1 if run.reverse else t
            if run.marks is not None and mark < n and run.marks[mark, row]:
                state = program.fresh(F, weights, 1) if program.begins else begin
            ys[t, row], state = program(F, weights, xs[t, row : row + 1], state)
        last.append(state)
    return ys, last


def factors(program: Program, run: Run, outputs: Any) -> tuple[list[Any], list[Any]]:
    """The weights with which outputs and states enter the loss."""
    steps, batch = run.xs.shape[:2]
    random = np.random.default_rng(0)
    on_ys = [random.uniform(-1, 1, (steps, batch, width)) for width in outputs]
    return on_ys, [random.uniform(-1, 1, (batch, n)) for n in program.sizes]


def plain_loss(ys: Any, last: Any, on_ys: Any, on_state: Any, as_array: Any) -> Any:
    total = 0.0
    for (t, row), parts in ys.items():
        for part, factor in zip(parts, on_ys, strict=True):
            total = total + (part * as_array(factor[t, row : row + 1])).sum()
    for row, parts in enumerate(last):
        for part, factor in zip(parts, on_state, strict=True):
            total = total + (part * as_array(factor[row : row + 1])).sum()
    return total


def required(values: Any) -> Any:
    tensor = on_backend(values)
    tensor.requires_grad = True
    return tensor


def gradients(loss: Any, leaves: Any) -> list[Any]:
    found = tg.grad(loss, leaves, allow_unused=True)
    return [np.zeros(leaf.shape) if g is None else g.numpy() for leaf, g in zip(leaves, found, strict=True)]


@given(st.data())
@settings(max_examples=200)
def test_scan_is_each_row_alone(backend, engine, data):
    program = data.draw(programs())
    run = data.draw(runs(program))
    weights, xs, start = [required(w) for w in run.weights], required(run.xs), [required(s) for s in run.start]
    leaves = [*weights, xs, *start]
    ys, state = scanned(program, run, weights, xs, start)
    on_ys, on_state = factors(program, run, [y.shape[-1] for y in ys])
    loss = sum((a * on_backend(b)).sum() for a, b in zip([*ys, *state], [*on_ys, *on_state], strict=True))
    found = gradients(loss, leaves)

    plain_ys, plain_last = plain(tg, program, run, weights, xs, start)
    expected_loss = plain_loss(plain_ys, plain_last, on_ys, on_state, on_backend)
    expected = gradients(expected_loss, leaves)
    values = [y.numpy() for y in ys]
    expected_values = [np.zeros_like(value) for value in values]
    for (t, row), parts in plain_ys.items():
        for whole, part in zip(expected_values, parts, strict=True):
            whole[t, row] = part.numpy()[0]
    scale = max(1.0, *(np.abs(array).max(initial=0) for array in [*expected, *expected_values]))
    tolerance = 1e-10 * scale
    for ours, theirs in zip(values, expected_values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    for i, part in enumerate(state):
        theirs = np.concatenate([row[i].numpy() for row in plain_last])
        np.testing.assert_allclose(part.numpy(), theirs, rtol=0, atol=tolerance)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)

    arrays = [*run.weights, run.xs, *run.start]
    directions = [run.random.uniform(-1, 1, array.shape) for array in arrays]
    moved = [array + 1j * TINY * direction for array, direction in zip(arrays, directions, strict=True)]
    count = len(weights)
    complex_ys, complex_last = plain(NUMPY, program, run, moved[:count], moved[count], moved[count + 1 :])
    complex_loss = plain_loss(complex_ys, complex_last, on_ys, on_state, np.asarray)
    along = sum((g * direction).sum() for g, direction in zip(found, directions, strict=True))
    np.testing.assert_allclose(loss.numpy(), np.real(complex_loss), rtol=0, atol=tolerance * 10)
    np.testing.assert_allclose(along, np.imag(complex_loss) / TINY, rtol=0, atol=tolerance * 10)


@given(st.data())
@settings(max_examples=60)
def test_a_sequence_in_two_scans(backend, engine, data):
    """One after the other, with the state handed on: the same values, and the same gradients by tied weights."""
    program = data.draw(programs())
    run = data.draw(runs(program))
    run.marks = None
    steps, batch = run.xs.shape[:2]
    assume(steps > 1)
    cut = data.draw(st.integers(1, steps - 1))
    weights, xs, start = [required(w) for w in run.weights], required(run.xs), [required(s) for s in run.start]
    leaves = [*weights, xs, *start]
    ys, state = scanned(program, run, weights, xs, start)
    lengths = np.full(batch, steps) if run.lengths is None else np.array(run.lengths)
    pieces: list[Any] = [(slice(0, cut), lengths.clip(max=cut)), (slice(cut, steps), (lengths - cut).clip(min=0))]
    between, halves = start, []
    for piece, own_lengths in pieces[::-1] if run.reverse else pieces:
        run.lengths = own_lengths
        half, between = scanned(program, run, weights, xs[piece], between)
        halves.append(half)
    joined = [tg.concatenate(parts) for parts in zip(*halves[:: -1 if run.reverse else 1], strict=True)]
    on_ys, on_state = factors(program, run, [y.shape[-1] for y in ys])

    def loss(results: Any) -> Any:
        return sum((a * on_backend(b)).sum() for a, b in zip(results, [*on_ys, *on_state], strict=True))

    once, twice = gradients(loss([*ys, *state]), leaves), gradients(loss([*joined, *between]), leaves)
    once += [value.numpy() for value in [*ys, *state]]
    twice += [value.numpy() for value in [*joined, *between]]
    scale = max(1.0, *(np.abs(array).max(initial=0) for array in once))
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * scale)
