"""Optimizers, clipping of gradients and learning-rate schedules, with PyTorch's names, arguments and numbers."""

from typing import TYPE_CHECKING, Any

from tinygrad_rnn.optim.algorithms import SGD, Adagrad, Adam, AdamW, RMSprop
from tinygrad_rnn.optim.clip import clip_grad_norm_, clip_grad_value_
from tinygrad_rnn.optim.growth import GraphGrowthWarning
from tinygrad_rnn.optim.optimizer import Optimizer
from tinygrad_rnn.optim.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "GraphGrowthWarning",
    "LRScheduler",
    "LinearLR",
    "MultiStepLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from tinygrad_rnn.elsewhere import missing

        raise missing(__name__, name)
