"""Synthetic tasks, as their papers define them, behind one interface.

A training loop needs to know of a task only this::

    batch = task.batch(32, generator)
    outputs = model(tg.Tensor(batch.xs))  # (T, B, task.output_size)
    loss = task.loss(outputs, batch)  # to be held against task.chance
    wrong = task.wrong(outputs.numpy(), batch)  # a bool for each sequence
    done = task.solved(all_wrong, all_errors)  # of the sequences so far, latest last

Papers that share a task's name seldom share its protocol, so where there are several the first argument, ``form``,
names one: the first author and the year, or the number of the experiment.

Hochreiter & Schmidhuber 1997 train on half the squared error, summed over outputs and steps, with one sequence an
update: for their learning rates take ``0.5 * task.loss(...)``, times the sequence's length where every step has a
target.
"""

from __future__ import annotations

from math import inf, log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinygrad_rnn import functional, ops
from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.tensor import Tensor, as_tensor

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Batch(NamedTuple):
    """Sequences, time first, with zeros after the end of the shorter ones.

    Attributes
    ----------
    xs
        Float32 of shape (T, B, input_size).
    targets
        Class indices, int64 of shape (B,), or (T, B) if every step has a target; or else float32 of these shapes
        and an axis of output_size more.
    lengths
        Int64 of shape (B,), or None if all sequences have length T.
    """

    xs: Floats
    targets: npt.NDArray[Any]
    lengths: Ints | None


class Task:
    """What the tasks of this package share.

    Attributes
    ----------
    input_size, output_size
        Features of ``xs``, and of the outputs.
    every_step
        Whether every step has a target, or only a sequence's last.
    classes
        Whether targets are class indices and outputs their scores.
    chance
        The expected `loss` of the best prediction that sees no input, though it may count steps.
    tolerance
        Where targets are numbers: an output is right if it is off by less.
    window, allowed, error_below
        When it is `solved`. Papers that give no rule get that of Hochreiter & Schmidhuber 1997: the last 2000 right.
    """

    input_size: int
    output_size: int
    chance: float
    every_step = False
    classes = False
    tolerance = 0.04
    window = 2000
    allowed = 0
    error_below = inf

    def batch(self, size: int, generator: Generator | None = None) -> Batch:
        """``size`` fresh sequences; one draw from ``generator``, or from the default one."""
        at_least("size", size, 1)
        return self._draw(size, random_numbers(generator))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats, or squared error summed over outputs: the mean over all targets but padding.

        Parameters
        ----------
        outputs
            Shape (T, B, output_size); where only the last step has a target (B, output_size) will do.
        """
        outputs = self._final(as_tensor(outputs), batch)
        backend = get_backend(outputs.backend)
        if self.classes:
            targets = Tensor(backend.asarray(batch.targets.reshape(-1)))
            return functional.cross_entropy(ops.reshape(outputs, (-1, self.output_size)), targets)
        difference = outputs - Tensor(backend.asarray(batch.targets, dtype=outputs.dtype))
        count = batch.xs.shape[1]
        if self.every_step:
            real = real_steps(batch)
            count = int(real.sum())
            # Chosen, not multiplied, and before the square: on padding a network may put out NaN.
            difference = ops.where(Tensor(backend.asarray(real[..., None])), difference, 0.0)
        mean: Tensor = ops.sum(ops.square(difference)) / count
        return mean

    def wrong(self, predictions: npt.ArrayLike, batch: Batch) -> Bools:
        """Which sequences the paper counts as wrong, shape (B,). NaN is wrong.

        Parameters
        ----------
        predictions
            Outputs as `loss` takes them, as an array.
        """
        miss = self._miss(self._final(np.asarray(predictions), batch), batch)
        return np.asarray((miss & self._judged(batch)).any(0) if self.every_step else miss)

    def error(self, predictions: npt.ArrayLike, batch: Batch) -> npt.NDArray[np.float64]:
        """The mean absolute error of each sequence, or with classes the share of its targets missed, shape (B,)."""
        outputs = self._final(np.asarray(predictions), batch)
        if self.classes:
            errors = self._miss(outputs, batch).astype(np.float64)
        else:
            errors = np.abs(np.asarray(outputs - self._ideal(batch), np.float64)).mean(-1)
        if not self.every_step:
            return errors
        judged = self._judged(batch)
        return np.asarray(np.where(judged, errors, 0.0).sum(0) / judged.sum(0))

    def solved(self, wrong: npt.ArrayLike, errors: npt.ArrayLike | None = None) -> bool:
        """Whether the latest ``window`` sequences meet the paper's rule: ``allowed`` wrong at most, small errors.

        Parameters
        ----------
        wrong, errors
            What `wrong` and `error` gave, one sequence after the other, latest last. Without errors the number of
            wrong sequences decides alone.
        """
        latest = np.asarray(wrong, dtype=bool)[-self.window :]
        if latest.ndim != 1:
            raise ValueError(f"solved takes wrong of shape (sequences,), got {np.shape(wrong)}")
        if errors is not None and np.shape(errors) != np.shape(wrong):
            raise ValueError(f"solved: errors must have the shape of wrong, {np.shape(wrong)}, got {np.shape(errors)}")
        if latest.size < self.window or latest.sum() > self.allowed:
            return False
        return errors is None or bool(np.asarray(errors)[-self.window :].mean() < self.error_below)

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        raise NotImplementedError

    def _ideal(self, batch: Batch) -> npt.NDArray[Any]:
        """What outputs are judged by: the targets without their noise."""
        return batch.targets

    def _miss(self, outputs: npt.NDArray[Any], batch: Batch) -> Bools:
        """Which targets are missed, shape (B,) or (T, B)."""
        if self.classes:
            return np.asarray((outputs.argmax(-1) != batch.targets) | np.isnan(outputs).any(-1))
        return np.asarray(~(np.abs(outputs - self._ideal(batch)) < self.tolerance).all(-1))

    def _judged(self, batch: Batch) -> Bools:
        """Which steps count in `wrong` and `error`, shape (T, B)."""
        return real_steps(batch)

    def _final(self, outputs: Any, batch: Batch) -> Any:
        """``outputs`` where there are targets: at every step, or at each sequence's last."""
        steps, size = batch.xs.shape[:2]
        full, last = (steps, size, self.output_size), (size, self.output_size)
        if outputs.shape == full:
            if self.every_step:
                return outputs
            ends = np.full(size, steps - 1) if batch.lengths is None else batch.lengths - 1
            if isinstance(outputs, Tensor):
                asarray = get_backend(outputs.backend).asarray
                return outputs[asarray(ends), asarray(np.arange(size))]
            return outputs[ends, np.arange(size)]
        if outputs.shape == last and not self.every_step:
            return outputs
        wanted = f"{full}" if self.every_step else f"{full} or {last}"
        raise ValueError(f"{type(self).__name__}: outputs must have shape {wanted}, got {outputs.shape}")


class Adding(Task):
    """The adding problem: a sequence of pairs (value, marker); the sum of the two marked values, at the end.

    ==================  ==================  ==============================  ===================  ============
    form                values              marked places                   target               chance
    ==================  ==================  ==============================  ===================  ============
    ``"hochreiter97"``  U(-1, 1)            see below                       0.5 + (a + b) / 4    near 1/24
    ``"le15"``          U(0, 1)             two, anywhere                   a + b                1/6
    ``"arjovsky16"``    U(0, 1)             one in each half                a + b                1/6
    ``"bai18"``         U(0, 1)             two, anywhere                   a + b                1/6
    ``"pascanu13"``     U(0, 1)             in [0, T/10) and [T/10, T/2)    (a + b) / 2          1/24
    ==================  ==================  ==============================  ===================  ============

    * Hochreiter & Schmidhuber 1997, experiment 4 (section 5.4): lengths are uniform from T to T + T/10. One of the
      first ten pairs is marked, then one of the first T/2 - 1 pairs still unmarked. Markers are 1, and -1 at the first
      and the last pair. Should the first be drawn, its marker stays -1 and its value becomes 0. Right is off by less
      than 0.04. Solved: the last 2000 right, with a mean error below 0.01, which we take for the absolute one.
    * Le, Jaitly & Hinton 2015, section 4.1. How they place the markers we could not confirm.
    * Arjovsky, Shah & Bengio 2016, section 5.2 and code. Bai, Kolter & Koltun 2018, code.
    * Pascanu, Mikolov & Bengio 2013: wrong is a squared error above 0.04. Solved: fewer than 1 % of 10,000 wrong.

    The middle three report only the loss; their sequences count as wrong by the rule of 1997. A constant 1 has an
    error of 1/6, the variance of the sum of two U(0, 1), not the 0.1767 found in papers.

    Parameters
    ----------
    form
        One of the five names above.
    length
        T.
    """

    input_size, output_size = 2, 1

    def __init__(self, form: str, length: int) -> None:
        minimum = {"hochreiter97": 22, "le15": 2, "arjovsky16": 2, "bai18": 2, "pascanu13": 10}
        one_of("form", form, minimum)
        at_least("length", length, minimum[form])
        self.form = form
        self.length = length
        self.chance = 1 / 6
        if form == "hochreiter97":
            self.error_below = 0.01
            self.chance = (2 - _first_marked(length)) / 48
        elif form == "pascanu13":
            self.tolerance = 0.2
            self.window, self.allowed = 10_000, 99
            self.chance = 1 / 24

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        if self.form == "hochreiter97":
            xs, marked, lengths = _marked_pairs(random, size, self.length, low=-1.0, neutral=0.0)
            return Batch(xs, 0.5 + marked.sum(0)[:, None] / 4, lengths)
        length = self.length
        cuts = {"arjovsky16": (length // 2, length), "pascanu13": (length // 10, length // 2)}
        if self.form in cuts:
            middle, end = cuts[self.form]
            places = np.stack([random.integers(0, middle, size), random.integers(middle, end, size)])
        else:
            first, second = random.integers(0, length, size), random.integers(0, length - 1, size)
            places = np.stack([first, second + (second >= first)])
        xs = np.zeros((length, size, 2), np.float32)
        xs[..., 0] = random.random((length, size), dtype=np.float32)
        xs[places, np.arange(size), 1] = 1
        total = xs[places, np.arange(size), 0].sum(0)[:, None]
        return Batch(xs, total / 2 if self.form == "pascanu13" else total, None)


class Multiplication(Task):
    """The product of the two marked values, at the end: Hochreiter & Schmidhuber 1997, experiment 5 (section 5.5).

    As ``Adding("hochreiter97")``, but values are U(0, 1), and that of the first pair becomes 1 should it be marked.
    Solved: fewer than ``n_seq`` of the last 2000 off by more than 0.04.

    Parameters
    ----------
    length
        T; lengths are uniform from T to T + T/10.
    n_seq
        140 and 13 in the paper.
    """

    input_size, output_size = 2, 1

    def __init__(self, length: int, n_seq: int = 13) -> None:
        at_least("length", length, 22)
        at_least("n_seq", n_seq, 1)
        self.length = length
        self.allowed = n_seq - 1
        p = _first_marked(length)
        mean, square = (1 - p) / 4 + p / 2, (1 - p) / 9 + p / 3
        self.chance = square - mean**2

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        xs, marked, lengths = _marked_pairs(random, size, self.length, low=0.0, neutral=1.0)
        return Batch(xs, marked.prod(0)[:, None], lengths)


class CopyMemory(Task):
    """Ten symbols out of eight, to be said again after T blanks.

    Of the T + 20 steps the first ten show the symbols 1 to 8, the rest blanks, 0, and a marker, 9, that asks for
    them. Targets are T + 10 blanks, then the symbols. Who remembers nothing says blanks, then guesses: the chance
    level is ``10 ln 8 / (T + 20)``.

    * ``"arjovsky16"``: one-hot inputs; the marker once, eleven steps before the end; 9 classes. Arjovsky, Shah &
      Bengio 2016, section 5.1 and code.
    * ``"bai18"``: the symbol as one number; the marker at the last eleven steps; 10 classes, of which 9 never comes.
      Bai, Kolter & Koltun 2018, section 5.2 and code.

    Wrong is a sequence whose last ten symbols are not all right.

    Parameters
    ----------
    form
        One of the two names above.
    length
        T, the delay.
    """

    classes = every_step = True

    def __init__(self, form: str, length: int) -> None:
        one_of("form", form, ("arjovsky16", "bai18"))
        at_least("length", length, 1)
        self.form = form
        self.length = length
        self.input_size, self.output_size = (10, 9) if form == "arjovsky16" else (1, 10)
        self.chance = 10 * log(8) / (length + 20)

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        steps = self.length + 20
        symbols = np.zeros((steps, size), np.int64)
        symbols[:10] = random.integers(1, 9, (10, size))
        targets = np.roll(symbols, self.length + 10, axis=0)
        if self.form == "bai18":
            symbols[-11:] = 9
            return Batch(symbols[..., None].astype(np.float32), targets, None)
        symbols[-11] = 9
        return Batch(one_hot(symbols, 10), targets, None)

    def _judged(self, batch: Batch) -> Bools:
        judged = np.zeros(batch.targets.shape, bool)
        judged[-10:] = True
        return judged


class Parity(Task):
    """Whether the number of ones among random bits is odd, class 1, or even, class 0.

    In the tradition of Bengio, Simard & Frasconi 1994; lengths and inputs differ from paper to paper, these are ours.
    Whoever misses a single bit stays at chance, ln 2.

    Parameters
    ----------
    length
        T.
    every_step
        Ask for the parity of the bits so far at every step, which is far easier to learn.
    """

    input_size, output_size = 1, 2
    classes = True
    chance = log(2)

    def __init__(self, length: int, every_step: bool = False) -> None:
        at_least("length", length, 1)
        self.length = length
        self.every_step = every_step

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        bits = random.integers(0, 2, (self.length, size))
        parity = bits.cumsum(0) % 2
        return Batch(bits[..., None].astype(np.float32), parity if self.every_step else parity[-1], None)


class DelayedEcho(Task):
    """At every step the bit of ``delay`` steps ago, 0 before there was one. The protocol is ours.

    Chance is ln 2 at all but the first ``delay`` steps.

    Parameters
    ----------
    length
        T.
    delay
        At least 1, less than T.
    """

    input_size, output_size = 1, 2
    classes = every_step = True

    def __init__(self, length: int, delay: int) -> None:
        at_least("delay", delay, 1)
        at_least("length", length, delay + 1)
        self.length = length
        self.delay = delay
        self.chance = log(2) * (length - delay) / length

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        bits = random.integers(0, 2, (self.length, size))
        targets = np.zeros_like(bits)
        targets[self.delay :] = bits[: -self.delay]
        return Batch(bits[..., None].astype(np.float32), targets, None)


class Sine(Task):
    """The next value of a sine wave of unknown phase and period, at every step. The protocol is ours.

    Periods are uniform from 10 to 20 steps. Chance, a constant 0, is 1/2. Wrong is a sequence that in its second half
    is anywhere off by 0.1 or more.

    Parameters
    ----------
    length
        T.
    """

    input_size = output_size = 1
    every_step = True
    tolerance = 0.1
    chance = 0.5

    def __init__(self, length: int) -> None:
        at_least("length", length, 2)
        self.length = length

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        phase, period = random.random(size), random.uniform(10, 20, size)
        turns = np.arange(self.length + 1)[:, None] / period + phase
        wave = np.sin(2 * np.pi * turns)[..., None].astype(np.float32)
        return Batch(wave[:-1], wave[1:], None)

    def _judged(self, batch: Batch) -> Bools:
        return np.broadcast_to((np.arange(self.length) >= self.length // 2)[:, None], batch.xs.shape[:2])


def _first_marked(length: int) -> float:
    """The probability that `_marked_pairs` draws the first pair."""
    return 1 / 10 + 9 / 10 / (length // 2 - 1)


def _marked_pairs(
    random: np.random.Generator, size: int, length: int, low: float, neutral: float
) -> tuple[Floats, Floats, Ints]:
    """Experiments 4 and 5 of 1997: pairs, the two marked values of shape (2, size), and the lengths."""
    lengths = random.integers(length, length + length // 10 + 1, size)
    first = random.integers(0, 10, size)
    second = random.integers(0, length // 2 - 1, size)
    places = np.stack([first, second + (second >= first)])
    sequences = np.arange(size)
    xs = np.zeros((int(lengths.max()), size, 2), np.float32)
    xs[..., 0] = random.uniform(low, 1, xs.shape[:2])
    xs[places, sequences, 1] = 1
    xs[0, (places == 0).any(0), 0] = neutral
    xs[0, :, 1] = xs[lengths - 1, sequences, 1] = -1
    xs[np.arange(len(xs))[:, None] >= lengths] = 0
    return xs, xs[places, sequences, 0], lengths


def random_numbers(generator: Generator | None) -> np.random.Generator:
    """A stream of host numbers keyed by the next draw of ``generator``."""
    key = default_generator(generator).next_key()
    return np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))


def one_hot(codes: Ints, size: int) -> Floats:
    """Rows of the identity matrix, and zeros for negative codes."""
    return np.asarray((codes[..., None] == np.arange(size)).astype(np.float32))


def real_steps(batch: Batch) -> Bools:
    """Which steps are no padding, shape (T, B)."""
    steps, size = batch.xs.shape[:2]
    if batch.lengths is None:
        return np.ones((steps, size), bool)
    return np.asarray(np.arange(steps)[:, None] < batch.lengths)


def at_least(name: str, value: int, minimum: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def one_of(name: str, value: str, options: Any) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
