"""Recurrent cells: one step of a network that carries a state.

Every cell is called ``y, state = cell(x, state)``, with ``x`` of shape (batch, input_size) and ``y`` of shape
(batch, hidden_size). This is the one place where we differ from PyTorch, whose cells return the state alone: it lets
any cell run in any loop. Parameters, their shapes and the order of the gates are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_rnn.functional import linear, relu
from tinygrad_rnn.nn.init import orthogonal_, uniform_, xavier_uniform_
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.ops import sigmoid, split, tanh, zeros
from tinygrad_rnn.random import Generator
from tinygrad_rnn.recurrence import expose
from tinygrad_rnn.tensor import Tensor, _backend, _name, _wrap, as_tensor


class Cell(Module):
    """What the cells of this file share: two weights and two biases, with the gates stacked along the first axis.

    Parameters
    ----------
    input_size, hidden_size
        Number of features of the input and of the state.
    bias
        Whether there are biases.
    dtype
        Of the parameters, and so of inputs and state.
    generator
        Where the initial values come from.
    init
        ``"orthogonal"``: the initial values named below. ``"torch"``: PyTorch's, everything evenly from
        +-1/sqrt(hidden_size).
    output_size
        Number of features of ``h``, if a cell makes it of another size than the gates.

    Attributes
    ----------
    weight_ih
        Shape (gates * hidden_size, input_size); initially Glorot-uniform for each gate (Glorot & Bengio 2010).
    weight_hh
        Shape (gates * hidden_size, output_size); initially orthogonal for each gate (Saxe et al. 2014).
    bias_ih, bias_hh
        Shape (gates * hidden_size,), or None; initially 0. Only their sum matters: there are two because PyTorch has
        two, and together they learn at twice the rate of one.
    """

    gates: int
    parts: tuple[str, ...] = ("h",)  # of the state; the first is as wide as the output

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
        output_size: int | None = None,
    ) -> None:
        output_size = hidden_size if output_size is None else output_size
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {size}")
        if init not in ("orthogonal", "torch"):
            raise ValueError(f"{type(self).__name__}: init must be 'orthogonal' or 'torch', got {init!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        rows = self.gates * hidden_size
        self.weight_ih = Parameter(zeros((rows, input_size), dtype))
        self.weight_hh = Parameter(zeros((rows, output_size), dtype))
        self.bias_ih = Parameter(zeros(rows, dtype)) if bias else None
        self.bias_hh = Parameter(zeros(rows, dtype)) if bias else None
        if init == "torch":
            for parameter in self.parameters():
                uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5, generator)
        else:
            xavier_uniform_(self.weight_ih, blocks=self.gates, generator=generator)
            orthogonal_(self.weight_hh, blocks=self.gates, generator=generator)

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Parameters
        ----------
        x
            Shape (batch, input_size).
        state
            As `init_state` makes it, which is what None stands for.

        Returns
        -------
        The output, shape (batch, output_size), and the next state.
        """
        x = as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(
                f"{_name(self.weight_ih)}, takes x of shape (batch, {self.input_size}), got x of shape {x.shape}"
            )
        if state is None:
            state = self.init_state(x.shape[0])
        else:
            self._check_state(state, x)
        return self.forward(x, state)  # type: ignore[no-any-return]

    def _check_state(self, state: Any, x: Tensor) -> None:
        parts = state if len(self.parts) > 1 and isinstance(state, tuple) else (state,)
        if len(parts) != len(self.parts) or not all(isinstance(part, Tensor) for part in parts):
            wanted = f"a tuple ({', '.join(self.parts)}) of tensors" if len(self.parts) > 1 else "one tensor, h"
            kind = type(state).__name__
            got = f"{kind} of {len(state)}" if isinstance(state, (tuple, list)) else kind
            got += "; tg.Tensor makes a tensor of an array" if "ndarray" in kind else ""
            raise TypeError(f"{type(self).__name__}: the state must be {wanted}, got {got}")
        dtype = self.weight_hh.dtype
        for i, (name, part) in enumerate(zip(self.parts, parts, strict=True)):
            expected = (x.shape[0], self.hidden_size if i else self.output_size)
            if part.shape != expected:
                raise ValueError(
                    f"{_name(self.weight_hh)}, takes {name} of shape {expected} beside x of shape {x.shape}, "
                    f"got {name} of shape {part.shape}"
                )
            if part.dtype != dtype:
                raise TypeError(
                    f"{_name(self.weight_hh)}, is {dtype} and {name} is {part.dtype}: "
                    f"convert the state, {name}.astype({str(dtype)!r})"
                )

    def init_state(self, batch: int) -> Any:
        """A state of zeros for ``batch`` sequences, of the parameters' dtype and on their backend."""
        zeros, dtype = _backend(self.weight_hh).zeros, self.weight_hh.dtype
        sizes = self.output_size, *[self.hidden_size] * (len(self.parts) - 1)
        made = tuple([_wrap(zeros((batch, size), dtype=dtype)) for size in sizes])
        return made if len(made) > 1 else made[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias_ih is not None else ", bias=False")


class RNNCell(Cell):
    """The simple recurrent network (Elman 1990): ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``.

    ``nonlinearity`` is ``"tanh"``, ``"relu"``, or any function of a tensor. The state is ``h``, and so is the output.
    """

    pure = True
    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str | Callable[[Tensor], Tensor] = "tanh",
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype, generator, init)
        named = {"tanh": tanh, "relu": relu}
        if isinstance(nonlinearity, str) and nonlinearity not in named:
            raise ValueError(f"nonlinearity must be 'tanh', 'relu' or a function, got {nonlinearity!r}")
        self.nonlinearity = named[nonlinearity] if isinstance(nonlinearity, str) else nonlinearity

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.nonlinearity(linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh))
        expose(h=h)
        return h, h


class GRUCell(Cell):
    """The gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as in cuDNN and PyTorch.

    ::

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Gates are stacked in the order r, z, n. The state is ``h``, and so is the output. ``activation``, any function of a
    tensor, stands for the tanh.
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
        init: str = "orthogonal",
        activation: Callable[[Tensor], Tensor] = tanh,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype, generator, init)
        self.activation = activation

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        r_x, z_x, n_x = split(linear(x, self.weight_ih, self.bias_ih), 3, axis=-1)
        r_h, z_h, n_h = split(linear(h, self.weight_hh, self.bias_hh), 3, axis=-1)
        r = sigmoid(r_x + r_h)
        z = sigmoid(z_x + z_h)
        n = self.activation(n_x + r * n_h)
        h = n + z * (h - n)
        expose(r=r, z=z, n=n, h=h)
        return h, h


class LSTMCell(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000).

    ::

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    Gates are stacked in the order i, f, g, o. The state is the pair (h, c), the output is h. The forget gate's part of
    ``bias_ih`` is initially 1, so that memory lasts before anything is learned (Jozefowicz et al. 2015), unless
    ``init="torch"``. With ``proj_size`` above 0 there is a ``weight_hr`` of shape (proj_size, hidden_size), and
    ``h' = W_hr (o * tanh(c'))`` (Sak et al. 2014). ``activation``, any function of a tensor, stands for both tanh.
    """

    pure = True
    gates = 4
    parts = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        proj_size: int = 0,
        dtype: Any = np.float32,
        generator: Generator | None = None,
        init: str = "orthogonal",
        activation: Callable[[Tensor], Tensor] = tanh,
    ) -> None:
        if proj_size < 0 or proj_size >= hidden_size > 0:
            raise ValueError(f"LSTMCell: proj_size must be from 0 to below hidden_size, {hidden_size}, got {proj_size}")
        super().__init__(input_size, hidden_size, bias, dtype, generator, init, proj_size or None)
        if self.bias_ih is not None and init == "orthogonal":
            self.bias_ih._data[hidden_size : 2 * hidden_size] = 1
        self.activation = activation
        self.weight_hr: Parameter | None = None
        if proj_size:
            bound = hidden_size**-0.5
            self.weight_hr = uniform_(Parameter(zeros((proj_size, hidden_size), dtype)), -bound, bound, generator)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        gates = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = split(gates, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), self.activation(g), sigmoid(o)
        c = f * c + i * g
        h = o * self.activation(c)
        if self.weight_hr is not None:
            h = linear(h, self.weight_hr)
        expose(i=i, f=f, g=g, o=o, c=c, h=h)
        return h, (h, c)
