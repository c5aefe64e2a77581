"""Random numbers that can be saved, and drawn again.

A generator is two integers, a seed and how often it was drawn from. Each draw is a stream of its own, keyed by both
(Philox, Salmon et al. 2011), so a checkpoint keeps two numbers and a resumed run goes on to the same bits, on any
backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np

from tinygrad_rnn.backend import Key, get_backend
from tinygrad_rnn.tape import tick
from tinygrad_rnn.tensor import Tensor

Shape = int | tuple[int, ...]
_drawn: ContextVar[Callable[..., None] | None] = ContextVar("tinygrad_rnn_drawn", default=None)


class Generator:
    """A source of random tensors on the current backend.

    Parameters
    ----------
    seed
        From 0 to 2**63 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = _checked(seed)
        self.counter = 0
        self.set_at = tick()  # when, by the tape's clock

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, counter={self.counter})"

    def next_key(self) -> tuple[int, int]:
        """The key of the next draw; a backend makes numbers of it."""
        listener = _drawn.get()
        if listener is not None:
            listener(self, None, None)
        return self._next_key()

    def _next_key(self) -> tuple[int, int]:
        self.counter += 1
        return self.seed, self.counter

    def _draw(self, make: Callable[[Key], Tensor]) -> Tensor:
        """``make`` with the next key, told to who records the draws of a step.

        Several keys must give it what each of them gives, with an axis more, the first.
        """
        drawn = make(self._next_key())
        listener = _drawn.get()
        if listener is not None:
            listener(self, make, drawn)
        return drawn

    def uniform(self, shape: Shape = (), low: float = 0.0, high: float = 1.0, dtype: Any = np.float32) -> Tensor:
        """Numbers spread evenly from ``low`` to ``high``, which only rounding can give."""
        F, shape = get_backend(), _tuple(shape)
        return self._draw(lambda key: Tensor(F.asarray(F.uniform(key, shape, dtype) * (high - low) + low)))

    def normal(self, shape: Shape = (), mean: float = 0.0, std: float = 1.0, dtype: Any = np.float32) -> Tensor:
        """Normally distributed numbers."""
        F, shape = get_backend(), _tuple(shape)
        return self._draw(lambda key: Tensor(F.asarray(F.normal(key, shape, dtype) * std + mean)))

    def integers(self, low: int, high: int, shape: Shape = ()) -> Tensor:
        """Integers from ``low`` up to, without, ``high``."""
        if high <= low:
            raise ValueError(f"integers needs low < high, got {low} and {high}")
        F, shape = get_backend(), _tuple(shape)

        def make(key: Key) -> Tensor:
            return Tensor(F.asarray(F.floor(F.uniform(key, shape, np.float64) * (high - low)) + low, dtype=np.int64))

        return self._draw(make)

    def permutation(self, n: int) -> Tensor:
        """The integers below ``n`` in random order."""
        F = get_backend()
        return self._draw(lambda key: Tensor(F.argsort(F.uniform(key, (n,), np.float64))))

    def keep_mask(self, keep: float, like: Tensor) -> Tensor:
        """1 with probability ``keep``, else 0, of the shape, dtype and backend of ``like``."""
        F, shape, dtype = get_backend(like.backend), like.shape, like.dtype
        return self._draw(lambda key: Tensor(F.astype(F.uniform(key, shape, np.float32) < keep, dtype)))

    def state_dict(self) -> dict[str, int]:
        """The two integers."""
        return {"seed": self.seed, "counter": self.counter}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from where `state_dict` was taken."""
        if not {"seed", "counter"} <= {*state}:
            raise ValueError(
                f"a generator's state holds seed and counter, got {', '.join(map(str, state)) or 'nothing'}"
            )
        seed, counter = _checked(state["seed"]), int(state["counter"])
        if counter < 0:
            raise ValueError(f"counter must be at least 0, got {counter}")
        self.seed, self.counter, self.set_at = seed, counter, tick()


def manual_seed(seed: int) -> Generator:
    """Start the default generator, which everything random uses that is given no ``generator``, from ``seed``."""
    _default.load_state_dict({"seed": seed, "counter": 0})
    return _default


def default_generator(generator: Generator | None = None) -> Generator:
    """``generator``, or the default one."""
    return _default if generator is None else generator


def _checked(seed: int) -> int:
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return int(seed)


def _tuple(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


_default = Generator(int.from_bytes(os.urandom(7)))
