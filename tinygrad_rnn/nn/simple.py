"""Cells without gates that carry memory over long lags by their recurrent weight, and `PReLU` for them to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_rnn.functional import linear, prelu, relu
from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.cells import Cell, RNNCell
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.ops import eye, full, zeros
from tinygrad_rnn.random import Generator
from tinygrad_rnn.recurrence import expose
from tinygrad_rnn.tensor import Tensor


class PReLU(Module):
    """`functional.prelu` with its slopes: ``x`` where it is positive, else ``weight * x`` (He et al. 2015).

    Parameters
    ----------
    num_parameters
        1 for one slope, or as many as there are units, for a slope each.
    init
        Of all slopes.

    Attributes
    ----------
    weight
        Shape (num_parameters,).
    """

    pure = True

    def __init__(self, num_parameters: int = 1, init: float = 0.25, dtype: Any = np.float32) -> None:
        if num_parameters < 1:
            raise ValueError(f"PReLU: num_parameters must be at least 1, got {num_parameters}")
        self.weight = Parameter(full(num_parameters, init, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return prelu(x, self.weight)

    def extra_repr(self) -> str:
        return str(self.weight.size)


class IRNNCell(RNNCell):
    """A rectified network that starts as a sum over its input (Le, Jaitly & Hinton 2015).

    ::

        h' = f(W x + U h + b)

    with ``U`` initially the identity, biases 0, and the input's weights normal with standard deviation 0.001.
    ``activation`` is the f, any function or module; its parameters, if it has some, are learned with the cell's.
    """

    pure = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] = relu,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, activation, dtype=dtype, generator=generator)
        init.normal_(self.weight_ih, std=0.001, generator=generator)
        self.weight_hh = Parameter(eye(hidden_size, dtype=dtype))


class IndRNNCell(Cell):
    """An independently recurrent network: each unit sees of the state itself alone (Li et al. 2018).

    ::

        h' = f(W x + u * h + b)

    ``weight_hh`` is the u, of shape (hidden_size,), initially even from 0 to 1; there is one bias, ``bias_ih``.
    ``activation`` is the f, any function or module; its parameters, if it has some, are learned with the cell's.
    With a ReLU the gradient through T steps is the T-th power of u: the paper keeps abs(u) below 2 ** (1 / T).
    """

    pure = True
    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] = relu,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype=dtype, generator=generator)
        self.weight_hh = init.uniform_(Parameter(zeros(hidden_size, dtype)), 0.0, 1.0, generator)
        self.bias_hh = None
        self.activation = activation

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.activation(linear(x, self.weight_ih, self.bias_ih) + self.weight_hh * h)
        expose(h=h)
        return h, h
