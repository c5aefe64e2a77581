"""Optimizers, clipping and schedules against PyTorch: the same numbers after 100 steps in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tinygrad_rnn as tg
from tinygrad_rnn import optim

STEPS = 100
SHAPES = [(3, 4), (4,), (), (2, 1, 3)]

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.05, "weight_decay": 0.02, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.02, "betas": (0.7, 0.8), "amsgrad": True}),
    ("Adam", {"lr": 0.02, "betas": (0.0, 0.9), "amsgrad": True, "weight_decay": 0.05, "maximize": True}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.05, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.5, "amsgrad": True}),
    ("AdamW", {"lr": 0.02, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.05}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.8}),
    ("RMSprop", {"lr": 0.02, "centered": True}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "momentum": 0.8, "centered": True, "weight_decay": 0.05, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.05}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True}),
]
optimizers = pytest.mark.parametrize(("name", "options"), OPTIMIZERS)


class Pair:
    """The same parameters here and in PyTorch, each half of them a group, and an optimizer for either."""

    def __init__(self, name: str, options: dict[str, Any], start: list[Any]) -> None:
        self.ours = [tg.Tensor(np.array(value), requires_grad=True) for value in start]
        self.theirs = [torch.tensor(np.array(value), requires_grad=True) for value in start]
        self.optimizer: Any = getattr(optim, name)(self.groups(self.ours), **options)
        self.peer: Any = getattr(torch.optim, name)(self.groups(self.theirs), **options)

    @staticmethod
    def groups(parameters: list[Any]) -> list[dict[str, Any]]:
        return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.03, "weight_decay": 0.01}]

    def set_gradients(self, gradients: list[Any]) -> None:
        for ours, theirs, gradient in zip(self.ours, self.theirs, gradients, strict=True):
            ours.grad = tg.Tensor(np.array(gradient))
            theirs.grad = torch.tensor(np.array(gradient))

    def step(self, gradients: list[Any]) -> None:
        self.set_gradients(gradients)
        self.optimizer.step()
        self.peer.step()

    def assert_equal(self) -> None:
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-12)


def draws(seed: int, count: int) -> list[list[Any]]:
    """``count`` lists of one array for each parameter, of very different sizes."""
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3) for shape in SHAPES] for _ in range(count)]


@optimizers
def test_an_optimizer(name: str, options: dict[str, Any]) -> None:
    (start,) = draws(0, 1)
    pair = Pair(name, options, start)
    for step, gradients in enumerate(draws(1, STEPS)):
        pair.step(gradients)
        pair.assert_equal()
        if step == 50:
            for groups in (pair.optimizer.param_groups, pair.peer.param_groups):
                groups[0]["lr"] *= 0.5
    assert all(not np.allclose(p.numpy(), value) for p, value in zip(pair.ours, start, strict=True))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_the_arguments_and_their_defaults(name: str) -> None:
    parameter = torch.ones(1, requires_grad=True)
    theirs = getattr(torch.optim, name)([parameter]).defaults
    ours = getattr(optim, name)([tg.Tensor([1.0], requires_grad=True)]).defaults
    left_out = {"foreach", "capturable", "differentiable", "fused"}  # how to run, not what to compute
    assert ours == {key: value for key, value in theirs.items() if key not in left_out}


@optimizers
def test_pytorchs_state_is_taken_over(name: str, options: dict[str, Any]) -> None:
    (start,) = draws(0, 1)
    pair = Pair(name, options, start)
    for gradients in draws(1, 10):
        pair.step(gradients)
    fresh = Pair(name, {**options, "lr": 9.0}, [p.numpy() for p in pair.ours])
    fresh.optimizer.load_state_dict(pair.peer.state_dict())
    fresh.peer.load_state_dict(pair.peer.state_dict())
    for gradients in draws(2, 20):
        fresh.step(gradients)
    fresh.assert_equal()


@optimizers
def test_pytorch_takes_over_our_state(name: str, options: dict[str, Any]) -> None:
    (start,) = draws(0, 1)
    pair = Pair(name, options, start)
    for gradients in draws(1, 10):
        pair.step(gradients)
    saved = pair.optimizer.state_dict()
    saved["state"] = {
        i: {key: torch.tensor(float(value) if key == "step" else value) for key, value in state.items()}
        for i, state in saved["state"].items()
    }
    fresh = Pair(name, {**options, "lr": 9.0}, [p.numpy() for p in pair.ours])
    fresh.optimizer.load_state_dict(pair.optimizer.state_dict())
    fresh.peer.load_state_dict(saved)
    for gradients in draws(2, 20):
        fresh.step(gradients)
    fresh.assert_equal()


@pytest.mark.parametrize("order", [0.5, 1, 2, 3, math.inf])
@pytest.mark.parametrize("bound", [0.0, 0.1, 5.0, 1e6])
def test_clipping_by_norm(order: float, bound: float) -> None:
    for gradients in draws(3, 10):
        pair = Pair("SGD", {}, gradients)
        pair.set_gradients(gradients)
        ours = optim.clip_grad_norm_(pair.ours, bound, order)
        theirs = torch.nn.utils.clip_grad_norm_(pair.theirs, bound, order)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12)
        for p, q in zip(pair.ours, pair.theirs, strict=True):
            assert p.grad is not None
            assert q.grad is not None
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_clipping_by_a_norm_that_is_not_finite(bad: float, order: float) -> None:
    (gradients,) = draws(4, 1)
    gradients[1][2] = bad
    pair = Pair("SGD", {}, gradients)
    pair.set_gradients(gradients)
    ours = optim.clip_grad_norm_(pair.ours, 1.0, order)
    theirs = torch.nn.utils.clip_grad_norm_(pair.theirs, 1.0, order)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for p, q in zip(pair.ours, pair.theirs, strict=True):
        assert p.grad is not None
        assert q.grad is not None
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_clipping_by_value() -> None:
    for gradients in draws(5, 10):
        pair = Pair("SGD", {}, gradients)
        pair.set_gradients(gradients)
        optim.clip_grad_value_(pair.ours, 0.5)
        torch.nn.utils.clip_grad_value_(pair.theirs, 0.5)
        for p, q in zip(pair.ours, pair.theirs, strict=True):
            assert p.grad is not None
            assert q.grad is not None
            np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


Make = Callable[[Any, Any], Any]  # from a namespace of schedules and an optimizer


def warm_up_and_cosine(space: Any, o: Any) -> Any:
    parts = [space.LinearLR(o, 0.1, total_iters=10), space.CosineAnnealingLR(o, 80, 1e-4), space.ExponentialLR(o, 0.9)]
    return space.SequentialLR(o, parts, [10, 90])


def three_in_sequence(space: Any, o: Any) -> Any:
    parts = [space.StepLR(o, 4), space.MultiStepLR(o, [3, 9, 9], 0.5), space.LinearLR(o, 1.0, 0.0, 30)]
    return space.SequentialLR(o, parts, [15, 60])


SCHEDULES: dict[str, Make] = {
    "StepLR": lambda space, o: space.StepLR(o, 7),
    "StepLR with gamma": lambda space, o: space.StepLR(o, step_size=1, gamma=0.97),
    "MultiStepLR": lambda space, o: space.MultiStepLR(o, [50, 3, 20, 20]),
    "MultiStepLR with gamma": lambda space, o: space.MultiStepLR(o, milestones=[1, 99], gamma=0.7),
    "ExponentialLR": lambda space, o: space.ExponentialLR(o, 0.93),
    "CosineAnnealingLR": lambda space, o: space.CosineAnnealingLR(o, 100),
    "CosineAnnealingLR, up again": lambda space, o: space.CosineAnnealingLR(o, T_max=21, eta_min=1e-3),
    "LinearLR": lambda space, o: space.LinearLR(o),
    "LinearLR down": lambda space, o: space.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=60),
    "warm-up, cosine, exponential": warm_up_and_cosine,
    "step, milestones, linear": three_in_sequence,
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule(make: Make) -> None:
    (start,) = draws(0, 1)
    pair = Pair("SGD", {"lr": 0.1}, start)
    ours, theirs = make(optim, pair.optimizer), make(torch.optim.lr_scheduler, pair.peer)
    for gradients in draws(1, STEPS):
        np.testing.assert_allclose(ours.get_last_lr(), theirs.get_last_lr(), rtol=1e-12, atol=1e-15)
        assert ours.get_last_lr() == [group["lr"] for group in pair.optimizer.param_groups]
        assert ours.last_epoch == theirs.last_epoch
        pair.step(gradients)
        ours.step()
        theirs.step()
    pair.assert_equal()


PLATEAUS: list[dict[str, Any]] = [
    {},
    {"patience": 2, "factor": 0.7},
    {"patience": 1, "cooldown": 3, "min_lr": 1e-3},
    {"patience": 0, "threshold": 0.05, "threshold_mode": "abs", "min_lr": [1e-2, 1e-4]},
    {"mode": "max", "patience": 3, "factor": 0.5, "threshold": 0.1},
    {"mode": "max", "patience": 1, "factor": 0.5, "threshold": 0.02, "threshold_mode": "abs", "eps": 1e-3},
]


@pytest.mark.parametrize("options", PLATEAUS)
@pytest.mark.parametrize("sign", [1, -1])
def test_reduce_on_plateau(options: dict[str, Any], sign: int) -> None:
    (start,) = draws(0, 1)
    pair = Pair("SGD", {"lr": 0.1}, start)
    ours = optim.ReduceLROnPlateau(pair.optimizer, **options)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(pair.peer, **options)
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        metric = sign * (1 + math.exp(-step / 20) + 0.1 * rng.standard_normal()) if step % 17 else math.nan
        ours.step(metric)
        theirs.step(metric)
        assert ours.get_last_lr() == theirs.get_last_lr()
        assert ours.state_dict() == {key: theirs.state_dict()[key] for key in ours.state_dict()}
    assert ours.get_last_lr()[0] < 0.1


def test_pytorchs_schedule_state_is_taken_over() -> None:
    (start,) = draws(0, 1)
    first, second = Pair("SGD", {"lr": 0.1}, start), Pair("SGD", {"lr": 9.0}, start)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(first.peer, 50)
    ours = optim.CosineAnnealingLR(second.optimizer, 50)
    for gradients in draws(1, 20):
        first.step(gradients)
        theirs.step()
    second.optimizer.load_state_dict(first.peer.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for _ in range(10):
        first.peer.step()
        np.testing.assert_allclose(ours.get_last_lr(), theirs.get_last_lr(), rtol=1e-12)
        ours.step()
        theirs.step()
