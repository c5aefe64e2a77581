"""A recurrent cell of one's own, in a few lines, raced against the same lines in PyTorch.

    python examples/custom_cell.py
    python examples/custom_cell.py --threads 2

The cell keeps two memories: a gated one that is fast, and a slow one that follows it at a rate that each unit learns.
Nobody wrote a kernel for it. In PyTorch such a cell runs in a Python loop over time; here `tg.scan` records one step of
it and runs the loop by an engine. Both get the same weights, and outputs and gradients are compared before anything is
timed. A call is forward and backward of one batch of sequences, float32; the sides take turns, a block of calls each,
and the ratios are medians over the turns. PyTorch is needed for the race alone: pip install torch.

Expect a minute and a picture in runs/custom_cell. On one thread the numba engine was 36 to 46 times as fast as
PyTorch's loop with 16 units and batch 1, 5 times with 64 and batch 16, twice with 128 and batch 32, and 1.2 to 1.6
times with 256 and batch 64: the larger the matrix products, the less there is to gain. The unrolled graph took about
PyTorch's time. It needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import nn

Sizes = tuple[int, int, int, int]  # inputs, hidden, batch, steps
Answer = dict[str, np.ndarray]  # the outputs, and the gradient of each weight
Side = Callable[[], Answer]  # one call, forward and backward
SIZES: tuple[Sizes, ...] = ((8, 16, 1, 100), (32, 64, 16, 100), (64, 128, 32, 100), (128, 256, 64, 50))
QUICK: tuple[Sizes, ...] = ((2, 3, 2, 4),)
TOLERANCE = 1e-3  # of the largest magnitude


class TwoMemories(nn.Module):
    pure = True  # one step depends on nothing but its arguments and these attributes, so it need be recorded only once

    def __init__(self, inputs: int, hidden: int, generator: tg.Generator) -> None:
        self.input = nn.Linear(inputs, 2 * hidden, generator=generator)
        self.recurrent = nn.Linear(hidden, 2 * hidden, bias=False, generator=generator)
        self.rate = nn.Parameter(generator.uniform(hidden, -3.0, 0.0))

    def init_state(self, batch: int) -> tuple[tg.Tensor, tg.Tensor]:
        return tg.zeros((batch, self.rate.size)), tg.zeros((batch, self.rate.size))

    def forward(self, x: tg.Tensor, state: tuple[tg.Tensor, tg.Tensor]) -> tuple[tg.Tensor, Any]:
        fast, slow = state
        gate, new = tg.split(self.input(x) + self.recurrent(fast), 2, axis=-1)
        fast = fast + tg.sigmoid(gate) * (tg.tanh(new + slow) - fast)
        slow = slow + tg.sigmoid(self.rate) * (fast - slow)
        return fast, (fast, slow)


def pytorch_cell(cell: TwoMemories) -> Any:
    """The same lines in PyTorch, with the same weights."""
    import torch

    class TwoMemories(torch.nn.Module):
        def __init__(self, inputs: int, hidden: int) -> None:
            super().__init__()
            self.input = torch.nn.Linear(inputs, 2 * hidden)
            self.recurrent = torch.nn.Linear(hidden, 2 * hidden, bias=False)
            self.rate = torch.nn.Parameter(torch.zeros(hidden))

        def init_state(self, batch: int) -> Any:
            return torch.zeros(batch, len(self.rate)), torch.zeros(batch, len(self.rate))

        def forward(self, x: Any, state: Any) -> Any:
            fast, slow = state
            gate, new = torch.chunk(self.input(x) + self.recurrent(fast), 2, dim=-1)
            fast = fast + torch.sigmoid(gate) * (torch.tanh(new + slow) - fast)
            slow = slow + torch.sigmoid(self.rate) * (fast - slow)
            return fast, (fast, slow)

    peer = TwoMemories(cell.input.weight.shape[1], cell.rate.size)
    peer.load_state_dict({name: torch.tensor(value.numpy()) for name, value in cell.state_dict().items()})
    return peer


def ours(cell: TwoMemories, engine: str, xs: np.ndarray, cotangent: np.ndarray) -> Side:
    def run() -> Answer:
        cell.zero_grad()
        ys, _ = tg.scan(cell, tg.Tensor(xs), engine=engine)
        (ys * cotangent).sum().backward()
        return {"outputs": ys.numpy()} | {name: weight.grad.numpy() for name, weight in cell.named_parameters()}

    return run


def theirs(cell: TwoMemories, xs: np.ndarray, cotangent: np.ndarray) -> Side:
    import torch

    peer, inputs, factors = pytorch_cell(cell), torch.from_numpy(xs), torch.from_numpy(cotangent)

    def run() -> Answer:
        peer.zero_grad()
        state, outputs = peer.init_state(xs.shape[1]), []
        for x in inputs.unbind():
            y, state = peer(x, state)
            outputs.append(y)
        ys = torch.stack(outputs)
        (ys * factors).sum().backward()
        return {"outputs": ys.detach().numpy()} | {name: w.grad.numpy() for name, w in peer.named_parameters()}

    return run


def furthest(found: Answer, expected: Answer) -> float:
    """The greatest difference, as a share of the largest magnitude of the array that it is in."""
    return max(float(np.abs(found[name] - right).max() / np.abs(right).max()) for name, right in expected.items())


def alternated(sides: dict[str, Side], pairs: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a call of each side, ``pairs`` times in turn: a rest, a warm-up call, then a block of timed ones."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs):
        for name, run in sides.items():
            time.sleep(seconds / 4)  # threads of the side before may spin for some milliseconds
            run()
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < seconds:
                run()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls * 1e3)
    return times


def race(sizes: Sizes, engines: list[str], peer: bool, pairs: int, seconds: float, seed: int) -> dict[str, list[float]]:
    """Milliseconds of each side, after their answers were compared."""
    inputs, hidden, batch, steps = sizes
    generator = tg.Generator(seed)
    cell = TwoMemories(inputs, hidden, generator)
    xs, cotangent = generator.normal((steps, batch, inputs)).numpy(), generator.normal((steps, batch, hidden)).numpy()
    sides = {f"ours, {engine}": ours(cell, engine, xs, cotangent) for engine in engines}
    if peer:
        sides["PyTorch, loop"] = theirs(cell, xs, cotangent)
    *others, reference = sides
    expected = sides[reference]()
    off = max(furthest(sides[name](), expected) for name in others)
    print(f"\n{inputs} inputs, {hidden} units, batch {batch}, {steps} steps")
    print(f"  outputs and gradients agree to {off:.0e} of the largest")
    if not off < TOLERANCE:  # so that NaN is refused
        raise SystemExit("  which is too far apart: there is nothing to compare")
    times = alternated(sides, pairs, seconds)
    for name in sides:
        ratio = median(a / b for a, b in zip(times[reference], times[name], strict=True))
        beside = f"{ratio:8.2f} times as fast as {reference}" if name != reference else ""
        print(f"  {name:16}{median(times[name]):9.2f} ms{beside}")
    return times


def picture(path: Path, results: dict[Sizes, dict[str, list[float]]], threads: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    names = list(next(iter(results.values())))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        places = np.arange(len(results)) + (k - (len(names) - 1) / 2) * width
        bars = axes.bar(places, [median(times[name]) for times in results.values()], width, label=name, color=f"C{k}")
        axes.bar_label(bars, fmt="%.3g", fontsize=8)
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_xticks(range(len(results)), [f"{i} inputs, {h} units\nbatch {b}, {t} steps" for i, h, b, t in results])
    axes.set_ylabel("forward and backward, ms")
    axes.set_title(f"A cell of one's own; threads: {threads}")
    axes.legend(ncols=len(names), loc="upper center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one tiny size: to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/custom_cell"), help="where the picture goes")
    parser.add_argument("--threads", type=int, default=1, help="for all sides (1)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    options.out.mkdir(parents=True, exist_ok=True)

    engines = ["unrolled", "array"]
    blas: Any = nullcontext()
    if find_spec("numba"):
        engines.append("numba")
        from threadpoolctl import threadpool_limits

        blas = threadpool_limits(options.threads, "blas")  # for NumPy's own products
    else:
        print("Without Numba its engine is left out: pip install 'tinygrad_rnn[fast]'")
    try:
        import torch
    except ImportError:
        torch = None
        print("Without PyTorch ours runs alone; for the race: pip install torch")
    else:
        torch.set_num_threads(options.threads)
    tg.set_num_threads(options.threads)
    print(f"Threads: {options.threads}. NumPy {np.__version__}" + (f", PyTorch {torch.__version__}" if torch else ""))

    results = {}
    with blas:
        for sizes in QUICK if options.quick else SIZES:
            pairs, seconds = (2, 0.0) if options.quick else (9, 0.2)
            results[sizes] = race(sizes, engines, torch is not None, pairs, seconds, options.seed)
    path = options.out / "custom_cell.png"
    picture(path, results, options.threads)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
