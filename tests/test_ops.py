"""Every operation: values against NumPy, first and second gradients against central differences, on every backend."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from case import Case, results, tensors
from cases import CASES

import tinygrad_rnn as tg
from tinygrad_rnn import ops, tape
from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.checks import gradcheck, gradgradcheck
from tinygrad_rnn.ops import altered
from tinygrad_rnn.ops.declare import REGISTRY

ALL = [case for cases in CASES.values() for case in cases]
SMOOTH = [case for case in ALL if case.torch]
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}

every_case = pytest.mark.parametrize("case", ALL, ids=str)
every_smooth_case = pytest.mark.parametrize("case", SMOOTH, ids=str)


def close(ours: tg.Tensor, expected: np.ndarray) -> None:
    assert isinstance(ours, tg.Tensor)
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    tolerance = TOLERANCE.get(expected.dtype, 0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=tolerance, atol=tolerance)


def gradients(case: Case, operands: list[tg.Tensor], create_graph: bool = False) -> list[np.ndarray]:
    """Gradients by the operands of floats, for fixed cotangents."""
    outputs = results(case.ours(*operands))
    draw = np.random.default_rng(1)
    given = tensors([draw.standard_normal(y.shape).astype(y.dtype) for y in outputs])
    given = [v.to(y.backend) for v, y in zip(given, outputs, strict=True)]
    needed = [x for x in operands if x.requires_grad]
    found = tg.grad(outputs, needed, given, create_graph=create_graph) if outputs else []
    for x, gradient in zip(needed, found, strict=bool(outputs)):
        assert (gradient.shape, gradient.dtype, gradient.backend) == (x.shape, x.dtype, x.backend)
    return [gradient.numpy() for gradient in found]


def reversed_in_memory(array: np.ndarray) -> tg.Tensor:
    """The same numbers at every second place of a larger buffer, from its end."""
    buffer = np.zeros([2 * n for n in array.shape], array.dtype)
    steps = (*[slice(None, None, -2)] * array.ndim, ...)  # with ... an element stays an array
    buffer[steps] = array
    backend = get_backend()
    return tg.Tensor(backend.getitem(backend.asarray(buffer), steps), requires_grad=array.dtype.kind == "f")


def test_every_operation_has_cases():
    assert set(CASES) == set(ops.__all__) - set(altered.__all__)


def test_every_rule_and_every_vjp_is_checked():
    called, needed = set(), set()

    def listener(rule, operands, params, outputs):
        called.add(rule.name)
        for i, operand in enumerate(operands):
            if isinstance(operand, tg.Tensor) and operand.requires_grad:
                needed.add((rule.name, rule.operands[min(i, len(rule.operands) - 1)]))

    with tape.listen(listener), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in ALL:
            case.ours(*tensors(case.draw(), requires_grad=case in SMOOTH))
    rules = [rule for rule in REGISTRY.values() if rule.name not in altered.__all__]
    assert called >= {rule.name for rule in rules}
    assert needed >= {(rule.name, operand) for rule in rules for operand in rule.vjps}


@every_case
def test_values(case, backend):
    for dtype in (np.float64, np.float32):
        operands = case.draw(dtype)
        with np.errstate(all="ignore"):
            expected = case.reference(*operands)
            if "ints" in case.note:  # beside which NumPy widens float32, and we do not
                expected = [y.astype(dtype) if y.dtype == np.float64 else y for y in expected]
            ours = results(case.ours(*tensors(operands, requires_grad=True)))
        assert len(ours) == len(expected)
        for y, reference in zip(ours, expected, strict=True):
            close(y, reference)
            assert not (y.requires_grad and case.torch is None)


@every_smooth_case
def test_gradients(case, backend):
    operands = tensors(case.draw(), requires_grad=True)
    before = [x.numpy().copy() for x in operands]
    assert gradcheck(case.ours, operands, eps=case.eps)
    if results(case.ours(*operands)):
        assert gradgradcheck(case.ours, operands, eps=case.eps)
    for recorded, plain in zip(gradients(case, operands, create_graph=True), gradients(case, operands), strict=True):
        np.testing.assert_allclose(recorded, plain, rtol=1e-13, atol=1e-13)
    for x, value in zip(operands, before, strict=True):
        np.testing.assert_array_equal(x.numpy(), value)
        assert x.grad is None


@every_smooth_case
def test_float32_gradients(case, backend):
    exact = gradients(case, tensors(case.draw(), requires_grad=True))
    rounded = gradients(case, tensors(case.draw(np.float32), requires_grad=True))
    for ours, expected in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@every_smooth_case
def test_strides(case, backend):
    drawn = case.draw()
    plain, strided = tensors(drawn, requires_grad=True), [reversed_in_memory(x) for x in drawn]
    for ours, expected in zip(results(case.ours(*strided)), results(case.ours(*plain)), strict=True):
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-13, atol=1e-13)
    for ours, expected in zip(gradients(case, strided), gradients(case, plain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-13)


def _floats(case):
    return [i for i, x in enumerate(case.draw()) if x.dtype.kind == "f"]


def _takes_one_twice(case):
    drawn = case.draw()
    return len(_floats(case)) > 1 and len({drawn[i].shape for i in _floats(case)}) == 1


@pytest.mark.parametrize("case", [case for case in SMOOTH if _takes_one_twice(case)], ids=str)
def test_one_tensor_as_all_operands(case):
    operands = tensors(case.draw(), requires_grad=True)
    x = operands[_floats(case)[0]]
    x = tg.Tensor(abs(x).data, requires_grad=True)  # for powers
    rest = [None if i in _floats(case) else operand for i, operand in enumerate(operands)]

    def f(x):
        return case.ours(*[x if operand is None else operand for operand in rest])

    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


def test_einsum_refuses_a_diagonal_of_unequal_axes():
    with pytest.raises(ValueError, match=r"'ii' needs a diagonal, got operand 0 of shape \(2, 3\)"):
        tg.einsum("ii", tg.Tensor(np.zeros((2, 3))))
