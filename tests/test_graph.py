"""What backward and grad refuse and why, what they keep, and what they give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import gradient, leaf, on_backend

import tinygrad_rnn as tg

# --- what backward refuses --------------------------------------------------------------------------------------------


def test_backward_needs_something_that_requires_a_gradient(backend: str) -> None:
    for tensor in (on_backend([1.0, 2.0, 3.0]), on_backend([1.0, 2.0, 3.0]) * 2):
        with pytest.raises(RuntimeError, match=r"a tensor of shape \(3,\).*requires_grad=True"):
            tensor.backward()


def test_backward_of_a_leaf_is_its_own_gradient(backend: str) -> None:
    x = leaf(3.0)
    x.backward()
    assert gradient(x) == 1.0
    x.backward(on_backend(2.0))
    assert gradient(x) == 3.0


def test_backward_of_several_elements_needs_a_cotangent(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(RuntimeError, match=r"one element.*shape \(2,\).*\.sum\(\).*pass grad"):
        y.backward()
    assert x.grad is None
    y.backward(on_backend([1.0, 10.0]))
    assert gradient(x) == [2.0, 40.0]


@pytest.mark.parametrize("given_as", [list, lambda v: np.array(v, np.float32), lambda v: tg.Tensor(v)])
def test_a_cotangent_may_be_any_array_like_and_takes_the_dtype(given_as: Callable[[Any], Any]) -> None:
    x = leaf([1.0, 2.0])
    (x * x).backward(given_as([1.0, 10.0]))
    assert gradient(x) == [2.0, 40.0]


def test_a_cotangent_must_fit(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(ValueError, match=r"grad must have the shape of its tensor, \(2,\), got \(3,\)"):
        y.backward(on_backend([1.0, 2.0, 3.0]))
    with tg.use_backend("strict" if backend == "numpy" else "numpy"):
        elsewhere = on_backend([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"grad is on {elsewhere.backend}, its tensor on {backend}.*\.to\('{backend}'"):
        y.backward(elsewhere)
    assert x.grad is None
    y.backward(on_backend([1.0, 1.0]))


def test_a_second_backward_says_retain_graph(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"second time.*'sum'.*retain_graph=True"):
        y.backward()
    assert gradient(x) == [2.0, 4.0]


def test_a_carried_state_says_detach(backend: str) -> None:
    w, state = leaf(0.5), on_backend(1.0)
    state = tg.tanh(w * state)
    state.backward(retain_graph=None)
    loss = tg.tanh(w * state)
    before = gradient(w)
    with pytest.raises(RuntimeError, match=r"'multiply' used the result of 'tanh'.*tg\.detach\(state\)") as caught:
        loss.backward()
    assert "retain_graph" not in str(caught.value)
    assert gradient(w) == before
    tg.tanh(w * state.detach()).backward()


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w,
        lambda w: w.T,
        lambda w: w[0],
        lambda w: w[:, None],
        lambda w: w.detach(),
        lambda w: w.detach().T[1:],
        lambda w: w.reshape(4),
        lambda w: w.reshape(-1).reshape(2, 2),
        lambda w: tg.unstack(w)[1],
        lambda w: tg.split(w, 2, axis=1)[0],
        lambda w: tg.broadcast_to(w, (3, 2, 2)),
        lambda w: tg.expand_dims(w, 0),
        lambda w: tg.moveaxis(w, 0, 1),
        lambda w: tg.flip(w, 1),
        lambda w: w.astype(w.dtype),
    ],
)
@pytest.mark.parametrize("write_through", [lambda w: w, lambda w: w.detach(), lambda w: w.detach().T])
def test_a_parameter_written_since_is_an_error(
    backend: str, use: Callable[[tg.Tensor], tg.Tensor], write_through: Callable[[tg.Tensor], tg.Tensor]
) -> None:
    w, scale = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf(2.0)
    loss = (scale * use(w)).sum()
    target = write_through(w)
    array = target.data
    array += 1.0
    target._touch()
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(2, 2\), was changed in place.*optimizer\.step\(\)"):
        loss.backward()
    assert scale.grad is None
    assert w.grad is None
    (scale * use(w)).sum().backward()
    assert scale.grad is not None


def test_assigning_data_counts_as_a_write(backend: str) -> None:
    w = leaf([1.0, 2.0])
    loss = (w * w).sum()
    w.data = w.data + 1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    (w * w).sum().backward()
    assert gradient(w) == [4.0, 6.0]
    with pytest.raises(TypeError, match="data must be an array, got list"):
        w.data = [1.0, 2.0]
    with pytest.raises(RuntimeError, match=r"cannot replace the data.*'multiply'"):
        (w * w).data = w.data


def test_a_write_that_no_gradient_needs_is_no_error(backend: str) -> None:
    w, b = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    loss = (w * w + b).sum()
    array = b.data
    array += 1.0
    b._touch()
    loss.backward()
    assert gradient(w) == [2.0, 4.0]


def test_a_write_before_the_use_is_no_error(backend: str) -> None:
    w = leaf([1.0, 2.0])
    w._touch()
    (w * w).sum().backward()
    assert gradient(w) == [2.0, 4.0]


def test_a_write_through_a_view_of_what_a_parameter_was_made_of_is_an_error(backend: str) -> None:
    data = on_backend([[1.0, 2.0], [3.0, 4.0]])
    view = data.detach()
    parameter = tg.nn.Parameter(data)
    y = (leaf([[1.0, 1.0]]) @ parameter).sum()
    view._touch()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_the_error_names_a_parameter() -> None:
    linear = tg.nn.Linear(2, 2)
    x = leaf([[1.0, 2.0]], np.float32)
    loss = linear(x).sum()
    linear.weight._touch()
    with pytest.raises(RuntimeError, match=r"weight.*changed in place"):
        loss.backward()


# --- retaining and recording backward ---------------------------------------------------------------------------------


def test_a_retained_graph_gives_the_same_numbers_again(backend: str) -> None:
    x = leaf([1.0, 2.0, 3.0])
    y = (tg.sigmoid(x) * x * x).sum()
    y.backward(retain_graph=True)
    once = np.array(gradient(x))
    y.backward()
    np.testing.assert_array_equal(gradient(x), once + once)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_create_graph_gives_gradients_that_have_gradients(backend: str) -> None:
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    assert first is not None
    assert first.numpy().tolist() == [3.0, 12.0]
    x.grad = None
    first.sum().backward()
    assert gradient(x) == [6.0, 12.0]


def test_create_graph_retains_unless_told_otherwise(backend: str) -> None:
    x = leaf(2.0)
    y = x**3
    first = tg.grad(y, x, create_graph=True)
    assert tg.grad(y, x).item() == 12.0
    with pytest.raises(RuntimeError, match="second time"):
        tg.grad(y, x)
    assert first.item() == 12.0
    y = x**3
    tg.grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="second time"):
        tg.grad(y, x)


def test_third_derivatives(backend: str) -> None:
    x = leaf([0.3, -0.7])
    y: tg.Tensor = tg.tanh(x)
    for _ in range(3):
        y = tg.grad(y.sum(), x, create_graph=True)
    t = np.tanh(x.numpy())
    np.testing.assert_allclose(y.numpy(), (1 - t**2) * (6 * t**2 - 2), rtol=1e-12)


def test_without_create_graph_gradients_are_leaves(backend: str) -> None:
    x = leaf(2.0)
    (x * x).backward()
    assert x.grad is not None
    assert not x.grad.requires_grad
    assert not tg.grad(x * x, x).requires_grad


# --- grad as a function -----------------------------------------------------------------------------------------------


def test_grad_of_leaves_and_of_what_lies_between(backend: str) -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    h = x * w
    y = (h * h).sum()
    of_x, of_h, of_w, of_y = tg.grad(y, [x, h, w, y])
    assert of_x.numpy().tolist() == [18.0, 64.0]
    assert of_h.numpy().tolist() == [6.0, 16.0]
    assert of_w.numpy().tolist() == [6.0, 32.0]
    assert of_y.item() == 1.0
    assert x.grad is None
    assert w.grad is None
    assert h.grad is None


def test_grad_leaves_what_is_in_grad(backend: str) -> None:
    x = leaf([1.0, 2.0])
    x.sum().backward()
    kept = x.grad
    tg.grad((x * x).sum(), x)
    assert x.grad is kept
    assert gradient(x) == [1.0, 1.0]


def test_grad_gives_one_tensor_for_one_and_a_tuple_for_several(backend: str) -> None:
    x = leaf(2.0)
    assert isinstance(tg.grad(x * x, x), tg.Tensor)
    assert isinstance(tg.grad(x * x, (x,)), tuple)
    first, again = tg.grad(x * x, [x, x])
    assert (first.item(), again.item()) == (4.0, 4.0)


def test_grad_of_several_outputs(backend: str) -> None:
    x = leaf([1.0, 2.0])
    a, b = x * x, x.sum()
    assert tg.grad([a, b], x, grad_outputs=[on_backend([1.0, 10.0]), None]).numpy().tolist() == [3.0, 41.0]
    a, b = x * x, x.sum()
    with pytest.raises(RuntimeError, match=r"shape \(2,\).*pass grad_outputs\[1\]"):
        tg.grad([b, a], x)
    with pytest.raises(ValueError, match="one cotangent for each of 2 outputs, got 1"):
        tg.grad([a, b], x, grad_outputs=[None])
    with pytest.raises(ValueError, match=r"grad_outputs\[0\] must have the shape of its tensor, \(2,\), got \(1,\)"):
        tg.grad([a, b], x, grad_outputs=[on_backend([1.0]), None])
    assert tg.grad([b, b], x).numpy().tolist() == [2.0, 2.0]


def test_grad_of_results_of_a_list(backend: str) -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    a, b = tg.unstack(x)
    of_a, of_x = tg.grad((a * a * b).sum(), [a, x])
    assert of_a.numpy().tolist() == [6.0, 16.0]
    assert of_x.numpy().tolist() == [[6.0, 16.0], [1.0, 4.0]]


def test_grad_by_a_result_of_which_another_result_depends_too(backend: str) -> None:
    x = leaf([2.0, 3.0])
    h = x * x
    y = (h + tg.exp(h) * 0).sum() + x.sum()
    of_h, of_x = tg.grad(y, [h, x])
    assert of_h.numpy().tolist() == [1.0, 1.0]
    assert of_x.numpy().tolist() == [5.0, 7.0]


def test_grad_of_something_unused(backend: str) -> None:
    x, unused = leaf([1.0, 2.0]), leaf([[0.0]])
    with pytest.raises(RuntimeError, match=r"inputs\[1\], a tensor of shape \(1, 1\); allow_unused=True"):
        tg.grad(x.sum(), [x, unused])
    of_x, nothing = tg.grad(x.sum(), [x, unused], allow_unused=True)
    assert nothing is None
    assert of_x.numpy().tolist() == [1.0, 1.0]
    assert tg.grad(x.sum(), unused, allow_unused=True) is None


def test_grad_refuses_what_has_no_gradient(backend: str) -> None:
    x, constant = leaf(1.0), on_backend(1.0)
    with pytest.raises(RuntimeError, match=r"inputs\[1\] does not require a gradient"):
        tg.grad(x * constant, [x, constant])
    with pytest.raises(RuntimeError, match=r"outputs\[0\] does not require a gradient"):
        tg.grad(constant * 2, x)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a Tensor, got float"):
        tg.grad(x * x, [1.0])


def test_grad_does_not_compute_what_is_not_asked_for(backend: str) -> None:
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = (a * a).sum() + (b * b).sum()
    b._touch()  # now the gradient by b cannot be computed
    assert tg.grad(y, a, retain_graph=True).numpy().tolist() == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="changed in place"):
        tg.grad(y, b)


def test_grad_of_one_operand_of_many(backend: str) -> None:
    parts = [leaf([float(i)]) for i in range(4)]
    y = (tg.concatenate(parts) ** 2).sum()
    assert tg.grad(y, parts[2]).numpy().tolist() == [4.0]
    assert all(part.grad is None for part in parts)
