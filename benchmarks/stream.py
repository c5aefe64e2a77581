"""Microseconds a step of an LSTM for inputs that come one at a time: `compile_step` beside PyTorch, float32, one row.

Prints Markdown; ``--table FILE`` writes it too. All sides run in one process and one thread, in alternating blocks of a
warm-up call and many timed ones, after it was seen that they give the same outputs. PyTorch runs in
``torch.inference_mode``, its layer with a sequence of length 1 and the state handed on, its cell likewise. Needs the
extra ``peers``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from scan import publish, ratio, setting
from timing import alternated

import tinygrad_rnn as tg
from tinygrad_rnn.streaming import compile_step

Array: TypeAlias = np.ndarray[Any, Any]
Step: TypeAlias = Callable[[], Any]  # one step; returns the output, an array or a tensor of either side

SIZES = (32, 128)  # of input and state
PEERS = ("torch.nn.LSTM", "torch.nn.LSTMCell")
TOLERANCE = 1e-4


def ours(module: Any, x: Array, engine: str, passed: bool) -> Step:
    """A step by `compile_step`, the state inside or passed."""
    step = compile_step(module, x, engine=engine)
    if not passed:
        return lambda: step(x)
    state = step.state

    def run() -> tg.Tensor:
        nonlocal state
        y, state = step(x, state)
        return y  # type: ignore[no-any-return]

    return run


def eager(cell: Any, x: Array) -> Step:
    """A step by the cell itself."""
    given, state = tg.Tensor(x), cell.init_state(len(x))

    def run() -> tg.Tensor:
        nonlocal state
        with tg.no_grad():
            y, state = cell(given, state)
        return y  # type: ignore[no-any-return]

    return run


def theirs(layer: torch.nn.LSTM, x: Array) -> Step:
    given = torch.from_numpy(x)[None]
    state: Any = None

    def run() -> torch.Tensor:
        nonlocal state
        with torch.inference_mode():
            y, state = layer(given, state)
        return y[0]  # type: ignore[no-any-return]

    return run


def their_cell(cell: torch.nn.LSTMCell, x: Array) -> Step:
    given = torch.from_numpy(x)
    state: Any = None

    def run() -> torch.Tensor:
        nonlocal state
        with torch.inference_mode():
            state = cell(given, state)
        return state[0]  # type: ignore[no-any-return]

    return run


def sides(size: int) -> dict[str, Step]:
    """All sides, with the same weights and the same input at every step."""
    x = np.random.default_rng(0).standard_normal((1, size), np.float32)
    layer, cell = tg.nn.LSTM(size, size, generator=tg.Generator(0)), tg.nn.LSTMCell(size, size)
    weights = {name.removesuffix("_l0"): value.numpy() for name, value in layer.state_dict().items()}
    cell.load_state_dict(weights)
    peer, peer_cell = torch.nn.LSTM(size, size), torch.nn.LSTMCell(size, size)
    peer.load_state_dict({f"{name}_l0": torch.tensor(value) for name, value in weights.items()})
    peer_cell.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    made = {
        f"`nn.{type(module).__name__}`, {engine}, state {'passed' if passed else 'inside'}": ours(
            module, x, engine, passed
        )
        for engine in ("numba", "array")
        for module in (layer, cell)
        for passed in (False, True)
    }
    made["`nn.LSTMCell`, called itself under `no_grad`"] = eager(cell, x)
    return {**made, "torch.nn.LSTM": theirs(peer, x), "torch.nn.LSTMCell": their_cell(peer_cell, x)}


def compare(steps: dict[str, Step]) -> None:
    """Stop unless all sides give the same outputs for some steps."""
    for t in range(5):
        outputs = {name: np.asarray(step().numpy()) for name, step in steps.items()}
        for name, output in outputs.items():
            difference = np.abs(output - outputs[PEERS[0]]).max()
            if not difference <= TOLERANCE:  # so that NaN is refused
                raise SystemExit(f"{name}: step {t} is {difference:.1e} off {PEERS[0]}'s: nothing to compare")


def page(pairs: int, calls: int) -> Iterator[str]:
    yield "# One step of an LSTM\n"
    yield f"Made by `python benchmarks/stream.py` on {setting()}\n"
    yield (
        "Microseconds a step, batch 1, input and state of one size; medians of alternating blocks of "
        f"{calls:,} steps.\nAbove 1, the peer's time over ours says that we are faster.\n"
    )
    yield "| step | size | us | " + " | ".join([f"`{peer}`'s time over it" for peer in PEERS]) + " |"
    yield "|---|---|---|" + "---|" * len(PEERS)
    for size in SIZES:
        steps = sides(size)
        compare(steps)
        times = alternated(steps, pairs, calls)
        for name, found in times.items():
            ratios = " | ".join([f"{ratio(times[peer], found):.1f}" for peer in PEERS])
            yield f"| {f'`{name}`' if name in PEERS else name} | {size} | {median(found) * 1e3:.1f} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="alternations between the sides (default 15)")
    parser.add_argument("--calls", type=int, default=1000, help="steps a block (default 1000)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the Markdown to a file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tg.set_num_threads(1)
    publish(page(options.pairs, options.calls), options.table)


if __name__ == "__main__":
    main()
