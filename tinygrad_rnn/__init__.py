"""Recurrent networks in ordinary operations: a small reverse-mode automatic differentiation library."""

from tinygrad_rnn.backend import get_backend, set_backend, use_backend
from tinygrad_rnn.ops import *
from tinygrad_rnn.tape import no_grad
from tinygrad_rnn.tensor import Tensor, grad
