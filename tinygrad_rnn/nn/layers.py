"""Layers without recurrence, and containers; arguments, parameters and their shapes are PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt
from typing import Any

import numpy as np

from tinygrad_rnn import functional as F
from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.ops import ones, zeros
from tinygrad_rnn.random import Generator
from tinygrad_rnn.tensor import Tensor


class Linear(Module):
    """``x @ weight.T + bias``, from (..., in_features) to (..., out_features).

    Parameters
    ----------
    in_features, out_features
        Lengths of the last axis of input and output.
    bias
        Whether to add a bias.
    dtype
        Of the parameters, and so of the inputs.
    generator
        Where the initial values come from: evenly from +-1/sqrt(in_features), as in PyTorch.

    Attributes
    ----------
    weight
        Shape (out_features, in_features).
    bias
        Shape (out_features,), or None.
    """

    pure = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        bound = 1 / sqrt(in_features) if in_features else 0.0
        weight = Parameter(zeros((out_features, in_features), dtype))
        self.weight = init.uniform_(weight, -bound, bound, generator)
        self.bias: Parameter | None = None
        if bias:
            self.bias = init.uniform_(Parameter(zeros(out_features, dtype)), -bound, bound, generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}" + ("" if self.bias is not None else ", bias=False")


class Embedding(Module):
    """A learned vector for each index, from any shape to (..., embedding_dim).

    Parameters
    ----------
    num_embeddings
        How many indices there are.
    embedding_dim
        Length of each vector.
    padding_idx
        An index whose vector is zero and stays so.

    Attributes
    ----------
    weight
        Shape (num_embeddings, embedding_dim), initially standard normal, as in PyTorch.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: Any = np.float32,
        generator: Generator | None = None,
    ) -> None:
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be an index below {num_embeddings}, got {padding_idx}")
        self.weight = init.normal_(Parameter(zeros((num_embeddings, embedding_dim), dtype)), generator=generator)
        self.padding_idx = padding_idx
        if padding_idx is not None:
            self.weight._data[padding_idx] = 0

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class Dropout(Module):
    """`functional.dropout`, in training only."""

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be from 0 to 1, got {p}")
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LayerNorm(Module):
    """`functional.layer_norm` with a learned ``weight`` and ``bias``, both of shape ``normalized_shape``."""

    pure = True

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.weight = Parameter(ones(shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(zeros(shape, dtype)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class ModuleList(Module):
    """Modules in a list."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add one at the end."""
        if not isinstance(module, Module):
            raise TypeError(f"a {type(self).__name__} holds modules, got {type(module).__name__}")
        setattr(self, str(len(self)), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __getitem__(self, index: int) -> Module:
        modules: list[Module] = [*self]
        return modules[index]


class Sequential(ModuleList):
    """Modules called one after the other, each on what the one before returned."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for i, module in enumerate(self):
            x = module(x)
            if isinstance(x, tuple) and hasattr(module, "init_state") and i + 1 < len(self):
                raise TypeError(
                    f"Sequential: module {i}, {type(module).__name__}, returned outputs and state, of which the next "
                    "takes one: call the two by hand"
                )
        return x
