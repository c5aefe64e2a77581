"""Short names for what the tests of the tape all do."""

from typing import Any

import numpy as np

import tinygrad_rnn as tg


def leaf(values: Any, dtype: Any = np.float64) -> tg.Tensor:
    """A tensor on the current backend that requires a gradient."""
    return tg.Tensor(tg.get_backend().asarray(np.array(values, dtype)), requires_grad=True)


def on_backend(values: Any, dtype: Any = None) -> tg.Tensor:
    return tg.Tensor(tg.get_backend().asarray(np.asarray(values, dtype)))


def gradient(tensor: tg.Tensor) -> Any:
    """Its gradient, as lists."""
    assert tensor.grad is not None
    assert (tensor.grad.shape, tensor.grad.dtype, tensor.grad.backend) == (tensor.shape, tensor.dtype, tensor.backend)
    return tensor.grad.numpy().tolist()
