"""What a tensor is: dtypes, construction, and how it behaves among Python's and NumPy's own things."""

import copy
import functools
import pickle
from typing import Any

import numpy as np
import pytest
from helpers import gradient, leaf, on_backend

import tinygrad_rnn as tg

# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scalar", [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scalars_never_widen(backend: str, scalar: Any, dtype: Any) -> None:
    x = leaf([1.0, 2.0], dtype)
    results = [x + scalar, scalar + x, x * scalar, scalar / x, x - scalar, scalar - x, x**scalar, tg.maximum(x, scalar)]
    results += [tg.where(x > 1, x, scalar), tg.where(x > 1, scalar, x), tg.clip(x, scalar, scalar), x // scalar]
    assert [result.dtype for result in results] == [np.dtype(dtype)] * len(results)
    sum(results[:9], start=x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_lists_of_floats_take_the_dtype_of_the_other_operand(backend: str) -> None:
    for dtype in (np.float32, np.float64):
        x = leaf([1.0, 2.0], dtype)
        for result in (
            x.__add__([0.1, 0.2]),
            [0.1, 0.2] * x,
            x @ [0.1, 0.2],
            [0.1, 0.2] @ x,
            tg.where(x > 1, x, [0.1, 0.2]),
        ):
            assert (result.dtype, result.backend) == (dtype, backend)
    assert leaf([1.0, 2.0]).__add__([0.1, 0.2]).numpy()[0] == 1.1


def test_arrays_keep_their_dtype(backend: str) -> None:
    x32, x64 = leaf([1.0, 2.0], np.float32), leaf([1.0, 2.0])
    assert (x32 * x64).dtype == np.float64
    assert (x32 + tg.get_backend().ones(2)).dtype == np.float64
    (x32 * x64).sum().backward()
    assert gradient(x32) == [1.0, 2.0]
    assert gradient(x64) == [1.0, 2.0]


def test_ints_with_float32_are_float32_and_keep_their_kind_among_themselves(backend: str) -> None:
    ints, bools, x = on_backend([1, 2]), on_backend([True, False]), leaf([1.0, 2.0], np.float32)
    assert (ints.dtype.kind, bools.dtype.kind) == ("i", "b")
    for result in (
        ints * x,
        x - ints,
        bools * x,
        x / ints,
        tg.where(bools, x, ints),
        ints / 2,
        tg.exp(ints),
        ints + 0.5,
    ):
        assert result.dtype == np.float32
    assert [t.dtype.kind for t in (ints + ints, ints * 2, ints // 2, bools * ints, ints.sum())] == ["i"] * 5
    assert [t.dtype.kind for t in (ints > 1, bools & bools, ~bools)] == ["b"] * 3
    assert (ints / ints).dtype == np.float32
    assert ints.mean().dtype == np.float32
    assert (ints * leaf([1.0, 2.0])).dtype == np.float64
    (ints * x).sum().backward()
    assert gradient(x) == [1.0, 2.0]


def test_float64_stays_float64_in_an_array_whose_dtype_is_an_object_of_its_own() -> None:
    array = pickle.loads(pickle.dumps(np.array([1.0, 2.0])))
    x = tg.Tensor(array)
    for result in (x.sum(), x.mean(), x.max(), tg.concatenate([x, x]), tg.where(x > 1, x, 0.0), 1 / x, tg.erf(x)):
        assert result.dtype == np.float64


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.0, np.float32),
        ([1.0, 2.0], np.float32),
        ([[1, 2.0]], np.float32),
        ((1.5,), np.float32),
        (np.float64(1), np.float32),
        ([np.float64(1)], np.float32),
        (3, np.int64),
        ([1, 2], np.int64),
        (True, np.bool_),
        ([], np.float32),
        (np.ones(2), np.float64),
        (np.ones(2, np.float32), np.float32),
        (np.ones(2, np.uint8), np.uint8),
        (np.array(1.0), np.float64),
    ],
    ids=repr,
)
def test_dtype_of_a_new_tensor(data: Any, dtype: Any) -> None:
    assert tg.Tensor(data).dtype == dtype
    assert tg.Tensor(data, dtype=np.float64).dtype == np.float64


def test_a_tensor_shares_the_memory_of_an_array() -> None:
    array = np.ones(3)
    x = tg.Tensor(array)
    assert x.data is array
    assert x.numpy() is array
    assert np.asarray(x) is array
    assert tg.Tensor(x).data is array
    assert not np.shares_memory(tg.Tensor(array, dtype=np.float32).data, array)
    assert np.array(x, dtype=np.float32).dtype == np.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "NoneType"),
        ("abc", "str"),
        ([[1.0], [1.0, 2.0]], "list"),
        (1j, "complex"),
        (np.array([1j]), "complex128"),
        ({"a": 1}, "dict"),
        ([None], "list"),
        (np.array(["a"]), "ndarray"),
        pytest.param(object(), "object", id="an object"),
    ],
    ids=repr,
)
def test_what_is_no_tensor(backend: str, data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tg.Tensor(data)


def test_ints_and_bools_cannot_require_gradients(backend: str) -> None:
    for data in ([1, 2], True, np.arange(3)):
        with pytest.raises(TypeError, match="only floating-point tensors can require gradients, got dtype"):
            tg.Tensor(data, requires_grad=True)
    assert tg.Tensor([1, 2], requires_grad=True, dtype=np.float32).requires_grad
    with pytest.raises(TypeError, match="complex"):
        tg.Tensor([1.0], dtype=np.complex64)


def test_repr_shows_values_dtype_backend_and_origin(backend: str) -> None:
    x = leaf([1.0, 2.5], np.float32)
    assert repr(x) == f"tensor([1. , 2.5], dtype=float32, backend={backend}, requires_grad=True)"
    assert repr(x * 2) == f"tensor([2., 5.], dtype=float32, backend={backend}, op=multiply)"
    assert repr(on_backend(3)) == f"tensor(3, dtype=int64, backend={backend})"
    assert "op=unstack" in repr(tg.unstack(leaf([[1.0]]))[0])
    big = repr(tg.zeros((100, 100)))
    assert "..." in big
    assert "shape=(100, 100)" in big
    assert "shape=(0, 3)" in repr(tg.zeros((0, 3)))
    y = x * 2
    y.sum().backward()
    assert "op=multiply" in repr(y)  # a freed graph's tensors can still be shown
    freed = tg.unstack(leaf([[1.0]]))[0]
    freed.sum().backward()
    repr(freed)


def test_html_repr(backend: str) -> None:
    html = (leaf([[1.0, 2.0]]) * 2)._repr_html_()
    assert f"1×2 · float64 · {backend}" in html
    assert "<td>4</td>" in html
    assert "<code>multiply</code>" in html
    assert "requires grad" in leaf(1.0)._repr_html_()
    assert "scalar" in leaf(1.0)._repr_html_()
    assert "<td>" not in tg.zeros((30, 30))._repr_html_()
    assert "<td>True</td>" in on_backend([True])._repr_html_() or "<td>1</td>" in on_backend([True])._repr_html_()


def test_iteration_and_len(backend: str) -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert len(x) == 3
    rows = list(x)
    assert [row.numpy().tolist() for row in rows] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    (rows[1] * 2).sum().backward()
    assert gradient(x) == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]
    a, _, c = x
    (a + c).sum().backward()
    assert list(tg.zeros((0, 2))) == []
    with pytest.raises(TypeError, match="len"):
        len(leaf(1.0))
    with pytest.raises(TypeError, match="iteration over a 0-d tensor"):
        iter(leaf(1.0))


def test_one_element_as_a_python_number(backend: str) -> None:
    x = on_backend([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert not on_backend(0.0)
    assert type(on_backend(3).item()) is int
    assert ["a", "b", "c"][on_backend(1)] == "b"
    several = on_backend([1.0, 2.0])
    for convert in (lambda t: t.item(), float, int):
        with pytest.raises(ValueError, match=r"one element, got shape \(2,\)"):
            convert(several)
    with pytest.raises(ValueError, match=r"shape \(2,\) is ambiguous; use tg.any or tg.all"):
        bool(several)
    with pytest.raises(TypeError, match="only a tensor of one int"):
        range(on_backend(1.0))


def test_comparison_is_by_element_and_hash_by_identity(backend: str) -> None:
    x, y = on_backend([1.0, 2.0]), on_backend([1.0, 3.0])
    assert (x == y).numpy().tolist() == [True, False]
    assert (x != y).numpy().tolist() == [False, True]
    assert (x < y).numpy().tolist() == [False, True]
    assert (x == 1).numpy().tolist() == [True, False]
    assert len({x, y, x}) == 2
    assert {x: "a"}[x] == "a"


def test_writing_in_place_is_refused_with_the_remedy(backend: str) -> None:
    x = leaf([1.0, 2.0])
    for index in (0, slice(None), x > 1):
        with pytest.raises(TypeError, match=r"tg\.where.*tg\.scatter_add"):
            x[index] = 0.0
    before = y = x * 1
    y += 1
    assert before.numpy().tolist() == [1.0, 2.0]
    assert y.numpy().tolist() == [2.0, 3.0]


def test_numpy_arrays_and_scalars_on_the_left() -> None:
    x = leaf([1.0, 2.0])
    array = np.array([3.0, 4.0])
    results = [array + x, array * x, array - x, array / x, array**x, array @ x, array < x, np.float64(2) * x]
    assert all(isinstance(result, tg.Tensor) for result in results)
    assert results[2].numpy().tolist() == [2.0, 2.0]
    assert results[6].numpy().tolist() == [False, False]
    (array * x + array).sum().backward()
    assert gradient(x) == [3.0, 4.0]
    with pytest.raises(TypeError):
        np.exp(x)
    with pytest.raises(TypeError):
        array += x


def test_device_arrays_on_the_left(backend: str) -> None:
    x = leaf([1.0, 2.0])
    array = on_backend([3.0, 4.0]).data
    results = [array + x, array * x, array - x, array / x, array**x, array @ x, array < x]
    assert all(isinstance(result, tg.Tensor) and result.backend == backend for result in results)
    (array * x).sum().backward()
    assert gradient(x) == [3.0, 4.0]


def test_properties(backend: str) -> None:
    x = leaf(np.ones((2, 3)), np.float32)
    assert (x.shape, x.ndim, x.size, x.dtype, x.backend) == ((2, 3), 2, 6, np.float32, backend)
    assert x.T.shape == (3, 2)
    assert +x is x
    assert functools.reduce(lambda a, b: a * b, [x, x]).shape == (2, 3)


def test_a_list_of_tensors_would_lose_their_gradients() -> None:
    with pytest.raises(TypeError, match=r"tg\.stack"):
        tg.Tensor([leaf(1.0), leaf(2.0)])


def test_a_copied_module_has_its_own_graph() -> None:
    layer = tg.nn.Linear(2, 1)
    x = on_backend(np.ones((1, 2), np.float32))
    alive = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other(x).sum().backward()
        assert other.weight.grad is not None
        assert layer.weight.grad is None
    with pytest.raises(RuntimeError, match=r"detach\(\) it first"):
        copy.deepcopy(alive)
