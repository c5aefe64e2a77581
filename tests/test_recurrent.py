"""`scan` and the recurrent layers: lengths, resets, directions, stacks, exposed values, and what they refuse."""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers import on_backend
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim
from tinygrad_rnn.nest import leaves, map_nest

pytestmark = pytest.mark.usefixtures("engine")
T, B, D, H = 6, 4, 3, 2


def draw(*shape, seed=0):
    return on_backend(np.random.default_rng(seed).standard_normal(shape))


def generator():
    return tg.Generator(7)


class Averager(nn.Module):
    """A cell of a user's own, with a nest for a state: a running mean, and how many steps it is of."""

    def __init__(self, size=D):
        self.gain = nn.Parameter(on_backend(np.linspace(0.5, 1.5, size)))

    def init_state(self, batch):
        return {"sum": on_backend(np.zeros((batch, self.gain.size))), "count": [on_backend(np.zeros((batch, 1)))]}

    def forward(self, x, state):
        total, count = state["sum"] + tg.tanh(x * self.gain), state["count"][0] + 1.0
        tg.expose(count=count, total=total)
        return total / count, {"sum": total, "count": [count]}


CELLS = {
    "rnn": lambda: nn.RNNCell(D, H, dtype=np.float64, generator=generator()),
    "gru": lambda: nn.GRUCell(D, H, dtype=np.float64, generator=generator()),
    "lstm": lambda: nn.LSTMCell(D, H, dtype=np.float64, generator=generator()),
    "projected": lambda: nn.LSTMCell(D, 3, proj_size=H, dtype=np.float64, generator=generator()),
    "averager": Averager,
}
every_cell = pytest.mark.parametrize("name", CELLS)


def loop(cell, xs, state=None):
    """The definition, for one row without lengths or resets."""
    state = cell.init_state(xs.shape[1]) if state is None else state
    ys = []
    for x in tg.unstack(xs):
        y, state = cell(x, state)
        ys.append(y)
    return tg.stack(ys), state


def same(a, b, tolerance=1e-14):
    for (place, x), (other, y) in zip(leaves(a), leaves(b), strict=True):
        assert place == other
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=tolerance, atol=tolerance)


def row(nest, r):
    return map_nest(lambda leaf: leaf[r : r + 1], nest)


@every_cell
def test_scan_is_the_loop(name, backend):
    cell, xs = CELLS[name](), draw(T, B, D)
    same(tg.scan(cell, xs), loop(cell, xs))
    ys, state = tg.scan(cell, xs, reverse=True)
    backwards, last = loop(cell, tg.flip(xs, 0))
    same((ys, state), (tg.flip(backwards, 0), last))


@every_cell
@given(lengths=st.lists(st.integers(0, T), min_size=B, max_size=B), reverse=st.booleans())
def test_each_row_is_as_if_alone(name, lengths, reverse):
    cell, xs = CELLS[name](), draw(T, B, D)
    start = map_nest(lambda leaf: draw(*leaf.shape, seed=1), cell.init_state(B))
    ys, state, shown = tg.scan(cell, xs, start, reverse, lengths, expose=["total"] if name == "averager" else ["h"])
    (exposed,) = shown.values()
    for r, n in enumerate(lengths):
        if n:
            alone, last = tg.scan(cell, xs[:n, r : r + 1], row(start, r), reverse)
            same((ys[:n, r : r + 1], row(state, r)), (alone, last))
        else:
            same(row(state, r), row(start, r))
        assert not ys[n:, r].numpy().any()
        assert not exposed[n:, r].numpy().any()
        assert n == 0 or exposed[:n, r].numpy().any()


@every_cell
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_not_seen(name, reverse, backend):
    cell = CELLS[name]()
    values = np.random.default_rng(0).standard_normal((T, B, D))
    lengths = [2, T, 0, 3]
    for r, n in enumerate(lengths):
        values[n:, r] = np.nan
    xs = on_backend(values)
    xs.requires_grad = True
    ys, state = tg.scan(cell, xs, reverse=reverse, lengths=lengths)
    total = ys.sum() + sum(leaf.sum() for _, leaf in leaves(state))
    total.backward()
    assert np.isfinite(total.item())
    gradient = xs.grad.numpy()
    for r, n in enumerate(lengths):
        assert not gradient[n:, r].any()
        assert gradient[:n, r].all()
    assert all(np.isfinite(p.grad.numpy()).all() for p in cell.parameters())


@every_cell
@given(marks=st.lists(st.booleans(), min_size=T * B, max_size=T * B), reverse=st.booleans())
def test_resets_cut_rows_into_pieces(name, marks, reverse):
    cell, xs = CELLS[name](), draw(T, B, D)
    marks = np.reshape(marks, (T, B))
    start = map_nest(lambda leaf: draw(*leaf.shape, seed=1), cell.init_state(B))
    ys, state = tg.scan(cell, xs, start, reverse, reset=marks)
    for r in range(B):
        cuts = [0, *[t for t in range(1, T) if marks[t, r]], T]
        pieces = list(pairwise(cuts))
        given_to = pieces[-1] if reverse else pieces[0]
        for a, b in pieces:
            begin = row(start, r) if (a, b) == given_to and (reverse or not marks[0, r]) else cell.init_state(1)
            alone, last = tg.scan(cell, xs[a:b, r : r + 1], begin, reverse)
            same(ys[a:b, r : r + 1], alone)
        same(row(state, r), last) if not reverse else None
        if reverse:
            a, b = pieces[0]
            begin = row(start, r) if len(pieces) == 1 else cell.init_state(1)
            same(row(state, r), tg.scan(cell, xs[a:b, r : r + 1], begin, True)[1])


def test_no_gradient_passes_a_reset():
    cell, xs = CELLS["lstm"](), draw(T, B, D)
    xs.requires_grad = True
    marks = np.zeros((T, B), bool)
    marks[3, 1] = True
    for reverse, seen, unseen in ((False, slice(3, T), slice(0, 3)), (True, slice(0, 3), slice(3, T))):
        _, (h, _) = tg.scan(cell, xs, reverse=reverse, reset=marks)
        gradient = tg.grad(h.sum(), xs).numpy()
        assert not gradient[unseen, 1].any()
        assert gradient[seen, 1].all()
        assert gradient[:, 0].all()


@every_cell
def test_gradients_with_every_option(name, backend):
    layer = nn.Recurrent(CELLS[name](), CELLS[name]())
    names = [name for name, _ in layer.named_parameters()]
    reset = np.zeros((5, 2), bool)
    reset[2, 0] = True

    def f(x, *weights):
        changed = copy.copy(layer)
        for cell in ("cell_0", "backward_0"):
            setattr(changed, cell, copy.copy(getattr(layer, cell)))
        for path, weight in zip(names, weights, strict=True):
            cell, attribute = path.split(".")
            vars(vars(changed)[cell])[attribute] = weight
        y, state = changed(x, lengths=[5, 3], reset=reset)
        return [y, *[leaf for _, leaf in leaves(state)]]

    inputs = [draw(5, 2, D), *[parameter.detach() for parameter in layer.parameters()]]
    for tensor in inputs:
        tensor.requires_grad = True
    assert tg.gradcheck(f, inputs)
    if backend == "numpy" and name != "projected":  # the second order takes long, and is made of the same operations
        assert tg.gradgradcheck(f, inputs)


def test_a_stack_of_different_cells(backend):
    cells = [Averager(), nn.GRUCell(D, 5, dtype=np.float64), nn.LSTMCell(5, H, dtype=np.float64)]
    layer, xs = nn.Recurrent(cells), draw(T, B, D)
    y, state = layer(xs)
    h = xs
    for cell, part in zip(cells, state, strict=True):
        h, last = loop(cell, h)
        same(part, last)
    same(y, h)
    assert len(list(layer.parameters())) == 9
    again, _ = layer(xs, tg.detach(state))
    whole, _ = layer(tg.concatenate([xs, xs]))
    same(tg.concatenate([y, again]), whole)


def test_residual_and_dropout_between_layers(backend):
    def cells():
        return [nn.RNNCell(D, 4, dtype=np.float64, generator=generator()), nn.RNNCell(4, 4, dtype=np.float64)]

    first, second = made = cells()
    xs = draw(T, B, D)
    middle, _ = loop(first, xs)
    same(nn.Recurrent(made, residual=True)(xs)[0], loop(second, middle)[0] + middle)
    layer = nn.Recurrent(made, dropout=0.5, generator=generator())
    dropped = tg.functional.dropout(middle, 0.5, True, generator())
    same(layer(xs)[0], loop(second, dropped)[0])
    same(layer.eval()(xs)[0], loop(second, middle)[0])


def test_batch_first_is_only_a_layout(backend):
    xs, lengths = draw(T, B, D), [6, 2, 5, 1]
    reset = np.arange(T * B).reshape(T, B) % 5 == 0
    plain = nn.LSTM(D, H, 2, bidirectional=True, dtype=np.float64, generator=generator())
    other = nn.LSTM(D, H, 2, bidirectional=True, batch_first=True, dtype=np.float64, generator=generator())
    y, state, shown = plain(xs, None, lengths, reset, expose=("f",))
    z, other_state, other_shown = other(tg.swapaxes(xs, 0, 1), None, lengths, reset.T, expose=("f",))
    same(y, tg.swapaxes(z, 0, 1))
    same(state, other_state)
    same(shown, map_nest(lambda leaf: tg.swapaxes(leaf, 0, 1), other_shown))


def test_exposed_gates_are_the_equations(backend):
    layer, xs = nn.LSTM(D, H, dtype=np.float64, generator=generator()), draw(T, B, D)
    y, (h, c), [gates] = layer(xs, expose=("i", "f", "g", "o", "c", "h"))
    i, f, g, o, cells = (gates[name].numpy() for name in "ifgoc")
    previous = np.concatenate([np.zeros((1, B, H)), cells[:-1]])
    np.testing.assert_allclose(cells, f * previous + i * g, rtol=1e-13)
    np.testing.assert_allclose(y.numpy(), o * np.tanh(cells), rtol=1e-13)
    same(gates["h"], y)
    same((h[0], c[0]), (y[-1], gates["c"][-1]))
    gates["f"].sum().backward()
    assert layer.weight_hh_l0.grad.numpy()[H : 2 * H].any()


def test_what_a_gru_and_a_nest_expose(backend):
    xs = draw(T, B, D)
    _, _, [forward, backward] = nn.Recurrent(Averager(), Averager())(xs, expose=["count"])
    same(forward["count"], tg.flip(backward["count"], 0))
    _, _, gates = nn.GRU(D, H, 2, dtype=np.float64)(xs, expose=("r", "z", "n"))
    assert [sorted(layer) for layer in gates] == [["n", "r", "z"]] * 2


def test_a_replaced_weight_is_the_one_used(backend):
    layer, xs = nn.GRU(D, H, dtype=np.float64, generator=generator()), draw(T, B, D)
    before, _ = layer(xs)
    layer.weight_hh_l0 = nn.Parameter(draw(3 * H, H, seed=3))
    after, _ = layer(xs)
    assert np.abs(before.numpy() - after.numpy()).max() > 1e-3
    cell = nn.GRUCell(D, H, dtype=np.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    same(after, loop(cell, xs)[0])


def test_a_copied_layer_is_its_own(backend):
    layer, xs = nn.LSTM(D, H, generator=generator()), draw(T, B, D).astype(np.float32)
    other = copy.deepcopy(layer)
    before = layer(xs)[0].numpy().copy()
    optimizer = optim.SGD(other.parameters(), lr=0.5)
    other(xs)[0].sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(layer(xs)[0].numpy(), before)
    assert np.abs(other(xs)[0].numpy() - before).max() > 1e-3
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_learned_initial_state(backend):
    cell = nn.LearnedState(nn.LSTMCell(D, H, dtype=np.float64, generator=generator()))
    layer, xs = nn.Recurrent(cell), draw(T, B, D)
    same(layer(xs), loop(cell.cell, xs))
    cell.start_1 = nn.Parameter(draw(H, seed=2))
    start = (on_backend(np.zeros((B, H))), on_backend(np.tile(cell.start_1.numpy(), (B, 1))))
    same(layer(xs)[0], loop(cell.cell, xs, start)[0])
    layer(xs)[0].sum().backward()
    assert cell.start_0.grad.numpy().all()
    assert cell.start_1.grad.numpy().all()
    reset = np.zeros((T, B), bool)
    reset[2] = True
    same(layer(xs, reset=reset)[0][2:], layer(xs[2:])[0])


def test_functions_nests_and_batches_of_one_axis(backend):
    def cell(x, state):
        total = state + x["a"] * x["b"]
        return {"total": total, "same": x["a"]}, total

    xs = {"a": draw(T), "b": draw(T, seed=1)}
    ys, last = tg.scan(cell, xs, on_backend(0.0))
    np.testing.assert_allclose(ys["total"].numpy(), np.cumsum(xs["a"].numpy() * xs["b"].numpy()))
    same(last, ys["total"][-1])
    same(ys["same"], xs["a"])


def test_a_function_is_reset_to_the_state_it_was_given(backend):
    ys, _ = tg.scan(
        lambda x, s: (s + x, s + x), draw(3, 1) * 0 + 1, on_backend([5.0]), reset=[[False], [False], [True]]
    )
    assert ys.numpy().ravel().tolist() == [6, 7, 6]


def test_for_sequence_is_called_once_a_sequence():
    class Masked(nn.Module):
        calls = 0

        def init_state(self, batch):
            return on_backend(np.zeros((batch, D)))

        def for_sequence(self, batch):
            self.calls += 1
            return lambda x, state: (x * batch, state + x)

    cell = Masked()
    ys, _ = nn.Recurrent(cell)(draw(T, B, D))
    assert cell.calls == 1
    np.testing.assert_array_equal(ys.numpy(), draw(T, B, D).numpy() * B)


def test_no_rows(backend):
    layer = nn.LSTM(D, H)
    y, (h, c) = layer(on_backend(np.zeros((T, 0, D), np.float32)), lengths=np.zeros(0, int))
    assert (y.shape, h.shape, c.shape) == ((T, 0, H), (1, 0, H), (1, 0, H))
    y.sum().backward()
    assert not layer.weight_hh_l0.grad.numpy().any()


def test_all_rows_empty(backend):
    layer = nn.GRU(D, H, bidirectional=True)
    y, h = layer(on_backend(np.full((T, B, D), np.nan, np.float32)), lengths=[0] * B)
    assert y.shape == (T, B, 2 * H)
    assert not y.numpy().any()
    assert not h.numpy().any()


REFUSED = {
    "no steps": (lambda layer, x: layer(x[:0]), ValueError, "no steps: shape (0, 4, 3)"),
    "too long": (
        lambda layer, x: layer(x, lengths=[7, 1, 1, 1]),
        ValueError,
        "from 0 to the 6 steps of xs, got 7 in row 0",
    ),
    "negative": (lambda layer, x: layer(x, lengths=[1, 1, -1, 1]), ValueError, "got -1 in row 2"),
    "lengths": (lambda layer, x: layer(x, lengths=[1, 1]), ValueError, "lengths must have shape (4,)"),
    "floats": (lambda layer, x: layer(x, lengths=[1.0, 1, 1, 1]), TypeError, "lengths must be ints, got dtype float64"),
    "reset": (
        lambda layer, x: layer(x, reset=np.zeros((4, 6), bool)),
        ValueError,
        "reset must have shape (6, 4), one for each step and row of xs, got (4, 6)",
    ),
    "ints": (lambda layer, x: layer(x, reset=np.zeros((6, 4), int)), TypeError, "reset must be bools"),
    "nest": (lambda layer, x: layer(x, (x[0],)), TypeError, "got a state (tensor of (4, 3),), expected one like"),
    "rows": (lambda layer, x: layer(x, (x[:1, :1, :2], x[:1, :1, :2])), ValueError, "(1, 1, 2), expected (1, 4, 2)"),
    "array": (lambda layer, x: layer(x, (x[:1, :, :2], 3)), TypeError, "no tensor: int"),
    "dtype": (
        lambda layer, x: layer(x, (x[:1, :, :2].astype(np.float32),) * 2),
        TypeError,
        "float32, expected float64",
    ),
    "width": (lambda layer, x: layer(x[..., :2]), ValueError, "LSTM takes x of shape (T, B, 3)"),
    "axes": (lambda layer, x: layer(x[0, 0]), ValueError, "got (3,)"),
    "name": (lambda layer, x: layer(x, expose=["z"]), ValueError, "shows i, f, g, o, c, h, but not z"),
    "one": (lambda layer, x: layer(x[0], lengths=[3]), ValueError, "need a batch of sequences, got x of shape (4, 3)"),
    "one state": (lambda layer, x: layer(x[0], (x, x)), ValueError, "no batch axis; got (6, 4, 3)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what, backend):
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=re.escape(message)):
        call(nn.LSTM(D, H, dtype=np.float64), draw(T, B, D))


def test_a_cell_must_keep_the_form_of_its_state(backend):
    xs = draw(T, B, D)
    start = on_backend(np.zeros((B, D)))
    for following, error, message in (
        (lambda s: s[:1], ValueError, "the cell, at step 0, returned a state of shape (1, 3), expected (4, 3)"),
        (lambda s: s.astype(np.float32), TypeError, "a state of dtype float32, expected float64"),
        (
            lambda s: (s, s),
            TypeError,
            "returned a state (tensor of (4, 3), tensor of (4, 3)), expected one like tensor",
        ),
        (lambda s: None, TypeError, "a state that is no tensor: NoneType"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            tg.scan(lambda x, s, f=following: (x, f(s)), xs, start)
    with pytest.raises(TypeError, match="no init_state, so scan must be given the state"):
        tg.scan(lambda x, s: (x, s), xs)
    with pytest.raises(ValueError, match=r"state must have 4 rows as xs has, got shape \(1, 3\)"):
        tg.scan(lambda x, s: (x, s + x), xs, start[:1], lengths=[1] * B)
    with pytest.raises(ValueError, match=r"xs\['b'\] has shape \(5, 4, 3\), beside \(6, 4, 3\)"):
        tg.scan(lambda x, s: (x["a"], s), {"a": xs, "b": xs[:5]}, start)


def test_layers_that_cannot_be():
    cell = nn.RNNCell(D, H)
    with pytest.raises(TypeError, match=r"cell 1 must be a module with init_state\(batch\), got Linear"):
        nn.Recurrent([cell, nn.Linear(H, H)])
    with pytest.raises(ValueError, match="at least one cell"):
        nn.Recurrent([])
    with pytest.raises(ValueError, match="a cell for each of the 1 layers, got 2"):
        nn.Recurrent([cell], [cell, cell])
    with pytest.raises(ValueError, match="dropout must be from 0 to 1, got 2"):
        nn.LSTM(D, H, dropout=2)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        nn.GRU(D, H, num_layers=0)
    with pytest.raises(ValueError, match="proj_size must be from 0 to below hidden_size, 2, got 2"):
        nn.LSTM(D, H, proj_size=2)
    with pytest.raises(ValueError, match="init must be 'orthogonal' or 'torch', got 'zeros'"):
        nn.RNN(D, H, init="zeros")
    with pytest.raises(ValueError, match=r"residual: layer 1 makes \(6, 4, 3\) of \(6, 4, 2\)"):
        nn.Recurrent([cell, nn.RNNCell(H, 3)], residual=True)(draw(T, B, D).astype(np.float32))


def test_what_a_layer_shows():
    assert "LSTM(3, 2, num_layers=2, bidirectional=True, batch_first=True)" in repr(
        nn.LSTM(D, H, 2, bidirectional=True, batch_first=True)
    )
    assert "(cell_1): GRUCell" in repr(nn.Recurrent([nn.RNNCell(D, H), nn.GRUCell(H, H)]))
