"""The network of 1997 and its learning, and beside it a recipe of today for the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F
from tinygrad_rnn.data.tasks import real_steps
from tinygrad_rnn.nn.gated import LSTM97Cell

Squash: TypeAlias = Callable[[tg.Tensor], tg.Tensor]  # of the output units
Lengths: TypeAlias = npt.NDArray[np.int64] | None  # shape (B,)
Learned: TypeAlias = Iterator[tuple[bool, float]]  # of each sequence whether it was wrong, and its error, as it came


class Net(Protocol):
    """A network, and how it learns."""

    def __call__(self, xs: tg.Tensor, every_step: bool, lengths: Lengths) -> tg.Tensor:
        """Outputs at every step, shape (T, B, output_size), or at each sequence's last."""

    def learn(self, task: data.Task, generator: tg.Generator) -> Learned:
        """Learn from one fresh sequence after the other, without end."""


class Form(Protocol):
    """What a paper, or a recipe, says of a network."""

    def net(self, task: data.Task, generator: tg.Generator) -> Net: ...


def failures(net: Net, task: data.Task, batch: data.Batch) -> tuple[int, float]:
    """How many sequences of a batch are wrong, and the mean error."""
    with tg.no_grad():
        outputs = net(tg.Tensor(batch.xs), task.every_step, batch.lengths).numpy()
    return int(task.wrong(outputs, batch).sum()), float(task.error(outputs, batch).mean())


# -- 1997


def linear(outputs: tg.Tensor) -> tg.Tensor:
    return outputs


@dataclass(frozen=True)
class Network:
    """What the paper says of the network of an experiment, and of its learning rate."""

    blocks: int
    cells: int
    rate: float
    reach: float = 0.1  # weights are even from minus to plus this
    bias: bool | Literal["gates"] = True
    output_bias: bool = True
    input_gates: tuple[float, ...] = ()  # where their biases begin; otherwise as weights do
    output_gates: tuple[float, ...] = ()
    truncated: bool = True  # whether gradients pass through the memory alone
    squash: Squash = tg.sigmoid

    def net(self, task: data.Task, generator: tg.Generator) -> Blocks:
        return Blocks(task, self, generator)


class Blocks(nn.Module):
    """Blocks of memory cells, and output units that see the cells."""

    def __init__(self, task: data.Task, form: Network, generator: tg.Generator) -> None:
        self.cell = LSTM97Cell(task.input_size, form.blocks, form.cells, form.bias, form.truncated, generator=generator)
        self.out = nn.Linear(self.cell.hidden_size, task.output_size, form.output_bias, generator=generator)
        self.squash, self.rate = form.squash, form.rate
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -form.reach, form.reach, generator)
        for first, biases in ((0, form.input_gates), (form.blocks, form.output_gates)):
            if biases:
                gates = self.cell.bias_gates.data.copy()
                gates[first : first + form.blocks] = biases
                self.cell.bias_gates.data = gates

    def forward(self, xs: tg.Tensor, every_step: bool, lengths: Lengths = None) -> tg.Tensor:
        ys, _ = tg.scan(self.cell, xs, lengths=lengths)
        return self.squash(self.out(ys if every_step or lengths is not None else ys[-1]))

    def learn(self, task: data.Task, generator: tg.Generator) -> Learned:
        return one_by_one(self, task, self.rate, generator)


def drawn(task: data.Task, generator: tg.Generator) -> Iterator[data.Batch]:
    """One fresh sequence after the other."""
    while True:
        many = task.batch(500, generator)
        for i in range(many.xs.shape[1]):
            n = len(many.xs) if many.lengths is None else int(many.lengths[i])
            targets = many.targets[:n, i : i + 1] if task.every_step else many.targets[i : i + 1]
            yield data.Batch(many.xs[:n, i : i + 1], targets, None)


def one_by_one(net: nn.Module, task: data.Task, rate: float, generator: tg.Generator) -> Learned:
    """The paper's learning: plain gradient descent, an update for each sequence."""
    optimizer = optim.SGD(net.parameters(), lr=rate)
    for one in drawn(task, generator):
        outputs = net(tg.Tensor(one.xs), task.every_step)
        loss = 0.5 * tg.square(outputs - tg.Tensor(one.targets)).sum()  # the paper's deltas have no factor of 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = outputs.numpy()
        yield bool(task.wrong(found, one)[0]), float(task.error(found, one)[0])


# -- today

HIDDEN, BATCH, RATE, CLIP = 32, 32, 0.01, 1.0
MODERN = (
    f'Lines of a "modern recipe" are no part of a paper. It is one for all: `nn.LSTM` of {HIDDEN} units, with forget '
    "gates whose biases, and the input gates', begin as Tallec & Ollivier (2018) propose for memories of a sequence's "
    f"length; Adam with rate {RATE}, batches of {BATCH}, gradients clipped at a norm of {CLIP:.0f}; cross-entropy of "
    "logistic outputs, or squared error of a linear one where a number is wanted. Learning ends by the paper's rule."
)


@dataclass(frozen=True)
class Modern:
    """The recipe of today; see `MODERN`."""

    squash: Squash = tg.sigmoid

    def net(self, task: data.Task, generator: tg.Generator) -> Gated:
        return Gated(task, self.squash, generator)


class Gated(nn.Module):
    """A layer with forget gates, and output units."""

    def __init__(self, task: data.Task, squash: Squash, generator: tg.Generator) -> None:
        self.rnn = nn.LSTM(task.input_size, HIDDEN, generator=generator)
        self.out = nn.Linear(HIDDEN, task.output_size, generator=generator)
        self.squash = squash
        steps = len(task.batch(BATCH, generator).xs)
        nn.init.chrono_(self.rnn.bias_hh_l0, max(steps, 3), generator)

    def scores(self, xs: tg.Tensor, every_step: bool, lengths: Lengths) -> tg.Tensor:
        ys, (h, _) = self.rnn(xs, lengths=lengths)
        return self.out(ys if every_step else h[-1])

    def forward(self, xs: tg.Tensor, every_step: bool, lengths: Lengths) -> tg.Tensor:
        return self.squash(self.scores(xs, every_step, lengths))

    def learn(self, task: data.Task, generator: tg.Generator) -> Learned:
        """Batch by batch; of each the sequences come one after the other."""
        optimizer = optim.Adam(self.parameters(), lr=RATE)
        loss_of = F.mse_loss if self.squash is linear else F.binary_cross_entropy_with_logits
        while True:
            batch = task.batch(BATCH, generator)
            scores = self.scores(tg.Tensor(batch.xs), task.every_step, batch.lengths)
            steps = real_steps(batch).nonzero() if task.every_step else ...
            loss = loss_of(scores[steps], tg.Tensor(batch.targets[steps]))
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm_(self.parameters(), CLIP)
            optimizer.step()
            with tg.no_grad():
                outputs = self.squash(scores).numpy()
            yield from zip(map(bool, task.wrong(outputs, batch)), task.error(outputs, batch).tolist(), strict=True)
