"""Random recurrent cells, run by an engine of `scan` and held against the plain loop.

A program is drawn as plain data (step_drawing.py) and becomes the text of a complete Python program
(step_program.py). That very text is what runs, so a failure can be printed, kept and run again.

``python tests/random_steps.py --engine array --cells 20000 --seed 0`` searches for long.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from step_drawing import drawn
from step_program import Leaf, Program, Value, leaves_of, text_of

from tinygrad_rnn.nest import leaves

Move = Callable[[int, Any], Any]  # of a seed and the values that it gives, those to put in their place
FILE = "<random step>"
EPS = 1e-5


@dataclass
class Outcome:
    """What came of a program."""

    kind: Literal["same", "refused", "trembles", "differs", "raises"]
    message: str = ""
    where: str = ""  # our line that raised

    @property
    def failed(self) -> bool:
        return self.kind in ("differs", "raises")


class Runner:
    """The text of a program, compiled."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.small = 1e-4 if program.loose else 1e-9
        text = text_of(program, "array")
        self.code = compile(text[: text.index("\n\nassert")], FILE, "exec")

    def run(self, engine: str, move: Move | None = None) -> dict[str, Any]:
        """All values and gradients by their names, by an engine."""
        names: dict[str, Any] = {}
        exec(self.code, names)
        if move is not None:
            draw = names["values_of"]
            names["values_of"] = lambda seed, shape: move(seed, draw(seed, shape))
        found: dict[str, Any] = names["results"](engine)
        return found

    def run_counting(self, engine: str) -> tuple[dict[str, Any], int]:
        """The same, and how often the cell was called."""
        calls = 0

        def heard(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            if event == "call" and frame.f_code.co_name == "cell" and frame.f_code.co_filename == FILE:
                calls += 1

        before = sys.getprofile()
        sys.setprofile(heard)
        try:
            found = self.run(engine)
        finally:
            sys.setprofile(before)
        return found, calls

    def difference(self, expected: dict[str, Any], found: dict[str, Any]) -> str | None:
        names: dict[str, Any] = {}
        exec(self.code, names)
        message: str | None = names["difference"](expected, found, self.small)
        return message

    def trembles(self, expected: dict[str, Any], found: dict[str, Any]) -> bool:
        """Whether rounding of the inputs moves the plain loop's numbers about as far as ``found`` is from them."""
        size = 1e-7 if self.program.loose else 2e-16
        moved = dict.fromkeys(expected, 0.0)
        for trial in range(4):

            def move(seed: int, values: Any, trial: int = trial) -> Any:
                return values * (1 + size * np.random.default_rng((trial, seed)).choice([-1, 1], values.shape))

            for name, values in self.run("unrolled", move).items():
                change = np.abs(values.astype(float) - expected[name]).max(initial=0)
                moved[name] = max(moved[name], float(change))
        scale = max(np.abs(a).max(initial=0) for a in expected.values())
        return all(
            np.abs(a.astype(float) - found[name]).max(initial=0)
            <= 1000 * moved[name] + self.small * (np.abs(a).max(initial=0) + 1e-4 * scale)
            for name, a in expected.items()
        )


def outcome(program: Program, engine: str) -> Outcome:
    """Run a program by an engine and by the plain loop.

    An engine may refuse a cell, saying why; one that calls the cell at every step has refused it without a word. A
    program is set aside as one that trembles if mere rounding moves its results as far as the engine did.
    """
    runner = Runner(program)
    expected = runner.run("unrolled")
    try:
        found, calls = runner.run_counting(engine)
    except Exception as error:
        said = re.sub(" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
        if isinstance(error, TypeError) and "cannot run this cell" in said:
            return Outcome("refused", said)
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if "tinygrad_rnn" in Path(frame.filename).parts or frame is frames[0]][-1]
        return Outcome("raises", said, f"{Path(last.filename).name}:{last.lineno}")
    if (message := runner.difference(expected, found)) is not None:
        same = all(a.shape == found[name].shape for name, a in expected.items())
        trembles = same and runner.trembles(expected, found)
        return Outcome("trembles" if trembles else "differs", message)
    scans = [n for n in (max(program.lengths or (program.steps,)), program.again) if n]
    if scans and min(scans) > 2 and calls >= sum(scans):
        return Outcome("refused", "without a word")
    return Outcome("same")


def slope_error(program: Program) -> float | None:
    """How far the plain loop's gradient is from differences along a random direction, relative to the loss's size.

    None if it need not agree: because the cell changes gradients on purpose, or there is a kink nearby.
    """
    altered = r"_gradient|detach|no_grad|float32|padding_idx"
    if program.order != 1 or any(line.untracked or re.search(altered, line.template) for line in program.lines):
        return None
    runner = Runner(program)
    seeds = {seed: name for name, _, seed, _ in leaves_of(program) if name in program.wanted}
    directions = {}

    def loss(distance: float) -> Any:
        def move(seed: int, values: Any) -> Any:
            if seed not in seeds:
                return values
            directions[seeds[seed]] = np.random.default_rng((1, seed)).uniform(-1, 1, values.shape)
            return values + distance * directions[seeds[seed]]

        return runner.run("unrolled", move)["loss"]

    near, far = [(loss(d) - loss(-d)) / (2 * d) for d in (EPS, 2 * EPS)]
    found = runner.run("unrolled")
    ours = sum((found[f"d {name}"] * d).sum() for name, d in directions.items() if f"d {name}" in found)
    size = max(abs(near), abs(found["loss"]), 1.0)
    return None if abs(near - far) > 1e-5 * size else float(abs(ours - (4 * near - far) / 3) / size)


# Making a failing program small.


def _renamed(nest: Any, names: dict[str, str]) -> Any:
    if isinstance(nest, dict):
        return {key: _renamed(part, names) for key, part in nest.items()}
    if isinstance(nest, (tuple, list)):
        return type(nest)(_renamed(part, names) for part in nest)
    return names.get(nest, nest)


def _without(program: Program, place: int) -> Iterator[Program]:
    """The program without one line: other values of the same shapes take the place of its results."""
    line = program.lines[place]
    earlier = [leaf.value for leaf in (*program.weights, *program.states, *program.inputs)]
    earlier += [value for other in program.lines[:place] for value in other.results]
    rest = program.lines[:place] + program.lines[place + 1 :]
    for last in (True, False):  # the latest value that fits: often the operand; else a new weight
        names, added = {}, list(program.weights)
        for i, gone in enumerate(line.results):
            alike = [v for v in earlier if (v.shape, v.kind, v.classes) == (gone.shape, gone.kind, gone.classes)]
            if alike and last:
                names[gone.name] = alike[-1].name
            elif gone.kind == "i" and not gone.classes:
                break
            else:
                fill = Value(f"fill{place}_{i}", gone.shape, 1.0, gone.kind, gone.classes)
                added.append(Leaf(fill, 100_000 + 10 * place + i, False))
                names[gone.name] = fill.name
        else:
            yield replace(
                program,
                weights=tuple(added),
                lines=tuple(replace(other, operands=_renamed(other.operands, names)) for other in rest),
                outputs=_renamed(program.outputs, names),
                following={h: names.get(name, name) for h, name in program.following.items()},
                exposed=tuple(name for name in program.exposed if name not in names),
            )


def _with_fewer_parts(program: Program) -> Iterator[Program]:
    """Without a part of the state or of the input that nothing uses, and these in plain tuples."""
    p = program
    state, xs = (tuple(leaf.value.name for leaf in group) for group in (p.states, p.inputs))
    if (p.state, p.xs) != (state, xs):
        yield replace(p, state=state, xs=xs)
        return
    used = {name for line in p.lines for name in line.operands} | {name for _, name in leaves(p.outputs)}
    for gone in (*state, *xs):
        elsewhere = used | {name for h, name in p.following.items() if h != gone}
        if gone not in elsewhere and (state if gone in state else xs) != (gone,):
            yield replace(
                p,
                states=tuple(leaf for leaf in p.states if leaf.value.name != gone),
                inputs=tuple(leaf for leaf in p.inputs if leaf.value.name != gone),
                state=tuple(name for name in state if name != gone),
                xs=tuple(name for name in xs if name != gone),
                following={h: name for h, name in p.following.items() if h != gone},
                fresh=None if p.fresh is None else {h: w for h, w in p.fresh.items() if h != gone},
                wanted=tuple(name for name in p.wanted if not name.endswith("_" + gone)),
            )


def smaller(program: Program) -> Iterator[Program]:
    """Programs that are a little simpler."""
    p = program
    for place in reversed(range(len(p.lines))):
        yield from _without(p, place)
    used = {name for line in p.lines for name in line.operands} | {name for _, name in leaves(p.outputs)}
    used |= set(p.following.values()) | set((p.fresh or {}).values())
    kept = tuple(leaf for leaf in p.weights if leaf.value.name in used)
    names = {leaf.value.name for leaf in p.weights} - {leaf.value.name for leaf in kept}
    if names:
        yield replace(p, weights=kept, wanted=tuple(name for name in p.wanted if name not in names))
    yield from _with_fewer_parts(p)
    if p.steps > 1:
        shorter = None if p.lengths is None else tuple(min(n, p.steps - 1) for n in p.lengths)
        yield replace(p, steps=p.steps - 1, lengths=shorter, reset=p.reset and p.reset[:-1])
    if p.batch > 1:
        reset = p.reset and tuple(row[:-1] for row in p.reset)
        yield replace(p, batch=p.batch - 1, lengths=p.lengths and p.lengths[:-1], reset=reset)
    if p.fresh is not None and not p.reset:
        yield replace(p, fresh=None)
    plainer: dict[str, Any] = {"lengths": None, "reset": None, "again": 0, "reverse": False, "order": 1, "exposed": ()}
    for name, value in plainer.items():
        if getattr(p, name) != value:
            yield replace(p, **{name: value})
    for i in range(9):
        if i not in p.unused:
            yield replace(p, unused=(*p.unused, i))
    for name in p.wanted:
        yield replace(p, wanted=tuple(other for other in p.wanted if other != name))
    for line in p.lines:
        if line.untracked:
            yield replace(p, lines=tuple(replace(o, untracked=o is not line and o.untracked) for o in p.lines))
    for _, name in leaves(p.outputs):
        if p.outputs != name:
            yield replace(p, outputs=name)


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A small program that still fails: greedily, until nothing can be left out."""
    going = True
    while going:
        going = False
        for candidate in smaller(program):
            if _holds(candidate, fails):
                program, going = candidate, True
                break
    return program


def _holds(program: Program, fails: Callable[[Program], bool]) -> bool:
    try:
        return fails(program)
    except Exception:  # the plain loop refuses it: what was left out is needed
        return False


def fails_alike(engine: str, like: Outcome) -> Callable[[Program], bool]:
    """Whether a program fails by ``engine`` as another did."""

    def fails(program: Program) -> bool:
        result = outcome(program, engine)
        return (result.kind, result.where) == (like.kind, like.where)

    return fails


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="array", choices=("unrolled", "array", "numba"))
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="cell i has the seed SEED + i")
    parser.add_argument("--show", type=int, default=10, help="how many failures to shrink and print")
    arguments = parser.parse_args()

    from tqdm import tqdm

    warnings.simplefilter("error")  # the plain loop is to run without
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    shown: set[str] = set()
    bar = tqdm(range(arguments.seed, arguments.seed + arguments.cells), unit="cell")
    for seed in bar:
        program = drawn(Random(seed))
        result = outcome(program, arguments.engine)
        counts[result.kind] += 1
        if result.kind in ("refused", "raises"):
            reasons[f"{result.kind} {result.where} {result.message[:200]}"] += 1
        place = result.where or str(seed)  # what raises at one line is shown once
        if result.failed and place not in shown and len(shown) < arguments.show:
            shown.add(place)
            small = shrunk(program, fails_alike(arguments.engine, result))
            again = outcome(small, arguments.engine).message or f"not when run again; at first {result.message}"
            bar.write(f"# {seed} {result.kind} {result.where}: {again}")
            bar.write(text_of(small, arguments.engine))
        bar.set_postfix(counts, refresh=False)
    print(dict(counts))
    for reason, count in reasons.most_common(20):
        print(f"{count:6} {reason}")
    if counts["differs"] + counts["raises"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
