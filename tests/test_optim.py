"""Optimizers, against their equations and on bad input."""

import copy
import inspect
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strict

import tinygrad_rnn as tg
from tinygrad_rnn import optim

P0 = np.array([[1.0, -2.0, 0.5], [3.0, -0.25, 4.0]])
G0 = np.array([[0.5, -0.1, 2.0], [-3.0, 1e-3, 0.25]])
G1 = np.array([[-1.0, 0.3, 1.0], [2.0, 0.5, -0.125]])

EVERY: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    (optim.Adam, {"lr": 0.1}),
    (optim.Adam, {"lr": 0.1, "amsgrad": True, "weight_decay": 0.01}),
    (optim.AdamW, {"lr": 0.1}),
    (optim.RMSprop, {"lr": 0.05}),
    (optim.RMSprop, {"lr": 0.03, "momentum": 0.5, "centered": True, "weight_decay": 0.01}),
    (optim.Adagrad, {"lr": 1.0}),
    (optim.Adagrad, {"lr": 1.0, "lr_decay": 1e-3, "initial_accumulator_value": 0.1, "weight_decay": 0.01}),
]
every = pytest.mark.parametrize(("kind", "options"), EVERY, ids=lambda value: getattr(value, "__name__", None))


def parameter(values: Any, dtype: Any = np.float64) -> tg.Tensor:
    return tg.Tensor(tg.get_backend().asarray(np.array(values, dtype)), requires_grad=True)


def set_gradient(p: tg.Tensor, values: Any) -> None:
    p.grad = tg.Tensor(tg.get_backend().asarray(np.array(values, p.dtype)))


def after(optimizer: optim.Optimizer, p: tg.Tensor, *gradients: Any) -> np.ndarray[Any, Any]:
    """The parameter after a step with each of the gradients."""
    for gradient in gradients:
        set_gradient(p, gradient)
        optimizer.step()
    return p.numpy().copy()


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-15)


# --- the update equations ---------------------------------------------------------------------------------------------


def test_sgd(backend: str) -> None:
    p = parameter(P0)
    close(after(optim.SGD([p], lr=0.1), p, G0, G1), P0 - 0.1 * G0 - 0.1 * G1)


def test_sgd_with_weight_decay(backend: str) -> None:
    p = parameter(P0)
    close(after(optim.SGD([p], lr=0.1, weight_decay=0.5), p, G0), P0 - 0.1 * (G0 + 0.5 * P0))


def test_sgd_with_momentum_and_dampening(backend: str) -> None:
    p = parameter(P0)
    second = 0.9 * G0 + (1 - 0.2) * G1  # dampening spares the first step
    close(
        after(optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.2), p, G0, G1),
        P0 - 0.1 * G0 - 0.1 * second,
    )


def test_sgd_with_nesterov(backend: str) -> None:
    p = parameter(P0)
    first, second = G0 + 0.9 * G0, G1 + 0.9 * (0.9 * G0 + G1)
    close(after(optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True), p, G0, G1), P0 - 0.1 * first - 0.1 * second)


def test_momentum_keeps_no_hold_of_the_gradient(backend: str) -> None:
    p = parameter(P0)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    after(optimizer, p, G0, G1)
    assert p.grad is not None
    close(p.grad.numpy(), G1)
    p.grad.data[...] = 100.0
    close(optimizer.state_dict()["state"][0]["momentum_buffer"], 0.9 * G0 + G1)


def test_the_first_step_of_adam_has_the_size_of_the_rate(backend: str) -> None:
    p = parameter(P0)
    close(after(optim.Adam([p], lr=0.01, betas=(0.0, 0.0), eps=1e-3), p, G0), P0 - 0.01 * G0 / (np.abs(G0) + 1e-3))


def test_the_second_step_of_adam(backend: str) -> None:
    p = parameter(P0)
    b1, b2 = 0.8, 0.95
    m = (b1 * (1 - b1) * G0 + (1 - b1) * G1) / (1 - b1**2)
    v = (b2 * (1 - b2) * G0**2 + (1 - b2) * G1**2) / (1 - b2**2)
    first = P0 - 0.01 * G0 / (np.abs(G0) + 1e-8)
    close(after(optim.Adam([p], lr=0.01, betas=(b1, b2)), p, G0, G1), first - 0.01 * m / (np.sqrt(v) + 1e-8))


def test_weight_decay_joins_the_gradient_in_adam_and_not_in_adamw(backend: str) -> None:
    coupled, decoupled, third = parameter(P0), parameter(P0), parameter(P0)
    g = G0 + 0.5 * P0
    close(after(optim.Adam([coupled], lr=0.01, weight_decay=0.5), coupled, G0), P0 - 0.01 * g / (np.abs(g) + 1e-8))
    expected = P0 * (1 - 0.01 * 0.5) - 0.01 * G0 / (np.abs(G0) + 1e-8)
    close(after(optim.AdamW([decoupled], lr=0.01, weight_decay=0.5), decoupled, G0), expected)
    as_option = optim.Adam([third], lr=0.01, weight_decay=0.5, decoupled_weight_decay=True)
    close(after(as_option, third, G0), expected)


def test_amsgrad_divides_by_the_largest_mean(backend: str) -> None:
    p = parameter(P0)
    b1, b2 = 0.9, 0.5
    first = after(optimizer := optim.Adam([p], lr=0.01, betas=(b1, b2), amsgrad=True), p, 8 * G0)
    m = (b1 * (1 - b1) * 8 * G0 + (1 - b1) * G0) / (1 - b1**2)
    v = (1 - b2) * (8 * G0) ** 2 / (1 - b2**2)  # the second step's own mean would be smaller
    close(after(optimizer, p, G0), first - 0.01 * m / (np.sqrt(v) + 1e-8))


def test_rmsprop(backend: str) -> None:
    plain, centered, momentum = parameter(P0), parameter(P0), parameter(P0)
    v = 0.1 * G0**2
    step = G0 / (np.sqrt(v) + 1e-8)
    close(after(optim.RMSprop([plain], lr=0.02, alpha=0.9), plain, G0), P0 - 0.02 * step)
    variance = v - (0.1 * G0) ** 2
    expected = P0 - 0.02 * G0 / (np.sqrt(variance) + 1e-8)
    close(after(optim.RMSprop([centered], lr=0.02, alpha=0.9, centered=True), centered, G0), expected)
    second = 0.5 * step + G1 / (np.sqrt(0.9 * v + 0.1 * G1**2) + 1e-8)
    rule = optim.RMSprop([momentum], lr=0.02, alpha=0.9, momentum=0.5)
    close(after(rule, momentum, G0, G1), P0 - 0.02 * step - 0.02 * second)
    assert rule.state[momentum]["step"] == 2


def test_centered_rmsprop_stays_finite_under_a_constant_gradient(backend: str) -> None:
    p = parameter([0.1, 0.7, -3.3])
    result = after(optim.RMSprop([p], lr=1e-6, alpha=0.1, centered=True), p, *[[0.1, 0.7, -3.3]] * 60)
    assert np.isfinite(result).all()


def test_adagrad(backend: str) -> None:
    p = parameter(P0)
    rule = optim.Adagrad([p], lr=0.1, lr_decay=0.5, initial_accumulator_value=2.0)
    first = P0 - 0.1 * G0 / (np.sqrt(2 + G0**2) + 1e-10)
    close(after(rule, p, G0, G1), first - 0.1 / 1.5 * G1 / (np.sqrt(2 + G0**2 + G1**2) + 1e-10))


@pytest.mark.parametrize("kind", [optim.RMSprop, optim.Adagrad])
def test_weight_decay_joins_the_gradient(kind: Any, backend: str) -> None:
    decayed, plain = parameter(P0), parameter(P0)
    expected = after(kind([plain]), plain, G0 + 0.5 * P0)
    close(after(kind([decayed], weight_decay=0.5), decayed, G0), expected)


@every
def test_maximizing_is_minimizing_the_negative(kind: Any, options: dict[str, Any], backend: str) -> None:
    up, down = parameter(P0), parameter(P0)
    np.testing.assert_array_equal(
        after(kind([up], **options, maximize=True), up, G0, G1), after(kind([down], **options), down, -G0, -G1)
    )
    assert not np.array_equal(up.numpy(), P0)


@every
def test_the_minimum_of_a_quadratic_bowl_is_found(kind: Any, options: dict[str, Any], backend: str) -> None:
    options = {**options, "weight_decay": 0}
    target, curvature = parameter([1.0, -2.0, 0.5]).detach(), parameter([1.0, 3.0, 0.5]).detach()
    p = parameter([3.0, 3.0, 3.0])
    optimizer = kind([p], **options)
    schedule = optim.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        difference = p - target
        (difference * difference * curvature).sum().backward()
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(p.numpy(), target.numpy(), atol=1e-3)


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_writing_is_in_place_in_the_own_dtype(
    kind: Any, options: dict[str, Any], shape: tuple[int, ...], dtype: Any, backend: str
) -> None:
    p = parameter(np.full(shape, 2.0), dtype)
    before = p.data
    optimizer = kind([p], **options)
    result = after(optimizer, p, np.full(shape, 0.5), np.full(shape, 0.25))
    assert p.data is before
    assert p.dtype == dtype
    assert (result < 2.0).all()
    for value in optimizer.state[p].values():
        assert type(value) in (int, tg.get_backend().array_type)
        assert type(value) is int or (value.dtype == dtype and value.shape == shape)


@every
def test_float32_follows_float64(kind: Any, options: dict[str, Any], backend: str) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((20, 4, 5))
    start = rng.standard_normal((4, 5))
    narrow, wide = parameter(start, np.float32), parameter(start)
    np.testing.assert_allclose(
        after(kind([narrow], **options), narrow, *gradients),
        after(kind([wide], **options), wide, *gradients),
        1e-4,
        1e-4,
    )


def test_a_strided_parameter_is_updated_where_it_lies(backend: str) -> None:
    base = tg.get_backend().asarray(np.zeros((4, 6)))
    p = tg.Tensor(base[::2, ::-2], requires_grad=True)
    set_gradient(p, np.arange(6.0).reshape(2, 3))
    optim.SGD([p], lr=1.0).step()
    expected = np.zeros((4, 6))
    expected[::2, ::-2] = -np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(tg.Tensor(base).numpy(), expected)


@every
def test_a_step_never_waits_for_the_device(kind: Any, options: dict[str, Any]) -> None:
    with tg.use_backend("strict"):
        parameters = [parameter(P0, np.float32), parameter([1.0, 2.0], np.float32)]
        optimizer = kind(parameters, **options)
        schedule = optim.StepLR(optimizer, 2)
        before = strict.synchronizations
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * p).sum() for p in parameters).backward()
            for order in (1, 2, 3, math.inf):
                optim.clip_grad_norm_(parameters, 1.0, order)
            optim.clip_grad_value_(parameters, 0.5)
            optimizer.step()
            schedule.step()
        assert strict.synchronizations == before


# --- parameters and groups --------------------------------------------------------------------------------------------


def test_groups_have_options_of_their_own(backend: str) -> None:
    a, b, c = parameter([1.0]), parameter([1.0]), parameter([1.0])
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 0.5}], lr=0.1)
    optimizer.add_param_group({"params": [c], "lr": 0.25, "name": "third"})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.25]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]
    assert optimizer.param_groups[2]["name"] == "third"
    for p in (a, b, c):
        set_gradient(p, [1.0])
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    close([a.item(), b.item(), c.item()], [0.8, 0.5, 0.75])


def test_a_parameter_without_gradient_is_left_alone(backend: str) -> None:
    a, b = parameter([1.0]), parameter([1.0])
    optimizer = optim.Adam(p for p in (a, b))
    optimizer.step()
    set_gradient(a, [1.0])
    optimizer.step()
    assert b.item() == 1.0 != a.item()
    assert list(optimizer.state_dict()["state"]) == [0]
    optimizer.zero_grad()
    assert a.grad is None


def test_the_docstrings_optimizer_of_ones_own(backend: str) -> None:
    example = inspect.getdoc(optim.Optimizer).partition("::\n")[2].partition("\nParameters\n")[0]
    namespace: dict[str, Any] = {"Optimizer": optim.Optimizer}
    exec(textwrap.dedent(example), namespace)
    lion = namespace["Lion"]
    p = parameter(P0)
    optimizer = lion([p], lr=0.1, weight_decay=0.5)
    first = P0 * 0.95 - 0.1 * np.sign(G0)
    close(after(optimizer, p, G0), first)
    close(after(optimizer, p, G1), first * 0.95 - 0.1 * np.sign(0.9 * 0.01 * G0 + 0.1 * G1))
    other = lion([parameter(P0)])
    other.load_state_dict(optimizer.state_dict())
    np.testing.assert_equal(other.state_dict(), optimizer.state_dict())
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        lion([p], lr=-1)


def test_update_must_be_defined(backend: str) -> None:
    p = parameter([1.0])
    set_gradient(p, [1.0])
    with pytest.raises(NotImplementedError, match="Optimizer must define update"):
        optim.Optimizer([p], {}).step()


def test_numpy_scalars_as_options_become_python_numbers(backend: str) -> None:
    optimizer = optim.SGD([parameter([1.0])], lr=np.float32(0.5))
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert optimizer.param_groups[0]["lr"] == 0.5


BAD_OPTIONS = [
    (optim.SGD, {"lr": -1.0}, ValueError, "lr must be at least 0, got -1.0"),
    (optim.SGD, {"lr": math.nan}, ValueError, "lr must be at least 0, got nan"),
    (optim.SGD, {"lr": "0.1"}, TypeError, "lr must be a number, got str"),
    (optim.SGD, {"momentum": -0.5}, ValueError, "momentum must be at least 0, got -0.5"),
    (optim.SGD, {"weight_decay": -0.5}, ValueError, "weight_decay must be at least 0, got -0.5"),
    (optim.SGD, {"nesterov": True}, ValueError, "nesterov needs a momentum above 0 and no dampening"),
    (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "dampening 0.1"),
    (optim.Adam, {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be at least 0 and below 1, got 1.0"),
    (optim.Adam, {"betas": (0.9, -0.1)}, ValueError, r"betas\[1\] must be at least 0 and below 1, got -0.1"),
    (optim.Adam, {"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
    (optim.AdamW, {"eps": -1e-8}, ValueError, "eps must be at least 0, got -1e-08"),
    (optim.RMSprop, {"alpha": -0.1}, ValueError, "alpha must be at least 0, got -0.1"),
    (optim.Adagrad, {"lr_decay": -0.1}, ValueError, "lr_decay must be at least 0, got -0.1"),
    (optim.Adagrad, {"initial_accumulator_value": -1}, ValueError, "initial_accumulator_value must be at least 0"),
]


@pytest.mark.parametrize(("kind", "options", "error", "message"), BAD_OPTIONS)
def test_bad_options(kind: Any, options: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=message):
        kind([parameter([1.0])], **options)
    optimizer = kind([parameter([1.0])])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [parameter([1.0])], **options})
    assert len(optimizer.param_groups) == 1


def test_bad_parameters(backend: str) -> None:
    p, q = parameter([1.0]), parameter([1.0])

    def refused(error: type[Exception], message: str, params: Any) -> None:
        with pytest.raises(error, match=message):
            optim.SGD(params)

    refused(ValueError, "params is empty", [])
    refused(TypeError, "got a single tensor", p)
    refused(TypeError, "got a Linear: pass its .parameters", tg.nn.Linear(2, 2))
    refused(TypeError, r"params\[1\] of group 0 must be a Tensor, got int", [p, 1])
    refused(TypeError, r"params\[1\] of group 0 must be a Tensor, got dict", [p, {"params": [q]}])
    refused(TypeError, "must be a dict with a key 'params'", [{"params": [p]}, q])
    refused(TypeError, "must be a dict with a key 'params'", [{"lr": 0.1}])
    refused(TypeError, "must have an order, got a set", [{"params": {p, q}}])
    refused(ValueError, r"params\[1\] of group 0 must be a leaf; .*result of 'multiply'", [p, q * 2])
    refused(ValueError, r"params\[0\] of group 0 must require a gradient", [p.detach()])
    refused(ValueError, r"params\[1\] of group 0 is given twice: a tensor of shape \(1,\)", [p, p])
    refused(ValueError, r"params\[0\] of group 1 is given twice", [{"params": [p]}, {"params": [p]}])


def test_a_gradient_that_does_not_fit_updates_nothing(backend: str) -> None:
    p, q = parameter([1.0, 2.0]), parameter([[1.0], [2.0]])
    optimizer = optim.SGD([p, q], lr=0.1)
    set_gradient(p, [1.0, 1.0])
    set_gradient(q, [1.0])
    with pytest.raises(ValueError, match=r"gradient of a tensor of shape \(2, 1\), has shape \(1,\)"):
        optimizer.step()
    np.testing.assert_array_equal(p.numpy(), [1.0, 2.0])


def test_a_gradient_on_another_backend_updates_nothing() -> None:
    p, q = parameter([1.0]), parameter([1.0])
    set_gradient(p, [1.0])
    with tg.use_backend("strict"):
        set_gradient(q, [1.0])
    with pytest.raises(TypeError, match="is on strict, not on numpy"):
        optim.SGD([p, q], lr=0.1).step()
    assert p.item() == 1.0


@every
def test_a_graph_recorded_before_the_step_notices_it(kind: Any, options: dict[str, Any], backend: str) -> None:
    p = parameter(P0)
    optimizer = kind([p], **options)
    loss = (p * p).sum()
    set_gradient(p, G0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    (p * p).sum().backward()


# --- state ------------------------------------------------------------------------------------------------------------


def through_json(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict as it comes back from JSON and a set of named arrays."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def default(value: Any) -> Any:
        assert type(value) is np.ndarray
        arrays[name := f"array {len(arrays)}"] = value.copy()
        return name

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return arrays.get(value, value) if isinstance(value, str) else value

    return restore(json.loads(json.dumps(state_dict, default=default)))  # type: ignore[no-any-return]


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("way", [copy.deepcopy, through_json])
def test_a_restored_optimizer_continues_to_the_same_bits(
    kind: Any, options: dict[str, Any], dtype: Any, way: Callable[[Any], Any], backend: str
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (), (4,), (0, 2)]
    start = [rng.standard_normal(shape) for shape in shapes]
    gradients = [[rng.standard_normal(shape) for shape in shapes] for _ in range(12)]

    def groups(values: list[Any]) -> tuple[list[tg.Tensor], list[dict[str, Any]]]:
        parameters = [parameter(value, dtype) for value in values]
        return parameters, [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.03}]

    def run(optimizer: optim.Optimizer, parameters: list[tg.Tensor], steps: range) -> None:
        for step in steps:
            for i, p in enumerate(parameters):
                if (i, step) != (2, 0):  # one comes later than the others
                    set_gradient(p, gradients[step][i])
            optimizer.step()

    parameters, given = groups(start)
    optimizer = kind(given, **options)
    run(optimizer, parameters, range(6))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    middle = [p.numpy().copy() for p in parameters]
    run(optimizer, parameters, range(6, 12))
    np.testing.assert_equal(saved, kept)  # a snapshot

    others, given = groups(middle)
    other = kind(given, **{**options, "lr": 123.0})
    other.load_state_dict(way(saved))
    np.testing.assert_equal(other.state_dict(), kept)
    run(other, others, range(6, 12))
    for p, q in zip(parameters, others, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    np.testing.assert_equal(saved, kept)  # and copied on the way in


def test_the_layout_is_pytorchs(backend: str) -> None:
    p, q = parameter([1.0, 2.0]), parameter([3.0])
    optimizer = optim.Adam([{"params": [p]}, {"params": [q], "lr": 0.5}], betas=(0.5, 0.75))
    set_gradient(q, [2.0])
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    assert [group["lr"] for group in saved["param_groups"]] == [1e-3, 0.5]
    assert saved["param_groups"][0]["betas"] == [0.5, 0.75]
    np.testing.assert_equal(saved["state"], {1: {"step": 1, "exp_avg": np.array([1.0]), "exp_avg_sq": np.array([1.0])}})


def test_state_that_does_not_fit_changes_nothing(backend: str) -> None:
    def adam(*shapes: tuple[int, ...], **options: Any) -> optim.Adam:
        parameters = [parameter(np.ones(shape)) for shape in shapes]
        for p in parameters:
            set_gradient(p, np.ones(p.shape))
        optimizer = optim.Adam(parameters, **options)
        optimizer.step()
        return optimizer

    optimizer = adam((2, 3), (3,), lr=0.5)
    before = optimizer.state_dict()
    fitting = adam((2, 3), (3,), lr=0.25).state_dict()

    def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(fitting)
        change(state_dict)
        return state_dict

    def refused(message: str, state_dict: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state_dict)
        np.testing.assert_equal(optimizer.state_dict(), before)

    refused(r"must have 'state' and 'param_groups', got \['state'\]", {"state": {}})
    refused("has 2 parameter groups, this optimizer 1", changed(lambda s: s["param_groups"].append({})))
    refused("has 1 parameters, of this optimizer 2", adam((2, 3)).state_dict())
    refused(
        r"state of parameter 1 has exp_avg of shape \(4,\), expected \(3,\)", adam((2, 3), (4,), lr=0.25).state_dict()
    )
    refused("parameter 0 has exp_avg = 1, expected an array", changed(lambda s: s["state"][0].update(exp_avg=1)))
    refused("parameter 1 lacks exp_avg_sq, which Adam needs", changed(lambda s: s["state"][1].pop("exp_avg_sq")))
    refused("parameter 7, which is in none of its groups", changed(lambda s: s["state"].update({7: {}})))
    refused("lr must be at least 0, got -1", changed(lambda s: s["param_groups"][0].update(lr=-1)))
    refused("lacks max_exp_avg_sq", changed(lambda s: s["param_groups"][0].update(amsgrad=True)))
    p = parameter([1.0])
    refused("lacks amsgrad, betas, decoupled_weight_decay", optim.SGD([p, parameter([1.0])]).state_dict())
    with pytest.raises(ValueError, match="is this the state of an Adam"):
        optim.AdamW([p]).load_state_dict(optim.Adam([p]).state_dict())
    optimizer.load_state_dict(fitting)
    assert optimizer.param_groups[0]["lr"] == 0.25
