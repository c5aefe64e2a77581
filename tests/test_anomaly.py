"""`detect_anomaly`: the operation, line, step and ranges of the first NaN or infinity, made at known places."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import leaf, on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn, tape
from tinygrad_rnn.anomaly import AnomalyError, Range, detect_anomaly

pytestmark = pytest.mark.usefixtures("backend")


def caught(f):
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        f()
    return caught.value


def caught_in_backward(f, cotangent):
    return caught(lambda: f(leaf([1.0, 2.0])).backward(on_backend(cotangent)))


def line_of(marker):
    """The number of the only line of this file that ends in ``# marker``."""
    (number,) = [i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.endswith(f"# {marker}")]
    return number


def test_forward_names_operation_line_step_and_ranges():
    def loop():
        x = on_backend(np.array([3.0, 2.0], np.float32))
        for _ in range(5):
            y = tg.log(x)  # log
            x = x - 1
        return y

    error = caught(loop)
    assert (error.operation, error.backward, error.step) == ("log", False, 3)
    assert (error.file, error.line) == (__file__, line_of("log"))
    assert error.text == "y = tg.log(x)  # log"
    assert error.ranges == {
        "x": Range((2,), "float32", 0.0, 1.0, 0, 0),
        "result": Range((2,), "float32", 0.0, 0.0, 0, 1),
    }
    assert "log made an infinity, at time step 3" in str(error)
    assert f'"{__file__}", line {error.line}, in loop\n    {error.text}\n' in str(error)
    assert "x: shape (2,), float32, from 0 to 1, 0 NaN, 0 infinite" in str(error)


def overflow_in_backward():
    """Finite going forward; backwards the slope of the square root at 0, met in the third step of five."""
    w = leaf([4.0, 1.0])
    total = tg.zeros((2,), np.float64)
    for t in range(5):
        gap = w - (1.0 if t == 2 else 0.5)
        total = total + tg.sqrt(gap)  # root
    return w, tg.sum(total)


def test_backward_names_the_forward_call_whose_vjp_made_it():
    error = caught(lambda: overflow_in_backward()[1].backward())
    assert (error.operation, error.backward, error.step) == ("sqrt", True, 3)
    assert (error.file, error.line) == (__file__, line_of("root"))
    assert error.ranges == {
        "cotangent": Range((2,), "float64", 1.0, 1.0, 0, 0),
        "out": Range((2,), "float64", 0.0, 3.0**0.5, 0, 0),
        "gradient of x": Range((2,), "float64", 0.5 / 3.0**0.5, 0.5 / 3.0**0.5, 0, 1),
    }


@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_by_grad(create_graph):
    def f():
        w, loss = overflow_in_backward()
        tg.grad(loss, w, create_graph=create_graph)

    assert (caught(f).operation, caught(f).step) == ("sqrt", 3)


def test_second_order_keeps_the_place_of_the_forward_call():
    def f():
        x = leaf(0.0)
        for _ in range(2):
            y = tg.power(x, 1.5)  # power
        (slope,) = tg.grad(y, [x], create_graph=True)
        slope.backward()

    error = caught(f)
    assert error.backward
    assert (error.line, error.step) == (line_of("power"), 2)
    assert "part of the gradient of power" in str(error)


def test_a_graph_is_checked_after_the_context_too():
    with detect_anomaly():
        _, loss = overflow_in_backward()
    with pytest.raises(AnomalyError):
        loss.backward()


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_gradients_are_those_without_it(name):
    xs = on_backend(np.random.default_rng(0).standard_normal((4, 2, 3)))

    def gradients():
        cell = getattr(nn, name)(3, 2, dtype=np.float64, generator=tg.Generator(1))
        state, loss = None, 0.0
        for x in tg.unstack(xs):
            y, state = cell(x, state)
            loss = loss + tg.sum(y * y.astype(np.float32))
        loss.backward()
        return [p.grad.numpy() for p in cell.parameters()]

    plain = gradients()
    with detect_anomaly():
        watched = gradients()
    after = gradients()
    for a, b, c in zip(plain, watched, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-13)  # sums over time are taken in another order
        np.testing.assert_array_equal(c, a)


def test_a_cell_counts_its_steps_though_it_runs_an_operation_thrice_a_step():
    cell = nn.LSTMCell(3, 2)
    xs = np.ones((6, 2, 3), np.float32)
    xs[3] = np.inf

    def loop(layers=(cell,)):
        states = [None] * len(layers)
        for x in tg.unstack(on_backend(xs)):
            for i, layer in enumerate(layers):
                x, states[i] = layer(x, states[i])  # cell

    error = caught(loop)
    assert (error.operation, error.step, error.line) == ("matmul", 4, line_of("cell"))
    assert error.ranges["a"].infinities == 6
    assert error.ranges["result"].nans or error.ranges["result"].infinities


def test_two_layers_of_the_same_code_count_apart():
    xs = np.ones((6, 2), np.float32)
    xs[3] = -1

    def cell(x):
        return tg.log(x)  # shared

    def loop():
        for x in tg.unstack(on_backend(xs)):
            cell(x * 0 + 2)
            cell(x)

    error = caught(loop)
    assert (error.operation, error.step, error.line) == ("log", 4, line_of("shared"))


def test_steps_start_anew_after_each_backward():
    def f():
        w = leaf(1.0)
        for batch in range(3):
            x = w
            for t in range(4):
                x = x * (1e200 if batch == 2 and t else 1.0)
            x.backward()

    assert caught(f).step == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_parameters_and_data_bring_in(bad):
    weight, data = leaf([1.0, bad]), on_backend([1.0, bad])
    kind = "a NaN" if np.isnan(bad) else "an infinity"
    error = caught(lambda: weight + 1)
    assert f"add passed on {kind} that came in with a" in str(error)
    if np.isnan(bad):
        assert "came in with b" in str(caught(lambda: tg.ones((2,), np.float64) * data))
    else:
        with detect_anomaly():
            assert (data * 2).numpy().tolist() == [2, np.inf]
        assert "subtract made a NaN" in str(caught(lambda: data - data))


def test_masks_and_padding_pass():
    scores, mask = leaf([[1.0, 2.0, 3.0]]), on_backend([[True, True, False]])
    padded = on_backend([[1.0, 2.0, np.nan]])
    with detect_anomaly():
        masked = tg.where(mask, scores, -np.inf)
        loss = tg.sum(tg.functional.softmax(masked) * tg.where(mask, padded, 0.0))
        loss.backward()
    assert np.isfinite(scores.grad.numpy()).all()
    error = caught(lambda: tg.functional.softmax(tg.where(mask & (mask == 2), scores, -np.inf)))
    assert (error.operation, error.ranges["result"].nans) == ("subtract", 3)


def test_a_cotangent_handed_in():
    error = caught(
        lambda: (
            tg.tanh(leaf([1.0, 2.0])).backward(np.array([1.0, np.nan]))
            if tg.get_backend().name == "numpy"
            else tg.tanh(leaf([1.0, 2.0])).backward(on_backend([1.0, np.nan]))
        )
    )
    assert "the VJP of tanh was handed a NaN" in str(error)


def test_a_bad_cotangent_is_noticed_even_where_it_would_be_dropped():
    mask = on_backend([True, False])
    error = caught_in_backward(lambda x: tg.where(mask, x, 0.0), [1.0, np.nan])
    assert "the VJP of where was handed a NaN" in str(error)


def test_a_sum_of_cotangents_that_overflows():
    def f():
        a, b = tg.split(leaf([0.0, 0.0], np.float32), 2)  # split
        tg.sum(a * 3e38 + a * 3e38 + b).backward()

    error = caught(f)
    assert (error.operation, error.line) == ("split", line_of("split"))
    assert "was handed an infinity" in str(error)
    assert error.ranges["cotangent[0]"].infinities == 1


def test_operations_of_several_operands_and_results():
    def parts():
        x = leaf([[0.0, 1.0, 4.0, 9.0]])
        a, b = tg.split(x, 2, axis=1)
        return tg.sum(tg.concatenate([tg.sqrt(a), tg.sqrt(b), b], axis=1))

    error = caught(lambda: parts().backward())
    assert (error.operation, error.ranges["gradient of x"].infinities) == ("sqrt", 1)
    error = caught(lambda: tg.concatenate([leaf([1.0]), leaf([np.nan])]))
    assert list(error.ranges) == ["parts[0]", "parts[1]", "result"]
    assert "came in with parts[1]" in str(error)
    error = caught(lambda: tg.unstack(on_backend([1.0, np.nan])))
    assert list(error.ranges) == ["x", "result 0", "result 1"]


def test_a_broadcast_operand_is_summed_under_watch():
    big = np.full((4, 2), 1e38, np.float32)

    def f():
        bias = leaf([0.0, 0.0], np.float32)
        tg.sum((bias + on_backend(np.zeros((4, 2), np.float32))) * on_backend(big)).backward()  # bias

    error = caught(f)
    assert (error.operation, error.line, error.backward) == ("broadcast", line_of("bias"), True)
    assert error.ranges["gradient of x"].infinities == 2


def test_ints_and_empty_tensors_are_finite():
    with detect_anomaly():
        assert tg.sum(on_backend([1, 2]) * 2).item() == 6
        assert (on_backend(np.zeros((0, 3))) + 1).shape == (0, 3)
        assert tg.log(on_backend([1.0])).item() == 0


def test_an_outer_listener_still_hears_and_is_restored():
    heard = []
    with tape.listen(lambda rule, *_: heard.append(rule.name)):
        with detect_anomaly(), tg.no_grad():
            tg.exp(on_backend([1.0]))
        tg.tanh(on_backend([1.0]))
    assert heard == ["exp", "tanh"]
    assert tape.MODE.get().listener is None


def test_under_no_grad_and_as_a_decorator():
    @detect_anomaly()
    @tg.no_grad()
    def f():
        return tg.log(on_backend([0.0]))

    for _ in range(2):
        with pytest.raises(AnomalyError, match="log made an infinity, at time step 1"):
            f()
    with np.errstate(divide="ignore"):
        assert tg.log(on_backend([0.0])).item() == -np.inf


def test_what_only_calls_a_decorated_function_is_not_the_caller():
    error = caught(lambda: tg.no_grad()(tg.log)(on_backend([0.0])))  # decorated
    assert (error.file, error.line) == (__file__, line_of("decorated"))


def test_each_thread_and_task_has_its_own():
    results = []

    def quiet():
        with np.errstate(divide="ignore"):
            results.append(tg.log(tg.Tensor(np.zeros(1))).item())

    with detect_anomaly():
        thread = threading.Thread(target=quiet)
        thread.start()
        thread.join()
    assert results == [-np.inf]

    async def watched():
        with detect_anomaly():
            await asyncio.sleep(0)
            with pytest.raises(AnomalyError):
                tg.log(on_backend([0.0]))

    async def plain():
        quiet()
        await asyncio.sleep(0)
        quiet()

    async def both():
        await asyncio.gather(watched(), plain())

    asyncio.run(both())
    assert len(results) == 3


def test_the_innermost_frame_is_the_callers_even_through_layers():
    linear = nn.Linear(2, 2)
    linear.weight.data = on_backend(np.full((2, 2), np.inf, np.float32)).data
    error = caught(lambda: linear(on_backend(np.ones((1, 2), np.float32))))
    assert error.file == __file__
    assert error.line == inspect.currentframe().f_lineno - 2
