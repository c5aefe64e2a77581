"""Cells around cells: what they draw and when, what they do in eval, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
from cell_cases import as_function, check_gradients, flat, sequence
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nn.gated import MinGRUCell
from tinygrad_rnn.nn.normalized import BatchNormLSTMCell
from tinygrad_rnn.nn.wrappers import DropConnect, RecurrentDropout, Residual, Zoneout

SIZE, BATCH = 2, 3
Random = tg.Generator


def lstm(**k):
    return nn.LSTMCell(SIZE, SIZE, dtype=np.float64, generator=Random(0), **k)


def gru():
    return nn.GRUCell(SIZE, SIZE, dtype=np.float64, generator=Random(0))


class Spy(nn.Module):
    """Its state is a nest, ``{"h": ..., "rest": (count, c)}``; it keeps what it saw, and returns ones as h."""

    input_size = hidden_size = 4

    def __init__(self):
        self.seen = []

    def init_state(self, batch):
        return {"h": tg.ones((batch, 4)), "rest": (on_backend(np.zeros(batch, np.int64)), tg.ones((batch, 4)))}

    def forward(self, x, state):
        self.seen.append(tg.nest.map_nest(lambda part: part.numpy(), state))
        count, c = state["rest"]
        h = tg.ones_like(state["h"])
        return h, {"h": h, "rest": (count + 1, c)}


def run(step, state, steps=4, batch=500):
    ys = []
    for _ in range(steps):
        y, state = step(tg.zeros((batch, 4)), state)
        ys.append(y.numpy())
    return ys, state


WRAPPERS = {
    "recurrent dropout of an lstm": lambda g, p=0.4: RecurrentDropout(lstm(), p, generator=g),
    "recurrent dropout of a gru": lambda g, p=0.4: RecurrentDropout(gru(), p, generator=g),
    "zoneout of an lstm": lambda g, p=0.4: Zoneout(lstm(), p, generator=g),
    "zoneout of a gru": lambda g, p=0.4: Zoneout(gru(), p, generator=g),
    "zoneout with two rates": lambda g, p=0.4: Zoneout(lstm(), (p / 2, p), generator=g),
    "drop connect of an lstm": lambda g, p=0.4: DropConnect(lstm(), p, generator=g),
    "all in each other": lambda g, p=0.4: Residual(
        RecurrentDropout(Zoneout(DropConnect(gru(), p, generator=g), p, generator=g), p, generator=g)
    ),
}
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)


def random_state(cell, seed=2):
    draw = np.random.default_rng(seed)
    return tg.nest.map_nest(lambda part: on_backend(draw.standard_normal(part.shape)), cell.init_state(BATCH))


def outputs(cell, state, xs):
    step = cell.for_sequence(BATCH)
    ys = []
    for x in xs:
        y, state = step(x, state)
        ys.append(y.numpy())
    return np.stack(ys)


@pytest.mark.parametrize(("name", "training"), [*((name, True) for name in WRAPPERS), ("zoneout of an lstm", False)])
def test_gradients_through_five_steps(name, training, backend):
    generator = Random(0)
    cell = WRAPPERS[name](generator).train(training)

    def begin():
        generator.load_state_dict({"seed": 5, "counter": 0})  # the same masks at every call
        return cell.for_sequence(BATCH)

    check_gradients(*as_function(cell, random_state(cell), begin))


def test_gradients_of_a_residual(backend):
    cell = Residual(gru())
    check_gradients(*as_function(cell, random_state(cell)))


@every_wrapper
def test_a_generator_makes_it_reproducible_and_sequences_differ(name, backend):
    runs = []
    for seed in (1, 1, 2):
        cell = WRAPPERS[name](Random(seed))
        runs += [outputs(cell, random_state(cell), sequence()) for _ in range(2)]
    first, second, first_again, second_again, other, _ = runs
    np.testing.assert_array_equal(first, first_again)
    np.testing.assert_array_equal(second, second_again)
    assert not np.allclose(first, second)
    assert not np.allclose(first, other)


@every_wrapper
def test_the_default_generator_is_used_without_one(name):
    runs = []
    for _ in range(2):
        tg.manual_seed(9)
        cell = WRAPPERS[name](None)
        runs.append(outputs(cell, random_state(cell), sequence()))
    np.testing.assert_array_equal(*runs)


@every_wrapper
def test_in_eval_nothing_is_drawn_and_with_p_0_nothing_happens(name, backend):
    generator = Random(1)
    cell = WRAPPERS[name](generator).eval()
    before = generator.counter
    np.testing.assert_array_equal(*(outputs(cell, random_state(cell), sequence()) for _ in range(2)))
    assert generator.counter == before
    silent = WRAPPERS[name](Random(1), 0.0)
    plain = Residual(gru()) if isinstance(silent, Residual) else gru() if "gru" in name else lstm()
    expected = outputs(Zoneout(plain, 0.0), random_state(plain), sequence())
    np.testing.assert_array_equal(outputs(silent, random_state(silent), sequence()), expected)


@every_wrapper
def test_it_is_a_cell_with_the_sizes_and_the_state_of_the_wrapped_one(name, backend):
    cell = WRAPPERS[name](Random(0))
    assert (cell.input_size, cell.hidden_size, cell.output_size) == (SIZE, SIZE, SIZE)
    assert not any(part.any() for part in flat(cell.init_state(BATCH)))
    y, state = cell(sequence()[0])
    assert y.shape == (BATCH, SIZE)
    assert [part.shape for part in flat(state)] == [(BATCH, SIZE)] * len(flat(cell.init_state(BATCH)))
    assert all(key.startswith("cell.") for key, _ in cell.named_parameters())


@every_wrapper
def test_scan_calls_the_hook_once(name, backend, engine):
    cell = WRAPPERS[name](Random(3))
    ys, _ = tg.scan(cell, sequence(), random_state(cell))
    again = WRAPPERS[name](Random(3))
    np.testing.assert_allclose(ys.numpy(), outputs(again, random_state(again), sequence()), rtol=1e-12)


def test_a_projecting_cell_tells_its_output_size():
    cell = RecurrentDropout(nn.LSTMCell(3, 5, proj_size=2))
    assert (cell.hidden_size, cell.output_size) == (5, 2)
    assert cell(tg.zeros((4, 3)))[0].shape == (4, 2)


# -- recurrent dropout


def test_one_mask_for_a_sequence_on_h_alone(backend):
    spy = Spy()
    cell = RecurrentDropout(spy, 0.2, generator=Random(0))
    run(cell.for_sequence(500), cell.init_state(500))
    run(cell.for_sequence(500), cell.init_state(500))
    masks = [seen["h"] for seen in spy.seen]
    for t in range(1, 4):
        np.testing.assert_array_equal(masks[t], masks[0])
        np.testing.assert_array_equal(masks[4 + t], masks[4])
    assert set(np.unique(masks[0]).tolist()) == {0, 1.25}
    assert (masks[0] == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert masks[0].mean() == pytest.approx(1, abs=0.04)
    assert (masks[0] != masks[4]).mean() == pytest.approx(0.32, abs=0.05)
    assert (masks[0][0] != masks[0][1:]).any()  # rows have masks of their own
    for seen in spy.seen:
        assert (seen["rest"][1] == 1).all()
    assert [seen["rest"][0][0] for seen in spy.seen] == [0, 1, 2, 3] * 2


def test_called_directly_it_draws_anew(backend):
    spy = Spy()
    run(RecurrentDropout(spy, 0.5, generator=Random(0)), spy.init_state(500))
    assert (spy.seen[0]["h"] != spy.seen[1]["h"]).any()


def test_the_mask_of_a_real_cell(backend):
    cell = lstm()
    h, c = random_state(cell)
    x = sequence()[0]
    y, (_, c_next) = RecurrentDropout(cell, 0.5, generator=Random(0))(x, (h, c))
    mask = Random(0).keep_mask(0.5, like=h) * 2
    y_ref, (_, c_ref) = cell(x, (h * mask, c))
    np.testing.assert_array_equal(y.numpy(), y_ref.numpy())
    np.testing.assert_array_equal(c_next.numpy(), c_ref.numpy())


# -- zoneout


def test_each_unit_keeps_its_value_with_probability_p(backend):
    cell = Zoneout(Spy(), (0.3, 0.8), generator=Random(0))
    step = cell.for_sequence(500)
    state = {"h": tg.zeros((500, 4)), "rest": (on_backend(np.zeros(500, np.int64)), tg.zeros((500, 4)))}
    kept = []
    for t in range(4):
        y, following = step(tg.zeros((500, 4)), state)
        h, (count, c) = following["h"], following["rest"]
        assert set(np.unique(h.numpy()).tolist()) == {0, 1}
        assert (h.numpy() == 0).mean() == pytest.approx(0.3, abs=0.04)
        assert y is h
        assert not c.numpy().any()  # the spy hands c on
        assert (count.numpy() == t + 1).all()  # ints always move on
        kept.append(h.numpy())
        state = {"h": state["h"], "rest": (count, c)}
    assert (kept[0] != kept[1]).mean() == pytest.approx(0.42, abs=0.05)


def test_zoneout_by_its_definition(backend):
    cell = lstm()
    state, x = random_state(cell), sequence()[0]
    _, new = cell(x, state)
    generator = Random(4)
    y, zoned = Zoneout(cell, (0.3, 0.8), generator=Random(4))(x, state)
    for p, before, after, ours in zip((0.3, 0.8), state, new, zoned, strict=True):
        mask = generator.keep_mask(p, like=after).numpy()
        np.testing.assert_array_equal(ours.numpy(), np.where(mask == 1, before.numpy(), after.numpy()))
    assert y is zoned[0]


def test_in_eval_zoneout_is_the_expectation(backend):
    cell = Zoneout(lstm(), (0.3, 0.8), generator=Random(0))
    state, x = random_state(cell), sequence()[0]
    _, new = cell.cell(x, state)
    rows = [on_backend(np.repeat(part.numpy()[:1], 4000, axis=0)) for part in (x, *state)]
    drawn = flat(cell(rows[0], tuple(rows[1:]))[1])
    y, expected = cell.eval()(x, state)
    for i, p in enumerate((0.3, 0.8)):
        exact = p * state[i].numpy() + (1 - p) * new[i].numpy()
        np.testing.assert_allclose(expected[i].numpy(), exact, rtol=1e-12)
        gap = np.abs(state[i].numpy() - new[i].numpy())[0]
        assert (np.abs(drawn[i].mean(axis=0) - exact[0]) < 0.04 * gap).all()
    assert y is expected[0]


def test_zoneout_leaves_the_step_number_of_batch_norm_alone(backend):
    cell = Zoneout(BatchNormLSTMCell(2, 2, generator=Random(0)), 1.0)
    state = None
    for _ in range(3):
        y, state = cell(tg.ones((4, 2)), state)
    assert state[2].numpy().tolist() == [3] * 4
    assert not y.numpy().any()


# -- drop connect


def identity(x):
    return x


def weights_used(step, size):
    """The recurrent weight as a cell without input or squashing uses it."""
    return step(tg.zeros((size, 1)), tg.eye(size))[0].numpy().T


def test_one_mask_of_the_weights_for_a_sequence(backend):
    cell = nn.RNNCell(1, 30, nonlinearity=identity, generator=Random(0))
    whole = cell.weight_hh.numpy().copy()
    dropping = DropConnect(cell, 0.2, generator=Random(1))
    step = dropping.for_sequence(30)
    used = weights_used(step, 30)
    np.testing.assert_array_equal(weights_used(step, 30), used)
    kept = used != 0
    np.testing.assert_allclose(used[kept], 1.25 * whole[kept], rtol=1e-6)
    assert kept.mean() == pytest.approx(0.8, abs=0.05)
    assert ((weights_used(dropping.for_sequence(30), 30) != 0) != kept).any()
    assert (weights_used(dropping, 30) != weights_used(dropping, 30)).any()
    np.testing.assert_array_equal(cell.weight_hh.numpy(), whole)
    assert cell.weight_hh is dict(dropping.named_parameters())["cell.weight_hh"]
    np.testing.assert_allclose(weights_used(dropping.eval(), 30), whole, rtol=1e-6)


def test_dropped_weights_get_no_gradient_and_the_others_theirs(backend):
    cell = nn.RNNCell(1, 30, nonlinearity=identity, generator=Random(0))
    step = DropConnect(cell, 0.5, generator=Random(1)).for_sequence(30)
    used = weights_used(step, 30)
    step(tg.zeros((30, 1)), tg.eye(30))[0].sum().backward()
    np.testing.assert_allclose(cell.weight_hh.grad.numpy(), np.where(used != 0, 2.0, 0.0))


def test_weights_below_are_dropped_and_shared_ones_once(backend):
    class Two(nn.Module):
        def __init__(self):
            self.a = nn.RNNCell(1, 30, nonlinearity=identity, generator=Random(0))
            self.b = nn.RNNCell(1, 30, nonlinearity=identity, generator=Random(2))
            self.b.weight_hh = self.a.weight_hh
            self.a_weight_hh = nn.Parameter(tg.ones((30, 30)))

        def init_state(self, batch):
            return self.a.init_state(batch)

        def forward(self, x, h):
            a, _ = self.a(x, h)
            b, _ = self.b(x, h)
            return tg.concatenate([a, b, h @ self.a_weight_hh.T], axis=1), h

    model = Two()
    inner = RecurrentDropout(model, 0.0)
    y, _ = DropConnect(inner, 0.5, generator=Random(0))(tg.zeros((30, 1)), tg.eye(30))
    a, b, own = np.split(y.numpy(), 3, axis=1)
    np.testing.assert_array_equal(a, b)
    assert (a == 0).any()
    assert set(np.unique(own).tolist()) == {0, 2}
    assert (own == 2).mean() == pytest.approx(0.5, abs=0.07)
    assert ((own == 0) != (a == 0)).any()
    assert type(model.a.weight_hh) is nn.Parameter


def test_drop_connect_keeps_the_statistics_of_batch_norm(backend):
    cell = BatchNormLSTMCell(2, 2, generator=Random(0))
    DropConnect(cell, 0.5)(on_backend(np.random.default_rng(0).standard_normal((4, 2)), np.float32))
    assert cell.bn_ih.mean.numpy().any()


# -- residual


def test_residual(backend):
    cell = gru()
    state, x = random_state(cell), sequence()[0]
    y, h = cell(x, state)
    y_sum, h_same = Residual(cell)(x, state)
    np.testing.assert_array_equal(y_sum.numpy(), y.numpy() + x.numpy())
    np.testing.assert_array_equal(h_same.numpy(), h.numpy())


# -- any callable


def test_a_callable_that_is_no_module(backend):
    class Sum:
        def init_state(self, batch):
            return [tg.zeros((batch, 2))]

        def __call__(self, x, state):
            h = state[0] + x
            return h, [h]

    x = on_backend(np.ones((3, 2)), np.float32)
    for cell in (RecurrentDropout(Sum(), 0.0), Zoneout(Sum(), 0.0), Residual(Sum())):
        y, state = cell(x, None)
        assert y.numpy().tolist() == [[2 if isinstance(cell, Residual) else 1] * 2] * 3
        assert isinstance(state, list)
    y, _ = RecurrentDropout(Sum(), 1.0)(x, [x])
    assert y.numpy().tolist() == [[1, 1]] * 3
    assert Zoneout(Sum(), 1.0)(x, [x * 5])[0].numpy().tolist() == [[5, 5]] * 3
    with pytest.raises(AttributeError, match="input_size"):
        _ = Zoneout(Sum()).input_size


def test_what_they_show():
    assert repr(Zoneout(nn.GRUCell(2, 2), 0.1)).split("\n")[0] == "Zoneout(p=0.1)  # 36 parameters"
    assert repr(DropConnect(nn.GRUCell(2, 2), 0.2)).startswith("DropConnect(p=0.2)")
    assert repr(RecurrentDropout(nn.GRUCell(2, 2), 0.3)).startswith("RecurrentDropout(p=0.3)")
    assert repr(Residual(nn.GRUCell(2, 2))).startswith("Residual()")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RecurrentDropout(gru(), 1.1), ValueError, r"RecurrentDropout: p must be from 0 to 1, got 1\.1"),
        (lambda: Zoneout(gru(), -0.1), ValueError, r"Zoneout: p must be from 0 to 1, got -0\.1"),
        (lambda: Zoneout(lstm(), (0.1, 2)), ValueError, "Zoneout: p must be from 0 to 1, got 2"),
        (lambda: Zoneout(gru(), (0.1, 0.2))(sequence()[0]), ValueError, r"p must be one number or 1.*got \(0\.1, 0\.2"),
        (lambda: DropConnect(gru(), float("nan")), ValueError, "DropConnect: p must be from 0 to 1, got nan"),
        (lambda: DropConnect(MinGRUCell(2, 2)), ValueError, "parameter weight_hh, which MinGRUCell has not"),
        (lambda: Residual(nn.GRUCell(3, 2)), ValueError, "of one size, got 3 and 2"),
        (lambda: Residual(nn.LSTMCell(3, 3, proj_size=2)), ValueError, "of one size, got 3 and 2"),
        (lambda: Residual(Spy())(tg.zeros((2, 1))), ValueError, r"one shape, got \(2, 4\) and \(2, 1\)"),
        (lambda: Zoneout(lambda x, h: (x, h)), TypeError, r"callable and have init_state\(batch\), got function"),
        (lambda: RecurrentDropout("lstm"), TypeError, "got str"),
        (
            lambda: RecurrentDropout(gru(), 0.5)(tg.zeros((3, 5), np.float64)),
            ValueError,
            r"\(batch, 2\), got .*\(3, 5\)",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
