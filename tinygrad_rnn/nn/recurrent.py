"""Recurrent layers: whole sequences through any cells, stacked and in both directions.

`Recurrent` does it for any cell; `RNN`, `GRU` and `LSTM` are its faces with PyTorch's arguments, parameter names and
states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn import functional as F
from tinygrad_rnn.arguments import alike, on_host
from tinygrad_rnn.nest import leaves, map_nest
from tinygrad_rnn.nn.cells import Cell, GRUCell, LSTMCell, RNNCell
from tinygrad_rnn.nn.module import Module
from tinygrad_rnn.ops import concatenate, expand_dims, reshape, squeeze, stack, swapaxes, unstack
from tinygrad_rnn.random import Generator
from tinygrad_rnn.recurrence import scan
from tinygrad_rnn.tensor import Tensor, as_tensor


class Recurrent(Module):
    """One cell, or a stack of them, over a sequence.

    Parameters
    ----------
    cells
        A cell, or a list of cells of which each takes the outputs of the one before. A cell is a module called
        ``y, state = cell(x, state)`` that has ``init_state(batch)``.
    bidirectional
        As ``cells``, the cells that go through the sequence from its end. The outputs of both directions are
        joined along the last axis. None: there is one direction.
    batch_first
        Whether sequences are (B, T, ...) rather than (T, B, ...).
    dropout
        The probability with which each output of a layer is dropped before the next layer, in training.
    residual
        Add to the outputs of every layer but the first its inputs, which must have the same shape.
    generator
        Where dropout draws from.
    """

    def __init__(
        self,
        cells: Module | Sequence[Module],
        bidirectional: Module | Sequence[Module] | None = None,
        batch_first: bool = False,
        dropout: float = 0.0,
        residual: bool = False,
        generator: Generator | None = None,
    ) -> None:
        if isinstance(bidirectional, bool):
            raise TypeError(f"bidirectional must be the cells of the other direction, or None, got {bidirectional}")
        if not isinstance(cells, (Module, Sequence)):
            raise TypeError(f"cells must be a module with init_state(batch), or a list, got {type(cells).__name__}")
        self.stacked = not isinstance(cells, Module)
        for name, group in (("cell", cells), ("backward", bidirectional)):
            for i, cell in enumerate([group] if isinstance(group, Module) else group or ()):
                if not isinstance(cell, Module) or not hasattr(cell, "init_state"):
                    raise TypeError(f"{name} {i} must be a module with init_state(batch), got {type(cell).__name__}")
                setattr(self, f"{name}_{i}", cell)
        self._settle(bidirectional is not None, batch_first, dropout, residual, generator)
        one, other = (sum(name.startswith(kind) for name in vars(self)) for kind in ("cell_", "backward_"))
        if not one:
            raise ValueError("cells: there must be at least one cell")
        if self.bidirectional and one != other:
            raise ValueError(f"bidirectional must have a cell for each of the {one} layers, got {other}")

    def _settle(
        self, bidirectional: bool, batch_first: bool, dropout: float, residual: bool, generator: Generator | None
    ) -> None:
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout}")
        self.bidirectional = bidirectional
        self.batch_first = batch_first
        self.dropout = dropout
        self.residual = residual
        self.generator = generator

    def _layers(self) -> Iterator[tuple[Any, ...]]:
        """For each layer its cells: one, or one for each direction."""
        layer = 0
        while (cell := getattr(self, f"cell_{layer}", None)) is not None:
            yield (cell, getattr(self, f"backward_{layer}")) if self.bidirectional else (cell,)
            layer += 1

    def init_state(self, batch: int) -> Any:
        """A fresh state for ``batch`` sequences.

        That of the one cell; a pair of these, forward and backward, if there are both directions; and a list of
        that for each layer if a list of cells was given.
        """
        return self._fresh(batch)

    def _fresh(self, batch: int) -> Any:
        states = [self._joined([cell.init_state(batch) for cell in cells]) for cells in self._layers()]
        return states if self.stacked else states[0]

    def _joined(self, directions: list[Any]) -> Any:
        return tuple(directions) if self.bidirectional else directions[0]

    def forward(
        self, x: Tensor, state: Any = None, lengths: Any = None, reset: Any = None, expose: Sequence[str] = ()
    ) -> Any:
        """Go through a sequence.

        Parameters
        ----------
        x
            Shape (T, B, ...), or (B, T, ...) if ``batch_first``.
        state
            As `init_state` makes it, which is what None stands for; for example what the call before returned.
        lengths
            Ints (B,): how many steps of each row are real. Outputs past the end are 0, and ``state`` is that at the
            row's own end. There is nothing to sort or to pack.
        reset
            Bools of the first two axes of ``x``: where a row begins anew, as after the end of a document or an
            episode. Nothing passes between such a step and the one before it, in either direction.
        expose
            Names of values of the cells wanted at each step, such as the gates of an LSTM, ``("i", "f", "o")``.

        Returns
        -------
        The outputs, the state after the last step, and if ``expose`` names something a dict of tensors (T, B, ...) or
        (B, T, ...), nested like the state.

        Raises
        ------
        ValueError, TypeError
            If a shape, a length or a dtype is wrong; see `tinygrad_rnn.scan`.
        """
        h = as_tensor(x)
        if h.ndim < 2:
            raise ValueError(f"x must have shape (T, B, ...) or with batch_first (B, T, ...), got {h.shape}")
        if self.batch_first:
            h = swapaxes(h, 0, 1)
            reset = None if reset is None else np.swapaxes(on_host(reset), 0, 1)
        layers = [*self._layers()]
        if state is None:  # each cell begins with its own
            given = [(None,) * len(cells) for cells in layers]
        else:
            alike(self._fresh(h.shape[1]), state, "got")
            given = [part if self.bidirectional else (part,) for part in (state if self.stacked else [state])]
        states: Any = []
        shown: Any = []

        def run(layer: int, h: Tensor) -> Any:
            pairs = enumerate(zip(layers[layer], given[layer], strict=True))
            runs = [scan(cell, h, start, bool(i), lengths, reset, expose) for i, (cell, start) in pairs]
            states.append(self._joined([one[1] for one in runs]))
            if expose:
                shown.append(self._joined([one[2] for one in runs]))
            return concatenate([one[0] for one in runs], axis=-1) if self.bidirectional else runs[0][0]

        h = self._through(h, len(layers), run)
        if self.batch_first:
            h, shown = map_nest(lambda leaf: swapaxes(leaf, 0, 1), (h, shown))
        if not self.stacked:
            states, shown = states[0], shown[0] if expose else None
        return (h, states, shown) if expose else (h, states)

    def _through(self, h: Tensor, layers: int, run: Callable[[int, Tensor], Any]) -> Tensor:
        """``run(layer, h)`` by one layer after the other, with what lies between them."""
        for layer in range(layers):
            if layer:
                h = F.dropout(h, self.dropout, self.training, self.generator)
            y = run(layer, h)
            if layer and self.residual:
                if y.shape != h.shape:
                    raise ValueError(f"residual: layer {layer} makes {y.shape} of {h.shape}; the two cannot be added")
                y = y + h
            h = y
        return h

    def extra_repr(self) -> str:
        said = {"batch_first": self.batch_first, "dropout": self.dropout, "residual": self.residual}
        return ", ".join(f"{name}={value}" for name, value in said.items() if value)


class Layers(Recurrent):
    """Layers of one kind of cell, with parameters named and states laid out as in PyTorch.

    The parameters are this module's own; cells are made of them at each call, so that a replaced or tied parameter
    is the one used.
    """

    stacked = True

    def __init__(
        self,
        make: Callable[[int], Cell],
        input_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        generator: Generator | None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self._settle(bidirectional, batch_first, dropout, False, generator)
        self.input_size = input_size
        self.num_layers = num_layers
        cells: list[Cell] = []
        self._learned: list[list[tuple[str, str]]] = []  # of each cell: what it calls its parameters, and we do
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                cell = make(input_size if not layer else cells[0].output_size * (2 if bidirectional else 1))
                self._learned.append([(name, name + suffix) for name, _ in cell.named_parameters()])
                for name, here in self._learned[-1]:
                    parameter = getattr(cell, name)
                    parameter.name = ""
                    setattr(self, here, parameter)
                cells.append(cell)
        self.hidden_size = cells[0].hidden_size
        self._patterns = tuple(cells)  # in a tuple, so that their parameters are not listed again

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def _layers(self) -> Iterator[tuple[Any, ...]]:
        own = vars(self)
        cells = []
        for pattern, names in zip(self._patterns, self._learned, strict=True):
            cell = object.__new__(type(pattern))
            attributes = vars(cell)
            attributes.update(vars(pattern))
            for name, here in names:
                attributes[name] = own[here]
            cells.append(cell)
        directions = 2 if self.bidirectional else 1
        for i in range(0, len(cells), directions):
            yield tuple(cells[i : i + directions])

    def init_state(self, batch: int) -> Any:
        """Zeros, in the layout of the states that `forward` takes and returns."""
        return self._packed(self._fresh(batch))

    def _packed(self, states: list[Any]) -> Any:
        """PyTorch's layout: each part of the state as (layers * directions, B, features)."""
        flat = [state for layer in states for state in (layer if self.bidirectional else [layer])]
        return map_nest(
            lambda *parts: stack(parts) if len(parts) > 1 else reshape(parts[0], (1, *parts[0].shape)), *flat
        )

    def _unpacked(self, state: Any) -> list[Any]:
        parts = map_nest(unstack, state)
        flat = list(zip(*parts, strict=True)) if isinstance(state, (tuple, list)) else parts
        if not self.bidirectional:
            return flat
        return [tuple(flat[i : i + 2]) for i in range(0, len(flat), 2)]

    def forward(
        self, x: Tensor, state: Any = None, lengths: Any = None, reset: Any = None, expose: Sequence[str] = ()
    ) -> Any:
        """Go through a sequence; see `Recurrent.forward` for ``lengths``, ``reset`` and ``expose``.

        Parameters
        ----------
        x
            Shape (T, B, input_size); (B, T, input_size) if ``batch_first``; or (T, input_size) for one sequence.
        state
            Each part of shape (num_layers * directions, B, features), without B for one sequence.

        Returns
        -------
        The outputs, shape (T, B, directions * features), or laid out as ``x`` is; the state; and if ``expose`` names
        something a list with, for each layer, a dict of tensors, or a pair of dicts if there are two directions.
        """
        x = as_tensor(x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} takes x of shape (T, B, {self.input_size}), with batch_first "
                f"(B, T, {self.input_size}), or (T, {self.input_size}); got {x.shape}"
            )
        if x.ndim == 2:
            return self._one(x, state, lengths, reset, expose)
        if state is not None:
            alike(self.init_state(x.shape[0 if self.batch_first else 1]), state, "got")
            state = self._unpacked(state)
        y, states, *shown = super().forward(x, state, lengths, reset, expose)
        return (y, self._packed(states), *shown)

    def _one(self, x: Tensor, state: Any, lengths: Any, reset: Any, expose: Sequence[str]) -> Any:
        """One sequence, as a batch of one."""
        if lengths is not None or reset is not None:
            raise ValueError(f"lengths and reset need a batch of sequences, got x of shape {x.shape}")
        axis = 0 if self.batch_first else 1
        for place, part in [] if state is None else leaves(state):
            if not isinstance(part, Tensor) or part.ndim != 2:
                got = part.shape if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(f"state{place} must have shape (layers, features), as x has no batch axis; got {got}")
        state = None if state is None else map_nest(lambda part: expand_dims(part, 1), state)
        y, state, *shown = self.forward(expand_dims(x, axis), state, expose=expose)
        shown = map_nest(lambda part: squeeze(part, axis), shown)
        return (squeeze(y, axis), map_nest(lambda part: squeeze(part, 1), state), *shown)

    def extra_repr(self) -> str:
        said = {"num_layers": self.num_layers} if self.num_layers > 1 else {}
        said |= {"bidirectional": True} if self.bidirectional else {}
        rest = super().extra_repr()
        named = "".join(f", {name}={value}" for name, value in said.items())
        return f"{self.input_size}, {self.hidden_size}{named}" + (f", {rest}" if rest else "")


class RNN(Layers):
    """Layers of `RNNCell`, with the arguments, parameters and results of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional
        As in PyTorch; ``nonlinearity`` may also be any function of a tensor.
    dtype, generator, init
        As in `Cell`. ``generator`` also serves dropout.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
    ) -> None:
        def make(inputs: int) -> Cell:
            return RNNCell(inputs, hidden_size, bias, nonlinearity, dtype, generator, init)

        super().__init__(make, input_size, num_layers, batch_first, dropout, bidirectional, generator)


class GRU(Layers):
    """Layers of `GRUCell`, with the arguments, parameters and results of ``torch.nn.GRU``; see `RNN`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
    ) -> None:
        def make(inputs: int) -> Cell:
            return GRUCell(inputs, hidden_size, bias, dtype, generator, init)

        super().__init__(make, input_size, num_layers, batch_first, dropout, bidirectional, generator)


class LSTM(Layers):
    """Layers of `LSTMCell`, with the arguments, parameters and results of ``torch.nn.LSTM``; see `RNN`.

    The state is the pair (h, c). ``proj_size`` is that of `LSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
    ) -> None:
        def make(inputs: int) -> Cell:
            return LSTMCell(inputs, hidden_size, bias, proj_size, dtype, generator, init)

        super().__init__(make, input_size, num_layers, batch_first, dropout, bidirectional, generator)
