"""Learning-rate schedules: each is the rate as a function of the step.

The rates are PyTorch's, but computed from the step alone and not from the rate before: nothing accumulates, a
schedule can be taken up at any step, and schedules in sequence are again such a function. It follows that a rate set
by hand, or by `ReduceLROnPlateau`, lasts until the next `step` of another schedule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from math import cos, inf, pi
from numbers import Integral
from typing import Any

from tinygrad_rnn.optim.optimizer import Optimizer


class _Schedule:
    """What `LRScheduler` and `ReduceLROnPlateau` share."""

    _kept: tuple[str, ...] = ("last_epoch",)
    last_epoch: int

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step, a dict of numbers; the constructor's arguments are not part of it."""
        return {name: getattr(self, name) for name in self._kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; PyTorch's hold the arguments too, which are passed over.

        Raises
        ------
        ValueError
            If it lacks something; the schedule is then as it was.
        """
        if missing := sorted(set(self._kept) - state_dict.keys()):
            raise ValueError(f"state_dict lacks {', '.join(missing)}, which {type(self).__name__} needs")
        for name in self._kept:
            setattr(self, name, state_dict[name])


class LRScheduler(_Schedule):
    """Base of the schedules that depend on the step alone; a new one defines ``lr_at``.

    The rate before any schedule touched it is kept in the optimizer's groups, as ``group["initial_lr"]``.

    Parameters
    ----------
    optimizer
        Whose groups' ``"lr"`` to set; the first rate is set at once.
    last_epoch
        The step before the one to start with; -1 starts afresh.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of its range, or ``last_epoch`` is not -1 and the optimizer's
        groups have no ``"initial_lr"``.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        super().__init__(optimizer)
        if last_epoch != -1 and any("initial_lr" not in group for group in optimizer.param_groups):
            raise ValueError(f"last_epoch {last_epoch} needs an optimizer whose groups have 'initial_lr'")
        self.last_epoch = last_epoch
        self.step()

    def lr_at(self, initial_lr: float, step: int) -> float:
        """The rate for the given step, counted from 0, where the initial rate is ``initial_lr``."""
        raise NotImplementedError(f"{type(self).__name__} must define lr_at(self, initial_lr, step)")

    def step(self) -> None:
        """Go on to the next rate; to be called after the optimizer's ``step``."""
        self.last_epoch += 1
        self._set()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, PyTorch's included, and set the rate of its step.

        Raises
        ------
        ValueError
            If it lacks something; the schedule is then as it was.
        """
        super().load_state_dict(state_dict)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = self.lr_at(group["initial_lr"], self.last_epoch)


class StepLR(LRScheduler):
    """Multiply the rate by ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size = _whole("step_size", step_size)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        return initial_lr * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """Multiply the rate by ``gamma`` at each of the steps ``milestones``."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        return initial_lr * self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(LRScheduler):
    """Multiply the rate by ``gamma`` at every step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        return initial_lr * self.gamma**step


class CosineAnnealingLR(LRScheduler):
    """From the initial rate to ``eta_min`` in ``T_max`` steps, along half a cosine (and up again after them).

    Loshchilov and Hutter (2017), arXiv:1608.03983, eq. 5, without restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = _whole("T_max", T_max)
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        return self.eta_min + (initial_lr - self.eta_min) * (1 + cos(pi * step / self.T_max)) / 2


class LinearLR(LRScheduler):
    """From ``start_factor`` to ``end_factor`` times the initial rate in ``total_iters`` steps: a warm-up."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ValueError(f"start_factor must be above 0 and at most 1, got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must be from 0 to 1, got {end_factor}")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = _whole("total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        done = min(step / self.total_iters, 1)
        return initial_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class SequentialLR(LRScheduler):
    """One schedule after another, such as a warm-up and a cosine.

    Parameters
    ----------
    optimizer
        The one that all ``schedulers`` were made with.
    schedulers
        At least one; they are not to be stepped themselves.
    milestones
        At which step each but the first begins; each counts its steps from there.
    last_epoch
        See `LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ) -> None:
        self.schedulers = list(schedulers)
        self.milestones = list(milestones)
        for i, scheduler in enumerate(self.schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"schedulers[{i}] must depend on the step alone (an LRScheduler), got {type(scheduler).__name__}"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"schedulers[{i}] was made with another optimizer")
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"milestones must be one fewer than schedulers, got {len(self.milestones)} and {len(self.schedulers)}"
            )
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"milestones must rise, got {self.milestones}")
        super().__init__(optimizer, last_epoch)

    def lr_at(self, initial_lr: float, step: int) -> float:
        i = bisect_right(self.milestones, step)
        start = self.milestones[i - 1] if i else 0
        return self.schedulers[i].lr_at(initial_lr, step - start)


class ReduceLROnPlateau(_Schedule):
    """Multiply the rate by ``factor`` when a metric has not improved for more than ``patience`` steps.

    Parameters
    ----------
    optimizer
        Whose groups' ``"lr"`` to reduce.
    mode
        ``"min"`` if a smaller metric is better, ``"max"`` if a larger one is.
    factor
        Below 1.
    patience
        How many steps without improvement are borne.
    threshold, threshold_mode
        By how much the metric must pass its best to count as improved: ``"rel"``, that part of the best; ``"abs"``,
        that amount.
    cooldown
        For how many steps after a reduction nothing is counted.
    min_lr
        Bound on the rate; a list has one for each group.
    eps
        A reduction that is not larger than this is left out.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of its range.
    """

    _kept = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(optimizer)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        if not factor < 1:
            raise ValueError(f"factor must be below 1, got {factor}")
        if isinstance(min_lr, Sequence) and len(min_lr) != len(optimizer.param_groups):
            raise ValueError(f"min_lr must have one rate for each of {len(optimizer.param_groups)} groups: {min_lr}")
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.eps = eps
        self.last_epoch = 0
        self.best = inf if mode == "min" else -inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0

    def step(self, metrics: Any) -> None:
        """Note a value of the metric, a number or a tensor of one element, and reduce the rate if it is due."""
        metric = float(metrics)
        sign = 1 if self.mode == "min" else -1
        margin = sign * self.threshold
        bound = self.best * (1 - margin) if self.threshold_mode == "rel" else self.best - margin
        self.last_epoch += 1
        self.num_bad_epochs += 1
        if sign * metric < sign * bound:
            self.best = metric
            self.num_bad_epochs = 0
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
            for i, group in enumerate(self.optimizer.param_groups):
                lowest = self.min_lr[i] if isinstance(self.min_lr, Sequence) else self.min_lr
                reduced = max(group["lr"] * self.factor, lowest)
                if group["lr"] - reduced > self.eps:
                    group["lr"] = reduced


def _whole(name: str, value: int) -> int:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
    return int(value)
