"""What ``lengths=`` costs: a layer on padded sequences with and without it, beside PyTorch's packed sequences.

Prints a Markdown page: ``python benchmarks/lengths.py > docs/lengths.md`` remakes the one in ``docs/``. Lengths are
spread evenly from 1 to T. All four run in one process, in alternating blocks of a warm-up call and several timed ones;
outputs and gradients with lengths are first held against those of the packed sequences. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import alternated

import tinygrad_rnn as tg

SIZES = ((10, 8, 32, 100), (32, 32, 16, 100), (64, 128, 32, 100))  # input, hidden, batch, steps


def sides(kind: str, sizes: tuple[int, int, int, int], engine: str) -> dict[str, Callable[[], Any]]:
    """Forward and backward of the sum of all outputs, by what it is called; each returns output and a gradient."""
    inputs, hidden, batch, steps = sizes
    rng = np.random.default_rng(0)
    ours = getattr(tg.nn, kind)(inputs, hidden, generator=tg.Generator(0))
    theirs = getattr(torch.nn, kind)(inputs, hidden)
    theirs.load_state_dict({name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()})
    xs = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    lengths = np.linspace(1, steps, batch).astype(int)
    rng.shuffle(lengths)

    def run_ours(**options: Any) -> Any:
        ours.zero_grad()
        with tg.use_engine(engine):
            ys, _ = ours(tg.Tensor(xs), **options)
        ys.sum().backward()
        return ys.numpy(), ours.weight_hh_l0.grad.numpy()

    def run_theirs(packed: bool) -> Any:
        theirs.zero_grad()
        x = torch.from_numpy(xs)
        if packed:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths), enforce_sorted=False)
        ys, _ = theirs(x)
        if packed:
            ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=steps)
        ys.sum().backward()
        return ys.detach().numpy(), theirs.weight_hh_l0.grad.numpy()

    return {
        "ours padded": run_ours,
        "ours lengths": lambda: run_ours(lengths=lengths),
        "PyTorch padded": lambda: run_theirs(False),
        "PyTorch packed": lambda: run_theirs(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=11, help="alternations between the sides (default 11)")
    parser.add_argument("--calls", type=int, default=3, help="timed calls a block (default 3)")
    parser.add_argument("--engine", choices=("numba", "array", "unrolled"), default="numba", help="ours (numba)")
    options = parser.parse_args()
    print("# What lengths cost\n")
    print(
        f"Made by `python benchmarks/lengths.py --engine {options.engine}`, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, NumPy {np.__version__},\nPyTorch {torch.__version__}, float32. Forward and "
        "backward, milliseconds; lengths spread evenly from 1 to T. The ratios, with\nlengths over padded, are "
        "medians of paired blocks.\n"
    )
    names = ("ours padded", "ours lengths", "PyTorch padded", "PyTorch packed")
    print(f"| layer | input, hidden, batch, T | {' | '.join(names)} | ours, ratio | PyTorch, ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("LSTM", "GRU"):
        for sizes in SIZES:
            runs = sides(kind, sizes, options.engine)
            for a, b in zip(runs["ours lengths"](), runs["PyTorch packed"](), strict=True):
                difference = np.abs(a - b).max() / np.abs(b).max()
                if difference > 1e-4:
                    raise SystemExit(f"the results differ by {difference:.1e}: nothing to compare")
            times = alternated(runs, options.pairs, options.calls)
            ratios = [
                median(b / a for a, b in zip(times[padded], times[ragged], strict=True))
                for padded, ragged in (names[:2], names[2:])
            ]
            cells = [f"{median(times[name]):.2f}" for name in names] + [f"{ratio:.2f}" for ratio in ratios]
            print(f"| {kind} | {', '.join(map(str, sizes))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
