"""Polyphonic music: Chung et al. 2014 and Bai et al. 2018. Predict each step's 88 keys from the steps before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import exp

import numpy as np

import tinygrad_rnn as tg
from examples.papers import files
from examples.papers.files import Floats
from examples.papers.trials import Paper, Setting, Trial, dots
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F

KEYS = 88


class Model(nn.Module):
    """A recurrent layer, and for each key its odds at the next step."""

    def __init__(self, layer: nn.Module, hidden: int, generator: tg.Generator) -> None:
        self.layer, self.out = layer, nn.Linear(hidden, KEYS, generator=generator)

    def loss(self, sequences: Sequence[Floats]) -> tuple[tg.Tensor, int]:
        """The mean negative log-likelihood of a step, in nats, summed over keys, and how many steps there are."""
        xs, lengths = data.pad(sequences)
        ys, _ = self.layer(tg.Tensor(xs[:-1]), lengths=lengths - 1)
        of_keys = tg.sequence_loss(
            F.binary_cross_entropy_with_logits, self.out(ys), tg.Tensor(xs[1:]), lengths=lengths - 1
        )
        return KEYS * of_keys, int((lengths - 1).sum())


def likelihood(model: Model, sequences: Sequence[Floats]) -> float:
    """The mean over all steps but each sequence's first, in nats."""
    model.eval()
    order = sorted(sequences, key=len)
    with tg.no_grad():
        parts = [model.loss(order[i : i + 32]) for i in range(0, len(order), 32)]
    model.train()
    return sum(loss.item() * steps for loss, steps in parts) / sum(steps for _, steps in parts)


@contextmanager
def noisy(parameters: Sequence[tg.Tensor], std: float, generator: tg.Generator) -> Iterator[None]:
    """Normal noise on all weights, for as long as it takes to get a gradient (Graves 2011)."""
    clean = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data + generator.normal(parameter.shape, std=std).numpy()
    try:
        yield
    finally:
        for parameter, values in zip(parameters, clean, strict=True):
            parameter.data = values


def train(
    model: Model,
    rolls: dict[str, list[Floats]],
    optimizer: optim.Optimizer,
    batch: int,
    epochs: int,
    generator: tg.Generator,
    after_epoch: Callable[[list[float]], bool],
    noise: float = 0.0,
) -> Trial:
    """Train, and judge the weights that were best on the validation part.

    ``after_epoch`` gets the validation losses so far and says whether to stop.
    """
    parameters = list(model.parameters())
    best: dict[str, tg.Tensor] = {}
    losses: list[float] = []
    for _ in range(epochs):
        for rows in data.bucketed([len(roll) for roll in rolls["train"]], batch, generator):
            with noisy(parameters, noise, generator):
                loss, _ = model.loss([rolls["train"][row] for row in rows])
                optimizer.zero_grad()
                loss.backward()
            optim.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        losses.append(likelihood(model, rolls["valid"]))
        if losses[-1] == min(losses):
            best = {name: tg.Tensor(value.numpy().copy()) for name, value in model.state_dict().items()}
        if after_epoch(losses):
            break
    model.load_state_dict(best)
    found = {part: round(likelihood(model, rolls[part]), 3) for part in ("train", "valid", "test")}
    return {**found, "epochs": len(losses)}


def weights(model: Model) -> int:
    return sum(parameter.size for parameter in model.parameters())


# -- Chung, Gulcehre, Cho & Bengio 2014

CELLS = {"tanh": (nn.RNNCell, 100), "GRU": (nn.ChoGRUCell, 46), "LSTM": (nn.PeepholeLSTMCell, 36)}


def chung(name: str, unit: str, modern: bool, epochs: int, seed: int, quick: bool) -> Trial:
    """One draw of a learning rate, or the modern recipe: Adam, no noise on the weights."""
    generator = tg.Generator(seed)
    kind, hidden = CELLS[unit]
    model = Model(nn.Recurrent(kind(KEYS, hidden, generator=generator)), hidden, generator)
    rate = 3e-3 if modern else exp(generator.uniform(low=-12, high=-6, dtype=np.float64).item())
    optimizer = (optim.Adam if modern else optim.RMSprop)(model.parameters(), lr=rate)

    def stop(losses: list[float]) -> bool:
        return len(losses) - losses.index(min(losses)) > 20

    rolls = files.rolls(name, quick)
    found = train(model, rolls, optimizer, 8, 1 if quick else epochs, generator, stop, 0.0 if modern else 0.075)
    return {"rate": float(f"{rate:.2e}"), "weights": weights(model), **found}


def best(trials: list[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial["valid"])


def train_and_test(trials: list[Trial]) -> tuple[str, ...]:
    return f"{best(trials)['train']:.2f}", f"{best(trials)['test']:.2f}"


CHUNG = [
    ("JSB_Chorales.mat", "tanh", "8.82", "9.10"),
    ("JSB_Chorales.mat", "GRU", "6.94", "8.54"),
    ("JSB_Chorales.mat", "LSTM", "8.15", "8.67"),
    ("Nottingham.mat", "tanh", "3.22", "3.13"),
    ("Nottingham.mat", "GRU", "2.79", "3.23"),
    ("Nottingham.mat", "LSTM", "3.08", "3.20"),
]


# -- Bai, Kolter & Koltun 2018


def bai(unit: str, seed: int, quick: bool) -> Trial:
    """Two layers of 200 units on one chorale at a time."""
    generator = tg.Generator(seed)
    hidden = 8 if quick else 200
    kind: type[nn.Module] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[unit]
    layer = kind(KEYS, hidden, num_layers=2, dropout=0.2, generator=generator)
    if unit == "LSTM":
        for number in range(2):
            nn.init.forget_bias_(getattr(layer, f"bias_ih_l{number}"), 10.0)
    model = Model(layer, hidden, generator)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def stop(losses: list[float]) -> bool:
        group = optimizer.param_groups[0]
        if len(losses) > 10 and losses[-1] > max(losses[-4:-1]):
            group["lr"] /= 10
        return bool(group["lr"] < 1e-5)

    return {
        **train(model, files.rolls("JSB_Chorales.mat", quick), optimizer, 1, 1 if quick else 60, generator, stop),
        "weights": weights(model),
    }


FLOORS = (
    "For comparison: how often each key sounds, known beforehand, costs 11.09 on JSB and 10.26 on Nottingham; each key "
    "given itself a step before, 10.49 and 5.15. The mean is over all steps but each sequence's first."
)

PAPERS = {
    "chung14-music": Paper(
        "Polyphonic music: tanh, GRU and LSTM of about 20,000 weights",
        "Chung, Gulcehre, Cho & Bengio 2014, Empirical evaluation of gated recurrent neural networks on sequence "
        "modeling, arXiv:1412.3555, tables 1 and 2",
        ("train", "test"),
        tuple(
            Setting(
                f"{name.partition('.')[0].replace('_', ' ')}, {unit}{', Adam, no noise' * modern}",
                tuple(said),
                1 if modern else 10,
                partial(chung, name, unit, modern, 400 if name.startswith("JSB") else 60),
            )
            for modern in (False, True)
            for name, unit, *said in CHUNG
        ),
        train_and_test,
        dots("test", "test"),
        "Negative log-likelihood of a step in nats. A trial is a learning rate, log-uniform from e^-12 to "
        "e^-6; shown is the one that was best on the validation part, as in the paper. Not said there, and "
        "chosen here: batches of 8 whole sequences, an end when 20 epochs brought nothing, at most 400 of "
        "them (Nottingham: 60), a decay of 0.99 in RMSProp, and weights that begin Glorot-uniform and "
        "orthogonal. On Nottingham, where ours falls short of the paper, each trial used all its 60 epochs. " + FLOORS,
    ),
    "bai18-music": Paper(
        "JSB Chorales: two layers of 200 units",
        "Bai, Kolter & Koltun 2018, An empirical evaluation of generic convolutional and recurrent networks for "
        "sequence modeling, arXiv:1803.01271, tables 1 and 3",
        ("test",),
        tuple(
            Setting(unit, (said,), 1, partial(bai, unit))
            for unit, said in (("LSTM", "8.45"), ("GRU", "8.43"), ("RNN", "8.91"))
        ),
        lambda trials: (f"{best(trials)['test']:.2f}",),
        dots("test", "test"),
        "Negative log-likelihood of a step in nats; dropout 0.2, gradients clipped at a norm of 1, the "
        "LSTM's forget bias 10, one chorale at a time; from the eleventh epoch on the rate is divided by 10 "
        "when the validation loss is above those of the last three, and the best weights on the validation "
        "part are judged. Adam with 0.001 to begin with is our choice. With 88 keys such an LSTM has "
        "571,000 weights, not the 300,000 that the paper names. " + FLOORS,
    ),
}
