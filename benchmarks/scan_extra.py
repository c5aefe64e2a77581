"""What else `scan` costs: cells of one's own over the plain ones, lengths and resets, the first call, and memory.

Prints Markdown; ``--table FILE`` writes it too. Times are taken as in `scan.py`. Cells, lengths and resets are first
compared with the unrolled loop. Each time to a first gradient and each peak of memory is that of a fresh process; the
peak is read from Linux's ``/proc``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from scan import TOLERANCE, Run, Sizes, compare, data, layer_sides, measure, ours, parser, publish, ratio, setting
from tqdm import tqdm

import tinygrad_rnn as tg

nn = tg.nn
CELLS: dict[str, Callable[[int, int, tg.Generator], nn.Module]] = {
    "LSTM": lambda i, h, g: nn.LSTMCell(i, h, generator=g),
    "peephole LSTM": lambda i, h, g: nn.PeepholeLSTMCell(i, h, generator=g),
    "LSTM, recurrent dropout": lambda i, h, g: nn.RecurrentDropout(nn.LSTMCell(i, h, generator=g), 0.5, g),
    "LSTM, zoneout": lambda i, h, g: nn.Zoneout(nn.LSTMCell(i, h, generator=g), 0.1, g),
    "LSTM, layer normalization": lambda i, h, g: nn.LayerNormLSTMCell(i, h, generator=g),
    "GRU": lambda i, h, g: nn.GRUCell(i, h, generator=g),
    "MGU": lambda i, h, g: nn.MGUCell(i, h, generator=g),
    "IndRNN": lambda i, h, g: nn.IndRNNCell(i, h, generator=g),
    "RNN, tanh": lambda i, h, g: nn.RNNCell(i, h, generator=g),
    "RNN, PReLU": lambda i, h, g: nn.RNNCell(i, h, nonlinearity=nn.PReLU(), generator=g),
}
VARIANTS = {
    "LSTM": ("peephole LSTM", "LSTM, recurrent dropout", "LSTM, zoneout", "LSTM, layer normalization"),
    "GRU": ("MGU", "IndRNN"),
    "RNN, tanh": ("RNN, PReLU",),
}
# Where float32 itself is further off: over 100 steps of this cell 3e-4 off float64 in the plain loop, 7e-4 by Numba.
LOOSE = {"LSTM, layer normalization": 3e-3}
LONG = 1000  # steps of the peaks of memory
COLD = (32, 32, 16)  # input, hidden and batch of the first gradients
COLD_STEPS = (15, 1500)
COLD_RUNS = 3
PARTS = ("tax", "lengths", "decayed", "accuracy", "cold", "memory")


def tax(sizes: Sequence[Sizes], engines: Sequence[str], pairs: int) -> Iterator[str]:
    """Each cell beside the plain one of its family."""
    yield "\n## Cells over the plain ones\n"
    yield "Milliseconds of forward and backward, and the median of paired ratios: 1 is no tax.\n"
    yield "| cell | input, hidden, batch, steps | engine | cell, ms | plain cell | plain, ms | cell over plain |"
    yield "|---|---|---|---|---|---|---|"
    for one, plain in tqdm([(one, plain) for one in sizes for plain in VARIANTS], disable=None):
        shape = ", ".join(map(str, one))
        sides: dict[tuple[str, str], Run] = {}
        for name in (plain, *VARIANTS[plain]):
            of_name = {engine: cell_run(name, one, engine) for engine in engines}
            loop = cell_run(name, one, "unrolled")
            compare(f"{name} ({shape})", {**of_name, "the loop": loop}, "the loop", LOOSE.get(name, TOLERANCE))
            sides |= {(engine, name): run for engine, run in of_name.items()}
        times = measure({" ".join(key): run for key, run in sides.items()}, pairs)
        for engine in engines:
            base = times[f"{engine} {plain}"]
            for name in VARIANTS[plain]:
                own = times[f"{engine} {name}"]
                yield (
                    f"| {name} | {shape} | {engine} | {median(own):.2f} | {plain} | {median(base):.2f} "
                    f"| {ratio(own, base):.2f} |"
                )


def cell_run(name: str, sizes: Sizes, engine: str) -> Run:
    """A layer of the cell; made anew each time, so that its first call draws what that of the others draws."""
    layer = nn.Recurrent(CELLS[name](sizes[0], sizes[1], tg.Generator(0)))
    return ours(lambda x: layer(x)[0], layer.parameters(), sizes, engine)


def ragged(sizes: Sequence[Sizes], engines: Sequence[str], pairs: int) -> Iterator[str]:
    """Lengths and resets over the plain run."""
    yield "\n## Lengths and resets\n"
    yield (
        "Lengths spread evenly from 1 to T, and resets at one in twenty places, each over the run without; so half\n"
        "of the steps of the run with lengths are padding.\n"
    )
    yield "| layer | input, hidden, batch, steps | engine | plain, ms | lengths over plain | resets over plain |"
    yield "|---|---|---|---|---|---|"
    for kind, one in tqdm([(kind, one) for kind in ("LSTM", "GRU") for one in sizes], disable=None):
        inputs, hidden, batch, steps = one
        shape = ", ".join(map(str, one))
        rng = np.random.default_rng(3)
        lengths = rng.permutation(np.linspace(1, steps, batch).astype(int))
        options = {"plain": {}, "lengths": {"lengths": lengths}, "resets": {"reset": rng.random((steps, batch)) < 0.05}}
        layer = getattr(nn, kind)(inputs, hidden, generator=tg.Generator(0))
        sides: dict[str, Run] = {}
        for what, given in options.items():

            def run(engine: str, given: dict[str, np.ndarray] = given) -> Run:
                return ours(lambda x: layer(x, **given)[0], layer.parameters(), one, engine)  # noqa: B023

            of_what = {engine: run(engine) for engine in engines}
            compare(f"{kind} ({shape}), {what}", {**of_what, "the loop": run("unrolled")}, "the loop")
            sides |= {f"{engine} {what}": timed for engine, timed in of_what.items()}
        times = measure(sides, pairs)
        for engine in engines:
            plain, *others = (times[f"{engine} {what}"] for what in options)
            over = " | ".join(f"{ratio(other, plain):.2f}" for other in others)
            yield f"| {kind} | {shape} | {engine} | {median(plain):.2f} | {over} |"


def accuracy(sizes: Sequence[Sizes], engines: Sequence[str]) -> Iterator[str]:
    """How far float32 is off float64, ours and PyTorch's."""
    yield "\n## How exact float32 is\n"
    yield (
        "The distance to the result in float64 over that result's norm, for the outputs and for the gradient that is\n"
        "furthest off, of the same layer with the same weights.\n"
    )
    yield "| layer | input, hidden, batch, steps | side | outputs | gradients |"
    yield "|---|---|---|---|---|"
    for kind, one in tqdm([(kind, one) for kind in ("LSTM", "GRU", "RNN") for one in sizes], disable=None):
        exact = getattr(nn, kind)(*one[:2], generator=tg.Generator(0)).to(dtype=np.float64)
        xs, cotangent = (array.astype(np.float64) for array in data(one))
        weights = [getattr(exact, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        with tg.use_engine("array"):
            ys, _ = exact(tg.Tensor(xs))
            right = [ys.numpy(), *[g.numpy() for g in tg.grad(tg.sum(ys * cotangent), weights)]]
        for side, run in layer_sides(kind, one, engines).items():
            off = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(run(), right, strict=True)]
            yield f"| {kind} | {', '.join(map(str, one))} | {side} | {off[0]:.1e} | {max(off[1:]):.1e} |"


def decayed(sizes: Sequence[Sizes], engines: Sequence[str], pairs: int) -> Iterator[str]:
    """A state too small for a normal float32 over one that is not."""
    yield "\n## A state that has decayed\n"
    yield (
        "Forward and backward from a state of about 1e-40, a denormal number, over the same from one of about 1. The\n"
        "cell turns its state, `h @ U` with an orthogonal U, so that it stays as large as it is.\n"
    )
    yield "| hidden, batch, steps | engine | from 1, ms | from 1e-40, ms | decayed over not |"
    yield "|---|---|---|---|---|"
    for _, hidden, batch, steps in tqdm(sizes, disable=None):
        weight = nn.init.orthogonal_(nn.Parameter(tg.zeros((hidden, hidden))), generator=tg.Generator(0))
        xs = tg.zeros((steps, batch, 1))
        whole = tg.Generator(1).normal((batch, hidden))
        sides: dict[str, Run] = {}
        for engine in (*engines, "unrolled"):
            for size in (1.0, 1e-40):
                sides[f"{engine} {size}"] = turning(engine, xs, whole * size, weight)
        times = measure(sides, pairs)
        for engine in (*engines, "unrolled"):
            plain, small = times[f"{engine} 1.0"], times[f"{engine} 1e-40"]
            yield (
                f"| {hidden}, {batch}, {steps} | {engine} | {median(plain):.2f} | {median(small):.2f} "
                f"| {ratio(small, plain):.2f} |"
            )


def turning(engine: str, xs: tg.Tensor, start: tg.Tensor, weight: nn.Parameter) -> Run:
    """Forward and backward of the cell that turns its state."""

    def cell(x: tg.Tensor, h: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        h = h @ weight + x
        return h, h

    def run() -> list[np.ndarray]:
        ys, _ = tg.scan(cell, xs, start, engine=engine)
        return [ys.numpy(), tg.grad(tg.sum(ys), weight).numpy()]

    return run


FIRST = """
import json, sys, time
engine, inputs, hidden, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
import tinygrad_rnn as tg
times = [time.perf_counter() - start]
layer = tg.nn.LSTM(inputs, hidden, generator=tg.Generator(0))
x = tg.Generator(1).normal((steps, batch, inputs))
for _ in range(2):
    start = time.perf_counter()
    with tg.use_engine(engine):
        layer(x)[0].sum().backward()
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def cold(engines: Sequence[str]) -> Iterator[str]:
    """What a process waits for before its first gradient."""
    inputs, hidden, batch = COLD
    yield "\n## To the first gradient\n"
    yield (
        f"`nn.LSTM` of input {inputs}, hidden {hidden}, batch {batch}, in a fresh process; milliseconds, medians of "
        f"{COLD_RUNS}.\nNothing is there: no cache folder, and nothing that Numba keeps of our helpers; or the folder "
        "alone is empty,\nas for a cell that is new; or it holds what such a process left there.\n"
    )
    yield "| engine | steps | cache | import | first gradient | second gradient |"
    yield "|---|---|---|---|---|---|"
    for engine, steps in tqdm([(engine, steps) for engine in engines for steps in COLD_STEPS], disable=None):
        with tempfile.TemporaryDirectory() as folder:
            # Each finds what those before it left.
            for cache in ("nothing", "empty", "warm"):
                runs = []
                for i in range(COLD_RUNS):
                    place = f"{folder}/{i}"
                    if cache == "empty":
                        shutil.rmtree(f"{place}/loops", ignore_errors=True)
                    runs.append(first_gradient(engine, steps, place))
                columns = " | ".join(f"{median(times) * 1e3:.0f}" for times in zip(*runs, strict=True))
                yield f"| {engine} | {steps} | {cache} | {columns} |"


def first_gradient(engine: str, steps: int, folder: str) -> list[float]:
    """Seconds of import, first and second gradient in a process of its own, which keeps what it compiles there."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as users have it
    finished = subprocess.run(
        [sys.executable, "-c", FIRST, engine, *map(str, (*COLD, steps))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**environment, "TINYGRAD_RNN_CACHE": f"{folder}/loops", "NUMBA_CACHE_DIR": f"{folder}/helpers"},
    )
    return json.loads(finished.stdout)  # type: ignore[no-any-return]


def memory(sizes: Sequence[Sizes], engines: Sequence[str]) -> Iterator[str]:
    """Peaks of one long sequence batch."""
    yield "\n## Peak memory\n"
    yield (
        f"Of forward and backward of an LSTM over {LONG} steps, each in a fresh process: the peak of resident memory\n"
        "over what was resident after a short sequence, in MiB.\n"
    )
    yield f"| input, hidden, batch | {' | '.join(engines)} | `torch.nn.LSTM` |"
    yield f"|---|{'---|' * (len(engines) + 1)}"
    spawn = multiprocessing.get_context("spawn")
    for inputs, hidden, batch, _ in tqdm(sizes, disable=None):
        peaks = []
        for side in (*engines, "PyTorch"):
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                peaks.append(fresh.submit(peak, side, (inputs, hidden, batch, LONG)).result())
        yield f"| {inputs}, {hidden}, {batch} | {' | '.join(f'{one:.0f}' for one in peaks)} |"


def peak(side: str, sizes: Sizes) -> float:
    """MiB by which this process grows at most."""
    engines = [] if side == "PyTorch" else [side]
    layer_sides("LSTM", (*sizes[:3], 10), engines)[side]()  # what is compiled or loaded is not counted
    run = layer_sides("LSTM", sizes, engines)[side]
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(entry: str) -> float:
    """MiB, by the name that ``/proc/self/status`` has for it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def page(options: argparse.Namespace) -> Iterator[str]:
    asked = [name for name in PARTS if getattr(options, name)]
    flags = " ".join(f"--{name}" for name in asked)
    yield "# What else scan costs\n"
    yield f"Made by `python benchmarks/scan_extra.py --engine {' '.join(options.engine)} {flags}` on {setting()}"
    if options.tax:
        yield from tax(options.sizes, options.engine, options.pairs)
    if options.lengths:
        yield from ragged(options.sizes, options.engine, options.pairs)
    if options.decayed:
        yield from decayed(options.sizes, options.engine, options.pairs)
    if options.accuracy:
        yield from accuracy(options.sizes, options.engine)
    if options.cold:
        yield from cold(options.engine)
    if options.memory:
        yield from memory(options.sizes, options.engine)


def main() -> None:
    made = parser(str(__doc__).splitlines()[0], "0,2,3")
    made.add_argument("--tax", action="store_true", help="cells of one's own over the plain ones")
    made.add_argument("--lengths", action="store_true", help="lengths and resets over the plain run")
    made.add_argument("--decayed", action="store_true", help="a state of denormal numbers over one that is not")
    made.add_argument("--accuracy", action="store_true", help="float32 and PyTorch's, held against float64")
    made.add_argument("--cold", action="store_true", help="time to the first gradient, with and without a cache")
    made.add_argument("--memory", action="store_true", help="peak memory of a long sequence beside PyTorch's")
    options = made.parse_args()
    if not any(getattr(options, name) for name in PARTS):
        made.error(f"nothing asked for: give one of {', '.join(f'--{name}' for name in PARTS)}")
    publish(page(options), options.table)


if __name__ == "__main__":
    main()
