"""Read numbers from standard input, predict each next one at once, and mark those that are unusual.

    python examples/streaming.py --demo
    while sleep 1; do cut -d ' ' -f 1 /proc/loadavg; done | python examples/streaming.py
    python examples/streaming.py --save model.safetensors --demo
    python examples/streaming.py --load model.safetensors < numbers.txt

Numbers come one a line or separated by spaces, on any scale. First a small network learns, on waves made up here, to
predict the next value of whatever repeats itself every 10 to 50 values. Then `tg.compile_step` takes one step of it for
each number that arrives: no graph, and the state stays inside. A number is unusual if the prediction was off by more
than 6 times the median of the last 100. Results go to standard output, all else to standard error. When the stream
ends, or at Ctrl-C, its last 1,000 numbers are drawn.

Expect 15 seconds of learning, then 12 microseconds a step, and a picture in runs/streaming. In the demo both spikes are
marked, and the stretch where the value is stuck is when it ends. It needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

WARM_UP, RECENT, LIMIT, KEPT, LARGEST = 50, 100, 6.0, 1000, 1e100


class Step(NamedTuple):
    count: int  # of the numbers so far
    value: float
    expected: float
    limit: float  # of how far off is not unusual
    unusual: bool
    seconds: float  # that the network's step took


class Predictor(nn.Module):
    """From a value, (B, 1), the prediction of the next. The scale of the stream it finds out as it goes."""

    def __init__(self, hidden: int, generator: tg.Generator) -> None:
        self.cell = nn.GRUCell(1, hidden, dtype=np.float64, generator=generator)
        self.readout = nn.Linear(hidden, 1, dtype=np.float64, generator=generator)

    def init_state(self, batch: int) -> dict[str, tg.Tensor]:
        zero = tg.zeros((batch, 1), np.float64)
        return {"seen": zero, "mean": zero, "variance": zero, "h": self.cell.init_state(batch)}

    def forward(self, x: tg.Tensor, state: dict[str, tg.Tensor]) -> tuple[tg.Tensor, dict[str, tg.Tensor]]:
        seen = state["seen"] + 1
        share = tg.maximum(1 / seen, 0.01)  # the mean of all values, and of about the last 100 when there are more
        off = x - state["mean"]
        mean = state["mean"] + share * off
        variance = (1 - share) * (state["variance"] + share * off * off)
        scale = tg.sqrt(variance) + 1e-12
        y, h = self.cell(tg.clip((x - mean) / scale, -4.0, 4.0), state["h"])
        return mean + scale * self.readout(y), {"seen": seen, "mean": mean, "variance": variance, "h": h}


def waves(steps: int, count: int, generator: tg.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Waves with two overtones and noise, (steps, count, 1): with a spike now and then, and without."""
    period = generator.uniform(count, 10, 50, np.float64).numpy()
    phase = generator.uniform((3, count), dtype=np.float64).numpy()
    height = generator.uniform((3, count), dtype=np.float64).numpy() * [[1.0], [0.5], [0.3]]
    turns = np.arange(steps)[:, None] / period
    values = sum(height[k] * np.sin(2 * np.pi * ((k + 1) * turns + phase[k])) for k in range(3))
    values = values + generator.normal((steps, count), 0, 0.05, np.float64).numpy()
    spiked = generator.uniform((steps, count)).numpy() < 0.01
    spikes = generator.normal((steps, count), 0, 2, np.float64).numpy() * spiked
    return (values + spikes)[..., None], values[..., None]


def train(model: Predictor, updates: int, steps: int, generator: tg.Generator) -> None:
    from tqdm import tqdm

    optimizer = optim.Adam(model.parameters(), lr=0.005)
    schedule = optim.CosineAnnealingLR(optimizer, updates, eta_min=0.0002)
    bar = tqdm(range(updates), desc="learning", unit="update")
    for _ in bar:
        seen, true = waves(steps, 32, generator)
        predictions, _ = tg.scan(model, tg.Tensor(seen[:-1]))
        loss = F.huber_loss(predictions[steps // 8 :], tg.Tensor(true[1 + steps // 8 :]))  # it needs some to begin with
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def demo(generator: tg.Generator) -> Iterator[str]:
    """600 numbers around 20 that repeat every 24, with trouble at 200, 300 to 309, and 400; from 500 on every 16."""
    noise = generator.normal(600, 0, 0.1, np.float64).numpy()
    turns = np.cumsum(np.where(np.arange(600) < 500, 1 / 24, 1 / 16))
    values = 20 + 3 * np.sin(2 * np.pi * turns) + np.sin(4 * np.pi * turns) + noise
    values[199] += 4
    values[299:309] = values[298]
    values[399] -= 4
    for value in values:
        yield f"{value:.3f}\n"


def numbers(lines: Iterable[str]) -> Iterator[float]:
    """The numbers of the lines; a line that holds anything else is skipped, with a word about it."""
    for place, line in enumerate(lines, 1):
        found = []
        for word in line.split():
            try:
                value = float(word)
            except ValueError:
                value = math.nan
            if not abs(value) <= LARGEST:
                print(f"line {place} is skipped: {word[:40]!r} is not a number that I can use", file=sys.stderr)
                break
            found.append(value)
        else:
            yield from found


def follow(model: nn.Module, lines: Iterable[str], kept: deque[Step]) -> None:
    """Print a line for each number as it comes."""
    step = tg.compile_step(model, np.zeros((1, 1)))
    errors: deque[float] = deque(maxlen=RECENT)
    expected = math.nan
    print(f"{'number':>8}{'value':>14}{'expected':>14}{'off by':>14}{'next':>14}", flush=True)
    for count, value in enumerate(numbers(lines), 1):
        error = value - expected
        limit = LIMIT * median(errors) if count > WARM_UP else math.inf
        if count > 1:
            errors.append(abs(error))
        unusual = abs(error) > limit
        start = time.perf_counter()
        following = step(np.array([[value]])).item()
        kept.append(Step(count, value, expected, limit, unusual, time.perf_counter() - start))
        before = f"{expected:14.6g}{error:14.6g}" if count > 1 else f"{'-':>14}{'-':>14}"
        print(f"{count:8}{value:14.6g}{before}{following:14.6g}{'  unusual' if unusual else ''}", flush=True)
        expected = following


def picture(path: Path, kept: deque[Step]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    count, values, expected, limit, unusual, _ = np.array(kept).T
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 5), sharex=True, layout="constrained", height_ratios=(3, 2))
    top.plot(count, values, color="C0", label="value")
    top.plot(count, expected, color="C1", linewidth=1, label="expected")
    marked = unusual > 0
    top.plot(count[marked], values[marked], "o", color="C3", fillstyle="none", label="unusual")
    top.set_ylabel("value")
    bottom.plot(count, np.abs(values - expected), color="C0", label="off by")
    bottom.plot(count, np.where(np.isfinite(limit), limit, np.nan), color="C3", linewidth=1, label="unusual above")
    bottom.set(xlabel="number in the stream", ylabel="off by")
    for axes in (top, bottom):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def loaded(path: Path) -> Predictor:
    try:
        saved = tg.load(path)
        model = Predictor(saved["hidden"], tg.Generator(0))
        model.load_state_dict(saved["model"])
    except (OSError, tg.CheckpointError) as error:
        raise ValueError(str(error)) from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no model of this script") from None
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hardly learn at all: to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/streaming"), help="where the picture goes")
    parser.add_argument("--demo", action="store_true", help="a stream made here; so it is if the input is a terminal")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the network that has learned")
    parser.add_argument("--load", type=Path, metavar="FILE", help="learn nothing, take this network")
    options = parser.parse_args(arguments)
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: there is no folder {options.save.parent}")
    generator = tg.Generator(options.seed)
    if options.load:
        try:
            model = loaded(options.load)
        except ValueError as error:
            parser.error(f"--load: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.load:
        hidden, updates, steps = (4, 3, 16) if options.quick else (32, 500, 150)
        model = Predictor(hidden, generator)
        train(model, updates, steps, generator)
    if options.save:
        tg.save(options.save, model=model, hidden=model.cell.hidden_size)

    lines: Any = sys.stdin
    if options.demo or sys.stdin.isatty():
        lines = demo(generator)
    elif isinstance(lines, io.TextIOWrapper):
        lines.reconfigure(errors="replace")
    kept: deque[Step] = deque(maxlen=KEPT)
    try:
        follow(model, lines, kept)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read the results has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed at the end
        return
    if not kept:
        print("No number came.", file=sys.stderr)
        return
    path = options.out / "streaming.png"
    picture(path, kept)
    taken = median(row.seconds for row in kept) * 1e6
    print(f"{kept[-1].count:,} numbers, {taken:.0f} microseconds a step. Picture: {path}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the stream there is nothing to draw
        sys.exit(130)
