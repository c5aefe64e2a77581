"""The worked example of the article that this project began from, corrected.

The article trains a recurrent network of 10 inputs, 5 hidden units and 2 outputs on batches of 32 sequences of 100
steps, with softmax cross-entropy and Adam, for 1000 updates. This script shows that its gradient lacks a term, that
ours does not, and that the corrected network learns a task which needs memory, while the article's random labels
leave nothing to learn. Expect half a minute, an accuracy over 99 %, and a picture in runs/founding_article.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS, LAG = 10, 5, 2, 32, 100, 3

WRONG = """What was wrong in the article, and is put right here:
  1. dL/dh_t was the direct part alone; what reaches h_t through h_{t+1}, W_hh^T delta_{t+1}, was missing.
  2. Only W_xh and b_h were updated; here W_hh, W_hy and b_y are too.
  3. It took an optimizer step at every time step; here the loss of all steps is summed, then one step is taken.
  4. It mixed two frameworks, a Keras model with PyTorch's training calls.
  5. Its bias had shape (hidden, 1), which does not fit a batch of rows, and was added twice.
  6. Every step was fed the same slice of the data, so there was no sequence.
  7. Its labels were random: nothing to learn, and a loss that cannot go under ln 2.
"""


class Network(nn.Module):
    """h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h), y_t = W_hy h_t + b_y."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, generator: tg.Generator, dtype: type = np.float32
    ) -> None:
        self.cell = nn.RNNCell(inputs, hidden, dtype=dtype, generator=generator)
        self.readout = nn.Linear(hidden, outputs, dtype=dtype, generator=generator)

    def init_hidden(self, batch: int) -> tg.Tensor:
        return self.cell.init_state(batch)

    def forward(self, xs: tg.Tensor, h: tg.Tensor, forget: bool = False) -> tg.Tensor:
        """Scores of shape (steps, batch, outputs); ``forget`` takes the recurrent term out of the gradient."""
        outputs = []
        for x in tg.unstack(xs):
            y, h = self.cell(x, h.detach() if forget else h)
            outputs.append(y)
        return self.readout(tg.stack(outputs))


def classes_last(scores: tg.Tensor) -> tg.Tensor:
    """(steps, batch, classes) as rows of classes."""
    return scores.reshape((-1, scores.shape[-1]))


def gradient_errors(seed: int) -> dict[str, tuple[float, float]]:
    """For each parameter the relative error of the article's gradient and of ours, against central differences."""
    generator = tg.Generator(seed)
    network = Network(3, 4, 2, generator, np.float64)
    xs = generator.normal((6, 2, 3), dtype=np.float64)
    targets = generator.integers(0, 2, (12,))

    def loss(forget: bool = False) -> tg.Tensor:
        return F.cross_entropy(classes_last(network(xs, network.init_hidden(2), forget)), targets, reduction="sum")

    parameters = dict(network.named_parameters())
    without = tg.grad(loss(forget=True), list(parameters.values()))
    full = tg.grad(loss(), list(parameters.values()))
    errors = {}
    for (name, parameter), *gradients in zip(parameters.items(), without, full, strict=True):
        expected = central_differences(lambda: loss().item(), parameter)
        scale = np.abs(expected).max()
        errors[name] = tuple(float(np.abs(g.numpy() - expected).max() / scale) for g in gradients)
    return errors


def central_differences(f: Callable[[], float], parameter: tg.Tensor, step: float = 1e-5) -> np.ndarray:
    values = parameter.numpy()
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        value = values[index]
        values[index] = value + step
        above = f()
        values[index] = value - step
        result[index] = (above - f()) / (2 * step)
        values[index] = value
    return result


def draw(generator: tg.Generator, random_labels: bool) -> tuple[tg.Tensor, tg.Tensor]:
    """Sequences (steps, batch, inputs), and for each step whether the first input was positive LAG steps ago.

    ``random_labels`` gives the article's kind of target instead: coins, which no input tells anything about.
    """
    xs = generator.normal((STEPS, BATCH, INPUTS))
    if random_labels:
        return xs, generator.integers(0, OUTPUTS, (STEPS, BATCH))
    signs = (xs[:-LAG, :, 0] > 0).astype(np.int64)
    return xs, tg.concatenate([tg.full((LAG, BATCH), -100), signs])  # -100: too early to know, not counted


def train(updates: int, seed: int, random_labels: bool) -> tuple[list[float], float]:
    """The loss of each update, in nats, and the accuracy on sequences drawn afterwards."""
    from tqdm import tqdm

    generator = tg.Generator(seed)
    network = Network(INPUTS, HIDDEN, OUTPUTS, generator)
    optimizer = optim.Adam(network.parameters(), lr=0.01)
    schedule = optim.CosineAnnealingLR(optimizer, updates, eta_min=0.001)
    losses = []
    bar = tqdm(range(updates), desc="random labels" if random_labels else "sign of 3 steps ago", unit="update")
    for _ in bar:
        xs, targets = draw(generator, random_labels)
        scores = network(xs, network.init_hidden(BATCH))
        loss = F.cross_entropy(classes_last(scores), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    right = counted = 0
    with tg.no_grad():
        for _ in range(10):
            xs, targets = draw(generator, random_labels)
            guesses = tg.argmax(network(xs, network.init_hidden(BATCH)), axis=-1)
            known = targets.numpy() >= 0
            right += int((guesses.numpy() == targets.numpy())[known].sum())
            counted += int(known.sum())
    return losses, right / counted


def picture(path: Path, errors: dict[str, tuple[float, float]], memory: list[float], coins: list[float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    places = np.arange(len(errors))
    left.bar(places - 0.2, [a for a, _ in errors.values()], 0.4, label="the article's, without the recurrent term")
    left.bar(places + 0.2, [b for _, b in errors.values()], 0.4, label="ours")
    left.set_yscale("log")
    left.set_ylim(1e-14, 1e3)
    left.set_xticks(places, list(errors), rotation=20)
    left.set_ylabel("relative error of the gradient")
    left.set_title("Against central differences, float64")
    left.legend(loc="upper right")
    right.plot(coins, label="random labels", color="tab:gray")
    right.plot(memory, label=f"sign of x, {LAG} steps ago", color="tab:blue")
    right.axhline(math.log(2), color="black", linestyle="--", linewidth=1, label="ln 2")
    right.set_xlabel("update")
    right.set_ylabel("cross-entropy, nats")
    right.set_title(f"{INPUTS} inputs, {HIDDEN} hidden units, {STEPS} steps")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 updates: to see that it runs, not what it learns")
    parser.add_argument("--out", type=Path, default=Path("runs/founding_article"), help="where the picture goes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(WRONG)
    errors = gradient_errors(options.seed)
    print("Relative error of the gradient against central differences, float64:")
    print(f"  {'parameter':18}{'without the recurrent term':>28}{'ours':>10}")
    for name, (without, full) in errors.items():
        print(f"  {name:18}{without:28.1e}{full:10.1e}")
    print("  The readout's gradient is exact either way, so the loss falls and the mistake hides.\n")
    updates = 20 if options.quick else 1000
    memory, accuracy = train(updates, options.seed, random_labels=False)
    coins, coin_accuracy = train(updates, options.seed, random_labels=True)
    last = max(updates // 20, 1)
    print(f"\nThe sign of x {LAG} steps ago: accuracy {accuracy:.2%}, loss {np.mean(memory[-last:]):.4f} nats.")
    print(
        f"Random labels: accuracy {coin_accuracy:.2%}, loss {np.mean(coins[-last:]):.4f} nats, "
        f"and ln 2 is {math.log(2):.4f}."
    )
    path = options.out / "founding_article.png"
    picture(path, errors, memory, coins)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
