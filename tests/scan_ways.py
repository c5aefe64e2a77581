"""Ways to use `scan`, with every shape of cell, state, inputs and results; and how they are held against the loop."""

from __future__ import annotations

from collections import namedtuple
from functools import partial

import numpy as np
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nest import leaves, map_nest

T, B, D, H = 5, 3, 2, 2
Pair = namedtuple("Pair", "fast slow")


def values(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).uniform(-1, 1, shape)


def leaf(*shape, seed=0):
    tensor = on_backend(values(*shape, seed=seed))
    tensor.requires_grad = True
    return tensor


def made(kind, size=D, hidden=H):
    cell = getattr(nn, f"{kind}Cell")(size, hidden, dtype=np.float64, generator=tg.Generator(3))
    for i, parameter in enumerate(cell.parameters()):
        parameter.data = on_backend(values(*parameter.shape, seed=i)).data
    return cell


def weights(*cells):
    return list({id(p): p for cell in cells for p in cell.parameters()}.values())


# Each way to scan returns its results, a nest of tensors, and the tensors by which it is differentiated.
WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


def of_cell(kind, steps=T, batch=B, size=D, hidden=H, of=lambda results: results, **options):
    """A way with a cell of the library."""

    def run():
        cell, xs = made(kind, size, hidden), leaf(steps, batch, size)
        start = map_nest(lambda part: leaf(*part.shape, seed=1), cell.init_state(batch))
        sources = [xs, *[part for _, part in leaves(start)], *weights(cell)]
        return of(tg.scan(cell, xs, start, **options)), sources

    return run


def of_function(cell, *shapes, start=(B, H), steps=T, **options):
    """A way with a function ``cell(weights, x, state)``, its weights of these shapes."""

    def run():
        ws, xs, state = [leaf(*shape, seed=5 + i) for i, shape in enumerate(shapes)], leaf(steps, B, H), leaf(*start)
        return tg.scan(partial(cell, ws), xs, state, **options), [xs, state, *ws]

    return run


MARKS = np.arange(T * B).reshape(T, B) % 4 == 1
for kind in ("RNN", "GRU", "LSTM"):
    WAYS |= {
        kind: of_cell(kind),
        f"{kind} in reverse": of_cell(kind, reverse=True),
        f"{kind} with lengths and resets": of_cell(kind, lengths=[2, 0, 5], reset=MARKS),
        f"{kind} in reverse with lengths and resets": of_cell(kind, reverse=True, lengths=[2, 0, 3], reset=MARKS),
    }
WAYS |= {
    "one step": of_cell("LSTM", steps=1),
    "one step in reverse": of_cell("GRU", steps=1, reverse=True, lengths=[1, 0, 1]),
    "no row is real": of_cell("LSTM", lengths=[0] * B),
    "one row": of_cell("GRU", batch=1),
    "no rows": of_cell("LSTM", batch=0),
    "no rows with lengths": of_cell("RNN", batch=0, lengths=np.zeros(0, int)),
    "one unit": of_cell("LSTM", size=1, hidden=1),
    "one unit, one row, one step": of_cell("GRU", 1, 1, 1, 1),
    "only the outputs": of_cell("LSTM", of=lambda results: results[0]),
    "only the last output": of_cell("GRU", of=lambda results: results[0][-1]),
    "only the last state": of_cell("LSTM", of=lambda results: results[1]),
    "only half of the last state": of_cell("LSTM", of=lambda results: results[1][1]),
    "only exposed values": of_cell("LSTM", of=lambda results: results[2], expose=("f", "c"), lengths=[4, 1, 0]),
    "only an exposed value of the inputs' kind": of_cell("GRU", of=lambda results: results[2]["z"][1:3], expose=["z"]),
    "a state that passes through": of_function(lambda ws, x, s: (tg.tanh(x + s), s)),
    "the state before as output": of_function(lambda ws, x, s: (s, tg.tanh(x * s))),
    "the state before, twice": of_function(lambda ws, x, s: ((s, s), tg.tanh(x * s))),
    "an output that is the input": of_function(lambda ws, x, s: ((x, x), s * x)),
    "a state that is the input": of_function(lambda ws, x, s: (s * x, x)),
    "an output that is a weight": of_function(lambda ws, x, s: (ws[0], s * ws[0]), (B, H)),
    "an output that is a constant": of_function(lambda ws, x, s: ((tg.zeros_like(x) + 3, x), s * x)),
    "a product of weights alone": of_function(lambda ws, x, s: (s @ tg.tanh(ws[0] @ ws[1].T),) * 2, (H, H), (H, H)),
    "clipped": of_function(lambda ws, x, s: (s, tg.clip_gradient(tg.tanh(x + s), max_value=0.3))),
    "clipped by norm": of_function(lambda ws, x, s: (s, tg.clip_gradient(tg.tanh(x + s) @ ws[0], 0.5)), (H, H)),
    "scaled": of_function(lambda ws, x, s: (s, tg.scale_gradient(tg.tanh(x + s), 0.5))),
    "detached": of_function(lambda ws, x, s: (s * x, tg.tanh(x * s + s.detach() * ws[0])), (H,)),
    "only detached": of_function(lambda ws, x, s: (s.detach() * x, tg.tanh(x * s.detach() * ws[0])), (H,)),
    "an unused weight": of_function(lambda ws, x, s: (ws[0] * 0 + s, tg.tanh(x + s)), (H,), (H,)),
    "steps of another size": of_function(lambda ws, x, s: (tg.concatenate([x, s, x[:, :1]], 1), s[:, ::-1] * x)),
}


@way
def two_scans_by_one_cell():
    cell, xs, others = made("GRU"), leaf(T, B, D), leaf(T + 2, B, D, seed=1)
    return [tg.scan(cell, xs), tg.scan(cell, others, reverse=True)], [xs, others, *weights(cell)]


@way
def one_after_the_other():
    cell, xs = made("LSTM"), leaf(T, B, D)
    ys, state = tg.scan(cell, xs[:2])
    return [ys, tg.scan(cell, xs[2:], state)], [xs, *weights(cell)]


@way
def outputs_in_reverse():
    first, second, xs = made("LSTM"), made("GRU"), leaf(T, B, D)
    ys, _ = tg.scan(first, xs, lengths=[5, 2, 3])
    return tg.scan(second, ys, reverse=True, lengths=[5, 2, 3]), [xs, *weights(first, second)]


@way
def a_weight_of_two_cells():
    first, second, xs = made("RNN"), made("RNN"), leaf(T, B, D)
    second.weight_hh = first.weight_hh
    both = tg.scan(lambda x, s: (first(x, s)[0], second(x, s)[0]), xs, leaf(B, H))
    return [tg.scan(first, xs), tg.scan(second, xs), both], [xs, *weights(first, second)]


@way
def a_tied_weight():
    cell, xs = made("RNN"), leaf(T, B, D)
    cell.weight_hh = cell.weight_ih
    return tg.scan(cell, xs), [xs, *weights(cell)]


@way
def states_that_swap():
    xs, start = leaf(T, B, H), (leaf(B, H, seed=1), leaf(B, H, seed=2), leaf(B, H, seed=3))
    return tg.scan(lambda x, s: (s[0] * x, (s[1], s[2], s[0])), xs, start), [xs, *start]


@way
def states_that_swap_and_change():
    xs, start = leaf(T, B, H), (leaf(B, H, seed=1), leaf(B, H, seed=2))
    results = tg.scan(lambda x, s: (s[0] + x, (s[1], tg.tanh(s[0] * x + s[1]))), xs, start, lengths=[3, 5, 0])
    return results, [xs, *start]


@way
def one_tensor_in_many_places():
    a, h = leaf(T, B, H), leaf(B, H)
    xs, start = {"a": a, "b": a}, (h, h)
    average = tg.mean(a, 0)
    cell = lambda x, s: (s[0] * h, (tg.tanh(x["a"] * s[1] + average), s[0] * x["b"] + h))  # noqa: E731
    return tg.scan(cell, xs, start), [a, h]


@way
def whole_inputs_inside_the_cell():
    xs, start = leaf(T, B, H), leaf(B, H)

    def cell(x, h):
        shares = tg.functional.softmax(tg.sum(xs * h, axis=-1), axis=0)  # attends to all steps
        read = tg.sum(xs * tg.reshape(shares, (T, B, 1)), axis=0)
        return read, tg.tanh(x + read)

    return tg.scan(cell, xs, start), [xs, start]


@way
def inputs_in_a_dict_some_of_them_ints():
    ids = on_backend(np.arange(T * B).reshape(T, B) % 4)
    xs, table, h = {"id": ids, "x": leaf(T, B, H)}, leaf(4, H, seed=2), leaf(B, H)

    def cell(x, h):
        following = tg.tanh(tg.take(table, x["id"], axis=0) + x["x"] * h)
        return {"h": following, "id": x["id"] + 1, "most": tg.argmax(following, axis=1)}, following

    return tg.scan(cell, xs, h, lengths=[4, 0, 5]), [xs["x"], table, h]


@way
def ints_alone():
    ids, table, h = on_backend(np.arange(T * B).reshape(T, B) % 4), leaf(4, H), leaf(B, H)
    return tg.scan(lambda i, h: (h, tg.tanh(tg.take(table, i, axis=0) - h)), ids, h), [table, h]


@way
def a_state_in_a_nest_some_of_it_ints_and_bools():
    start = {
        "pair": Pair(leaf(B, H), [leaf(B, H, seed=1)]),
        "count": on_backend(np.arange(B)),
        "odd": on_backend(np.arange(B) % 2 == 1),
    }
    gains, xs = leaf(10, H, seed=2), Pair(leaf(T, B, H), leaf(T, B, H, seed=3))

    def cell(x, state):
        fast, [slow] = state["pair"]
        count, odd = state["count"], state["odd"]
        fast = tg.where(tg.reshape(odd, (B, 1)), tg.tanh(fast + x.fast), fast * tg.take(gains, count, axis=0))
        slow = 0.9 * slow + 0.1 * fast * x.slow
        return Pair(fast, count * 2), {"pair": Pair(fast, [slow]), "count": count + 1, "odd": ~odd}

    results = tg.scan(cell, xs, start)
    assert [type(part) for part in (results[0], results[1]["pair"])] == [Pair, Pair]
    return results, [*xs, start["pair"].fast, *start["pair"].slow, gains]


@way
def inputs_that_are_not_contiguous():
    cell, xs = made("GRU"), leaf(B, T, 2 * D)
    return tg.scan(cell, tg.swapaxes(xs, 0, 1)[::-1, :, ::2]), [xs, *weights(cell)]


@way
def inputs_without_a_gradient():
    cell, start = made("LSTM"), (leaf(B, H), leaf(B, H, seed=1))
    return tg.scan(cell, on_backend(values(T, B, D)), start), [*start, *weights(cell)]


@way
def nothing_but_the_start_has_a_gradient():
    start = leaf(B, H)
    return tg.scan(lambda x, h: (h, tg.tanh(x + h)), on_backend(values(T, B, H)), start), [start]


@way
def a_learned_start():
    cell, xs, learned = made("GRU"), leaf(T, B, D), leaf(H)
    return tg.scan(cell, xs, tg.broadcast_to(learned, (B, H)), lengths=[0, 2, 5]), [xs, learned, *weights(cell)]


@way
def a_weight_that_was_computed():
    v, xs, start = leaf(H, H), leaf(T, B, H), leaf(B, H)
    w = tg.tanh(v) @ v
    ys, last = tg.scan(lambda x, h: (h, tg.tanh(x @ w.T + h @ w)), xs, start)
    return [ys, last, w], [v, w, xs, start]


@way
def rows_of_no_axis():
    xs, start, w = leaf(T), leaf(), leaf(seed=4)
    return tg.scan(lambda x, s: (s * x, tg.sin(s * w + x)), xs, start), [xs, start, w]


@way
def no_state():
    xs, w = leaf(T, B, H), leaf(H, H)
    return tg.scan(lambda x, s: (tg.tanh(x @ w), s), xs, ()), [xs, w]


@way
def a_scan_in_a_scan():
    xs, start, cell = leaf(T, 3, B, D), leaf(B, H), made("GRU")

    def outer(x, h):
        ys, h = tg.scan(cell, x, h)
        return ys[0], h

    return tg.scan(outer, xs, start), [xs, start, *weights(cell)]


@way
def a_gradient_in_the_cell():
    xs, start, w = leaf(T, B, H), leaf(B, H), leaf(H, H)

    def cell(x, h):
        energy = tg.sum(tg.tanh(h @ w) * x)
        (slope,) = tg.grad(energy, [h], create_graph=True)
        return energy + tg.zeros(B, np.float64), h - 0.3 * slope

    return tg.scan(cell, xs, start), [xs, start, w]


@way
def an_island_without_gradients():
    xs, start, w = leaf(T, B, H), leaf(B, H), leaf(H)

    def cell(x, h):
        with tg.no_grad():
            gate = tg.sigmoid(h * w + x)
        return gate, tg.tanh(gate * h + x * w)

    return tg.scan(cell, xs, start), [xs, start, w]


@way
def masks_drawn_at_each_step():
    cell, xs = nn.Zoneout(made("LSTM"), 0.4, tg.Generator(3)), leaf(T, B, D)
    dropped = nn.RecurrentDropout(nn.DropConnect(made("GRU"), 0.3, tg.Generator(4)), 0.3, tg.Generator(5))
    results = [tg.scan(cell, xs, reverse=True), tg.scan(dropped, xs), tg.scan(cell, xs)]
    return results, [xs, *weights(cell, dropped)]


@way
def a_layer_of_everything():
    layer = nn.LSTM(D, H, 2, bidirectional=True, batch_first=True, dropout=0.5, dtype=np.float64)
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = on_backend(values(*parameter.shape, seed=i)).data
    tg.manual_seed(8)
    xs = leaf(B, T, D)
    return layer(xs, lengths=[4, 2, 5], reset=MARKS.T, expose=("i", "c")), [xs, *weights(layer)]


# What is made of the results, and how it is held against the loop.


def along(tensors, seed):
    """The sum of what a fixed random direction makes of each."""
    return sum((t * on_backend(values(*t.shape, seed=seed + i))).sum() for i, t in enumerate(tensors) if t is not None)


def loss_of(results):
    floats = [part for _, part in leaves(results) if part.dtype.kind == "f"]
    return along(floats, 20) + 0.5 * along([tg.square(part) for part in floats], 50)


def slopes(value, sources, create_graph=False):
    """Gradients, None where there is none."""
    if not (isinstance(value, tg.Tensor) and value.requires_grad):
        return [None] * len(sources)
    return tg.grad(value, sources, create_graph=create_graph, allow_unused=True)


def arrays(found, sources):
    return [np.zeros(s.shape) if g is None else g.numpy() for g, s in zip(found, sources, strict=True)]


def by(engine, run):
    with tg.use_engine(engine):
        return run()


def derivatives(run, engine, order=1):
    """Values of all results and the gradients of so many orders of a loss of them, as arrays."""
    with tg.use_engine(engine):
        results, sources = run()
        found = [part.numpy() for _, part in leaves(results)]
        value = loss_of(results)
        for i in range(order):
            gradients = slopes(value, sources, i + 1 < order)
            found += arrays(gradients, sources)
            value = along(gradients, 100 * (i + 1))
    return found


def same(ours, theirs, tolerance=1e-10):
    scale = max([1.0, *[np.abs(array).max(initial=0) for array in theirs if array.dtype.kind == "f"]])
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)
