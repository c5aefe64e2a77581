"""Cells around cells: dropout of state or recurrent weights, zoneout, a residual, a learned initial state.

A wrapper is a cell itself, so they may stand in each other. What is to stay the same for a whole sequence is drawn by
``for_sequence(batch)``, which is called once before it and returns what to call as ``step(x, state)`` at each step; a
wrapper that is called directly begins a sequence of one step. ``state`` is whatever the wrapped cell's is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from itertools import count
from typing import Any, TypeAlias

from tinygrad_rnn.functional import dropout
from tinygrad_rnn.nest import flat, map_nest
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.ops import broadcast_to, ones_like, where
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.recurrence import step_of
from tinygrad_rnn.tensor import Tensor, as_tensor

Step: TypeAlias = Callable[[Tensor, Any], tuple[Any, Any]]


class _Wrapper(Module):
    def __init__(self, cell: Any) -> None:
        if not callable(cell) or not hasattr(cell, "init_state"):
            raise TypeError(
                f"{type(self).__name__}: cell must be callable and have init_state(batch), got {type(cell).__name__}"
            )
        self.cell = cell

    @property
    def input_size(self) -> int:
        """The wrapped cell's."""
        return self.cell.input_size  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        """The wrapped cell's."""
        return self.cell.hidden_size  # type: ignore[no-any-return]

    @property
    def output_size(self) -> int:
        """The wrapped cell's, or its hidden_size if it tells none."""
        return getattr(self.cell, "output_size", None) or self.hidden_size

    def init_state(self, batch: int) -> Any:
        """The wrapped cell's."""
        return self.cell.init_state(batch)

    def for_sequence(self, batch: int) -> Step:
        """Draw what stays the same for a sequence of ``batch`` rows, and return its step."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: Any = None) -> tuple[Any, Any]:
        x = as_tensor(x)
        batch = x.shape[0] if x.ndim else 1
        return self.for_sequence(batch)(x, self.init_state(batch) if state is None else state)


class RecurrentDropout(_Wrapper):
    """Dropout of the recurrent state with one mask for a whole sequence (Gal & Ghahramani 2016), in training.

    Of the state's parts it is the first, h, that the cell sees through the mask; the output is not masked. In a cell
    whose h is its memory too, as a GRU's, dropped units remember nothing.

    Parameters
    ----------
    cell
        The cell, or anything callable with ``init_state``.
    p
        Probability that a unit is dropped; the others are divided by ``1 - p``.
    generator
        Where the masks come from.
    """

    def __init__(self, cell: Any, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__(cell)
        self.p = _probability("RecurrentDropout", p)
        self.generator = generator

    def for_sequence(self, batch: int) -> Step:
        step = step_of(self.cell, batch)
        if not self.training or self.p == 0:
            return step
        first = flat(self.cell.init_state(batch))[0].detach()
        mask = dropout(ones_like(first), self.p, True, self.generator)

        def masked(x: Tensor, state: Any) -> tuple[Any, Any]:
            masks = iter((mask,))  # for the first part; the others find none
            return step(x, map_nest(lambda part: part if (m := next(masks, None)) is None else part * m, state))

        masked.pure = True  # type: ignore[attr-defined]
        return masked

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Zoneout(_Wrapper):
    """Units that keep their old value at random, drawn anew at each step (Krueger et al. 2017).

    In training each unit of each part of the state stays as it was with probability p; afterwards it becomes the
    expectation, ``p * old + (1 - p) * new``. An output that is a part of the state, as h is in all cells here, is that
    part after zoneout. Parts that hold ints, as a step number, always move on.

    Parameters
    ----------
    cell
        The cell, or anything callable with ``init_state``.
    p
        One probability, or one for each part of the state that holds floats, in order.
    generator
        Where the masks come from.
    """

    def __init__(self, cell: Any, p: float | Sequence[float] = 0.1, generator: Generator | None = None) -> None:
        super().__init__(cell)
        for one in p if isinstance(p, Sequence) else (p,):
            _probability("Zoneout", one)
        self.p = p
        self.generator = generator

    def for_sequence(self, batch: int) -> Step:
        step = step_of(self.cell, batch)
        if not self.p:
            return step
        p = tuple(self.p) if isinstance(self.p, Sequence) else self.p
        training, generator = self.training, self.generator

        def zoned(x: Tensor, state: Any) -> tuple[Any, Any]:
            return _zoned(p, training, generator, state, *step(x, state))

        zoned.pure = True  # type: ignore[attr-defined]
        return zoned

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _zoned(
    p: float | tuple[float, ...], training: bool, generator: Generator | None, state: Any, y: Any, following: Any
) -> tuple[Any, Any]:
    """The output and the next state of a step, with what stays as it was."""
    floats = [part for part in flat(following) if part.dtype.kind == "f"]
    rates = p if isinstance(p, tuple) else (p,) * len(floats)
    if len(rates) != len(floats):
        raise ValueError(f"Zoneout: p must be one number or {len(floats)}, for each part of the state, got {p}")
    remaining = iter(rates)
    became: dict[int, Tensor] = {}

    def zone(old: Tensor, new: Tensor) -> Tensor:
        if new.dtype.kind == "f":
            rate = next(remaining)
            if training:
                mixed = where(default_generator(generator).keep_mask(rate, like=new) == 1, old, new)
            else:
                mixed = new + rate * (old - new)
            became[id(new)] = mixed
        return became.get(id(new), new)

    following_zoned = map_nest(zone, state, following)
    return map_nest(lambda part: became.get(id(part), part), y), following_zoned


class DropConnect(_Wrapper):
    """Dropout of the recurrent weights with one mask for a whole sequence, in training (Merity et al. 2018).

    It acts on every parameter of the cell whose name ends in ``weight_hh``. All rows of a batch share the mask.

    Parameters
    ----------
    cell
        A module with such a parameter.
    p
        Probability that a weight is dropped; the others are divided by ``1 - p``.
    generator
        Where the masks come from.
    """

    def __init__(self, cell: Module, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__(cell)
        if not isinstance(cell, Module) or not any(n.endswith("weight_hh") for n, _ in cell.named_parameters()):
            raise ValueError(f"DropConnect: cell must have a parameter weight_hh, which {type(cell).__name__} has not")
        self.p = _probability("DropConnect", p)
        self.generator = generator

    def for_sequence(self, batch: int) -> Step:
        if not self.training or self.p == 0:
            return step_of(self.cell, batch)
        return step_of(self._dropped(self.cell, {}), batch)

    def _dropped(self, module: Module, known: dict[int, Tensor]) -> Module:
        """A copy of the module, and of those below, whose recurrent weights are dropped; a shared one is so once."""
        twin = copy(module)
        for name, value in vars(module).items():
            if isinstance(value, Module):
                setattr(twin, name, self._dropped(value, known))
            elif isinstance(value, Parameter) and name.endswith("weight_hh"):
                if id(value) not in known:
                    known[id(value)] = dropout(value, self.p, True, self.generator)
                setattr(twin, name, known[id(value)])
        return twin

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LearnedState(_Wrapper):
    """A cell whose initial state is learned, one for all rows; it starts as the cell's own.

    Parameters
    ----------
    cell
        Any cell; each tensor of floats in its state gets a parameter, ``start_0`` and so on.
    """

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        for i, leaf in enumerate(flat(self.cell.init_state(1))):
            if leaf.dtype.kind == "f":
                setattr(self, f"start_{i}", Parameter(leaf.data[0].copy()))

    def for_sequence(self, batch: int) -> Step:
        return step_of(self.cell, batch)

    def init_state(self, batch: int) -> Any:
        """The learned state, for ``batch`` rows."""
        places = count()

        def start(leaf: Tensor) -> Tensor:
            learned = vars(self).get(f"start_{next(places)}")
            return leaf if learned is None else broadcast_to(learned, leaf.shape)

        return map_nest(start, self.cell.init_state(batch))


class Residual(_Wrapper):
    """The input is added to the output: ``y + x``. Input and output must be of one size."""

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        if hasattr(cell, "input_size") and hasattr(cell, "hidden_size") and self.input_size != self.output_size:
            raise ValueError(
                "Residual: input and output of the cell must be of one size, "
                f"got {self.input_size} and {self.output_size}"
            )

    def for_sequence(self, batch: int) -> Step:
        step = step_of(self.cell, batch)

        def added(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            y, following = step(x, state)
            if y.shape != x.shape:
                raise ValueError(f"Residual: output and input must have one shape, got {y.shape} and {x.shape}")
            return y + x, following

        added.pure = True  # type: ignore[attr-defined]
        return added


def _probability(who: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{who}: p must be from 0 to 1, got {p}")
    return p
