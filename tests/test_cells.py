"""The cells of the literature: held against their equations in NumPy, and their gradients against differences."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from cell_cases import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    REFERENCES,
    STEPS,
    arrays,
    as_function,
    batch_norm,
    check_gradients,
    flat,
    made,
    ref_batch_norm,
    ref_lstm97,
    sequence,
)
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nn.gated import (
    LSTM97Cell,
    MinGRUCell,
    PeepholeLSTMCell,
)
from tinygrad_rnn.nn.normalized import BatchNormLSTMCell, LayerNormLSTMCell
from tinygrad_rnn.nn.simple import IndRNNCell, IRNNCell, PReLU

every_cell = pytest.mark.parametrize("name", CELLS)


def test_every_cell_has_a_reference():
    assert CELLS.keys() == REFERENCES.keys()


@every_cell
def test_five_steps_by_the_equations(name, backend):
    cell, state = made(name)
    reference = tg.nest.map_nest(lambda part: part.numpy(), state)
    values = arrays(cell)
    for x in sequence():
        y, state = cell(x, state)
        y_ref, reference = REFERENCES[name](values, x.numpy(), reference)
        assert y.backend == backend
        for ours, theirs in zip((y.numpy(), *flat(state)), (y_ref, *flat(reference)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@every_cell
def test_gradients_through_five_steps(name, backend):
    check_gradients(*as_function(*made(name)))


def test_gradients_of_batch_norm_in_eval(backend):
    cell, state = made("batch norm")
    for x in sequence():
        _, state = cell(x, state)
    cell.eval()
    check_gradients(*as_function(cell, made("batch norm")[1]))


@every_cell
def test_a_state_left_out_is_zeros_and_the_default_is_float32(name, backend):
    cell = CELLS[name]()
    x = on_backend(np.random.default_rng(0).standard_normal((BATCH, INPUT)), np.float32)
    y, state = cell(x)
    again, _ = cell(x, cell.init_state(BATCH))
    np.testing.assert_array_equal(y.numpy(), again.numpy())
    assert not any(part.any() for part in flat(cell.init_state(BATCH)))
    assert y.shape == (BATCH, HIDDEN)
    assert (y.dtype, y.backend) == (np.float32, backend)
    assert [part.dtype for part in flat(state)] == [part.dtype for part in flat(cell.init_state(BATCH))]


@every_cell
def test_without_biases(name):
    cell = CELLS[name](bias=False)
    outside = {"norm_c.bias", "bn_c.bias"}
    assert not [key for key, _ in cell.named_parameters() if "bias" in key and key not in outside]
    x = tg.zeros((BATCH, INPUT))
    assert not cell(x)[0].numpy().any()


@every_cell
def test_initial_values_come_from_the_generator(name):
    a, b, c = (arrays(CELLS[name](generator=tg.Generator(seed))) for seed in (3, 3, 4))
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
    assert not np.array_equal(a["weight_ih"], c["weight_ih"])


@every_cell
def test_state_dict_and_dtype(name, backend):
    cell, other = CELLS[name](), CELLS[name]().to(dtype=np.float64)
    other.load_state_dict(cell.state_dict())
    x = on_backend(np.random.default_rng(0).standard_normal((BATCH, INPUT)), np.float32)
    np.testing.assert_allclose(other(x.astype(np.float64))[0].numpy(), cell(x)[0].numpy(), rtol=1e-3, atol=1e-4)


@every_cell
def test_it_runs_in_a_layer_and_shows_its_output(name, backend, engine):
    cell, state = made(name)
    cell.eval()
    xs = sequence()
    ys, last, shown = tg.scan(cell, xs, state, expose=("h",))
    rounding = 0 if engine == "unrolled" else 1e-12
    for x, y, h in zip(xs, ys, shown["h"], strict=True):
        y_ref, state = cell(x, state)
        np.testing.assert_allclose(y.numpy(), y_ref.numpy(), rtol=rounding, atol=rounding)
        np.testing.assert_array_equal(y.numpy(), h.numpy())
    for ours, theirs in zip(flat(last), flat(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=rounding)


# -- the LSTM of 1997


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "blocks", "size", "bias", "output_bias"),
    [
        (264, 7, 7, 4, 1, "gates", False),  # experiment 1
        (276, 7, 7, 3, 2, "gates", False),
        (364, 54, 2, 2, 1, False, False),  # 2c
        (6064, 1004, 2, 2, 1, False, False),
        (102, 1, 1, 3, 1, True, False),  # 3
        (93, 2, 1, 2, 2, True, True),  # 4
        (156, 8, 4, 2, 2, True, True),  # 6a
        (308, 8, 8, 3, 2, True, True),  # 6b
    ],
)
def test_published_weight_counts(count, inputs, outputs, blocks, size, bias, output_bias):
    cell = LSTM97Cell(inputs, blocks, size, bias)
    model = nn.Sequential(cell, nn.Linear(cell.hidden_size, outputs, bias=output_bias))
    assert sum(parameter.size for parameter in model.parameters()) == count


def test_blocks_share_their_gates(backend):
    cell = LSTM97Cell(INPUT, 2, 3, dtype=np.float64, generator=tg.Generator(0))
    draw = np.random.default_rng(0)
    for parameter in cell.parameters():
        parameter.data = on_backend(draw.standard_normal(parameter.shape)).data
    state = draw.standard_normal((BATCH, 10)), draw.standard_normal((BATCH, 6))
    x = sequence()[0]
    y, following = cell(x, tuple(on_backend(part) for part in state))
    y_ref, reference = ref_lstm97(2, 3)(arrays(cell), x.numpy(), state)
    for ours, theirs in zip((y.numpy(), *flat(following)), (y_ref, *reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_the_truncated_gradient_takes_what_comes_from_the_step_before_as_given(backend):
    cell, (y, s) = made("lstm 97")
    values, xs = arrays(cell), sequence()
    cotangent = np.random.default_rng(5).standard_normal((STEPS, BATCH, HIDDEN))
    reference, given, state = REFERENCES["lstm 97"], [], (y.numpy(), s.numpy())
    for x in xs:
        given.append(state[0])
        _, state = reference(values, x.numpy(), state)

    def total(p):
        memory, out = s.numpy(), 0.0
        for x, before, g in zip(xs, given, cotangent, strict=True):
            output, (_, memory) = reference(p, x.numpy(), (before, memory))
            out += (output * g).sum()
        return out

    cell.truncated = True
    state, loss = (y, s), tg.zeros((), np.float64)
    for x, g in zip(xs, on_backend(cotangent), strict=True):
        output, state = cell(x, state)
        loss = loss + (output * g).sum()
    assert loss.item() == pytest.approx(total(values))
    loss.backward()
    for name, parameter in cell.named_parameters():
        for index in np.ndindex(parameter.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = values[name].copy()
                moved[index] += step
                ends.append(total(values | {name: moved}))
            assert parameter.grad.numpy()[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_differences_contradict_the_truncated_gradient():
    cell, state = made("lstm 97")
    cell.truncated = True
    with pytest.raises(tg.GradientError):
        tg.gradcheck(*as_function(cell, state))


def test_truncation_changes_gradients_and_not_values():
    grads, outputs = [], []
    for truncated in (True, False):
        cell, state = made("lstm 97")
        cell.truncated = truncated
        for x in sequence():
            y, state = cell(x, state)
        y.sum().backward()
        grads.append(cell.weight_hh.grad.numpy())
        outputs.append(y.numpy())
    np.testing.assert_array_equal(*outputs)
    assert not np.allclose(*grads)


def test_lstm97_starts_small():
    cell = LSTM97Cell(50, 4, 2, generator=tg.Generator(0))
    for weight in (cell.weight_ih.numpy(), cell.weight_hh.numpy()):
        assert np.abs(weight).max() <= 0.1
        assert np.abs(weight).max() > 0.09
    assert not cell.bias_gates.numpy().any()
    assert not cell.bias_cells.numpy().any()
    assert cell.output_size == cell.hidden_size == 8
    assert [part.shape for part in flat(cell.init_state(5))] == [(5, 16), (5, 8)]


# -- what the others start as


def test_a_peephole_lstm_starts_as_an_lstm():
    cell, plain = (make(INPUT, HIDDEN, generator=tg.Generator(0)) for make in (PeepholeLSTMCell, nn.LSTMCell))
    x = tg.Generator(1).normal((BATCH, INPUT))
    np.testing.assert_array_equal(cell(x)[0].numpy(), plain(x)[0].numpy())
    assert cell.bias_ih.numpy().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_reset_before_and_after_the_product_differ_unless_units_are_apart(backend):
    cell, h = made("cho")
    after = nn.GRUCell(INPUT, HIDDEN, dtype=np.float64)
    after.load_state_dict(cell.state_dict())
    # The reset of GRUCell scales bias_hh too, so it must be 0 for the two to agree.
    for each in (cell, after):
        each.bias_hh.data = on_backend(np.zeros(3 * HIDDEN)).data
    x = sequence()[0]
    assert not np.allclose(cell(x, h)[0].numpy(), after(x, h)[0].numpy())
    diagonal = cell.weight_hh.numpy().copy()
    diagonal[2 * HIDDEN :] = np.diag([0.3, -0.8])
    for each in (cell, after):
        each.weight_hh.data = on_backend(diagonal).data
    np.testing.assert_allclose(cell(x, h)[0].numpy(), after(x, h)[0].numpy(), rtol=1e-12)


def test_irnn_starts_as_a_sum_of_its_inputs(backend):
    cell = IRNNCell(200, 100, generator=tg.Generator(0))
    assert cell.weight_hh.numpy().tolist() == np.eye(100).tolist()
    assert cell.weight_hh.name == "IRNNCell.weight_hh"
    assert cell.weight_ih.numpy().std() == pytest.approx(0.001, rel=0.02)
    assert not cell.bias_ih.numpy().any()
    cell.weight_ih.data = on_backend(np.abs(cell.weight_ih.numpy())).data
    xs, h = on_backend(np.random.default_rng(0).random((STEPS, 2, 200)), np.float32), None
    for x in xs:
        y, h = cell(x, h)
    np.testing.assert_allclose(y.numpy(), xs.numpy().sum(0) @ cell.weight_ih.numpy().T, rtol=1e-4)


def test_indrnn_keeps_units_apart(backend):
    cell = IndRNNCell(INPUT, 400, generator=tg.Generator(0))
    u = cell.weight_hh.numpy()
    assert u.shape == (400,)
    assert u.min() >= 0
    assert u.max() <= 1
    assert u.mean() == pytest.approx(0.5, abs=0.05)
    h = np.zeros((1, 400), np.float32)
    h[0, 7] = 1
    y, _ = cell(tg.zeros((1, INPUT)), on_backend(h))
    assert np.flatnonzero(y.numpy()).tolist() == [7]


def test_a_module_as_activation_is_learned_and_listed(backend):
    cell = IRNNCell(INPUT, HIDDEN, activation=PReLU(HIDDEN))
    assert "nonlinearity.weight" in dict(cell.named_parameters())
    h = on_backend([[-1.0, -2.0]], np.float32)
    y, _ = cell(tg.zeros((1, INPUT)), h)
    assert y.numpy().tolist() == [[-0.25, -0.5]]
    y.sum().backward()
    assert cell.nonlinearity.weight.grad.numpy().tolist() == [-1, -2]


def test_prelu(backend):
    assert PReLU(3, init=0.5).weight.numpy().tolist() == [0.5] * 3
    assert PReLU(init=0.5)(on_backend([[-2.0, 4.0]], np.float32)).numpy().tolist() == [[-1, 4]]
    assert repr(PReLU(3)) == "PReLU(3)  # 3 parameters"


def test_mingru_has_no_recurrent_weight(backend):
    cell = MinGRUCell(INPUT, HIDDEN)
    assert [key for key, _ in cell.named_parameters()] == ["weight_ih", "bias_ih"]
    assert cell.to(dtype=np.float64).init_state(1).dtype == np.float64


def test_layer_norm_does_not_see_the_scale_of_what_it_sums(backend):
    for name in ("layer norm lstm", "layer norm gru"):
        cell, state = made(name)
        x = sequence()[0]
        y, _ = cell(x, state)
        for weight in (cell.weight_ih, cell.weight_hh):
            weight.data = (weight * 1000).data
        # eps, which the scale changes, stands beside a variance of about 1
        np.testing.assert_allclose(cell(x, state)[0].numpy(), y.numpy(), atol=1e-3)


def test_normalized_cells_start_as_the_papers_say():
    for cell in (LayerNormLSTMCell(INPUT, HIDDEN), BatchNormLSTMCell(INPUT, HIDDEN)):
        assert cell.bias_ih.numpy().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    gains = {key: set(value.ravel().tolist()) for key, value in arrays(LayerNormLSTMCell(INPUT, HIDDEN)).items()}
    assert gains["norm_ih.weight"] == gains["norm_hh.weight"] == gains["norm_c.weight"] == {1.0}
    assert gains["norm_c.bias"] == {0.0}
    values = arrays(BatchNormLSTMCell(INPUT, HIDDEN, max_steps=4))
    assert values["bn_ih.mean"].shape == values["bn_hh.var"].shape == (4, 8)
    for norm in ("bn_ih", "bn_hh", "bn_c"):
        assert set(values[f"{norm}.weight"].tolist()) == {np.float32(0.1)}
        assert not values[f"{norm}.mean"].any()
        assert set(values[f"{norm}.var"].ravel().tolist()) == {1.0}
    assert not values["bn_c.bias"].any()
    assert "bn_ih.bias" not in values


# -- the statistics of batch normalization


def test_statistics_of_each_step_are_its_own_and_the_last_ones_serve_beyond(backend):
    cell, start = made("batch norm")
    for norm in (cell.bn_ih, cell.bn_hh, cell.bn_c):
        norm.momentum = 0.25
    values, xs, seen = arrays(cell), sequence(), {}

    def noting(name, a, step):
        seen.setdefault(name, []).append((a.mean(0), a.var(0, ddof=1)))
        return batch_norm(a)

    state, reference = start, tg.nest.map_nest(lambda part: part.numpy(), start)
    for x in xs:
        _, state = cell(x, state)
        _, reference = ref_batch_norm(values, x.numpy(), reference, noting)
    kept = {}
    for name, statistics in seen.items():
        mean, var = np.zeros((3, len(statistics[0][0]))), np.ones((3, len(statistics[0][0])))
        for t, (m, v) in enumerate(statistics):
            mean[min(t, 2)] = 0.75 * mean[min(t, 2)] + 0.25 * m
            var[min(t, 2)] = 0.75 * var[min(t, 2)] + 0.25 * v
        kept[name] = mean, var
        np.testing.assert_allclose(cell.state_dict()[f"{name}.mean"].numpy(), mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(cell.state_dict()[f"{name}.var"].numpy(), var, rtol=1e-9)

    def remembered(name, a, step):
        mean, var = kept[name]
        at = np.minimum(step, 2)
        return (a - mean[at]) / np.sqrt(var[at] + 1e-5)

    cell.eval()
    state, reference = start, tg.nest.map_nest(lambda part: part.numpy(), start)
    state = (*state[:2], on_backend([0, 2, 1]))  # rows may be at different steps
    reference = (*reference[:2], np.array([0, 2, 1]))
    before = arrays(cell)
    for x in xs:
        y, state = cell(x, state)
        y_ref, reference = ref_batch_norm(values, x.numpy(), reference, remembered)
        np.testing.assert_allclose(y.numpy(), y_ref, rtol=1e-9)
    for name, value in arrays(cell).items():
        np.testing.assert_array_equal(value, before[name])


def test_in_eval_a_row_stands_alone_and_one_is_enough(backend):
    cell, state = made("batch norm")
    for x in sequence():
        cell(x, state)
    cell.eval()
    x = sequence()[0]
    whole, _ = cell(x, state)
    alone, _ = cell(x[1:2], tuple(part[1:2] for part in state))
    np.testing.assert_allclose(alone.numpy(), whole.numpy()[1:2], rtol=1e-12)


# -- refusals


@pytest.mark.parametrize("reverse", [False, True])
def test_finished_rows_do_not_count_in_the_statistics(reverse, backend, engine):
    """Against a loop that gives the cell at each step only the rows that are within their length.

    A row that is the last one left takes the averages that were kept before the sequence.
    """
    cell, _ = made("batch norm")
    by_hand, before = copy.deepcopy(cell), copy.deepcopy(cell).eval()
    xs, lengths = sequence(shape=(STEPS, 4, INPUT)), [5, 2, 0, 4]
    padded = xs.numpy().copy()
    for r, n in enumerate(lengths):
        padded[n:, r] = np.nan
    ys, (h, c, step) = tg.scan(cell, on_backend(padded), reverse=reverse, lengths=lengths)
    rows = {r: tg.nest.map_nest(lambda part, r=r: part[r : r + 1], by_hand.init_state(4)) for r in range(4)}
    for t in range(STEPS)[:: -1 if reverse else 1]:
        alive = [r for r, n in enumerate(lengths) if t < n]
        state = tg.nest.map_nest(lambda *parts: tg.concatenate(parts), *[rows[r] for r in alive])
        y, state = (by_hand if len(alive) > 1 else before)(tg.stack([xs[t, r] for r in alive]), state)
        for i, r in enumerate(alive):
            rows[r] = tg.nest.map_nest(lambda part, i=i: part[i : i + 1], state)
            np.testing.assert_allclose(ys.numpy()[t, r], y.numpy()[i], rtol=1e-12, atol=1e-14)
    for r in range(4):
        for ours, theirs in zip((h, c, step), rows[r], strict=True):
            np.testing.assert_allclose(ours.numpy()[r], theirs.numpy()[0], rtol=1e-12, atol=1e-14)
    for (name, ours), (_, theirs) in zip(cell.named_buffers(), by_hand.named_buffers(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12, atol=1e-14, err_msg=name)


def x32(*shape):
    return tg.Tensor(np.zeros(shape, np.float32))


def step(kind=np.int64, rows=4):
    return tg.Tensor(np.zeros(rows, kind))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LSTM97Cell(3, 0), ValueError, "LSTM97Cell: blocks must be at least 1, got 0"),
        (lambda: LSTM97Cell(3, 1, -1), ValueError, "cells_per_block must be at least 1, got -1"),
        (lambda: LSTM97Cell(3, 1, 1, "cells"), ValueError, "True, False or 'gates', got 'cells'"),
        (lambda: LSTM97Cell(3, 2)(x32(4, 2)), ValueError, r"LSTM97Cell\.weight_ih.*\(batch, 3\)"),
        (lambda: LSTM97Cell(3, 2)(x32(4, 3), x32(4, 2)), TypeError, r"tuple \(h, c\) of tensors, got Tensor"),
        (
            lambda: LSTM97Cell(3, 2)(x32(4, 3), (x32(4, 2),) * 2),
            ValueError,
            r"h must have shape \(4, 6\), got .*\(4, 2",
        ),
        (lambda: LSTM97Cell(3, 2)(x32(4, 3), (x32(4, 6),) * 2), ValueError, r"c must have shape \(4, 2\)"),
        (lambda: MinGRUCell(0, 2), ValueError, "MinGRUCell: input_size must be at least 1, got 0"),
        (lambda: MinGRUCell(3, 2)(x32(4, 3), x32(4, 1)), ValueError, r"takes h of shape \(4, 2\).*\(4, 1\)"),
        (lambda: IndRNNCell(3, 2)(x32(4, 3), x32(2, 2)), ValueError, r"takes h of shape \(4, 2\).*\(2, 2\)"),
        (lambda: PeepholeLSTMCell(3, 0), ValueError, "hidden_size"),
        (lambda: PReLU(0), ValueError, "num_parameters must be at least 1, got 0"),
        (lambda: IndRNNCell(3, 2, activation=PReLU(3))(x32(4, 3)), ValueError, r"prelu: weight.*\(2,\).*got \(3,\)"),
        (lambda: BatchNormLSTMCell(3, 2, max_steps=0), ValueError, "max_steps must be at least 1, got 0"),
        (lambda: BatchNormLSTMCell(3, 2, momentum=0), ValueError, "momentum must be above 0 and at most 1, got 0"),
        (lambda: BatchNormLSTMCell(3, 2)(x32(1, 3)), ValueError, "at least 2 rows in training, got a batch of 1"),
        (
            lambda: BatchNormLSTMCell(3, 2)(x32(4, 3), (x32(4, 2), x32(4, 2))),
            TypeError,
            r"tuple \(h, c, step\) of tensors, got tuple of 2",
        ),
        (
            lambda: BatchNormLSTMCell(3, 2)(x32(4, 3), (x32(4, 2), x32(4, 2), step(np.float32))),
            TypeError,
            "step must be int64, got float32",
        ),
        (
            lambda: BatchNormLSTMCell(3, 2)(x32(4, 3), (x32(4, 2), x32(4, 2), step(rows=3))),
            ValueError,
            r"step must have shape \(4,\), got step of shape \(3,\)",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
