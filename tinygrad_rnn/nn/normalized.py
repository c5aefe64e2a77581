"""Cells that keep their sums at one scale: layer normalization (Ba et al. 2016), batch normalization (Cooijmans)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_rnn.functional import linear
from tinygrad_rnn.nn.cells import Cell, LSTMCell
from tinygrad_rnn.nn.gated import check_parts
from tinygrad_rnn.nn.layers import LayerNorm
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.ops import (
    concatenate,
    full,
    maximum,
    mean,
    minimum,
    ones,
    reshape,
    sigmoid,
    split,
    sqrt,
    square,
    take,
    tanh,
    where,
    zeros,
)
from tinygrad_rnn.ops import sum as sum_
from tinygrad_rnn.random import Generator
from tinygrad_rnn.recurrence import afterwards, expose, present_rows
from tinygrad_rnn.tensor import Tensor, _backend


class LayerNormLSTMCell(LSTMCell):
    """The layer-normalized LSTM (Ba, Kiros & Hinton 2016, supplementary material).

    ::

        (i, f, g, o) = LN(W x) + b_ih + LN(U h) + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(LN(c'))

    The four gates are normalized together, over 4 * hidden_size sums. ``norm_ih``, ``norm_hh`` and ``norm_c`` are the
    `LayerNorm`; the biases of the first two are the cell's own, so without ``bias`` there is only that of ``norm_c``.
    The rest is as in `LSTMCell`.
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
        self.norm_ih = LayerNorm(4 * hidden_size, bias=False, dtype=dtype)
        self.norm_hh = LayerNorm(4 * hidden_size, bias=False, dtype=dtype)
        self.norm_c = LayerNorm(hidden_size, dtype=dtype)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        from_x = _plus(self.norm_ih(linear(x, self.weight_ih)), self.bias_ih)
        from_h = _plus(self.norm_hh(linear(h, self.weight_hh)), self.bias_hh)
        i, f, g, o = split(from_x + from_h, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * tanh(self.norm_c(c))
        expose(i=i, f=f, g=g, o=o, c=c, h=h)
        return h, (h, c)


class LayerNormGRUCell(Cell):
    """The layer-normalized GRU (Ba, Kiros & Hinton 2016, supplementary material).

    ::

        (r, z) = LN(W_rz x) + b_ih + LN(U_rz h) + b_hh
        n  = tanh(LN(W_n x) + b_in + sigmoid(r) * (LN(U_n h) + b_hn))
        h' = sigmoid(z) * h + (1 - sigmoid(z)) * n

    The two gates are normalized together, over 2 * hidden_size sums, by ``norm_ih`` and ``norm_hh``; the candidate by
    ``norm_in`` and ``norm_hn``. Their biases are the cell's own. The rest, with the sense of z, is as in `GRUCell`;
    the paper's z is one minus this one.
    """

    pure = True
    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype=dtype, generator=generator)
        self.norm_ih = LayerNorm(2 * hidden_size, bias=False, dtype=dtype)
        self.norm_hh = LayerNorm(2 * hidden_size, bias=False, dtype=dtype)
        self.norm_in = LayerNorm(hidden_size, bias=False, dtype=dtype)
        self.norm_hn = LayerNorm(hidden_size, bias=False, dtype=dtype)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        from_x = self._normalized(linear(x, self.weight_ih), self.norm_ih, self.norm_in, self.bias_ih)
        from_h = self._normalized(linear(h, self.weight_hh), self.norm_hh, self.norm_hn, self.bias_hh)
        r_x, z_x, n_x = split(from_x, 3, axis=-1)
        r_h, z_h, n_h = split(from_h, 3, axis=-1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = tanh(n_x + r * n_h)
        h = n + z * (h - n)
        expose(r=r, z=z, n=n, h=h)
        return h, h

    def _normalized(self, sums: Tensor, gates: LayerNorm, candidate: LayerNorm, bias: Parameter | None) -> Tensor:
        rz, n = split(sums, (2 * self.hidden_size,), axis=-1)
        return _plus(concatenate([gates(rz), candidate(n)], axis=-1), bias)


class BatchNormLSTMCell(Cell):
    """The LSTM with recurrent batch normalization (Cooijmans et al. 2017).

    ::

        (i, f, g, o) = BN(W x) + BN(U h) + b
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(BN(c'))

    In training, BN takes mean and variance over the batch at this step; afterwards it takes the running averages of
    this step's, for the statistics of the first steps are unlike those of the later ones.

    The state is (h, c, step), where ``step`` holds ints, shape (batch,): how many steps each row has been through.
    Rows of a batch do not stand alone: in training there must be at least two. Rows past the end of their ``lengths``
    do not count, and a row that is the last one left takes the running averages. There is one bias, ``bias_ih``. The
    rest is as in `LSTMCell`.

    Parameters
    ----------
    max_steps
        For how many steps averages are kept; all steps beyond use the last ones.
    momentum
        The share of a new batch in the running averages.

    Attributes
    ----------
    bn_ih, bn_hh, bn_c
        Each with ``weight``, the paper's gamma, initially 0.1 (at 1 gradients vanish), and the buffers ``mean`` and
        ``var`` of shape (max_steps, features); ``bn_c`` has a ``bias`` too, initially 0, the others have the cell's.
    """

    gates = 4
    parts = ("h", "c", "step")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        max_steps: int = 100,
        momentum: float = 0.1,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype=dtype, generator=generator)
        if self.bias_ih is not None:
            self.bias_ih._data[hidden_size : 2 * hidden_size] = 1  # as in LSTMCell
        self.bias_hh = None
        self.bn_ih = _StepwiseBatchNorm(4 * hidden_size, max_steps, momentum, False, dtype)
        self.bn_hh = _StepwiseBatchNorm(4 * hidden_size, max_steps, momentum, False, dtype)
        self.bn_c = _StepwiseBatchNorm(hidden_size, max_steps, momentum, True, dtype)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """(h, c, step), zeros for ``batch`` sequences."""
        h, c, _ = super().init_state(batch)
        return h, c, Tensor(_backend(self.weight_hh).zeros((batch,), dtype=np.int64))

    def _check_state(self, state: Any, x: Tensor) -> None:
        part = ((x.shape[0], self.hidden_size), self.weight_hh.dtype)
        check_parts(self, state, {"h": part, "c": part, "step": ((x.shape[0],), np.dtype(np.int64))})

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        h, c, step = state
        from_x = self.bn_ih(linear(x, self.weight_ih), step)
        from_h = self.bn_hh(linear(h, self.weight_hh), step)
        i, f, g, o = split(_plus(from_x + from_h, self.bias_ih), 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * tanh(self.bn_c(c, step))
        expose(i=i, f=f, g=g, o=o, c=c, h=h)
        return h, (h, c, step + 1)


class _StepwiseBatchNorm(Module):
    """Batch normalization with statistics of its own for every step."""

    mean: Tensor
    var: Tensor
    eps = 1e-5

    def __init__(self, features: int, max_steps: int, momentum: float, bias: bool, dtype: Any) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, got {momentum}")
        self.momentum = momentum
        self.weight = Parameter(full(features, 0.1, dtype))
        self.bias = Parameter(zeros(features, dtype)) if bias else None
        self.register_buffer("mean", zeros((max_steps, features), dtype))
        self.register_buffer("var", ones((max_steps, features), dtype))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        step = minimum(step, self.mean.shape[0] - 1)
        rows = present_rows()
        if self.training and rows is None:
            if x.shape[0] < 2:
                raise ValueError(f"batch normalization needs at least 2 rows in training, got a batch of {x.shape[0]}")
            centre = mean(x, 0, keepdims=True)
            spread = mean(square(x - centre), 0, keepdims=True)
            afterwards(self._note, centre, spread, step)
        else:
            centre, spread = take(self.mean, step, axis=0), take(self.var, step, axis=0)
        if self.training and rows is not None:
            several = sum_(rows) > 1
            own_centre = _average(x, rows)
            own_spread = _average(square(x - own_centre), rows)
            afterwards(self._note, own_centre, own_spread, step, rows)
            centre, spread = where(several, own_centre, centre), where(several, own_spread, spread)
        return _plus((x - centre) / sqrt(spread + self.eps) * self.weight, self.bias)

    def extra_repr(self) -> str:
        max_steps, features = self.mean.shape
        return f"{features}, max_steps={max_steps}, momentum={self.momentum}"

    def _note(self, centre: Tensor, spread: Tensor, step: Tensor, present: Tensor | None = None) -> None:
        at = step._data if present is None else step._data[present._data]
        rows = at.shape[0]
        if rows < 2:
            return
        # Of the running variance the unbiased estimate is kept, as in PyTorch. Rows at the same step write the same.
        share = self.momentum
        for kept, new in ((self.mean, centre._data), (self.var, spread._data * (rows / (rows - 1)))):
            kept._data[at] = kept._data[at] * (1 - share) + new * share
            kept._touch()


def _average(x: Tensor, rows: Tensor) -> Tensor:
    """The mean over those rows; 0 if there are none."""
    total: Tensor = sum_(where(reshape(rows, (-1, 1)), x, 0), 0, keepdims=True)
    return total / maximum(sum_(rows), 1)


def _plus(x: Tensor, bias: Parameter | None) -> Tensor:
    return x if bias is None else x + bias
