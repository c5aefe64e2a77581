"""gradcheck finds what is wrong, says where, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import leaf, on_backend

import tinygrad_rnn as tg
from tinygrad_rnn.ops import declare
from tinygrad_rnn.ops.declare import REGISTRY, operation


@pytest.fixture
def wrong_tanh():
    """tanh with the gradient of a sign error."""
    rule = REGISTRY["tanh"]
    true = rule.vjps["x"]
    rule.vjps["x"] = lambda F, g, out: g + g * (out * out)
    rule.plans.clear()
    yield
    rule.vjps["x"] = true
    rule.plans.clear()


def test_right_gradients_pass(backend):
    x, w = leaf([[0.3, -1.2, 2.0]]), leaf(np.ones((3, 2)))
    constant = on_backend([[1.0, 2.0]])
    f = lambda a, b, c: [tg.tanh(a @ b) * c, tg.exp(a)]  # noqa: E731
    before = [t.numpy().copy() for t in (x, w, constant)]
    assert tg.gradcheck(f, [x, w, constant])
    assert tg.gradgradcheck(f, [x, w, constant])
    for tensor, values in zip((x, w, constant), before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), values)
        assert tensor.grad is None


def test_a_wrong_gradient_is_named(backend, wrong_tanh):
    x = leaf([0.5, 1.0])
    with pytest.raises(tg.GradientError, match=r"inputs\[0\].*element \(1,\).*backward gives.*differences.*tanh"):
        tg.gradcheck(lambda x: tg.exp(tg.tanh(x * 2)).sum(), [x])
    assert x.numpy().tolist() == [0.5, 1.0]


def test_a_parameter_is_named(wrong_tanh):
    cell = tg.nn.RNNCell(2, 2, dtype=np.float64)
    with pytest.raises(AssertionError, match=r"RNNCell\.weight_ih"):
        tg.gradcheck(lambda w: tg.tanh(on_backend([[1.0, 2.0]]) @ w.T), [cell.weight_ih])


def test_a_wrong_second_gradient_is_noticed(backend):
    rule = REGISTRY["cos"]
    true = rule.vjps["x"]
    rule.vjps["x"] = lambda F, g, x: g * F.sin(x)
    rule.plans.clear()
    try:
        assert tg.gradcheck(tg.sin, [leaf([0.3])])
        with pytest.raises(tg.GradientError, match="cos"):
            tg.gradgradcheck(tg.sin, [leaf([0.3])])
    finally:
        rule.vjps["x"] = true
        rule.plans.clear()


def test_a_kink_and_a_value_taken_out_are_told_apart_from_a_wrong_operation():
    with pytest.raises(tg.GradientError, match="probably not differentiable there, or takes a value out"):
        tg.gradcheck(tg.functional.relu, [leaf([0.0])])
    with pytest.raises(tg.GradientError, match="takes a value out of the graph"):
        tg.gradcheck(lambda x: x.detach() * x, [leaf([2.0])])


def test_a_gradient_of_the_wrong_shape_is_no_kink(monkeypatch):
    monkeypatch.setattr(declare, "REGISTRY", dict(REGISTRY))  # other tests look at all operations there are

    @operation(x=lambda F, g: g, b=lambda F, g: g)  # it broadcasts and does not say so
    def shift(F, x, b, /):
        return x + b

    with pytest.raises(tg.GradientError, match=r"'shift' on operands .* its gradient has shape \(4, 3\)") as caught:
        tg.gradcheck(shift, [leaf(np.ones((4, 3))), leaf(np.ones(3))])
    assert "kink" not in str(caught.value)


def test_refusals():
    with pytest.raises(TypeError, match=r"inputs\[0\] must be float64"):
        tg.gradcheck(tg.tanh, [leaf([1.0], np.float32)])
    with pytest.raises(ValueError, match="none of the inputs requires a gradient"):
        tg.gradcheck(tg.tanh, [on_backend([1.0])])
