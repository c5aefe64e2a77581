"""What training through `scan` costs: layers and a user's own cell beside PyTorch's and JAX's, float32.

Prints Markdown; ``--table FILE`` writes it too. All sides of a line run in one process, in alternating blocks of a
warm-up call and several timed ones, with a rest before each block: the threads of OpenBLAS and PyTorch spin for some
time after a call and would hold a core. A call is forward and backward of one sequence batch, the loss the sum of all
outputs times fixed random numbers; outputs and gradients are compared first. Needs the extra ``peers``; JAX's lines are
left out where it is not installed. `scan_extra.py` measures what has no peer.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from eager import lstm_step, processor
from timing import alternated
from tqdm import tqdm

import tinygrad_rnn as tg

Array: TypeAlias = np.ndarray[Any, Any]
Sizes: TypeAlias = tuple[int, int, int, int]  # input, hidden, batch, steps
Run: TypeAlias = Callable[[], list[Array]]  # one call; returns outputs, then the gradient of each weight

SIZES: tuple[Sizes, ...] = (
    (10, 5, 32, 100),
    (32, 32, 1, 100),
    (32, 32, 16, 100),
    (64, 128, 32, 100),
    (128, 256, 64, 100),
    (256, 512, 64, 50),
    (512, 1024, 64, 35),
)
ENGINES = ("unrolled", "array", "numba", "auto")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "function": 4, "recorded": 4}
FUNCTIONS = {"function": "LSTM as a function", "recorded": "LSTM as a function, recorded each time"}
REST = 0.15  # seconds; for 0.1 after a product OpenBLAS spins, on the core that the next side needs
TOLERANCE = 1e-3  # of the largest magnitude


def data(sizes: Sizes) -> tuple[Array, Array]:
    """The inputs, and what the outputs are multiplied by in the loss."""
    inputs, hidden, batch, steps = sizes
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((steps, batch, inputs), np.float32)
    return xs, rng.standard_normal((steps, batch, hidden), np.float32)


def ours(
    forward: Callable[[tg.Tensor], tg.Tensor],
    parameters: Iterable[tg.Tensor],
    sizes: Sizes,
    engine: str,
    input_gradient: bool = False,
) -> Run:
    xs, cotangent = data(sizes)
    wanted = list(parameters)

    def run() -> list[Array]:
        for parameter in wanted:
            parameter.grad = None
        x = tg.Tensor(xs, requires_grad=input_gradient)
        with tg.use_engine(engine):
            ys = forward(x)
            (ys * cotangent).sum().backward()
        return [ys.numpy(), *(leaf.grad.numpy() for leaf in (wanted + [x] * input_gradient))]

    return run


def theirs(
    forward: Callable[[torch.Tensor], torch.Tensor],
    parameters: Iterable[torch.Tensor],
    sizes: Sizes,
    input_gradient: bool = False,
) -> Run:
    xs, cotangent = (torch.from_numpy(array) for array in data(sizes))
    wanted = list(parameters)

    def run() -> list[Array]:
        for parameter in wanted:
            parameter.grad = None
        x = xs.detach().requires_grad_(input_gradient)
        ys = forward(x)
        (ys * cotangent).sum().backward()
        return [ys.detach().numpy(), *(leaf.grad.numpy() for leaf in (wanted + [x] * input_gradient))]

    return run


def layer_sides(kind: str, sizes: Sizes, engines: Sequence[str], input_gradient: bool = False) -> dict[str, Run]:
    """``tg.nn.LSTM``, ``GRU`` or ``RNN`` under each engine, and PyTorch's with the same weights."""
    own = getattr(tg.nn, kind)(*sizes[:2], generator=tg.Generator(0))
    peer = getattr(torch.nn, kind)(*sizes[:2])
    peer.load_state_dict({name: torch.tensor(value.numpy()) for name, value in own.state_dict().items()})
    # In PyTorch's order, so that gradients stand beside each other.
    parameters = [getattr(own, name) for name, _ in peer.named_parameters()]
    sides = {e: ours(lambda x: own(x)[0], parameters, sizes, e, input_gradient) for e in engines}
    return {**sides, "PyTorch": theirs(lambda x: peer(x)[0], peer.parameters(), sizes, input_gradient)}


def function_sides(
    sizes: Sizes, engines: Sequence[str], input_gradient: bool = False, recorded: bool = False
) -> dict[str, Run]:
    """The LSTM of `lstm_step`, a function over closed-over weights: by scan, in a Python loop, by JAX's scan."""
    inputs, hidden, batch, _ = sizes
    rng = np.random.default_rng(1)
    shapes = (4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)
    arrays = [(rng.uniform(-1, 1, shape) * hidden**-0.5).astype(np.float32) for shape in shapes]
    zeros = np.zeros((batch, hidden), np.float32)

    weights = [tg.Tensor(array, requires_grad=True) for array in arrays]

    def cell(x: tg.Tensor, state: Any) -> tuple[tg.Tensor, Any]:
        h, c = state
        h, c = lstm_step(tg, lambda gates: tg.split(gates, 4, axis=-1), x, h, c, weights)
        return h, (h, c)

    if recorded:
        cell.pure = False  # type: ignore[attr-defined]

    def scanned(x: tg.Tensor) -> tg.Tensor:
        return tg.scan(cell, x, (tg.Tensor(zeros), tg.Tensor(zeros)))[0]

    peer_weights = [torch.tensor(array, requires_grad=True) for array in arrays]

    def looped(xs: torch.Tensor) -> torch.Tensor:
        h = c = torch.from_numpy(zeros)
        outputs = []
        for x in xs.unbind():
            h, c = lstm_step(torch, lambda gates: gates.chunk(4, dim=-1), x, h, c, peer_weights)
            outputs.append(h)
        return torch.stack(outputs)

    sides = {engine: ours(scanned, weights, sizes, engine, input_gradient) for engine in engines}
    sides["PyTorch"] = theirs(looped, peer_weights, sizes, input_gradient)
    if find_spec("jax"):
        sides["JAX"] = jitted(arrays, zeros, sizes, input_gradient)
    return sides


def jitted(arrays: list[Array], zeros: Array, sizes: Sizes, input_gradient: bool) -> Run:
    """The function's JAX side."""
    import jax

    lib = SimpleNamespace(sigmoid=jax.nn.sigmoid, tanh=jax.numpy.tanh)
    xs, cotangent, h0, weights = jax.tree.map(jax.numpy.asarray, (*data(sizes), zeros, arrays))

    def loss(weights: Any, xs: Any) -> tuple[Any, Any]:
        def cell(state: Any, x: Any) -> tuple[Any, Any]:
            h, c = state
            h, c = lstm_step(lib, lambda gates: jax.numpy.split(gates, 4, axis=-1), x, h, c, weights)
            return (h, c), h

        ys = jax.lax.scan(cell, (h0, h0), xs)[1]
        return (ys * cotangent).sum(), ys

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1) if input_gradient else 0, has_aux=True))

    def run() -> list[Array]:
        (_, ys), gradients = jax.block_until_ready(step(weights, xs))
        return [np.asarray(array) for array in jax.tree.leaves((ys, gradients))]

    return run


def products(gates: int, sizes: Sizes, input_gradient: bool = False) -> Callable[[], None]:
    """The matrix products of a call and nothing else, features first, in which layout they are fastest."""
    inputs, hidden, batch, steps = sizes
    rows, columns = gates * hidden, steps * batch
    rng = np.random.default_rng(2)

    def filled(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    w_ih, w_hh = filled(rows, inputs), filled(rows, hidden)
    x, h, d_gates = filled(inputs, columns), filled(steps, hidden, batch), filled(steps, rows, batch)
    all_h, all_d_gates = h.reshape(hidden, columns), d_gates.reshape(rows, columns)
    from_x, from_h, dh = filled(rows, columns), filled(steps, rows, batch), filled(hidden, batch)
    dw_ih, dw_hh, dx = filled(rows, inputs), filled(rows, hidden), filled(inputs, columns)

    def run() -> None:
        np.matmul(w_ih, x, out=from_x)
        for t in range(steps):
            np.matmul(w_hh, h[t], out=from_h[t])
        for t in reversed(range(steps)):
            np.matmul(w_hh.T, d_gates[t], out=dh)
        np.matmul(all_d_gates, x.T, out=dw_ih)
        np.matmul(all_d_gates, all_h.T, out=dw_hh)
        if input_gradient:
            np.matmul(w_ih.T, all_d_gates, out=dx)

    return run


def compare(what: str, sides: Mapping[str, Run], reference: str, tolerance: float = TOLERANCE) -> None:
    """Stop unless all sides, each called once, give the reference's outputs and gradients."""
    results = {name: run() for name, run in sides.items()}
    expected = results.pop(reference)
    for name, arrays in results.items():
        for i, (found, right) in enumerate(zip(arrays, expected, strict=True)):
            difference = np.abs(found - right).max() / np.abs(right).max()
            if not difference <= tolerance:  # so that NaN is refused
                part = f"gradient {i} of {len(expected) - 1}" if i else "output"
                raise SystemExit(f"{what}, {name}: {part} is {difference:.1e} off {reference}'s: nothing to compare")


def measure(sides: Mapping[str, Callable[[], Any]], pairs: int) -> dict[str, list[float]]:
    """Milliseconds a call of each side, block by block. As many calls a block as fit into 0.3 seconds."""
    slowest = 0.0
    for run in sides.values():
        start = time.perf_counter()
        run()
        slowest = max(slowest, time.perf_counter() - start)
    calls = min(max(round(0.3 / slowest), 2), 100)
    spaced: dict[str, Callable[[], Any]] = {}
    for name, run in sides.items():
        spaced[f"rest before {name}"] = lambda: time.sleep(REST / (calls + 1))
        spaced[name] = run
    times = alternated(spaced, pairs, calls)
    return {name: times[name] for name in sides}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of paired blocks."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def grid(
    kinds: Sequence[str], sizes: Sequence[Sizes], engines: Sequence[str], pairs: int, input_gradient: bool
) -> Iterator[str]:
    """The lines of the table."""
    yield (
        "| layer | input, hidden, batch, steps | engine | peer | ours, ms | peer, ms | peer's time over ours "
        "| products alone, ms | ours over products |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    if set(kinds) & set(FUNCTIONS) and not find_spec("jax"):
        print("jax not installed: its lines are left out", file=sys.stderr)
    for kind, one in tqdm([(kind, one) for kind in kinds for one in sizes], disable=None):
        if kind in FUNCTIONS:
            sides = function_sides(one, engines, input_gradient, kind == "recorded")
            peers = {"PyTorch": "Python loop in PyTorch", "JAX": "`jax.lax.scan`, jitted"}
        else:
            sides = layer_sides(kind, one, engines, input_gradient)
            peers = {"PyTorch": f"`torch.nn.{kind}`"}
        shape = ", ".join(map(str, one))
        compare(f"{kind} ({shape})", sides, "PyTorch")
        times = measure({**sides, "products": products(GATES[kind], one, input_gradient)}, pairs)
        layer = FUNCTIONS.get(kind, f"`nn.{kind}`")
        floor = times["products"]
        for engine in engines:
            for peer in [name for name in sides if name not in engines]:
                own, other = times[engine], times[peer]
                yield (
                    f"| {layer} | {shape} | {engine} | {peers[peer]} | {median(own):.2f} | {median(other):.2f} "
                    f"| {ratio(other, own):.2f} | {median(floor):.2f} | {ratio(own, floor):.2f} |"
                )


def setting() -> str:
    """Machine, threads and versions, in a sentence; and the load, as two threads of PyTorch on a busy core crawl."""
    packages = []
    for name, package in (("NumPy", "numpy"), ("Numba", "numba"), ("PyTorch", "torch"), ("JAX", "jax")):
        try:
            packages.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"{name} not installed")
    blas = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    return (
        f"{processor()}, {os.cpu_count()} cores; threads: PyTorch {torch.get_num_threads()}, NumPy's products {blas};\n"
        f"load average before {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {', '.join(packages)}; float32."
    )


def parser(description: str, sizes: str) -> argparse.ArgumentParser:
    """The options of this script and of `scan_extra.py`."""
    made = argparse.ArgumentParser(
        description=description,
        epilog="Sizes (input, hidden, batch, steps): " + ", ".join(f"{i} {one}" for i, one in enumerate(SIZES)),
    )
    made.add_argument("--engine", nargs="+", choices=ENGINES, default=["auto"], help="ours, one or several")
    made.add_argument(
        "--sizes",
        type=lambda text: [SIZES[int(i)] for i in text.split(",")],
        default=sizes,
        metavar="I,J,...",
        help=f"which sizes (default {sizes})",
    )
    made.add_argument("--pairs", type=int, default=11, help="alternations between the sides (default 11)")
    made.add_argument("--table", type=Path, metavar="FILE", help="write the Markdown to a file too")
    return made


def publish(lines: Iterable[str], table: Path | None) -> None:
    """Print each line as soon as it is there; write them all."""
    kept = []
    for line in lines:
        tqdm.write(line)
        kept.append(line)
    if table is not None:
        table.write_text("\n".join(kept) + "\n")


def page(options: argparse.Namespace) -> Iterator[str]:
    rows = "" if options.rows == list(GATES) else f" --rows {' '.join(options.rows)}"
    command = f"python benchmarks/scan.py --engine {' '.join(options.engine)}{rows}"
    arrays = set(options.engine) <= {"array", "unrolled"}
    yield "# Recurrent layers without Numba\n" if arrays else "# Recurrent layers, and a cell of one's own\n"
    yield f"Made by `{command}` on {setting()}\n"
    given = "the input has a gradient on all sides" if options.input_gradient else "nobody asks for that of the input"
    yield (
        "Forward and backward of one sequence batch, with the gradients of all weights;\n"
        f"{given} (`torch.nn.LSTM` on a CPU computes it all the same).\n"
        "Medians of paired blocks; above 1, the peer's time over ours says that we are faster.\n"
        "The products alone are the matrix products of such a call in NumPy: that of all inputs, those of each step\n"
        "forward and back, and the two for the weight gradients."
    )
    if set(options.rows) & set(FUNCTIONS):
        yield (
            "The LSTM as a function is the same lines on all sides, over weights that it closes over. Its code shows\n"
            "that it is pure, so it is recorded at the first call only; what cannot be seen to be so is recorded each\n"
            "time."
        )
    yield ""
    yield from grid(options.rows, options.sizes, options.engine, options.pairs, options.input_gradient)


def main() -> None:
    made = parser(str(__doc__).splitlines()[0], "0,1,2,3,4,5,6")
    made.add_argument("--rows", nargs="+", choices=GATES, default=list(GATES), help="which layers (default all)")
    made.add_argument("--input-gradient", action="store_true", help="ask all sides for the gradient of the input too")
    options = made.parse_args()
    publish(page(options), options.table)


if __name__ == "__main__":
    main()
