"""What an operation on the tape costs, beside PyTorch's eager mode doing the same lines.

Prints a Markdown page: ``python benchmarks/eager.py > docs/benchmarks.md`` remakes the one in ``docs/``.
Both sides run in one process, in alternating blocks of a warm-up call and several timed ones (PyTorch's threads go
on spinning after a call and would hold a core), and their gradients are compared first. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import timeit
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import alternated

import tinygrad_rnn as tg

SIZES = ((10, 5, 32, 100), (32, 32, 16, 100), (64, 128, 32, 100))  # input, hidden, batch, steps


def lstm_step(lib: Any, chunk: Callable[[Any], Any], x: Any, h: Any, c: Any, weights: list[Any]) -> tuple[Any, Any]:
    """The lines that both sides run."""
    w_ih, w_hh, b_ih, b_hh = weights
    gates = x @ w_ih.T + b_ih + h @ w_hh.T + b_hh
    i, f, g, o = chunk(gates)
    c = lib.sigmoid(f) * c + lib.sigmoid(i) * lib.tanh(g)
    h = lib.sigmoid(o) * lib.tanh(c)
    return h, c


def ours(xs: tg.Tensor, h0: tg.Tensor, weights: list[tg.Tensor]) -> None:
    h = c = h0
    outputs = []
    for x in tg.unstack(xs):
        h, c = lstm_step(tg, lambda gates: tg.split(gates, 4, axis=-1), x, h, c, weights)
        outputs.append(h)
    tg.stack(outputs).sum().backward()


def theirs(xs: torch.Tensor, h0: torch.Tensor, weights: list[torch.Tensor]) -> None:
    h = c = h0
    outputs = []
    for x in xs.unbind():
        h, c = lstm_step(torch, lambda gates: gates.chunk(4, dim=-1), x, h, c, weights)
        outputs.append(h)
    torch.stack(outputs).sum().backward()


def unrolled_lstm(sizes: tuple[int, int, int, int], pairs: int, calls: int) -> tuple[float, float, float, float]:
    """Median milliseconds of ours and theirs, median of the paired ratios, and the largest relative difference."""
    inputs, hidden, batch, steps = sizes
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) * 0.1 for shape in (
        (4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,),
    )]  # fmt: skip
    xs = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    h0 = np.zeros((batch, hidden), np.float32)
    our_weights = [tg.Tensor(a.copy(), requires_grad=True) for a in arrays]
    their_weights = [torch.tensor(a, requires_grad=True) for a in arrays]

    def run_ours() -> None:
        ours(tg.Tensor(xs), tg.Tensor(h0), our_weights)

    def run_theirs() -> None:
        theirs(torch.from_numpy(xs), torch.from_numpy(h0), their_weights)

    run_ours()
    run_theirs()
    difference = 0.0
    for a, b in zip(our_weights, their_weights, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        expected = b.grad.numpy()
        difference = max(difference, float(np.abs(a.grad.numpy() - expected).max() / np.abs(expected).max()))
        a.grad = None
        b.grad = None
    if difference > 1e-4:
        raise SystemExit(f"the gradients differ by {difference:.1e}: nothing to compare")
    times = alternated({"ours": run_ours, "theirs": run_theirs}, pairs, calls)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return median(times["ours"]), median(times["theirs"]), median(ratios), difference


def microseconds(statement: Callable[[], Any]) -> float:
    number = 5000
    return min(timeit.repeat(statement, number=number, repeat=7)) / number * 1e6


def operations() -> list[tuple[str, float, float, float, float]]:
    """For single operations on (32, 32) float32: NumPy, ours without and with recording, PyTorch with recording."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((32, 32)).astype(np.float32)
    a, b = tg.Tensor(raw, requires_grad=True), tg.Tensor(raw.copy(), requires_grad=True)
    t, u = torch.tensor(raw, requires_grad=True), torch.tensor(raw, requires_grad=True)
    table: list[tuple[str, Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = [
        ("a + b", lambda: raw + raw, lambda: a + b, lambda: t + u),
        ("a * b", lambda: raw * raw, lambda: a * b, lambda: t * u),
        ("tanh(a)", lambda: np.tanh(raw), lambda: tg.tanh(a), lambda: torch.tanh(t)),
        ("a @ b", lambda: raw @ raw, lambda: a @ b, lambda: t @ u),
        ("a.sum()", lambda: raw.sum(), lambda: a.sum(), lambda: t.sum()),
        ("a[3:7]", lambda: raw[3:7], lambda: a[3:7], lambda: t[3:7]),
    ]
    rows = []
    for name, numpy, recorded, peer in table:
        with tg.no_grad():
            bare = microseconds(recorded)
        rows.append((name, microseconds(numpy), bare, microseconds(recorded), microseconds(peer)))
    return rows


def import_milliseconds(pairs: int) -> tuple[float, float]:
    """Median wall time to import NumPy, and what importing us on top of it adds."""

    def once(statement: str) -> float:
        code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as users have it
        return float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
            ).stdout
        )

    once("import tinygrad_rnn")
    numpy, more = [], []
    for _ in range(pairs):
        numpy.append(once("import numpy") * 1e3)
        more.append(float(once("import numpy; start = time.perf_counter(); import tinygrad_rnn")) * 1e3)
    return median(numpy), median(more)


def long_tape(steps: int) -> tuple[float, float, float]:
    """Seconds to build and to walk a tape of ``steps`` operations on a state of (1, 8), and its bytes a step."""
    a = tg.Tensor(np.full((1, 8), 0.999, np.float32), requires_grad=True)

    def build() -> tg.Tensor:
        h = tg.Tensor(np.ones((1, 8), np.float32))
        for _ in range(steps):
            h = h * a
        return h.sum()

    start = time.perf_counter()
    loss = build()
    built = time.perf_counter()
    loss.backward()
    walked = time.perf_counter()
    tracemalloc.start()
    loss = build()
    size = tracemalloc.get_traced_memory()[0] / steps
    tracemalloc.stop()
    return built - start, walked - built, size


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="alternations between the two sides (default 15)")
    parser.add_argument("--calls", type=int, default=4, help="timed calls a block (default 4)")
    options = parser.parse_args()
    print("# What an operation costs\n")
    print(
        f"Made by `python benchmarks/eager.py` on {processor()}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, float32.\n"
    )
    print("## An LSTM unrolled in ordinary operations, forward and backward\n")
    print("The same lines in both. Above 1 we are faster; the difference is the largest of all weight gradients.\n")
    print("| input, hidden, batch, steps | ours, ms | PyTorch eager, ms | PyTorch's time over ours | difference |")
    print("|---|---|---|---|---|")
    for sizes in SIZES:
        own, peer, ratio, difference = unrolled_lstm(sizes, options.pairs, options.calls)
        print(f"| {', '.join(map(str, sizes))} | {own:.1f} | {peer:.1f} | {ratio:.2f} | {difference:.0e} |", flush=True)
    print("\n## One operation on (32, 32), microseconds\n")
    print("| | NumPy | ours, `no_grad` | ours, recording | PyTorch, recording |")
    print("|---|---|---|---|---|")
    for name, *times in operations():
        print(f"| `{name}` | " + " | ".join(f"{t:.1f}" for t in times) + " |")
    numpy, more = import_milliseconds(options.pairs)
    print("\n## Import\n")
    print(f"NumPy takes {numpy:.0f} ms, `import tinygrad_rnn` adds {more:.0f} ms.\n")
    steps = 200_000
    built, walked, size = long_tape(steps)
    print(f"## A tape of {steps:,} operations\n")
    print(f"Built in {built:.2f} s, walked and freed in {walked:.2f} s; {size:.0f} bytes a step, 32 of them the state.")


if __name__ == "__main__":
    main()
