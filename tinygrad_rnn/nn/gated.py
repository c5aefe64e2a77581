"""Gated cells of the literature beside `LSTMCell` and `GRUCell`: other gates, other wiring, fewer parameters.

Each is called as every cell is, ``y, state = cell(x, state)``, and its gates are stacked along the first axis of the
weights in the order in which they stand in the equations. In the equations ``W`` multiplies the input, ``U`` the state,
``*`` is a product element by element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tinygrad_rnn.functional import linear
from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.cells import Cell, LSTMCell
from tinygrad_rnn.nn.module import Parameter
from tinygrad_rnn.ops import concatenate, expand_dims, sigmoid, split, tanh, zeros
from tinygrad_rnn.random import Generator
from tinygrad_rnn.recurrence import expose
from tinygrad_rnn.tensor import Tensor, _backend


class NoForgetLSTMCell(Cell):
    """An LSTM whose memory only adds up: no forget gate, as first published (Hochreiter & Schmidhuber 1997).

    ::

        i  = sigmoid(W_i x + U_i h + b_i)
        g  = tanh(W_g x + U_g h + b_g)
        o  = sigmoid(W_o x + U_o h + b_o)
        c' = c + i * g
        h' = o * tanh(c')

    The state is the pair (h, c), the output is h. Squashing and wiring are today's; for the network of the paper's
    experiments see `LSTM97Cell`.
    """

    pure = True
    gates = 3
    parts = ("h", "c")

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        gates = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, g, o = split(gates, 3, axis=-1)
        i, g, o = sigmoid(i), tanh(g), sigmoid(o)
        c = c + i * g
        h = o * tanh(c)
        expose(i=i, g=g, o=o, c=c, h=h)
        return h, (h, c)


class PeepholeLSTMCell(LSTMCell):
    """An LSTM whose gates see the memory, each unit its own (Graves 2013; Gers & Schmidhuber 2000).

    ::

        i  = sigmoid(W_i x + U_i h + p_i * c  + b_i)
        f  = sigmoid(W_f x + U_f h + p_f * c  + b_f)
        g  = tanh(W_g x + U_g h + b_g)
        c' = f * c + i * g
        o  = sigmoid(W_o x + U_o h + p_o * c' + b_o)
        h' = o * tanh(c')

    Gates are stacked in the order i, f, g, o, as in `LSTMCell`, which this cell is at first: ``peephole_i``,
    ``peephole_f`` and ``peephole_o``, of shape (hidden_size,), are initially 0.
    """

    pure = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype=dtype, generator=generator)
        self.peephole_i = Parameter(zeros(hidden_size, dtype))
        self.peephole_f = Parameter(zeros(hidden_size, dtype))
        self.peephole_o = Parameter(zeros(hidden_size, dtype))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        gates = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = split(gates, 4, axis=-1)
        i = sigmoid(i + self.peephole_i * c)
        f = sigmoid(f + self.peephole_f * c)
        g = tanh(g)
        c = f * c + i * g
        o = sigmoid(o + self.peephole_o * c)
        h = o * tanh(c)
        expose(i=i, f=f, g=g, o=o, c=c, h=h)
        return h, (h, c)


class LSTM97Cell(Cell):
    """The LSTM of the experiments of 1997, blocks of cells that share their gates (Hochreiter & Schmidhuber 1997, A.1).

    With ``y = (y_in, y_out, y_c)``, what all hidden units gave at the step before, gates as well as cells::

        y_in'  = sigmoid(W_in x + U_in y + b_in)
        y_out' = sigmoid(W_out x + U_out y + b_out)
        s'     = s + y_in' * g(W_c x + U_c y + b_c)
        y_c'   = y_out' * h(s')

    where the gates of a block multiply each cell of it, ``g(a) = 4 sigmoid(a) - 2`` is between -2 and 2, and
    ``h(a) = 2 sigmoid(a) - 1`` between -1 and 1 (equations 4 and 5).

    The state is the pair (h, c): ``y`` of shape (batch, units), and ``s`` of shape (batch, hidden_size).

    Parameters
    ----------
    input_size
        Number of features of the input.
    blocks, cells_per_block
        Each block has an input gate, an output gate, and this many cells.
    bias
        True: all hidden units have a bias. ``"gates"``: the gates alone. False: none has.
    truncated
        Whether gradients stop where ``y`` enters the units, as in the paper, so that errors flow back through the
        memory ``s`` alone. The value of the output does not depend on it.
    generator
        Where the initial values come from.

    Attributes
    ----------
    weight_ih, weight_hh
        Shapes (units, input_size) and (units, units), where ``units = 2 * blocks + blocks * cells_per_block``:
        the input gates, the output gates, the cells block by block. Initially even from -0.1 to 0.1; the paper's
        first two experiments have +-0.2.
    bias_gates, bias_cells
        Shapes (2 * blocks,) and (hidden_size,), or None; initially 0. The paper starts most of its gates at negative
        values that differ from block to block, so that blocks come into use one after the other.
    hidden_size
        ``blocks * cells_per_block``, the width of the output ``y_c``, which alone the paper's output units see.
    """

    pure = True

    parts = ("h", "c")

    def __init__(
        self,
        input_size: int,
        blocks: int,
        cells_per_block: int = 1,
        bias: bool | Literal["gates"] = True,
        truncated: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        sizes = {"input_size": input_size, "blocks": blocks, "cells_per_block": cells_per_block}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"LSTM97Cell: {name} must be at least 1, got {size}")
        if bias not in (True, False, "gates"):
            raise ValueError(f"LSTM97Cell: bias must be True, False or 'gates', got {bias!r}")
        self.input_size = input_size
        self.blocks = blocks
        self.cells_per_block = cells_per_block
        self.hidden_size = self.output_size = blocks * cells_per_block
        self.truncated = truncated
        units = 2 * blocks + self.hidden_size
        self.weight_ih = init.uniform_(Parameter(zeros((units, input_size), dtype)), -0.1, 0.1, generator)
        self.weight_hh = init.uniform_(Parameter(zeros((units, units), dtype)), -0.1, 0.1, generator)
        self.bias_gates = Parameter(zeros(2 * blocks, dtype)) if bias else None
        self.bias_cells = Parameter(zeros(self.hidden_size, dtype)) if bias is True else None

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """A pair (h, c) of zeros for ``batch`` sequences."""
        new, dtype = _backend(self.weight_hh).zeros, self.weight_hh.dtype
        units = self.weight_hh.shape[0]
        return Tensor(new((batch, units), dtype=dtype)), Tensor(new((batch, self.hidden_size), dtype=dtype))

    def _check_state(self, state: Any, x: Tensor) -> None:
        batch, dtype = x.shape[0], self.weight_hh.dtype
        h, c = (batch, self.weight_hh.shape[0]), (batch, self.hidden_size)
        check_parts(self, state, {"h": (h, dtype), "c": (c, dtype)})

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, s = state
        if self.truncated:
            y = y.detach()
        net = linear(x, self.weight_ih) + linear(y, self.weight_hh)
        gates, cells = split(net, (2 * self.blocks,), axis=-1)
        if self.bias_gates is not None:
            gates = gates + self.bias_gates
        if self.bias_cells is not None:
            cells = cells + self.bias_cells
        gates = sigmoid(gates)
        y_in, y_out = split(gates, 2, axis=-1)
        s = s + self._gated(y_in, 4 * sigmoid(cells) - 2)
        y_c = self._gated(y_out, 2 * sigmoid(s) - 1)
        expose(i=y_in, o=y_out, c=s, h=y_c)
        return y_c, (concatenate([gates, y_c], axis=-1), s)

    def _gated(self, gates: Tensor, cells: Tensor) -> Tensor:
        """Each cell times the gate of its block."""
        if self.cells_per_block == 1:
            return gates * cells
        batch = cells.shape[0]
        by_block = cells.reshape((batch, self.blocks, self.cells_per_block))
        return (expand_dims(gates, -1) * by_block).reshape((batch, self.hidden_size))

    def extra_repr(self) -> str:
        bias = "" if self.bias_cells is not None else f", bias={'gates' if self.bias_gates is not None else False!r}"
        return f"{self.input_size}, {self.blocks}, {self.cells_per_block}{bias}"


class ChoGRUCell(Cell):
    """The gated recurrent unit as published (Cho et al. 2014, version 3), with the reset gate before the product.

    ::

        r  = sigmoid(W_r x + U_r h + b_r)
        z  = sigmoid(W_z x + U_z h + b_z)
        n  = tanh(W_n x + U_n (r * h) + b_n)
        h' = z * h + (1 - z) * n

    Parameters have the names, shapes and order of `GRUCell`, whose reset comes after the product: the same values make
    another function. Chung et al. (2014) write ``1 - z`` for this z. The state is ``h``, and so is the output.
    """

    pure = True
    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden_size
        u_gates, u_n = split(self.weight_hh, (2 * hidden,), axis=0)
        from_x = linear(x, self.weight_ih, self.bias_ih)
        if self.bias_hh is not None:
            from_x = from_x + self.bias_hh
        gates_x, n_x = split(from_x, (2 * hidden,), axis=-1)
        r, z = split(sigmoid(gates_x + linear(h, u_gates)), 2, axis=-1)
        n = tanh(n_x + linear(r * h, u_n))
        h = n + z * (h - n)
        expose(r=r, z=z, n=n, h=h)
        return h, h


class MGUCell(Cell):
    """The minimal gated unit, one gate both to forget and to reset (Zhou et al. 2016).

    ::

        f  = sigmoid(W_f x + U_f h + b_f)
        n  = tanh(W_n x + U_n (f * h) + b_n)
        h' = (1 - f) * h + f * n

    Gates are stacked in the order f, n. The state is ``h``, and so is the output.
    """

    pure = True
    gates = 2

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        u_f, u_n = split(self.weight_hh, 2, axis=0)
        from_x = linear(x, self.weight_ih, self.bias_ih)
        if self.bias_hh is not None:
            from_x = from_x + self.bias_hh
        f_x, n_x = split(from_x, 2, axis=-1)
        f = sigmoid(f_x + linear(h, u_f))
        n = tanh(n_x + linear(f * h, u_n))
        h = h + f * (n - h)
        expose(f=f, n=n, h=h)
        return h, h


class MinGRUCell(Cell):
    """A GRU whose gate and candidate see the input alone (minGRU, Feng et al. 2024).

    ::

        z  = sigmoid(W_z x + b_z)
        n  = W_n x + b_n
        h' = (1 - z) * h + z * n

    Gates are stacked in the order z, n, in ``weight_ih`` and ``bias_ih``; there is no recurrent weight. The state is
    ``h``, and so is the output.
    """

    pure = True
    gates = 2
    bias_hh = None
    weight_hh = property(lambda self: self.weight_ih)  # for whoever asks for dtype or place

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if size < 1:
                raise ValueError(f"MinGRUCell: {name} must be at least 1, got {size}")
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        weight_ih = Parameter(zeros((2 * hidden_size, input_size), dtype))
        self.weight_ih = init.xavier_uniform_(weight_ih, blocks=2, generator=generator)
        self.bias_ih = Parameter(zeros(2 * hidden_size, dtype)) if bias else None

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        z, n = split(linear(x, self.weight_ih, self.bias_ih), 2, axis=-1)
        z = sigmoid(z)
        h = h + z * (n - h)
        expose(z=z, n=n, h=h)
        return h, h


def check_parts(cell: Cell, state: Any, expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
    """Refuse a state that is not a tuple of tensors of the ``expected`` shapes and dtypes: parts need not be alike."""
    who = type(cell).__name__
    if not isinstance(state, tuple) or len(state) != len(expected) or not all(isinstance(p, Tensor) for p in state):
        got = f"tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise TypeError(f"{who}: the state must be a tuple ({', '.join(expected)}) of tensors, got {got}")
    for part, (name, (shape, dtype)) in zip(state, expected.items(), strict=True):
        if part.shape != shape:
            raise ValueError(f"{who}: {name} must have shape {shape}, got {name} of shape {part.shape}")
        if part.dtype != dtype:
            raise TypeError(f"{who}: {name} must be {dtype}, got {part.dtype}: {name}.astype({str(dtype)!r})")
