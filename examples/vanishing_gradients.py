"""How far back in time the gradient of a recurrent network reaches, and what each remedy does about it.

Twelve cells learn the temporal order task of Pascanu, Mikolov & Bengio (2013): which two symbols came 20 to 44 steps
ago, and in which order. Before and after training, with and without clipping, the norm of the loss's gradient by the
state is measured at every time lag. The text at the end is put together from these measurements: where one goes
against what is usually said of a remedy, the text says so. Expect two to three minutes on two cores, and a picture in
runs/vanishing_gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F

INPUTS, HIDDEN, BATCH = 6, 32, 32
FAR = 1e3  # a norm that changes by more from lag 1 to the longest lag has exploded or vanished


# ---- Cells ----------------------------------------------------------------------------------------------------------


class BatchNormRNNCell(nn.Cell):
    """``h' = tanh(BN(W x) + BN(U h) + b)``: a tanh network with recurrent batch normalization (Cooijmans et al. 2017).

    ``gamma`` and ``gamma_input`` are the standard deviations that the two sums are first brought to. Mean and variance
    are always those of the batch at this step; for running averages see `nn.BatchNormLSTMCell`.
    """

    gates = 1

    def __init__(self, gamma: float, gamma_input: float, generator: tg.Generator | None = None) -> None:
        super().__init__(INPUTS, HIDDEN, generator=generator)
        self.gamma_ih = nn.Parameter(tg.full(HIDDEN, gamma_input))
        self.gamma_hh = nn.Parameter(tg.full(HIDDEN, gamma))
        self.bias_hh = None

    def forward(self, x: tg.Tensor, h: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        from_x = self.gamma_ih * standardized(F.linear(x, self.weight_ih))
        from_h = self.gamma_hh * standardized(F.linear(h, self.weight_hh))
        h = tg.tanh(from_x + from_h + self.bias_ih)
        return h, h


def standardized(x: tg.Tensor) -> tg.Tensor:
    """Every feature brought to mean 0 and variance 1 over the batch."""
    x = x - tg.mean(x, axis=0, keepdims=True)
    return x / tg.sqrt(tg.mean(tg.square(x), axis=0, keepdims=True) + 1e-5)


class Clipped(nn.Module):
    """Any cell, with the gradient by its state clipped at every step back, each row by its own norm."""

    def __init__(self, cell: nn.Cell, max_norm: float) -> None:
        self.cell = cell
        self.max_norm = max_norm

    def init_state(self, batch: int) -> Any:
        return self.cell.init_state(batch)

    def forward(self, x: tg.Tensor, state: Any) -> tuple[tg.Tensor, Any]:
        clip = partial(tg.clip_gradient, max_norm=self.max_norm)
        return self.cell(x, tuple(map(clip, state)) if isinstance(state, tuple) else clip(state))


def twice_orthogonal(generator: tg.Generator) -> nn.Cell:
    cell = nn.RNNCell(INPUTS, HIDDEN, nonlinearity="relu", generator=generator)
    cell.weight_hh = nn.Parameter(2 * cell.weight_hh.numpy())
    return cell


def pytorchs(nonlinearity: Any) -> Callable[[tg.Generator], nn.Cell]:
    """A simple cell with PyTorch's initial weights, evenly from +-1/sqrt(hidden): on the small side."""
    return lambda generator: nn.RNNCell(
        INPUTS,
        HIDDEN,
        nonlinearity=nn.PReLU(HIDDEN) if nonlinearity == "prelu" else nonlinearity,
        init="torch",
        generator=generator,
    )


@dataclass(frozen=True)
class Kind:
    """A cell, the panel that shows it, and the learning rate it is trained with."""

    panel: str
    make: Callable[[tg.Generator], nn.Cell]
    rate: float = 0.005


KINDS = {
    "tanh": Kind("activation", pytorchs("tanh")),
    "ReLU": Kind("activation", pytorchs("relu")),
    "Leaky ReLU": Kind("activation", pytorchs(F.leaky_relu)),
    "PReLU": Kind("activation", pytorchs("prelu")),
    "tanh orthogonal": Kind("initialization", lambda g: nn.RNNCell(INPUTS, HIDDEN, generator=g)),
    "IRNN": Kind("initialization", lambda g: nn.IRNNCell(INPUTS, HIDDEN, generator=g), 0.001),
    "ReLU 2 x orthogonal": Kind("initialization", twice_orthogonal),
    "BN gamma 0.1": Kind("batch norm", lambda g: BatchNormRNNCell(0.1, 0.1, g), 0.003),
    "BN gamma 1.0": Kind("batch norm", lambda g: BatchNormRNNCell(1.0, 1.0, g), 0.003),
    "BN gamma 0.1 (input 0.02)": Kind("batch norm", lambda g: BatchNormRNNCell(0.1, 0.02, g), 0.003),
    "GRU": Kind("gates", lambda g: nn.GRUCell(INPUTS, HIDDEN, generator=g)),
    "LSTM": Kind("gates", lambda g: nn.LSTMCell(INPUTS, HIDDEN, generator=g)),
}


# ---- Measuring ------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was measured of one cell; each list holds first what was found without clipping, then with it.

    ``before`` and ``after`` are from `gradient_by_lag`, ``error`` is the share of wrong answers after training.
    """

    before: list[np.ndarray] = field(default_factory=list)
    after: list[np.ndarray] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def gradient_by_lag(cell: nn.Module, readout: nn.Module, task: data.Task, seed: int) -> np.ndarray:
    """``|dL/dh_t|`` of one batch, by how many steps before the last t is, shape (T,).

    Of an LSTM it is ``|dL/dc_t|``, what goes through h_t included: c is what its memory goes along.
    """
    batch = task.batch(BATCH, tg.Generator(seed))

    def loss() -> tg.Tensor:
        ys, _ = tg.scan(cell, tg.Tensor(batch.xs))
        return task.loss(readout(ys[-1]), batch)

    norms = tg.gradient_ledger(loss).runs[0].state
    return norms.get("c", norms["h"])[::-1]


def share_wrong(cell: nn.Module, readout: nn.Module, task: data.Task, seed: int) -> float:
    """The share of fresh sequences that the network gets wrong."""
    batch = task.batch(512, tg.Generator(seed))
    with tg.no_grad():
        ys, _ = tg.scan(cell, tg.Tensor(batch.xs))
        return float(task.wrong(readout(ys[-1]).numpy(), batch).mean())


@np.errstate(over="ignore", invalid="ignore")  # what explodes shows in the result
def study(
    name: str, clipped: bool, length: int, updates: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Norms before and after training, the share of wrong answers then, and the seconds that training took.

    Every cell sees the same sequences. Clipping is both of the usual kinds: at each step back a sequence's gradient by
    the state is held to a norm of 1 (of its own loss, hence 1 / BATCH of the mean), and at each update that by all
    parameters to a joint norm of 1.
    """
    task = data.TemporalOrder("pascanu13", length)
    generator = tg.Generator(seed)
    cell: nn.Module = KINDS[name].make(generator)
    readout = nn.Linear(HIDDEN, task.output_size, generator=generator)
    if clipped:
        cell = Clipped(cell, 1 / BATCH)
    parameters = [*cell.parameters(), *readout.parameters()]
    optimizer = optim.Adam(parameters, lr=KINDS[name].rate)
    sequences = tg.Generator(seed + 1)
    before = gradient_by_lag(cell, readout, task, seed + 2)
    began = time.perf_counter()
    for _ in range(updates):
        batch = task.batch(BATCH, sequences)
        ys, _ = tg.scan(cell, tg.Tensor(batch.xs))
        loss = task.loss(readout(ys[-1]), batch)
        optimizer.zero_grad()
        loss.backward()
        if clipped:
            optim.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    seconds = time.perf_counter() - began
    return (
        before,
        gradient_by_lag(cell, readout, task, seed + 2),
        share_wrong(cell, readout, task, seed + 3),
        seconds,
    )


def study_all(length: int, updates: int, seed: int, jobs: int) -> dict[str, Result]:
    from tqdm import tqdm

    runs = [(name, clipped) for name in KINDS for clipped in (False, True)]
    bar = tqdm(total=len(runs), desc=f"{updates} updates each", unit="run")
    results = {name: Result() for name in KINDS}

    def note(name: str, found: tuple[np.ndarray, np.ndarray, float, float]) -> None:
        before, after, error, seconds = found
        results[name].before.append(before)
        results[name].after.append(after)
        results[name].error.append(error)
        results[name].seconds.append(seconds)
        bar.set_postfix_str(name, refresh=False)
        bar.update()

    if jobs == 1:
        for name, clipped in runs:
            note(name, study(name, clipped, length, updates, seed))
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            waiting = [(name, pool.submit(study, name, clipped, length, updates, seed)) for name, clipped in runs]
            for name, future in waiting:
                note(name, future.result())
    bar.close()
    return results


# ---- What it says ---------------------------------------------------------------------------------------------------


def kept(norms: np.ndarray) -> float:
    """The gradient at the longest lag as a share of that at lag 1."""
    return float(norms[-1] / norms[1]) if norms[1] > 0 else float("nan")


def fate(norms: np.ndarray) -> str:
    share = kept(norms)
    if not np.isfinite(share):
        return "is not finite"
    return "vanishes" if share < 1 / FAR else "explodes" if share > FAR else "lasts"


def table(results: dict[str, Result]) -> str:
    longest = len(next(iter(results.values())).before[0]) - 1
    lines = [
        f"{'':26}{'':10}{'before training':>20}{'after training':>20}",
        f"{'|dL/dh| at lag':26}{'':10}{'1':>10}{longest:>10}{'1':>10}{longest:>10}{'wrong':>10}{'seconds':>9}",
    ]
    for name, result in results.items():
        for i, clipping in enumerate(("", "clipped")):
            norms = "".join(f"{x[lag]:10.1e}" for x in (result.before[i], result.after[i]) for lag in (1, -1))
            lines.append(f"{'' if i else name:26}{clipping:10}{norms}{result.error[i]:10.1%}{result.seconds[i]:9.1f}")
    return "\n".join([*lines, "Of the LSTM it is |dL/dc|."])


def verdict(results: dict[str, Result]) -> list[str]:
    """A paragraph on each remedy. What is claimed of it is tested; where the measurement disagrees, it says so."""
    return [
        on_the_problem(results),
        on_clipping(results),
        on_activations(results),
        on_initialization(results),
        on_batch_norm(results),
        on_gates(results),
        on_learning(results),
    ]


def confirmed(claim: str, holds: bool) -> str:
    return f"So {claim}." if holds else f"This goes against the claim that {claim}."


def shares(results: dict[str, Result], names: list[str], when: str) -> str:
    norms = {name: getattr(results[name], when)[0] for name in names}
    return ", ".join(f"{name} keeps {kept(x):.0e} ({fate(x)})" for name, x in norms.items())


def on_the_problem(results: dict[str, Result]) -> str:
    tanh = results["tanh"]
    longest = len(tanh.before[0]) - 1
    return (
        f"The problem. From lag 1 to lag {longest} tanh keeps {kept(tanh.before[0]):.0e} of its gradient before "
        f"training and {kept(tanh.after[0]):.0e} after. "
        + confirmed("in a plain tanh network the gradient vanishes", fate(tanh.before[0]) == "vanishes")
    )


def on_clipping(results: dict[str, Result]) -> str:
    exploded = [name for name, r in results.items() if fate(r.before[0]) == "explodes"]
    vanished = [name for name, r in results.items() if fate(r.before[0]) == "vanishes"]
    text = "Clipping. "
    if exploded:
        text += "At the longest lag it takes " + ", ".join(
            f"{name} from {results[name].before[0][-1]:.0e} to {results[name].before[1][-1]:.0e}" for name in exploded
        )
        tamed = all(fate(results[name].before[1]) != "explodes" for name in exploded)
        text += ". " + confirmed("it treats explosion", tamed) + " "
    else:
        text += "Nothing exploded before training, so it had no explosion to treat. "
    if vanished:
        ends = [[max(norms[-1], 1e-45) for norms in results[name].before] for name in vanished]  # float32's least
        gains = [clipped / plain for plain, clipped in ends]
        text += f"It multiplies the {len(vanished)} that vanish by {min(gains):.2f} to {max(gains):.2f}. "
        text += confirmed("it cannot raise a gradient that vanished", max(gains) <= 1.01)
    else:
        text += "None vanished, so whether it could raise one remains open."
    changed = [name for name, r in results.items() if abs(r.error[1] - r.error[0]) > 0.1]
    if not changed:
        return text + " No cell's share of wrong answers changed by more than a tenth with it."
    return (
        text
        + " Trained with it, one run each, wrong answers went "
        + ", ".join(f"from {results[n].error[0]:.0%} to {results[n].error[1]:.0%} for {n}" for n in changed)
        + ", and changed by at most a tenth for the others."
    )


def on_activations(results: dict[str, Result]) -> str:
    names = ["ReLU", "Leaky ReLU", "PReLU"]
    return (
        f"Activations. With the same initial weights as tanh {shares(results, names, 'before')}; "
        f"after training {shares(results, names, 'after')}. "
        + confirmed(
            "a rectifier is no remedy by itself", all(fate(results[name].before[0]) != "lasts" for name in names)
        )
    )


def on_initialization(results: dict[str, Result]) -> str:
    relus = ["ReLU", "IRNN", "ReLU 2 x orthogonal"]
    apart = [fate(results[name].before[0]) for name in relus] == ["vanishes", "lasts", "explodes"]
    return (
        f"Initialization. Before training {shares(results, relus, 'before')}. "
        + confirmed("the initial weights of a rectifier decide: too small, the identity, too large", apart)
        + f" After training {shares(results, relus, 'after')}. And tanh from orthogonal weights keeps "
        f"{kept(results['tanh orthogonal'].before[0]):.0e} before and "
        f"{kept(results['tanh orthogonal'].after[0]):.0e} after."
    )


def on_batch_norm(results: dict[str, Result]) -> str:
    names = [name for name in KINDS if KINDS[name].panel == "batch norm"]
    small, one, quiet = (kept(results[name].before[0]) for name in names)
    return (
        f"Batch normalization. Before training {shares(results, names, 'before')}; "
        f"after {shares(results, names, 'after')}. "
        + confirmed("its gamma must begin small, 0.1 and not 1 (Cooijmans et al. 2017)", small > 10 * one)
        + f" With the input turned down to a fifth of the state it keeps {quiet:.0e} instead of {small:.0e}. "
        + confirmed("what counts here is the state's gamma beside the input's", quiet > FAR * small)
    )


def on_gates(results: dict[str, Result]) -> str:
    names = ["GRU", "LSTM"]
    text = f"Gates. Before training {shares(results, names, 'before')}; after {shares(results, names, 'after')}. "
    at_once = [name for name in names if fate(results[name].before[0]) == "lasts"]
    learned = [name for name in names if fate(results[name].after[0]) == "lasts" and name not in at_once]
    if learned:
        text += f"What opens the way in {' and '.join(learned)} is training, not the gates as they begin. "
    return text + confirmed(
        "gates treat vanishing",
        all(kept(results[n].after[0]) > FAR * kept(results["tanh"].after[0]) for n in names)
        and len(at_once + learned) == len(names),
    )


def on_learning(results: dict[str, Result]) -> str:
    best = {name: min(r.error) for name, r in results.items()}
    learned = [name for name, error in best.items() if error < 0.1]
    nothing = [name for name, error in best.items() if error > 0.65]
    partly = [name for name in results if name not in learned + nothing]
    alive = [name for name in nothing if fate(results[name].before[0]) == "lasts"]
    text = "The task. Who guesses is wrong in 75 %. With or without clipping, whichever was better, " + "; ".join(
        f"{what}: {' / '.join(names) or 'none'}"
        for what, names in (("under 10 % wrong", learned), ("up to 65 %", partly), ("above", nothing))
    )
    text += "."
    if alive:
        text += f" A gradient that lasts is not enough: {' / '.join(alive)} had one from the start."
    dead = [name for name in learned if fate(results[name].before[0]) == "vanishes"]
    if dead:
        text += f" A gradient that vanishes at first does not rule out learning: {' / '.join(dead)}."
    return text


def picture(path: Path, results: dict[str, Result]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys(kind.panel for kind in KINDS.values()))
    colours = ["tab:blue", "tab:orange", "tab:green", "tab:red"]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(15, 8), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for column, panel in enumerate(panels):
        names = [name for name in KINDS if KINDS[name].panel == panel and name != "tanh"]
        for row, when in enumerate(("before", "after")):
            axis = axes[row, column]
            for name, colour in zip(["tanh", *names], ["black", *colours], strict=False):
                for norms, style in zip(getattr(results[name], when), ("-", "--"), strict=True):
                    shown = np.where(norms > 0, norms, np.nan)
                    axis.plot(shown, style, color=colour, linewidth=1.8, label=name if style == "-" else None)
            axis.set_yscale("log")
            axis.set_ylim(1e-16, 1e8)
            axis.grid(alpha=0.3)
            axis.set_title(f"{panel}, {when} training")
            if row == 0:  # where there are no lines
                axis.legend(loc="lower left" if panel == "initialization" else "upper right", fontsize=9)
        axes[1, column].set_xlabel("time lag T - t, steps")
    for row in axes:
        row[0].set_ylabel("gradient norm |dL/dh_t|, of the LSTM |dL/dc_t|")
    lines = [Line2D([], [], color="gray", linestyle=style) for style in ("-", "--")]
    axes[1, 0].legend(lines, ["without clipping", "with clipping, where it differs"], loc="upper right", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 updates on 15 steps: to see that it runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes; the numbers do not depend on it")
    parser.add_argument("--out", type=Path, default=Path("runs/vanishing_gradients"), help="where the picture goes")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    options.out.mkdir(parents=True, exist_ok=True)
    length, updates, jobs = (15, 2, 1) if options.quick else (50, 400, options.jobs)
    results = study_all(length, updates, options.seed, jobs)
    print(table(results))
    if options.quick:
        print("\nAfter 2 updates all that follows is but a sample of what a full run says.")
    for paragraph in verdict(results):
        print(f"\n{fill(paragraph, 110)}")
    path = options.out / "vanishing_gradients.png"
    picture(path, results)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
