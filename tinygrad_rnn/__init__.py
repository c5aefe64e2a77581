"""Recurrent networks in ordinary operations: a small reverse-mode automatic differentiation library."""

from tinygrad_rnn import data, functional, nn, ops, optim
from tinygrad_rnn.backend import get_backend, set_backend, use_backend
from tinygrad_rnn.checkpoint import CheckpointError, load, save
from tinygrad_rnn.checks import GradientError, gradcheck, gradgradcheck
from tinygrad_rnn.gradients import grad
from tinygrad_rnn.ledger import gradient_ledger
from tinygrad_rnn.nest import detach
from tinygrad_rnn.ops import *
from tinygrad_rnn.random import Generator, manual_seed
from tinygrad_rnn.recurrence import expose, scan
from tinygrad_rnn.tape import no_grad
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.training import sequence_loss, tbptt

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Generator",
    "GradientError",
    "Tensor",
    "data",
    "detach",
    "expose",
    "functional",
    "get_backend",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "gradient_ledger",
    "load",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "save",
    "scan",
    "sequence_loss",
    "set_backend",
    "tbptt",
    "use_backend",
]
__all__ += ops.__all__
