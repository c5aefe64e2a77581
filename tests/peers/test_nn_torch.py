"""Cells and layers against PyTorch's, whose state dicts load as they are: values, gradients, second gradients."""

from typing import Any

import numpy as np
import pytest
import torch

import tinygrad_rnn as tg
from tinygrad_rnn import nn

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
    ("GRUCell", {}),
    ("LSTMCell", {}),
]
cells = pytest.mark.parametrize(("name", "options"), CELLS, ids=str)


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Our cell and PyTorch's with the same weights, by its state dict."""
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, dtype=torch.float64, **options)
    ours = getattr(nn, name)(INPUT, HIDDEN, dtype=np.float64, generator=tg.Generator(0), **options)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    return ours, theirs


def arrays(name: str) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A sequence, an initial state, and a cotangent for every output and for the last state."""
    draw = np.random.default_rng(7)
    state = [draw.standard_normal((BATCH, HIDDEN)) for _ in range(2 if name == "LSTMCell" else 1)]
    return (
        draw.standard_normal((STEPS, BATCH, INPUT)),
        state,
        draw.standard_normal((STEPS + len(state), BATCH, HIDDEN)),
    )


def run_ours(cell: Any, xs: tg.Tensor, state: list[tg.Tensor], cotangent: np.ndarray) -> tg.Tensor:
    carried = state[0] if len(state) == 1 else tuple(state)
    outputs = []
    for x in xs:
        y, carried = cell(x, carried)
        outputs.append(y)
    last = carried if isinstance(carried, tuple) else (carried,)
    return (tg.stack([*outputs, *last]) * tg.Tensor(cotangent)).sum()


def run_theirs(cell: Any, xs: torch.Tensor, state: list[torch.Tensor], cotangent: np.ndarray) -> torch.Tensor:
    carried = state[0] if len(state) == 1 else tuple(state)
    outputs = []
    for x in xs:
        carried = cell(x, carried)
        outputs.append(carried[0] if isinstance(carried, tuple) else carried)
    last = carried if isinstance(carried, tuple) else (carried,)
    return (torch.stack([*outputs, *last]) * torch.tensor(cotangent)).sum()


@pytest.mark.parametrize("bias", [True, False])
@cells
def test_a_sequence_to_second_order(name: str, options: dict[str, Any], bias: bool) -> None:
    ours, theirs = pair(name, bias=bias, **options)
    xs, state, cotangent = arrays(name)
    sources = [tg.Tensor(a, requires_grad=True) for a in (xs, *state)]
    sources_t = [torch.tensor(a, requires_grad=True) for a in (xs, *state)]
    whole = run_ours(ours, sources[0], sources[1:], cotangent)
    whole_t = run_theirs(theirs, sources_t[0], sources_t[1:], cotangent)
    close(whole.item(), whole_t.item())

    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    sources += ours.parameters()
    sources_t += theirs.parameters()
    first = tg.grad(whole, sources, create_graph=True)
    first_t = torch.autograd.grad(whole_t, sources_t, create_graph=True)
    draw = np.random.default_rng(8)
    directions = [draw.standard_normal(a.shape) for a in sources]
    for a, b in zip(first, first_t, strict=True):
        close(a.numpy(), b.detach().numpy())

    slope = sum((g * tg.Tensor(v)).sum() for g, v in zip(first, directions, strict=True))
    slope_t = sum((g * torch.tensor(v)).sum() for g, v in zip(first_t, directions, strict=True))
    for a, b in zip(tg.grad(slope, sources), torch.autograd.grad(slope_t, sources_t), strict=True):
        close(a.numpy(), b.numpy())


@cells
def test_state_dicts_go_both_ways(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, **options)
    fresh = getattr(torch.nn, name)(INPUT, HIDDEN, dtype=torch.float64, **options)
    fresh.load_state_dict({key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()})
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(fresh.state_dict()[key].numpy(), value.numpy())


@cells
def test_state_left_out_is_zeros(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, **options)
    x = arrays(name)[0][0]
    state = theirs(torch.tensor(x))
    y, own = ours(tg.Tensor(x))
    if not isinstance(state, tuple):
        own, state = (own,), (state,)
    for a, b in zip((y, *own), (state[0], *state), strict=True):
        close(a.numpy(), b.detach().numpy())


def test_a_float32_cell_loads_and_agrees() -> None:
    torch.manual_seed(1)
    theirs = torch.nn.LSTMCell(INPUT, HIDDEN)
    ours = nn.LSTMCell(INPUT, HIDDEN)
    ours.load_state_dict(theirs.state_dict())
    x = arrays("LSTMCell")[0][0].astype(np.float32)
    y, (_, c) = ours(tg.Tensor(x))
    h_t, c_t = theirs(torch.tensor(x))
    np.testing.assert_allclose(y.numpy(), h_t.detach().numpy(), 1e-5, 1e-6)
    np.testing.assert_allclose(c.numpy(), c_t.detach().numpy(), 1e-5, 1e-6)


def test_hessian_vector_product_of_an_lstm() -> None:
    ours, theirs = pair("LSTMCell")
    xs, state, cotangent = arrays("LSTMCell")
    flat = [p.detach().numpy() for p in theirs.parameters()]
    vectors = [np.random.default_rng(9).standard_normal(p.shape) for p in flat]
    names = [key for key, _ in theirs.named_parameters()]

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        def cell(x: torch.Tensor, carried: Any) -> Any:
            return torch.func.functional_call(theirs, dict(zip(names, parameters, strict=True)), (x, carried))

        return run_theirs(cell, torch.tensor(xs), [torch.tensor(s) for s in state], cotangent)

    _, expected = torch.autograd.functional.hvp(
        loss, tuple(torch.tensor(p) for p in flat), tuple(torch.tensor(v) for v in vectors)
    )
    parameters = list(ours.parameters())
    value = run_ours(ours, tg.Tensor(xs), [tg.Tensor(s) for s in state], cotangent)
    slopes = tg.grad(value, parameters, create_graph=True)
    along = sum((g * tg.Tensor(v)).sum() for g, v in zip(slopes, vectors, strict=True))
    for a, b in zip(tg.grad(along, parameters), expected, strict=True):
        close(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Linear", (INPUT, 3)),
        ("Linear", (INPUT, 3, False)),
        ("LayerNorm", (INPUT,)),
        ("LayerNorm", ((3, INPUT), 1e-3)),
        ("LayerNorm", (INPUT, 1e-5, False)),
        ("LayerNorm", (INPUT, 1e-5, True, False)),
    ],
    ids=str,
)
def test_layer(name: str, args: tuple[Any, ...]) -> None:
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(*args, dtype=torch.float64)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours = getattr(nn, name)(*args, dtype=np.float64)
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(3).standard_normal((2, 3, INPUT))
    own, other = tg.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(own), theirs(other)
    close(y.numpy(), z.detach().numpy())
    cotangent = np.random.default_rng(4).standard_normal(y.shape)
    y.backward(cotangent)
    z.backward(torch.tensor(cotangent))
    for a, b in zip([own, *ours.parameters()], [other, *theirs.parameters()], strict=True):
        close(a.grad.numpy(), b.grad.numpy())


def test_embedding() -> None:
    theirs = torch.nn.Embedding(6, 3, padding_idx=2, dtype=torch.float64)
    ours = nn.Embedding(6, 3, padding_idx=2, dtype=np.float64)
    np.testing.assert_array_equal(ours.weight.numpy()[2], 0)
    ours.load_state_dict(theirs.state_dict())
    indices = [[1, 2], [2, 5], [5, 5]]
    y, z = ours(tg.Tensor(indices)), theirs(torch.tensor(indices))
    close(y.numpy(), z.detach().numpy())
    (y * y).sum().backward()
    (z * z).sum().backward()
    close(ours.weight.grad.numpy(), theirs.weight.grad.numpy())


def test_a_model_names_its_parameters_as_pytorch_does() -> None:
    def build(library: Any) -> Any:
        return library.Sequential(
            library.Embedding(6, 3),
            library.Sequential(library.Linear(3, 4), library.Dropout(0.1), library.LayerNorm(4)),
            library.ModuleList([library.GRUCell(4, 2), library.LSTMCell(2, 2)]),
        )

    ours, theirs = build(nn), build(torch.nn)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    ours.load_state_dict(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[key].numpy(), value.numpy())


def test_parameters_of_pytorch_that_need_a_gradient_are_refused_by_name() -> None:
    ours = nn.Linear(2, 2)
    before = ours.weight.numpy().copy()
    with pytest.raises(TypeError, match=r"the state's 'weight' is no array of numbers: .*detach"):
        ours.load_state_dict(dict(torch.nn.Linear(2, 2).named_parameters()))
    np.testing.assert_array_equal(ours.weight.numpy(), before)
