"""Learn from a stream while it comes, by truncated BPTT, and learn again when its rule changes.

    python examples/online.py
    python examples/online.py --delays 4 6

A network hears one random bit after the other and is asked for the bit of 3 steps ago. Halfway, unannounced, the right
answer becomes the bit of 6 steps ago. It learns all the time, by an update after every k1 = 4 steps from a window of
the last k2 steps: 4, 8 or 16. Each answer is judged before anything is learned from it. Who knows nothing loses
ln 2 = 0.69 nats a step.

Expect 25 seconds and a picture in runs/online. With k2 = 4 the first rule is learned in about 2,000 steps and the
second never: a window of 4 steps holds no bit of 6 steps ago. With 8 and 16 both are learned, the second in 1,800 to
11,000 steps with four seeds, and neither is always the sooner. It needs `pip install 'tinygrad_rnn[examples]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from math import log
from pathlib import Path

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

K1, K2S, PIECE, LEARNED = 4, (4, 8, 16), 200, 0.05  # LEARNED: nats a step


def stream(delays: tuple[int, int], change: int, generator: tg.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless: bits (PIECE, 1, 1) and after each the right answer, (PIECE, 1). From step ``change`` on by delays[1]."""
    heard = np.zeros(max(delays), np.int64)
    start = 0
    while True:
        bits = np.concatenate([heard, generator.integers(0, 2, PIECE).numpy()])
        first, second = (bits[len(heard) - delay : len(bits) - delay] for delay in delays)
        answers = np.where(np.arange(start, start + PIECE) < change, first, second)
        yield bits[len(heard) :, None, None].astype(np.float32), answers[:, None]
        heard, start = bits[PIECE:], start + PIECE


class Echo(nn.Module):
    """Scores of the two answers at every step; called as a layer is, so that it goes on from a state."""

    def __init__(self, hidden: int, generator: tg.Generator) -> None:
        self.layer = nn.GRU(1, hidden, generator=generator)
        self.readout = nn.Linear(hidden, 2, generator=generator)

    def forward(self, xs: tg.Tensor, state: tg.Tensor | None) -> tuple[tg.Tensor, tg.Tensor]:
        ys, state = self.layer(xs, state)
        return self.readout(ys), state


def nats(scores: tg.Tensor, answers: tg.Tensor) -> tg.Tensor:
    return F.cross_entropy(scores.reshape((-1, 2)), answers.reshape(-1))


def learn(k2: int, delays: tuple[int, int], steps: int, hidden: int, seed: int) -> np.ndarray:
    """The loss of each update, of its own K1 steps, before it learned from them."""
    from tqdm import tqdm

    generator = tg.Generator(seed)  # the same stream and the same first weights for each k2
    model = Echo(hidden, generator)
    optimizer = optim.Adam(model.parameters(), lr=0.003)
    losses, state = [], None
    with tqdm(total=steps, desc=f"k2 = {k2:2}", unit="step") as bar:
        for xs, answers in islice(stream(delays, steps // 2, generator), steps // PIECE):
            for update in tg.tbptt(model, nats, xs, answers, optimizer, k1=K1, k2=k2, state=state, max_norm=1.0):
                losses.append(update.loss.item())
                bar.update(K1)
            state = update.state  # the next piece goes on where this one ended
            bar.set_postfix(loss=f"{np.mean(losses[-PIECE:]):.3f}", refresh=False)
    return np.array(losses)


def running(losses: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last ``width`` losses, or of all if there were fewer."""
    total = np.cumsum(np.concatenate([[0.0], losses]))
    after = np.arange(1, len(losses) + 1)
    before = np.maximum(after - width, 0)
    return (total[after] - total[before]) / (after - before)


def steps_to_learn(losses: np.ndarray, width: int) -> str:
    """How many steps it took until the mean loss over ``width`` updates fell below LEARNED."""
    low = np.flatnonzero(running(losses, width)[width - 1 :] < LEARNED)
    return f"{(low[0] + width) * K1:,}" if len(low) else "never"


def picture(path: Path, results: dict[int, np.ndarray], delays: tuple[int, int], width: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for k2, losses in results.items():
        axes.plot(np.arange(1, len(losses) + 1) * K1, running(losses, width), label=f"k2 = {k2}")
    change = len(losses) * K1 // 2
    axes.axvline(change, color="black", linewidth=1)
    axes.axhline(log(2), color="gray", linestyle="--", linewidth=1, label="knows nothing, ln 2")
    axes.set_ylim(-0.03, 1.45)
    for x, delay, place in ((change, delays[0], "right"), (change, delays[1], "left")):
        axes.text(x, 1.36, f"  the bit of {delay} steps ago  ", ha=place)
    axes.set_xlabel("step of the stream")
    axes.set_ylabel(f"nats a step, mean of {width * K1} steps")
    axes.set_title(f"An update every k1 = {K1} steps, from a window of the last k2 steps")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 steps, 4 units: to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/online"), help="where the picture goes")
    parser.add_argument("--delays", type=int, nargs=2, default=(3, 6), help="before and after the change (3 6)")
    options = parser.parse_args(arguments)
    if not all(1 <= delay <= PIECE for delay in options.delays):
        parser.error(f"--delays must be from 1 to {PIECE}, got {' '.join(map(str, options.delays))}")
    options.out.mkdir(parents=True, exist_ok=True)
    steps, hidden, width = (400, 4, 10) if options.quick else (24_000, 32, 100)
    results = {k2: learn(k2, tuple(options.delays), steps, hidden, options.seed) for k2 in K2S}

    first, second = options.delays
    print(
        f"\nSteps until the loss, mean of {width * K1} steps, was below {LEARNED} nats a step; and the loss at the end"
    )
    print(f"  {'k2':>4}{f'delay {first}':>12}{'at the end':>12}{f'delay {second}':>12}{'at the end':>12}")
    for k2, losses in results.items():
        halves = np.split(losses, 2)
        cells = [f"{steps_to_learn(half, width):>12}{half[-width:].mean():12.3f}" for half in halves]
        print(f"  {k2:4}{''.join(cells)}")
    path = options.out / "online.png"
    picture(path, results, options.delays, width)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
