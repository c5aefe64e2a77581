"""The cells of the literature, their equations in NumPy, and how gradients through a cell are checked."""

from __future__ import annotations

import numpy as np
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn.nn.gated import ChoGRUCell, LSTM97Cell, MGUCell, MinGRUCell, NoForgetLSTMCell, PeepholeLSTMCell
from tinygrad_rnn.nn.normalized import BatchNormLSTMCell, LayerNormGRUCell, LayerNormLSTMCell
from tinygrad_rnn.nn.simple import IndRNNCell, IRNNCell, PReLU

INPUT, HIDDEN, BATCH, STEPS = 2, 2, 3, 5
leaky = tg.functional.leaky_relu


def prelu_cell(**k):
    return IndRNNCell(INPUT, HIDDEN, activation=PReLU(HIDDEN, dtype=k.get("dtype", np.float32)), **k)


CELLS = {
    "no forget gate": lambda **k: NoForgetLSTMCell(INPUT, HIDDEN, **k),
    "peepholes": lambda **k: PeepholeLSTMCell(INPUT, HIDDEN, **k),
    "lstm 97": lambda **k: LSTM97Cell(INPUT, 1, 2, truncated=False, **k),
    "lstm 97, blocks of one": lambda **k: LSTM97Cell(INPUT, 2, truncated=False, **({"bias": "gates"} | k)),
    "cho": lambda **k: ChoGRUCell(INPUT, HIDDEN, **k),
    "mgu": lambda **k: MGUCell(INPUT, HIDDEN, **k),
    "mingru": lambda **k: MinGRUCell(INPUT, HIDDEN, **k),
    "irnn": lambda **k: IRNNCell(INPUT, HIDDEN, **k),
    "indrnn": lambda **k: IndRNNCell(INPUT, HIDDEN, **k),
    "indrnn leaky": lambda **k: IndRNNCell(INPUT, HIDDEN, activation=leaky, **k),
    "indrnn prelu": prelu_cell,
    "layer norm lstm": lambda **k: LayerNormLSTMCell(INPUT, HIDDEN, **k),
    "layer norm gru": lambda **k: LayerNormGRUCell(INPUT, HIDDEN, **k),
    "batch norm": lambda **k: BatchNormLSTMCell(INPUT, HIDDEN, max_steps=3, **k),
}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def layer_norm(a):
    return (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)


def batch_norm(a):
    return (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)


def parted(p, gates):
    """W x + b and U h for each gate, as functions of its number."""
    zero = np.zeros(gates * HIDDEN)
    W, U = np.split(p["weight_ih"], gates), np.split(p.get("weight_hh", np.zeros((gates * HIDDEN, HIDDEN))), gates)
    b = np.split(p.get("bias_ih", zero) + p.get("bias_hh", zero), gates)
    return lambda k, x: x @ W[k].T + b[k], lambda k, h: h @ U[k].T


def ref_no_forget(p, x, state):
    (h, c), (W, U) = state, parted(p, 3)
    c = c + sigmoid(W(0, x) + U(0, h)) * np.tanh(W(1, x) + U(1, h))
    h = sigmoid(W(2, x) + U(2, h)) * np.tanh(c)
    return h, (h, c)


def ref_peepholes(p, x, state):
    (h, c), (W, U) = state, parted(p, 4)
    i = sigmoid(W(0, x) + U(0, h) + p["peephole_i"] * c)
    f = sigmoid(W(1, x) + U(1, h) + p["peephole_f"] * c)
    c = f * c + i * np.tanh(W(2, x) + U(2, h))
    h = sigmoid(W(3, x) + U(3, h) + p["peephole_o"] * c) * np.tanh(c)
    return h, (h, c)


def ref_lstm97(blocks, size):
    def step(p, x, state):
        y, s = state
        net = x @ p["weight_ih"].T + y @ p["weight_hh"].T
        net[:, : 2 * blocks] += p["bias_gates"]
        if "bias_cells" in p:
            net[:, 2 * blocks :] += p["bias_cells"]
        s_new, y_new = s.copy(), np.zeros_like(y)
        for block in range(blocks):
            y_new[:, block] = sigmoid(net[:, block])
            y_new[:, blocks + block] = sigmoid(net[:, blocks + block])
            for cell in range(block * size, (block + 1) * size):
                g = 4 / (1 + np.exp(-net[:, 2 * blocks + cell])) - 2
                s_new[:, cell] = s[:, cell] + y_new[:, block] * g
                h = 2 / (1 + np.exp(-s_new[:, cell])) - 1
                y_new[:, 2 * blocks + cell] = y_new[:, blocks + block] * h
        return y_new[:, 2 * blocks :], (y_new, s_new)

    return step


def ref_cho(p, x, h):
    W, U = parted(p, 3)
    r, z = sigmoid(W(0, x) + U(0, h)), sigmoid(W(1, x) + U(1, h))
    h = z * h + (1 - z) * np.tanh(W(2, x) + U(2, r * h))
    return h, h


def ref_mgu(p, x, h):
    W, U = parted(p, 2)
    f = sigmoid(W(0, x) + U(0, h))
    h = (1 - f) * h + f * np.tanh(W(1, x) + U(1, f * h))
    return h, h


def ref_mingru(p, x, h):
    W, _ = parted(p, 2)
    z = sigmoid(W(0, x))
    h = (1 - z) * h + z * W(1, x)
    return h, h


def ref_irnn(p, x, h):
    W, U = parted(p, 1)
    h = np.maximum(W(0, x) + U(0, h), 0)
    return h, h


def ref_indrnn(slope):
    def step(p, x, h):
        a = x @ p["weight_ih"].T + p["bias_ih"] + np.einsum("h,bh->bh", p["weight_hh"], h)
        h = np.where(a > 0, a, p.get("activation.weight", slope) * a)
        return h, h

    return step


def ref_layer_norm_lstm(p, x, state):
    h, c = state
    sums = layer_norm(x @ p["weight_ih"].T) * p["norm_ih.weight"] + p["bias_ih"]
    sums = sums + layer_norm(h @ p["weight_hh"].T) * p["norm_hh.weight"] + p["bias_hh"]
    i, f, g, o = np.split(sums, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(layer_norm(c) * p["norm_c.weight"] + p["norm_c.bias"])
    return h, (h, c)


def ref_layer_norm_gru(p, x, h):
    W, U, b, d = p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
    k = 2 * HIDDEN
    rz = layer_norm(x @ W[:k].T) * p["norm_ih.weight"] + b[:k] + layer_norm(h @ U[:k].T) * p["norm_hh.weight"] + d[:k]
    r, z = np.split(sigmoid(rz), 2, axis=1)
    from_x = layer_norm(x @ W[k:].T) * p["norm_in.weight"] + b[k:]
    n = np.tanh(from_x + r * (layer_norm(h @ U[k:].T) * p["norm_hn.weight"] + d[k:]))
    h = z * h + (1 - z) * n
    return h, h


def ref_batch_norm(p, x, state, bn=lambda name, a, step: batch_norm(a)):
    h, c, step = state
    sums = bn("bn_ih", x @ p["weight_ih"].T, step) * p["bn_ih.weight"]
    sums = sums + bn("bn_hh", h @ p["weight_hh"].T, step) * p["bn_hh.weight"] + p["bias_ih"]
    i, f, g, o = np.split(sums, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(bn("bn_c", c, step) * p["bn_c.weight"] + p["bn_c.bias"])
    return h, (h, c, step + 1)


REFERENCES = {
    "no forget gate": ref_no_forget,
    "peepholes": ref_peepholes,
    "lstm 97": ref_lstm97(1, 2),
    "lstm 97, blocks of one": ref_lstm97(2, 1),
    "cho": ref_cho,
    "mgu": ref_mgu,
    "mingru": ref_mingru,
    "irnn": ref_irnn,
    "indrnn": ref_indrnn(0.0),
    "indrnn leaky": ref_indrnn(0.01),
    "indrnn prelu": ref_indrnn(None),
    "layer norm lstm": ref_layer_norm_lstm,
    "layer norm gru": ref_layer_norm_gru,
    "batch norm": ref_batch_norm,
}


def made(name, seed=0):
    """A float64 cell with every parameter at random, and a random state."""
    cell = CELLS[name](dtype=np.float64)
    draw = np.random.default_rng(seed)
    for parameter in cell.parameters():
        parameter.data = on_backend(0.7 * draw.standard_normal(parameter.shape)).data
    return cell, tg.nest.map_nest(
        lambda part: on_backend(draw.standard_normal(part.shape)) if part.dtype.kind == "f" else part,
        cell.init_state(BATCH),
    )


def arrays(cell):
    return {key: value.numpy() for key, value in cell.state_dict().items()}


def sequence(seed=1, shape=(STEPS, BATCH, INPUT)):
    return on_backend(np.random.default_rng(seed).standard_normal(shape))


def flat(state):
    return [part.numpy() if isinstance(part, tg.Tensor) else part for _, part in tg.nest.leaves(state)]


def as_function(cell, state, run=None):
    """Last output and last state of five steps, as a function of the first x, the state and the parameters.

    ``run`` begins a sequence: it returns what to call at each step.
    """
    parts = tg.nest.leaves(state)
    places = []
    for path, _ in cell.named_parameters():
        *above, last = path.split(".")
        owner = cell
        for step in above:
            owner = getattr(owner, step)
        places.append((owner, last))
    first, *others = sequence()

    def f(x, *arguments):
        given = iter(arguments)
        carried = tg.nest.map_nest(lambda part: next(given), state)
        for (owner, last), value in zip(places, given, strict=True):
            vars(owner)[last] = value
        step = cell if run is None else run()
        for each in (x, *others):
            y, carried = step(each, carried)
        return [y, *(part for _, part in tg.nest.leaves(carried))]

    inputs = [each.detach() for each in (first, *(part for _, part in parts), *cell.parameters())]
    for each in inputs:
        each.requires_grad = each.dtype.kind == "f"
    return f, inputs


def check_gradients(f, inputs):
    """First derivatives by each element; both orders along a random direction for each input, which is much faster."""
    if tg.get_backend().name == "numpy":
        assert tg.gradcheck(f, inputs)
    draw = np.random.default_rng(11)
    directions = [on_backend(draw.standard_normal(each.shape)) for each in inputs]
    rows = [on_backend(draw.standard_normal(result.shape)) for result in f(*inputs)]

    def along(*steps):
        given = iter(steps)
        moved = [
            each.detach() + next(given) * direction if each.requires_grad else each
            for each, direction in zip(inputs, directions, strict=True)
        ]
        results = f(*moved)
        return sum((r * row).sum() for r, row in zip(results, rows, strict=True) if r.dtype.kind == "f")

    steps = [on_backend(np.zeros(())) for each in inputs if each.requires_grad]
    for each in steps:
        each.requires_grad = True
    assert tg.gradcheck(along, steps)
    assert tg.gradgradcheck(along, steps)
