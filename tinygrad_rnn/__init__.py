"""Recurrent networks in ordinary operations: a small reverse-mode automatic differentiation library."""

from typing import TYPE_CHECKING, Any

from tinygrad_rnn import functional, nn, ops, optim
from tinygrad_rnn.anomaly import AnomalyError, detect_anomaly
from tinygrad_rnn.backend import get_backend, set_backend, use_backend
from tinygrad_rnn.checkpoint import CheckpointError, load, save
from tinygrad_rnn.checks import GradientError, gradcheck, gradgradcheck
from tinygrad_rnn.compiler.engines import use_engine
from tinygrad_rnn.gradients import grad
from tinygrad_rnn.ledger import gradient_ledger
from tinygrad_rnn.nest import detach
from tinygrad_rnn.ops import *
from tinygrad_rnn.random import Generator, manual_seed
from tinygrad_rnn.recurrence import expose, plan, scan
from tinygrad_rnn.streaming import compile_step
from tinygrad_rnn.tape import no_grad
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.threads import get_num_threads, set_num_threads
from tinygrad_rnn.training import sequence_loss, tbptt

if TYPE_CHECKING:
    from tinygrad_rnn import data, viz

__version__ = "0.1.0"

__all__ = [
    "AnomalyError",
    "CheckpointError",
    "Generator",
    "GradientError",
    "Tensor",
    "compile_step",
    "data",
    "detach",
    "detect_anomaly",
    "expose",
    "functional",
    "get_backend",
    "get_num_threads",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "gradient_ledger",
    "load",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "plan",
    "save",
    "scan",
    "sequence_loss",
    "set_backend",
    "set_num_threads",
    "tbptt",
    "use_backend",
    "use_engine",
    "viz",
]
__all__ += ops.__all__


def __getattr__(name: str) -> Any:
    """Import ``tg.data`` and ``tg.viz`` when they are first used: most programs need neither."""
    if name in ("data", "viz"):
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    from tinygrad_rnn.elsewhere import missing

    raise missing(__name__, name)
