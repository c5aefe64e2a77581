"""A random recurrent cell as plain data, and as the text of a complete program; see random_steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinygrad_rnn.nest import leaves, map_nest

Shape = tuple[Any, ...]  # of ints, and "B" for the rows, which no feature axis is mistaken for


@dataclass(frozen=True)
class Value:
    """What a name in a cell stands for."""

    name: str
    shape: Shape
    bound: float = 1.0  # of the absolute value
    kind: str = "f"
    classes: int = 0  # of ints: from 0 up to, without, this; 0 if they may be any


@dataclass(frozen=True)
class Leaf:
    """A weight, an input or a part of the first state: numbers from a seed."""

    value: Value
    seed: int
    needs: bool  # a gradient


@dataclass(frozen=True)
class Line:
    """One statement of a cell, with places for the names of its operands."""

    template: str
    operands: tuple[str, ...]
    results: tuple[Value, ...]
    untracked: bool = False  # under no_grad


@dataclass(frozen=True)
class Program:
    """A cell, and how it is run. ``xs``, ``state`` and ``outputs`` are nests of names."""

    steps: int
    batch: int
    weights: tuple[Leaf, ...]
    inputs: tuple[Leaf, ...]
    states: tuple[Leaf, ...]
    lines: tuple[Line, ...]
    xs: Any
    state: Any
    outputs: Any
    following: dict[str, str]  # what each part of the state becomes
    exposed: tuple[str, ...]
    again: int  # steps of a second scan with the same cell; 0: there is none
    reverse: bool
    lengths: tuple[int, ...] | None
    reset: tuple[tuple[bool, ...], ...] | None
    fresh: dict[str, str] | None  # the weight from which init_state makes each part of the state; then it begins there
    unused: tuple[int, ...]  # places of results that the loss leaves out
    wanted: tuple[str, ...]  # the leaves whose gradients are asked for
    order: int  # 0: all under no_grad; 1: a gradient; 2: that of its product with a direction too; 3: backward twice
    loose: bool  # float32 in between


HEAD = '''
from functools import partial

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn.nest import leaves


def values_of(seed, shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def leaf(seed, shape, needs, classes=0, lengths=()):
    values = np.random.default_rng(seed).integers(classes, size=shape) if classes else values_of(seed, shape)
    for row, n in enumerate(lengths):
        values[n:, row] = 0 if classes else np.nan  # what no cell is to see
    return tg.Tensor(tg.get_backend().asarray(values), requires_grad=needs)


def along(tensors, seeds):
    """The sum of what a fixed random direction makes of each."""
    array = tg.get_backend().asarray
    return sum((t * array(values_of(s, t.shape))).sum() for t, s in zip(tensors, seeds) if t is not None)


def derivatives(found, unused, wanted, order):
    """Values of all results, and the gradients of a loss of those that are in use."""
    values = {name: tensor.numpy() for name, tensor in found.items()}
    parts = [t for i, t in enumerate(found.values()) if t.dtype.kind == "f" and i not in unused]
    loss = along(parts, range(len(parts))) + sum(0.5 * tg.square(t).sum() for t in parts)
    values["loss"] = loss.numpy() if parts else np.zeros(())
    titles = [[], ["d"], ["d", "dd"], ["d", "again d"]][order]
    values |= {f"{title} {name}": np.zeros(tensor.shape) for title in titles for name, tensor in wanted.items()}

    def keep(title, slopes):
        values.update({f"{title} {name}": g.numpy() for name, g in zip(wanted, slopes) if g is not None})

    if titles and wanted and parts and loss.requires_grad:
        sources = list(wanted.values())
        slopes = tg.grad(loss, sources, None, order == 2, True, retain_graph=order > 1)
        keep("d", slopes)
        if order == 3:
            keep("again d", tg.grad(loss, sources, allow_unused=True))
        slope = along(slopes, range(100, 200)) if order == 2 else 0
        if isinstance(slope, tg.Tensor) and slope.requires_grad:
            keep("dd", tg.grad(slope, sources, allow_unused=True))
    return values
'''

TAIL = """

def difference(expected, found, small):
    scale = max(np.abs(a).max(initial=0) for a in expected.values())
    for name, a in expected.items():
        shape, dtype = found[name].shape, found[name].dtype
        if (shape, dtype) != (a.shape, a.dtype):
            return f"{name} is {dtype} of shape {shape}, expected {a.dtype} of {a.shape}"
        error = np.abs(a.astype(float) - found[name]).max(initial=0)
        if not error <= small * np.abs(a).max(initial=0) + 1e-4 * small * scale:
            return f"{name} differs by {error:.3g}: {found[name].tolist()}, expected {a.tolist()}"
"""


class _Name(str):
    __slots__ = ()
    __repr__ = str.__str__


def _nest(nest: Any, prefix: str = "") -> str:
    return repr(map_nest(lambda name: _Name(prefix + name), nest))


def leaves_of(program: Program) -> list[tuple[str, Leaf, int, Shape]]:
    """All leaves, by the names that they have outside the cell, with their seeds and whole shapes."""
    p = program
    groups: list[tuple[str, tuple[Leaf, ...], Shape]] = [("", p.weights, ()), ("xs_", p.inputs, (p.steps,))]
    groups += [("start_", p.states, ())] * (p.fresh is None)
    groups += [("more_", p.inputs, (p.again,))] * (p.again > 0)
    found = []
    for prefix, group, steps in groups:
        for leaf in group:
            shape = (*steps, *[p.batch if n == "B" else n for n in leaf.value.shape])
            found.append((prefix + leaf.value.name, leaf, leaf.seed + (prefix == "more_"), shape))
    return found


def text_of(program: Program, engine: str) -> str:
    """A complete Python program that fails where ``engine`` differs from the plain loop."""
    p = program
    body: list[str] = []
    for name, leaf, seed, shape in leaves_of(p):
        extra = ""
        if p.lengths and name.startswith("xs_"):
            extra = f", {leaf.value.classes}, {list(p.lengths)}"
        elif leaf.value.classes:
            extra = f", {leaf.value.classes}"
        body.append(f"{name} = leaf({seed}, {shape}, {leaf.needs}{extra})")
    once = any("kept" in line.template for line in p.lines)  # a mask that is drawn once a sequence
    body += ["masks = tg.Generator(7)", "", f"def cell(x, state{', kept=None' * once}):"]
    body += [f"    {name} = {path}" for path, name in [*leaves(p.xs, "x"), *leaves(p.state, "state")]]
    for line in p.lines:
        names = ", ".join(v.name for v in line.results) + ("," if line.template.startswith("tg.split") else "")
        statement = (f"{names} = " if names else "") + line.template.format(*line.operands)
        body += ["    with tg.no_grad():", f"        {statement}"] if line.untracked else [f"    {statement}"]
    body += [f"    tg.expose({name}={name})" for name in p.exposed]
    body += [f"    return {_nest(p.outputs)}, {_nest(map_nest(p.following.__getitem__, p.state))}", ""]
    if once:
        mask = "masks.keep_mask(0.7, like=tg.zeros((batch, 1), np.float64))"
        body.append(f"cell.for_sequence = lambda batch: partial(cell, kept={mask})")
    call = "".join([", reverse=True"] * p.reverse)
    call += f", expose={list(p.exposed)}" if p.exposed else ""
    options = f", lengths={list(p.lengths)}" if p.lengths else ""
    options += f", reset={[list(row) for row in p.reset]}" if p.reset else ""
    if p.fresh is not None:
        parts = {}
        for leaf in p.states:
            lengths = "".join("batch, " if n == "B" else f"{n}, " for n in leaf.value.shape)
            zeros = f"tg.zeros(({lengths}), np.{'int64' if leaf.value.kind == 'i' else 'float64'})"
            weight = p.fresh.get(leaf.value.name)
            parts[leaf.value.name] = zeros if weight is None else f"{zeros} + {weight}"
        body.append(f"cell.init_state = lambda batch: {_nest(map_nest(parts.__getitem__, p.state))}")
    start = _nest(p.state, "start_") if p.fresh is None else "None"
    ends = "ys, last, shown" if p.exposed else "ys, last"
    body.append(f"{ends} = tg.scan(cell, {_nest(p.xs, 'xs_')}, {start}{call}{options}, engine=engine)")
    results = f'"ys": ys, "last": last{", " + chr(34) + "shown" + chr(34) + ": shown" if p.exposed else ""}'
    if p.again:
        more = ends.replace("ys", "ys_again").replace("shown", "shown_again").replace("last", "last_again")
        body.append(f"{more} = tg.scan(cell, {_nest(p.xs, 'more_')}, last{call}, engine=engine)")
        results += ', "ys_again": ys_again, "last_again": last_again'
    body.append(f"found = dict(leaves({{{results}}}))")
    wanted = ", ".join(f'"{name}": {name}' for name in p.wanted)
    body.append(f"return derivatives(found, {p.unused}, {{{wanted}}}, {p.order})")
    if not p.order:
        body = ["with tg.no_grad():", *["    " + line for line in body]]
    run = "\n".join("    " + line if line else "" for line in body)
    small = 1e-4 if p.loose else 1e-9
    last = f'\n\nassert (message := difference(results("unrolled"), results("{engine}"), {small})) is None, message\n'
    return f"{HEAD.lstrip()}\n\ndef results(engine):\n{run}\n{TAIL}{last}"
