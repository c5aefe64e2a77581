"""Digits of MNIST, read row by row (Le, Jaitly & Hinton 2015) and coded (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

import tinygrad_rnn as tg
from examples.papers import files
from examples.papers.files import Floats
from examples.papers.trials import Paper, Setting, Trial, dots
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn, optim

# -- Le, Jaitly & Hinton 2015

RATES = (0.1, 0.03, 0.01, 0.003)
HIDDEN = 100


class Reader(nn.Module):
    """A recurrent layer over the rows of a picture, and scores of the ten digits after the last."""

    def __init__(self, unit: str, inputs: int, generator: tg.Generator) -> None:
        if unit == "IRNN":
            cell: nn.Module = nn.IRNNCell(inputs, HIDDEN, generator=generator)
        else:
            cell = {"tanh": nn.RNNCell, "LSTM": nn.LSTMCell}[unit](inputs, HIDDEN, generator=generator)
        self.layer = nn.Recurrent(cell)
        self.out = nn.Linear(HIDDEN, 10, generator=generator)

    def forward(self, images: Floats) -> tg.Tensor:
        """Scores (N, 10) of pictures (N, rows, columns)."""
        ys, _ = self.layer(tg.Tensor(np.ascontiguousarray(images.swapaxes(0, 1))))
        return self.out(ys[-1])


def accuracy(model: Reader, images: Floats, labels: np.ndarray) -> float:
    with tg.no_grad():
        parts = [model(images[i : i + 250]).numpy().argmax(-1) for i in range(0, len(images), 250)]
    return float((np.concatenate(parts) == labels).mean())


def rows(unit: str, pixels: bool, epochs: int, seed: int, quick: bool) -> Trial:
    """Learn with each rate of the grid, and test the one that is best on the validation part."""
    images, labels = files.digits(quick)
    if pixels:  # each 2 x 2 block's mean, one at a time
        blocks = images.reshape(len(images), 14, 2, 14, 2).mean((2, 4))
        images = blocks.reshape(len(images), 196, 1)
    n = len(images) * 7 // 10, len(images) * 8 // 10
    found = []
    for rate in RATES[:1] if quick else RATES:
        generator = tg.Generator(seed)
        model = Reader(unit, images.shape[-1], generator)
        optimizer = optim.SGD(model.parameters(), lr=rate)
        valid, test, epoch = 0.0, 0.0, 0
        for number in range(1 if quick else epochs):
            order = generator.permutation(n[0]).numpy()
            for batch in np.array_split(order, len(order) // 16):
                loss = F.cross_entropy(model(images[batch]), tg.Tensor(labels[batch]))
                optimizer.zero_grad()
                loss.backward()
                optim.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            share = accuracy(model, images[n[0] : n[1]], labels[n[0] : n[1]])
            if share > valid:
                valid, test, epoch = share, accuracy(model, images[n[1] :], labels[n[1] :]), number + 1
        found.append({"rate": rate, "valid": valid, "test": test, "epoch": epoch})
    return max(found, key=lambda one: float(one["valid"]))


def percent(trials: list[Trial]) -> tuple[str, ...]:
    values = [100 * trial["test"] for trial in trials]
    return (f"{np.mean(values):.1f} %",)


# -- Hinton & Salakhutdinov 2006

CODE = 30


class Autoencoder(nn.Module):
    """784-1000-500-250-30 and back, logistic but for the code, which is linear."""

    def __init__(self, sizes: tuple[int, ...], generator: tg.Generator) -> None:
        there = [nn.Linear(a, b, generator=generator) for a, b in pairwise(sizes)]
        back = [nn.Linear(b, a, generator=generator) for a, b in pairwise(sizes)][::-1]
        self.layers = nn.ModuleList([*there, *back])
        self.code = len(there) - 1
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight, gain=4.0, generator=generator)  # a logistic unit's slope is 1/4
            nn.init.constant_(layer.bias, 0)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        """The logits of the pixels."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i not in (self.code, last):
                x = tg.sigmoid(x)
        return x


def squared(found: Floats, wanted: Floats) -> float:
    """The squared error of a picture, summed over its pixels: the mean over pictures."""
    return round(float(np.square(found - wanted).sum(-1).mean()), 3)


def parted(quick: bool) -> tuple[Floats, Floats]:
    """Pictures to learn from, 4,000, and to judge by, 1,000."""
    images = files.digits(quick)[0].reshape(-1, 784)
    return images[: len(images) * 4 // 5], images[len(images) * 4 // 5 :]


def principal(seed: int, quick: bool) -> Trial:
    """Principal components, as many as the code has numbers."""
    train, test = parted(quick)
    centre = train.mean(0)
    _, _, axes = np.linalg.svd(train - centre, full_matrices=False)
    axes = axes[:CODE]
    return {
        part: squared((values - centre) @ axes.T @ axes + centre, values)
        for part, values in (("train", train), ("test", test))
    }


def autoencoder(epochs: int, seed: int, quick: bool) -> Trial:
    """The deep network, by Adam and cross-entropy, from random weights."""
    train, test = parted(quick)
    generator = tg.Generator(seed)
    model = Autoencoder((784, 20, CODE) if quick else (784, 1000, 500, 250, CODE), generator)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    epochs = 1 if quick else epochs
    schedule = optim.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in np.array_split(generator.permutation(len(train)).numpy(), len(train) // 50):
            pixels = tg.Tensor(train[batch])
            loss = 784 * F.binary_cross_entropy_with_logits(model(pixels), pixels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    with tg.no_grad():
        return {
            part: squared(tg.sigmoid(model(tg.Tensor(values))).numpy(), values)
            for part, values in (("train", train), ("test", test))
        }


def errors(trials: list[Trial]) -> tuple[str, ...]:
    return tuple(f"{np.mean([trial[part] for trial in trials]):.2f}" for part in ("train", "test"))


PAPERS = {
    "le15-irnn": Paper(
        "Digits in rows of pixels: tanh, IRNN and LSTM of 100 units",
        "after Le, Jaitly & Hinton 2015, A simple way to initialize recurrent networks of rectified linear units, "
        "arXiv:1504.00941",
        ("accuracy",),
        tuple(
            Setting(f"{unit}, {'196 steps of a pixel' if pixels else '28 steps of a row'}", ("-",), trials, run)
            for pixels, trials, epochs in ((False, 3, 30), (True, 1, 30))
            for unit in ("tanh", "IRNN", "LSTM")
            for run in [partial(rows, unit, pixels, epochs)]
        ),
        percent,
        dots("test", "accuracy"),
        "Not the paper's task, which is 60,000 digits of 784 steps of a pixel and a million updates: here 3,500 "
        "digits to learn from, 500 to choose by and 1,000 to test, in 28 rows, or made smaller to 14 x 14 and read "
        "pixel by pixel. From the paper: the units, their first weights, plain gradient descent in batches of 16 with "
        "clipping, the rate of 0.1, 0.03, 0.01 and 0.003 that is best on the validation part. Cooijmans et al. 2016 "
        "quote the paper's accuracies for 784 steps as 35.0 % for tanh and 97.0 % for the IRNN. Here, pixel by "
        "pixel, the IRNN learned nothing at any of the rates: 10 % is chance.",
    ),
    "hinton06": Paper(
        "Digits in a code of 30 numbers",
        "after Hinton & Salakhutdinov 2006, Reducing the dimensionality of data with neural networks, Science 313",
        ("error, train", "error, test"),
        (
            Setting("784-1000-500-250-30 autoencoder", ("-", "-"), 1, partial(autoencoder, 200)),
            Setting("30 principal components", ("-", "-"), 1, principal),
        ),
        errors,
        dots("test", "squared error of a test picture"),
        "Squared error of a picture, summed over its 784 pixels of 0 to 1; 4,000 digits to learn from, 1,000 to "
        "test. The paper had 60,000, so its figures are not set beside ours. It trained layer by layer first, with "
        "restricted Boltzmann machines, since deep networks of logistic units did not learn otherwise; here Glorot's "
        "initial weights, scaled for logistic units, and Adam take their place.",
    ),
}
