"""A long text, or any other stream, as batches for truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.data.tasks import Ints, at_least

Array = npt.NDArray[Any]


class Vocabulary:
    """The characters of a text, and their numbers, 0 for the first in order of code points.

    Parameters
    ----------
    text
        All characters that are to be known.
    """

    def __init__(self, text: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(text)))
        self._codes = {character: code for code, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Ints:
        """The number of each character, shape (len(text),); ValueError at one that is unknown."""
        try:
            return np.array([self._codes[character] for character in text], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"encode: {error.args[0]!r} is not in the vocabulary of {len(self)} characters") from None

    def decode(self, codes: npt.ArrayLike) -> str:
        """The text of these numbers; IndexError at one that is none of the vocabulary."""
        numbers = np.asarray(codes, dtype=np.int64).ravel()
        NUMPY.check_range(numbers, len(self), "codes")
        return "".join(self.characters[number] for number in numbers)


def lanes(stream: npt.ArrayLike, batch: int) -> Array:
    """Cut a stream into ``batch`` contiguous pieces of one length, side by side.

    Parameters
    ----------
    stream
        Shape (N, ...).
    batch
        How many pieces, B. The last N % B items are left out.

    Returns
    -------
    Shape (N // B, B, ...): lane b is ``stream[b * (N // B):(b + 1) * (N // B)]``.
    """
    if isinstance(stream, (str, bytes)):
        raise TypeError("lanes takes an array; for text give Vocabulary(text).encode(text)")
    array = np.asarray(stream)
    at_least("batch", batch, 1)
    if not array.ndim or len(array) < batch:
        raise ValueError(f"lanes: the stream must have at least batch = {batch} items, got shape {array.shape}")
    length = len(array) // batch
    return array[: length * batch].reshape((batch, length, *array.shape[1:])).swapaxes(0, 1)


class Windows:
    """Windows of a stream with the next item of each as its target, in order, for one epoch at a time.

    Each lane of `lanes` goes on from one window to the next, so a network may carry its state; after the last window
    the next ``for`` starts anew at the first. ``for`` begins at `position`, which a checkpoint keeps::

        windows = Windows(stream, batch=32, steps=100)
        for x, y in windows:
            ...
            tg.save(path, model=model, windows=windows)  # resumes with the window after this one

    Parameters
    ----------
    stream
        Shape (N, ...).
    batch
        Number of lanes, B.
    steps
        Length of a window, T. The last one may be shorter, so that in an epoch every item but each lane's first is a
        target once.

    Yields
    ------
    ``x`` and ``y`` of shape (T, B, ...), views, with ``y[t]`` the item after ``x[t]``.

    Attributes
    ----------
    position
        The step of the lanes at which the next window starts.
    """

    def __init__(self, stream: npt.ArrayLike, batch: int, steps: int) -> None:
        at_least("steps", steps, 1)
        self.lanes = lanes(stream, batch)
        if len(self.lanes) < 2:
            raise ValueError(f"Windows: {batch} lanes need at least {2 * batch} items, got {np.shape(stream)[0]}")
        self.steps = steps
        self.position = 0

    def __len__(self) -> int:
        """Windows in a whole epoch."""
        return -(-(len(self.lanes) - 1) // self.steps)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        targets = len(self.lanes) - 1
        while self.position < targets:
            start = self.position
            # Moved on before the window is handed out: a checkpoint made while it is in use is one of after it.
            self.position = min(start + self.steps, targets)
            yield self.lanes[start : self.position], self.lanes[start + 1 : self.position + 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """The position, and the number of steps that it counts in."""
        return {"position": self.position, "length": len(self.lanes)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from where `state_dict` was taken, on a stream of the same length."""
        if state["length"] != len(self.lanes):
            raise ValueError(
                f"Windows: the position was saved in lanes of {state['length']} steps, these have {len(self.lanes)}"
            )
        if not 0 <= state["position"] < len(self.lanes):
            raise ValueError(f"position must be from 0 to {len(self.lanes) - 1}, got {state['position']}")
        self.position = state["position"]
