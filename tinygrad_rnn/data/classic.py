"""Tasks on symbols and signals: two sequences, temporal order, and the embedded Reber grammar.

Sections and experiments are those of Hochreiter & Schmidhuber 1997, Long Short-Term Memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.data.tasks import (
    Batch,
    Bools,
    Floats,
    Ints,
    Task,
    at_least,
    one_hot,
    one_of,
    random_numbers,
    real_steps,
)
from tinygrad_rnn.random import Generator


class TwoSequence(Task):
    """Which of two signals began a noisy sequence, at its end: experiment 3 (section 5.3).

    The first ``signal`` values are 1 in class 1 and -1 in class 2, all others Gaussian with variance 0.2; lengths are
    uniform from T to T + T/10. It is the problem of Bengio, Simard & Frasconi 1994.

    * ``"3a"``: targets 1 and 0, right is off by less than 0.2. Chance is 1/4.
    * ``"3b"``: the same noise is added to the first values too.
    * ``"3c"``: targets 0.2 and 0.8, with Gaussian noise of variance 0.1; right is off by less than 0.1 from the
      target without noise, and so is `error`. Chance is 0.09 + 0.1.

    Solved is judged on a test set of 256: none wrong, in 3b fewer than six (the paper's ST1, and its only rule if
    no errors are given), with a mean absolute error below 0.01, 0.04 and 0.015 (ST2; 3c has this one rule).

    Parameters
    ----------
    form
        One of the three names above.
    length
        T.
    signal
        The paper's N.
    """

    input_size = output_size = 1
    window = 256

    def __init__(self, form: str, length: int, signal: int = 3) -> None:
        one_of("form", form, ("3a", "3b", "3c"))
        at_least("signal", signal, 1)
        at_least("length", length, signal + 1)
        self.form = form
        self.length = length
        self.signal = signal
        self.tolerance = 0.1 if form == "3c" else 0.2
        self.chance = 0.19 if form == "3c" else 0.25
        self.allowed = 5 if form == "3b" else 0
        self.error_below = {"3a": 0.01, "3b": 0.04, "3c": 0.015}[form]

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        lengths = random.integers(self.length, self.length + self.length // 10 + 1, size)
        sign = 1.0 - 2.0 * random.integers(0, 2, size)
        values = random.normal(0, 0.2**0.5, (int(lengths.max()), size))
        head = values[: self.signal]
        head[...] = sign + (head if self.form == "3b" else 0)
        values[np.arange(len(values))[:, None] >= lengths] = 0
        targets = (sign > 0).astype(np.float64)
        if self.form == "3c":
            targets = _clean(sign) + random.normal(0, 0.1**0.5, size)
        return Batch(values[..., None].astype(np.float32), targets[:, None].astype(np.float32), lengths)

    def _ideal(self, batch: Batch) -> npt.NDArray[np.generic]:
        return _clean(batch.xs[0]) if self.form == "3c" else batch.targets


def _clean(sign: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.where(sign > 0, 0.2, 0.8)


class TemporalOrder(Task):
    """In which order some rare symbols came among distractors, at the end.

    * ``"6a"``, ``"6b"``: experiment 6 (section 5.6). One-hot inputs for E, B, a, b, c, d, X, Y. A sequence of length
      100 to 110 starts with E, ends with B, and has X or Y at two steps, 10 to 20 and 50 to 60 (6a), or at three,
      10 to 20, 33 to 43 and 66 to 76 (6b), counted from 1; a to d elsewhere. Targets are one-hot for the 4 or 8
      orders, XX, XY, YX, YY and so on. Right is each output off by less than 0.3. Solved: the last 2000 right, with
      a mean error below 0.1, which we take for the absolute one. Chance is 3/4 and 7/8.
    * ``"pascanu13"``: Pascanu, Mikolov & Bengio 2013, with the positions of their code. One-hot inputs for four
      distractors, A and B, without start or end; A or B at a step of [T/10, 2T/10) and one of [5T/10, 6T/10), counted
      from 0. Targets are class indices for AA, AB, BA, BB; chance is ln 4. Solved: fewer than 1 % of 10,000 wrong.

    Parameters
    ----------
    form
        One of the three names above.
    length
        T, for ``"pascanu13"`` only. To train on many lengths make a task for each.
    """

    def __init__(self, form: str, length: int | None = None) -> None:
        one_of("form", form, ("6a", "6b", "pascanu13"))
        self.form = form
        self.length = length
        if form == "pascanu13":
            if length is None:
                raise TypeError("TemporalOrder: 'pascanu13' needs a length")
            at_least("length", length, 10)
            self.input_size, self.output_size = 6, 4
            self.classes = True
            self.window, self.allowed = 10_000, 99
            self.chance = log(4)
            self._places = [(length // 10, 2 * length // 10), (5 * length // 10, 6 * length // 10)]
            return
        if length is not None:
            raise TypeError(f"TemporalOrder: the lengths of {form!r} are fixed, got length {length}")
        self._places = [(9, 20), (49, 60)] if form == "6a" else [(9, 20), (32, 43), (65, 76)]
        self.input_size, self.output_size = 8, 2 ** len(self._places)
        self.tolerance = 0.3
        self.error_below = 0.1
        self.chance = 1 - 1 / self.output_size

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        sequences = np.arange(size)
        # The symbols' order: E and B, if there are any, the four distractors, the two that matter.
        if self.length is None:
            lengths = random.integers(100, 111, size)
            steps, offset = int(lengths.max()), 2
        else:
            lengths, steps, offset = None, self.length, 0
        codes = random.integers(offset, offset + 4, (steps, size))
        order = np.zeros(size, np.int64)
        for low, high in self._places:
            second = random.integers(0, 2, size)
            codes[random.integers(low, high, size), sequences] = offset + 4 + second
            order = 2 * order + second
        if lengths is None:
            return Batch(one_hot(codes, 6), order, None)
        codes[0] = 0
        codes[lengths - 1, sequences] = 1
        codes[np.arange(steps)[:, None] >= lengths] = -1
        return Batch(one_hot(codes, 8), one_hot(order, self.output_size), lengths)


SYMBOLS = "BTPSXVE"

# The Reber grammar: from a node, which symbols lead where.
_REBER = [{"B": 1}, {"T": 2, "P": 3}, {"S": 2, "X": 4}, {"T": 3, "V": 5}, {"X": 3, "S": 6}, {"P": 4, "V": 6}]


def _embedded() -> Ints:
    """The node that each of the 19 nodes of the embedded grammar leads to at each symbol, or -1; 19 is the end."""
    moves = np.full((19, len(SYMBOLS)), -1)

    def arc(node: int, symbol: str, to: int) -> None:
        moves[node, SYMBOLS.index(symbol)] = to

    arc(0, "B", 1)
    for branch, symbol in enumerate("TP"):
        start, after = 2 + 7 * branch, 16 + branch
        arc(1, symbol, start)
        for node, arcs in enumerate(_REBER):
            for inner, to in arcs.items():
                arc(start + node, inner, start + to)
        arc(start + 6, "E", after)
        arc(after, symbol, 18)
    arc(18, "E", 19)
    return moves


_MOVES = _embedded()
_LEGAL = _MOVES >= 0
# The symbols at a fork of two, or the only one twice.
_FORKS = np.stack([_LEGAL.argmax(1), len(SYMBOLS) - 1 - _LEGAL[:, ::-1].argmax(1)], axis=1)


class EmbeddedReber(Task):
    """What comes next in a string of the embedded Reber grammar, at every step: experiment 1 (section 5.1).

    One-hot inputs and targets for B, T, P, S, X, V, E; forks are taken with probability 1/2. What makes it hard is
    the last but one symbol, T or P as the second was. Right is a string at whose every step all symbols that may come
    next are more active than all that may not; solved, that all of 256 training and 256 test strings are right::

        strings = reber_strings(512, generator)
        task = EmbeddedReber(strings[:256])  # to draw batches from
        everything = EmbeddedReber(strings).all()
        done = task.solved(task.wrong(predict(everything.xs), everything))

    Chance is the loss of saying at every step how often each symbol comes.

    Parameters
    ----------
    strings
        Batches are drawn from these, with replacement; if None, from the grammar.
    """

    input_size = output_size = len(SYMBOLS)
    every_step = True
    window = 512

    def __init__(self, strings: Sequence[str] | None = None) -> None:
        self.strings = strings
        if strings is None:
            counts = _expected_counts()
        else:
            self._codes, self._lengths = _encoded(strings)
            counts = one_hot(self._codes[1:], len(SYMBOLS)).sum((0, 1), dtype=np.float64)
        self.chance = 1 - float(np.square(counts / counts.sum()).sum())

    def all(self) -> Batch:
        """All of ``strings``, in their order."""
        if self.strings is None:
            raise ValueError("EmbeddedReber: there is no batch of all strings of the grammar; give it strings")
        return _reber_batch(self._codes, self._lengths)

    def _draw(self, size: int, random: np.random.Generator) -> Batch:
        if self.strings is None:
            return _reber_batch(*_reber_codes(size, random))
        rows = random.integers(0, len(self.strings), size)
        return _reber_batch(self._codes[:, rows], self._lengths[rows])

    def legal(self, batch: Batch) -> Bools:
        """Which symbols may come next after each step, shape (T, B, 7); none on padding."""
        real = real_steps(batch)
        symbols = batch.xs.argmax(-1)
        legal = np.zeros(batch.xs.shape, bool)
        node = np.zeros(batch.xs.shape[1], np.int64)
        for t in range(len(legal)):
            node = np.where(real[t], _MOVES[node, symbols[t]], node)
            legal[t] = _LEGAL[node] & real[t][:, None]
        return legal

    def _miss(self, outputs: Floats, batch: Batch) -> Bools:
        legal = self.legal(batch)
        least = np.where(legal, outputs, np.inf).min(-1)
        most = np.where(legal, -np.inf, outputs).max(-1)
        return ~np.asarray(least > most)


def reber_strings(count: int, generator: Generator | None = None, distinct: bool = True) -> list[str]:
    """``count`` strings of the embedded Reber grammar, from ``"BTBTXSETE"`` up.

    Parameters
    ----------
    distinct
        Whether no string may come twice. Of ``count`` different ones more are long: 512 of them have a mean length of
        18, where that of strings as they are drawn, short ones again and again, is 12.
    """
    at_least("count", count, 1)
    random = random_numbers(generator)
    strings: list[str] = []
    while len(strings) < count:
        codes, lengths = _reber_codes(count, random)
        strings += ["".join(SYMBOLS[c] for c in codes[:n, i]) for i, n in enumerate(lengths)]
        if distinct:
            strings = list(dict.fromkeys(strings))
    return strings[:count]


def _reber_codes(size: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Strings of the grammar as indices of symbols, -1 after the end: shape (T, size), and their lengths."""
    node = np.zeros(size, np.int64)
    rows = []
    while (going := node < 19).any():
        inner = np.where(going, node, 0)
        symbol = _FORKS[inner, random.integers(0, 2, size)]
        rows.append(np.where(going, symbol, -1))
        node = np.where(going, _MOVES[inner, symbol], node)
    codes = np.stack(rows)
    return codes, (codes >= 0).sum(0)


def _encoded(strings: Sequence[str]) -> tuple[Ints, Ints]:
    if isinstance(strings, str) or not len(strings):
        raise ValueError("EmbeddedReber: strings must be a list of at least one string, as reber_strings gives it")
    lengths = np.array([len(string) for string in strings])
    codes = np.full((lengths.max(), len(strings)), -1)
    for i, string in enumerate(strings):
        node = 0
        for t, symbol in enumerate(string):
            code = SYMBOLS.find(symbol)
            node = int(_MOVES[node, code]) if code >= 0 and node < 19 else -1
            if node < 0:
                break
            codes[t, i] = code
        if node != 19:
            raise ValueError(f"EmbeddedReber: {string!r} is not of the grammar")
    return codes, lengths


def _reber_batch(codes: Ints, lengths: Ints) -> Batch:
    codes = codes[: lengths.max()]
    symbols = one_hot(codes, len(SYMBOLS))
    # The last symbol of each string has no successor, so it is a target only.
    xs = symbols[:-1] * (codes[1:, :, None] >= 0)
    return Batch(xs, symbols[1:], lengths - 1)


def _expected_counts() -> npt.NDArray[np.float64]:
    """How often each symbol comes in a string, on average, its first left out."""
    flow = np.zeros((19, 20))
    for node, fork in enumerate(_FORKS):
        for symbol in fork:
            flow[node, _MOVES[node, symbol]] += 0.5
    visits = np.linalg.solve(np.eye(19) - flow[:, :19].T, np.eye(19)[0])
    visits[0] = 0
    counts = np.zeros(len(SYMBOLS))
    np.add.at(counts, _FORKS, 0.5 * visits[:, None])
    return counts
