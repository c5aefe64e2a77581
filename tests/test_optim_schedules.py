"""Learning-rate schedules, against their formulas and on bad input."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import optim

Make = Callable[[optim.Optimizer], optim.LRScheduler]


def sgd(*rates: float) -> optim.SGD:
    return optim.SGD([{"params": [tg.Tensor([1.0], requires_grad=True)], "lr": lr} for lr in rates or (0.1,)])


def warm_up_and_cosine(optimizer: optim.Optimizer) -> optim.LRScheduler:
    warm_up = optim.LinearLR(optimizer, start_factor=0.25, total_iters=4)
    return optim.SequentialLR(optimizer, [warm_up, optim.CosineAnnealingLR(optimizer, 8, eta_min=0.01)], [4])


def warmed_up(step: int) -> float:
    """What the above is meant to be, as a part of the initial rate 0.1."""
    if step < 4:
        return (1 + 3 * step / 4) / 4
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 8)) / 2


SCHEDULES: list[tuple[str, Make, Callable[[int], float]]] = [
    ("step", lambda o: optim.StepLR(o, 3), lambda t: 0.1 ** (t // 3)),
    ("milestones", lambda o: optim.MultiStepLR(o, [7, 2], 0.5), lambda t: 0.5 ** ((t >= 2) + (t >= 7))),
    ("exponential", lambda o: optim.ExponentialLR(o, 0.9), lambda t: 0.9**t),
    ("cosine", lambda o: optim.CosineAnnealingLR(o, 6), lambda t: (1 + math.cos(math.pi * t / 6)) / 2),
    ("warm-up", lambda o: optim.LinearLR(o), lambda t: (1 + 2 * min(t, 5) / 5) / 3),
    ("linear", lambda o: optim.LinearLR(o, 1.0, 0.0, 10), lambda t: 1 - min(t, 10) / 10),
    ("warm-up and cosine", warm_up_and_cosine, warmed_up),
]
schedules = pytest.mark.parametrize(("make", "factor"), [s[1:] for s in SCHEDULES], ids=[s[0] for s in SCHEDULES])


@schedules
def test_the_rate_at_each_step(make: Make, factor: Callable[[int], float]) -> None:
    optimizer = sgd(0.1)
    schedule = make(optimizer)
    for step in range(13):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor(step), rel=1e-14, abs=1e-17)
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        assert schedule.last_epoch == step
        schedule.step()


@schedules
def test_each_group_starts_from_its_own_rate(make: Make, factor: Callable[[int], float]) -> None:
    both, first, second = sgd(0.1, 0.3), sgd(0.1), sgd(0.3)
    made = [make(optimizer) for optimizer in (both, first, second)]
    for _ in range(8):
        assert made[0].get_last_lr() == made[1].get_last_lr() + made[2].get_last_lr()
        for schedule in made:
            schedule.step()


@schedules
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_restored_schedule_continues_to_the_same_bits(
    make: Make, factor: Callable[[int], float], optimizer_first: bool
) -> None:
    optimizer = sgd(0.1, 0.3)
    schedule = make(optimizer)
    for _ in range(5):
        schedule.step()
    saved = json.loads(json.dumps({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}))
    other = sgd(7.0, 7.0)
    resumed = make(other)
    if optimizer_first:
        other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["schedule"])
    if not optimizer_first:
        other.load_state_dict(saved["optimizer"])
    for _ in range(8):
        assert resumed.get_last_lr() == schedule.get_last_lr()
        schedule.step()
        resumed.step()


@schedules
def test_last_epoch_takes_up_a_schedule_without_its_state(make: Make, factor: Callable[[int], float]) -> None:
    optimizer = sgd(0.1)
    schedule = make(optimizer)
    for _ in range(4):
        schedule.step()
    fourth = schedule.get_last_lr()
    assert make(optimizer).last_epoch == 0
    assert optim.ExponentialLR(optimizer, 0.9, last_epoch=3).last_epoch == 4
    schedule.load_state_dict({"last_epoch": 4})
    assert optimizer.param_groups[0]["lr"] == fourth[0]


def test_a_group_added_later_joins_with_its_own_rate() -> None:
    optimizer = sgd(0.1)
    schedule = optim.StepLR(optimizer, 1, 0.5)
    optimizer.add_param_group({"params": [tg.Tensor([1.0], requires_grad=True)], "lr": 8.0})
    schedule.step()
    assert schedule.get_last_lr() == [0.05, 4.0]


def test_a_schedule_of_ones_own() -> None:
    class InverseRoot(optim.LRScheduler):
        def lr_at(self, initial_lr: float, step: int) -> float:
            return initial_lr / math.sqrt(step + 1)

    schedule = InverseRoot(sgd(0.1))
    for _ in range(3):
        schedule.step()
    assert schedule.get_last_lr() == [0.05]
    with pytest.raises(NotImplementedError, match="LRScheduler must define lr_at"):
        optim.LRScheduler(sgd(0.1))


def rates(plateau: optim.ReduceLROnPlateau, metrics: list[float]) -> list[float]:
    """The rate of the first group after each metric."""
    result = []
    for metric in metrics:
        plateau.step(metric)
        result.append(plateau.get_last_lr()[0])
    return result


def test_plateau_bears_as_many_steps_as_it_has_patience() -> None:
    plateau = optim.ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=2)
    assert rates(plateau, [3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_counts_nothing_while_it_cools_down() -> None:
    plateau = optim.ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=0, cooldown=2)
    assert rates(plateau, [1.0] * 8) == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize(
    ("mode", "threshold_mode", "better", "not_better"),
    [("min", "rel", 8.9, 9.1), ("min", "abs", 9.8, 9.95), ("max", "rel", 11.1, 10.9), ("max", "abs", 10.2, 10.05)],
)
def test_plateau_asks_for_more_than_the_threshold(
    mode: str, threshold_mode: str, better: float, not_better: float
) -> None:
    for metric, rate in ((better, 1.0), (not_better, 0.1), (math.nan, 0.1)):
        plateau = optim.ReduceLROnPlateau(sgd(1.0), mode, patience=0, threshold=0.1, threshold_mode=threshold_mode)
        assert rates(plateau, [10.0, metric]) == [1.0, rate]


def test_plateau_takes_the_same_again_for_no_improvement() -> None:
    assert rates(optim.ReduceLROnPlateau(sgd(1.0), patience=0, threshold=0.0), [5.0, 5.0]) == [1.0, 0.1]


def test_plateau_keeps_to_its_bounds() -> None:
    plateau = optim.ReduceLROnPlateau(sgd(1.0, 1.0), factor=0.5, patience=0, min_lr=[0.3, 0.0])
    rates(plateau, [1.0] * 5)
    assert plateau.get_last_lr() == [0.3, 0.0625]
    plateau = optim.ReduceLROnPlateau(sgd(1e-8), factor=0.5, patience=0)
    assert rates(plateau, [1.0] * 3) == [1e-8] * 3  # eps


def test_plateau_takes_a_tensor() -> None:
    plateau = optim.ReduceLROnPlateau(sgd(1.0))
    plateau.step(tg.Tensor(2.5))
    assert (plateau.best, plateau.last_epoch) == (2.5, 1)


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_a_restored_plateau_continues(steps: int) -> None:
    metrics = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    optimizer = sgd(1.0)
    plateau = optim.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1)
    rates(plateau, metrics[:steps])
    saved = json.loads(json.dumps([optimizer.state_dict(), plateau.state_dict()]))
    other = sgd(5.0)
    resumed = optim.ReduceLROnPlateau(other, factor=0.5, patience=1, cooldown=1)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert rates(resumed, metrics[steps:]) == rates(plateau, metrics[steps:])
    assert resumed.state_dict() == plateau.state_dict()


def test_bad_arguments() -> None:
    optimizer = sgd(0.1)
    before = [dict(group) for group in optimizer.param_groups]
    plateau = optim.ReduceLROnPlateau(optimizer)
    of_another = optim.LinearLR(sgd(0.1))

    def refused(error: type[Exception], message: str, kind: Any, *args: Any, **named: Any) -> None:
        with pytest.raises(error, match=message):
            kind(*args, **named)
        assert optimizer.param_groups == before

    refused(TypeError, "optimizer must be an Optimizer, got float", optim.StepLR, 0.1, 3)
    refused(ValueError, "last_epoch 3 needs .* 'initial_lr'", optim.StepLR, optimizer, 3, last_epoch=3)
    for steps in (0, -1, 2.5):
        refused(ValueError, f"step_size must be a whole number above 0, got {steps}", optim.StepLR, optimizer, steps)
        refused(ValueError, f"T_max must be .* got {steps}", optim.CosineAnnealingLR, optimizer, steps)
        refused(ValueError, f"total_iters must be .* got {steps}", optim.LinearLR, optimizer, total_iters=steps)
    for factor in (0, 1.5, math.nan):
        refused(ValueError, f"start_factor must be .* got {factor}", optim.LinearLR, optimizer, factor)
    for factor in (-0.5, 1.5, math.nan):
        refused(ValueError, f"end_factor must be .* got {factor}", optim.LinearLR, optimizer, end_factor=factor)
    refused(ValueError, "mode must be 'min' or 'max', got 'low'", optim.ReduceLROnPlateau, optimizer, "low")
    refused(ValueError, "threshold_mode must be", optim.ReduceLROnPlateau, optimizer, threshold_mode="none")
    refused(ValueError, "factor must be below 1, got 1.0", optim.ReduceLROnPlateau, optimizer, factor=1.0)
    refused(ValueError, "min_lr must have one rate for each of 1", optim.ReduceLROnPlateau, optimizer, min_lr=[0, 0])
    refused(TypeError, r"schedulers\[0\] must depend on the step alone", optim.SequentialLR, optimizer, [plateau], [])
    refused(ValueError, r"schedulers\[0\] was made with another", optim.SequentialLR, optimizer, [of_another], [])
    refused(ValueError, "one fewer than schedulers, got 0 and 0", optim.SequentialLR, optimizer, [], [])


def test_bad_arguments_of_a_sequence() -> None:
    optimizer = sgd(0.1)
    parts = [optim.LinearLR(optimizer), optim.ExponentialLR(optimizer, 0.9), optim.StepLR(optimizer, 3)]
    with pytest.raises(ValueError, match="one fewer than schedulers, got 3 and 3"):
        optim.SequentialLR(optimizer, parts, [1, 2, 3])
    with pytest.raises(ValueError, match=r"milestones must rise, got \[5, 2\]"):
        optim.SequentialLR(optimizer, parts, [5, 2])


def test_state_that_does_not_fit_changes_nothing() -> None:
    schedule, plateau = optim.StepLR(sgd(0.1), 3), optim.ReduceLROnPlateau(sgd(0.1))
    for one, message in ((schedule, "lacks last_epoch"), (plateau, "lacks best, cooldown_counter")):
        before = one.state_dict()
        with pytest.raises(ValueError, match=message):
            one.load_state_dict({"num_bad_epochs": 3} if one is schedule else {"num_bad_epochs": 3, "last_epoch": 5})
        assert one.state_dict() == before
