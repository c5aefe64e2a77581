"""Modules and cells: what they compute, list, load, move, show and refuse."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim, tape

CELLS = {
    "rnn": lambda **k: nn.RNNCell(3, 2, **k),
    "relu": lambda **k: nn.RNNCell(3, 2, nonlinearity="relu", **k),
    "silu": lambda **k: nn.RNNCell(3, 2, nonlinearity=tg.functional.silu, **k),
    "gru": lambda **k: nn.GRUCell(3, 2, **k),
    "lstm": lambda **k: nn.LSTMCell(3, 2, **k),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def unrolled(cell, state=None, steps=5):
    """A function of the weights: their names' values in, a sum over the outputs of ``steps`` out."""
    names = [name for name, _ in cell.named_parameters()]
    xs = on_backend(np.random.default_rng(3).standard_normal((steps, 2, 3)))

    def f(*weights):
        for name, weight in zip(names, weights, strict=True):
            cell.__dict__[name] = weight
        h, outputs = state, []
        for x in tg.unstack(xs):
            y, h = cell(x, h)
            outputs.append(y)
        return tg.stack(outputs)

    return f, [parameter.detach() for parameter in cell.parameters()]


@every_cell
def test_gradients_through_five_steps(name, backend):
    cell = CELLS[name](dtype=np.float64, generator=tg.Generator(4))
    f, weights = unrolled(cell)
    for weight in weights:
        weight.requires_grad = True
    assert tg.gradcheck(f, weights)
    assert tg.gradgradcheck(f, weights)


@every_cell
@pytest.mark.parametrize("bias", [True, False])
def test_names_shapes_and_initial_values(name, bias, backend):
    cell = CELLS[name](bias=bias)
    gates = cell.gates
    shapes = {key: value.shape for key, value in cell.state_dict().items()}
    expected = {"weight_ih": (2 * gates, 3), "weight_hh": (2 * gates, 2)}
    assert shapes == expected | ({"bias_ih": (2 * gates,), "bias_hh": (2 * gates,)} if bias else {})
    for block in np.split(cell.weight_hh.numpy(), gates):
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-6)
    if bias:
        forget = [1] * 2 if name == "lstm" else [0] * 2
        assert cell.bias_ih.numpy().tolist() == ([0, 0, *forget, 0, 0, 0, 0] if name == "lstm" else [0] * 2 * gates)
    y, state = cell(tg.zeros((4, 3)))
    assert y.shape == (4, 2)
    assert y.backend == backend
    assert cell(tg.zeros((4, 3)), state)[0].shape == (4, 2)


def test_cells_by_their_equations(backend):
    x, h, c = (on_backend(np.random.default_rng(0).standard_normal(s)) for s in ((2, 3), (2, 2), (2, 2)))
    cell = nn.LSTMCell(3, 2, dtype=np.float64)
    w, u, b = (p.numpy() for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    i, f, g, o = np.split(x.numpy() @ w.T + h.numpy() @ u.T + b, 4, axis=1)
    c_next = sigmoid(f) * c.numpy() + sigmoid(i) * np.tanh(g)
    y, (h_next, c_ours) = cell(x, (h, c))
    np.testing.assert_allclose(c_ours.numpy(), c_next)
    np.testing.assert_allclose(y.numpy(), sigmoid(o) * np.tanh(c_next))
    assert h_next is y
    cell = nn.GRUCell(3, 2, dtype=np.float64)
    w, u = cell.weight_ih.numpy(), cell.weight_hh.numpy()
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (np.split(v, 3, axis=1) for v in (x.numpy() @ w.T, h.numpy() @ u.T))
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = np.tanh(n_x + r * n_h)
    np.testing.assert_allclose(cell(x, h)[0].numpy(), (1 - z) * n + z * h.numpy())


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_stacked_gates_are_multiplied_once(name):
    cell = CELLS[name]()
    products = []
    with tape.listen(lambda rule, *_: products.append(rule.name) if rule.name == "matmul" else None):
        cell(tg.zeros((1, 3)))
    assert len(products) == 2


def test_hessian_vector_products_of_an_lstm(backend):
    cell = nn.LSTMCell(3, 2, dtype=np.float64, generator=tg.Generator(0))
    f, weights = unrolled(cell)
    vectors = [on_backend(np.random.default_rng(k).standard_normal(w.shape)) for k, w in enumerate(weights)]

    def gradient(step):
        at = [tg.Tensor((w + step * v).data, requires_grad=True) for w, v in zip(weights, vectors, strict=True)]
        return at, tg.grad(tg.square(f(*at)).sum(), at, create_graph=True)

    at, first = gradient(0.0)
    product = tg.grad(sum((g * v).sum() for g, v in zip(first, vectors, strict=True)), at)
    step = 1e-5
    for ours, above, below in zip(product, gradient(step)[1], gradient(-step)[1], strict=True):
        np.testing.assert_allclose(ours.numpy(), (above - below).numpy() / (2 * step), atol=1e-7)


class Own(nn.Module):
    def __init__(self, inputs, hidden):
        self.x, self.h = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x, h):
        h = tg.tanh(self.x(x) + self.h(h))
        return h, h


def test_a_cell_of_ones_own_learns(backend):
    tg.manual_seed(0)
    model = nn.Sequential(Own(2, 8), nn.Linear(8, 1))
    cell, readout = model
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    losses = []
    generator = tg.Generator(1)
    for _ in range(60):
        xs = generator.normal((4, 16, 2))
        h = tg.zeros((16, 8))
        for x in tg.unstack(xs):
            y, h = cell(x, h)
        loss = tg.functional.mse_loss(readout(y)[:, 0], xs[2, :, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


def test_the_tree_of_a_module():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Dropout(0.1), nn.ModuleList([shared, nn.Linear(2, 1)]))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.1.weight", "2.1.bias"]
    assert list(model.state_dict()) == [f"{p}.{k}" for p in ("0", "2.0", "2.1") for k in ("weight", "bias")]
    assert [name for name, _ in model.named_modules()] == ["", "0", "1", "2", "2.0", "2.1"]
    assert model[-1][1].weight.shape == (1, 2)
    assert not model.eval()[1].training
    assert model.train()[1].training
    assert all(not p.requires_grad for p in model.requires_grad_(False).parameters())
    seen = []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "Dropout", "Linear", "Linear", "ModuleList", "Sequential"]
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.GRUCell(3, 2, bias=False))).split("\n") == [
        "Sequential()  # 39 parameters",
        "  (0): Linear(2, 3)  # 9 parameters",
        "  (1): GRUCell(3, 2, bias=False)  # 30 parameters",
    ]


def test_buffers_are_saved_and_moved_and_not_learned(backend):
    layer = nn.Linear(2, 2)
    layer.register_buffer("mean", tg.ones(2))
    assert [name for name, _ in layer.named_buffers()] == ["mean"]
    assert "mean" not in dict(layer.named_parameters())
    layer.mean = layer.mean * 3
    assert layer.state_dict()["mean"].numpy().tolist() == [3, 3]
    assert layer.to(dtype=np.float64).mean.dtype == np.float64
    assert layer.to("numpy").weight.backend == "numpy"


def test_loading_lists_every_problem_and_changes_nothing(backend):
    layer = nn.Linear(2, 3)
    before = {name: value.numpy().copy() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=r"bias: expected \(3,\), got \(2,\).*missing: weight.*unexpected: other"):
        layer.load_state_dict({"bias": [1.0, 2.0], "other": [1.0]})
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert layer.load_state_dict({"bias": [1, 2, 3], "other": 0}, strict=False) == (["weight"], ["other"])
    assert layer.bias.numpy().tolist() == [1, 2, 3]
    assert layer.bias.dtype == np.float32


def test_loading_between_forward_and_backward_is_noticed(backend):
    layer = nn.Linear(2, 1)
    loss = layer(tg.Tensor(on_backend(np.ones((1, 2), np.float32)), requires_grad=True)).sum()
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"Linear\.weight.*changed in place"):
        loss.backward()


def test_loading_ones_own_values_exchanged(backend):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = model.state_dict()
    first, second = state["0.weight"].numpy().copy(), state["1.weight"].numpy().copy()
    model.load_state_dict(state | {"0.weight": state["1.weight"], "1.weight": state["0.weight"]})
    np.testing.assert_array_equal(model[0].weight.numpy(), second)
    np.testing.assert_array_equal(model[1].weight.numpy(), first)


def test_zero_grad(backend):
    layer = nn.Linear(2, 1)
    layer(tg.ones((1, 2))).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    assert layer.weight.grad is None


@every_cell
def test_one_seed_one_cell(name, backend):
    a, b, c = (CELLS[name](generator=tg.Generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.weight_ih.numpy(), b.weight_ih.numpy())
    np.testing.assert_array_equal(a.weight_hh.numpy(), b.weight_hh.numpy())
    assert (a.weight_ih.numpy() != c.weight_ih.numpy()).any()
    tg.manual_seed(3)
    d = CELLS[name]()
    tg.manual_seed(3)
    np.testing.assert_array_equal(d.weight_ih.numpy(), CELLS[name]().weight_ih.numpy())


def test_layers(backend):
    x = on_backend(np.random.default_rng(0).standard_normal((4, 3)), np.float32)
    linear = nn.Linear(3, 2)
    np.testing.assert_allclose(linear(x).numpy(), x.numpy() @ linear.weight.numpy().T + linear.bias.numpy(), rtol=1e-5)
    normed = nn.LayerNorm(3)(x).numpy()
    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std(axis=1), 1, atol=1e-3)
    embedding = nn.Embedding(5, 2, padding_idx=1)
    assert not embedding([1, 1]).numpy().any()
    np.testing.assert_array_equal(embedding([[0, 4]]).numpy()[0], embedding.weight.numpy()[[0, 4]])
    drop = nn.Dropout(0.5, generator=tg.Generator(0))
    assert (drop(x).numpy() == 0).any()
    assert drop.eval()(x) is x


def x32(*shape):
    return tg.Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.LSTMCell(3, 2)(x32(4, 5)), ValueError, r"LSTMCell\.weight_ih.*\(batch, 3\), got .*\(4, 5\)"),
        (lambda: nn.GRUCell(3, 2)(x32(4, 3), x32(1, 2)), ValueError, r"GRUCell\.weight_hh.*\(4, 2\).*got .*\(1, 2\)"),
        (lambda: nn.LSTMCell(3, 2)(x32(4, 3), x32(4, 2)), (TypeError, ValueError), "LSTMCell.*state"),
        (lambda: nn.LSTMCell(3, 2)(x32(4, 3), (x32(4, 2),) * 3), (TypeError, ValueError), "LSTMCell.*state"),
        (lambda: nn.LSTMCell(3, 2)(x32(4, 3).astype(np.float64)), TypeError, "float32.*float64"),
        (lambda: nn.Linear(3, 2)(x32(4, 2)), ValueError, r"Linear\.weight.*3 features, got .*\(4, 2\)"),
        (lambda: nn.RNNCell(3, 0), ValueError, "hidden_size must be at least 1, got 0"),
        (lambda: nn.RNNCell(3, 2, nonlinearity="sin"), ValueError, "'tanh', 'relu' or a function, got 'sin'"),
        (lambda: nn.Dropout(-0.1), ValueError, "p must be from 0 to 1"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, "padding_idx must be an index below 3"),
        (lambda: nn.Linear(2, 2).to(dtype=np.int64), TypeError, "floating-point dtype, got int64"),
        (lambda: nn.Linear(2, 2).to("tpu"), ValueError, "backend must be one of.*'tpu'"),
        (lambda: nn.ModuleList([1]), TypeError, "holds modules, got int"),
        (lambda: nn.Module()(1), NotImplementedError, "Module has no forward"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_activations_stand_for_the_tanh(backend):
    """With a linear activation the state is a product of gates and sums, which NumPy finds again."""
    x, h = on_backend(np.array([[0.3, -0.2, 0.5]])), on_backend(np.array([[0.4, -0.6]]))
    linear = {"activation": lambda a: 2 * a, "dtype": np.float64, "generator": tg.Generator(3)}

    def sums(cell, gates):
        values = x.numpy() @ cell.weight_ih.numpy().T + cell.bias_ih.numpy(), h.numpy() @ cell.weight_hh.numpy().T
        return [np.split(part, gates, axis=1) for part in values]

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    cell = nn.GRUCell(3, 2, **linear)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = sums(cell, 3)
    n, z = 2 * (n_x + sigmoid(r_x + r_h) * n_h), sigmoid(z_x + z_h)
    np.testing.assert_allclose(cell(x, h)[0].numpy(), (1 - z) * n + z * h.numpy(), rtol=1e-12)
    cell = nn.LSTMCell(3, 2, **linear)
    i, f, g, o = [a + b for a, b in zip(*sums(cell, 4), strict=True)]
    c = sigmoid(f) * h.numpy() + sigmoid(i) * 2 * g
    np.testing.assert_allclose(cell(x, (h, h))[0].numpy(), sigmoid(o) * 2 * c, rtol=1e-12)
    learned = nn.LSTMCell(3, 2, activation=nn.PReLU(2))
    assert [name for name, _ in learned.named_parameters()][-1] == "activation.weight"


def test_to_moves_gradients_too(backend):
    cell = nn.GRUCell(3, 2)
    cell(on_backend(np.ones((1, 3), np.float32)))[0].sum().backward()
    before = cell.weight_ih.grad.numpy()
    cell.to(dtype=np.float64)
    assert cell.weight_ih.grad.dtype == np.float64
    np.testing.assert_array_equal(cell.weight_ih.grad.numpy(), before)


def test_a_state_of_another_dtype_is_refused(backend):
    x, h = on_backend(np.ones((1, 3), np.float32)), on_backend(np.ones((1, 2)))
    with pytest.raises(TypeError, match=r"is float32 and h is float64: convert the state, h\.astype\('float32'\)"):
        nn.GRUCell(3, 2)(x, h)
