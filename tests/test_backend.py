"""Where data lives: choosing a backend, moving between them, what each computes, and what waits for the device."""

import asyncio
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import strict
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_rnn as tg
from tinygrad_rnn import backend as backends


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def leaf(array: Any) -> tg.Tensor:
    """A float32 leaf on the current backend."""
    return tg.Tensor(tg.get_backend().asarray(np.asarray(array, np.float32)), requires_grad=True)


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_new_tensors_are_made_on_the_backend_in_use(backend: str) -> None:
    made = [tg.Tensor([1.0]), tg.Tensor(3), tg.zeros(2), tg.arange(3), tg.Generator(0).uniform((2,))]
    assert [tensor.backend for tensor in made] == [backend] * len(made)
    assert type(tg.Tensor([1.0]).data) is tg.get_backend().array_type


def test_arrays_stay_where_they_are(backend: str) -> None:
    assert tg.Tensor(np.ones(2)).backend == "numpy"
    assert tg.Tensor(strict.asarray(1.0)).backend == "strict"


def test_operations_run_where_their_operands_are(backend: str) -> None:
    x = tg.Tensor([1.0, 2.0])
    with tg.use_backend("strict" if backend == "numpy" else "numpy"):
        assert (tg.exp(x) * 2).sum().backend == backend


def test_set_backend_sets_the_process_default() -> None:
    before = tg.get_backend().name
    try:
        tg.set_backend("strict")
        assert tg.zeros(1).backend == "strict"
        with tg.use_backend("numpy"):
            assert tg.zeros(1).backend == "numpy"
        seen = in_thread(lambda: tg.zeros(1).backend)
        assert seen == "strict"
    finally:
        tg.set_backend(before)
    assert tg.zeros(1).backend == before


@pytest.mark.parametrize("choose", [tg.set_backend, lambda name: tg.use_backend(name).__enter__()])
def test_an_unknown_backend_is_refused_and_changes_nothing(choose: Callable[[str], Any]) -> None:
    before = tg.get_backend()
    with pytest.raises(ValueError, match=r"backend must be one of .*'cupy', 'numpy'.*, got 'torch'"):
        choose("torch")
    assert tg.get_backend() is before


def test_use_backend_ends_with_an_exception_too() -> None:
    before = tg.get_backend()
    with pytest.raises(KeyError), tg.use_backend("strict"):
        raise KeyError
    assert tg.get_backend() is before


def test_the_environment_sets_the_default() -> None:
    code = "import tinygrad_rnn as tg; print(tg.zeros(1).backend)"
    assert python(code, TINYGRAD_RNN_BACKEND="numpy").stdout == "numpy\n"
    wrong = python(code, TINYGRAD_RNN_BACKEND="jax")
    assert wrong.returncode == 1
    assert "ValueError: the environment variable TINYGRAD_RNN_BACKEND: backend must be one of" in wrong.stderr
    assert "'jax'" in wrong.stderr


def test_without_cupy_the_error_names_the_extra() -> None:
    block = "import sys; sys.modules['cupy'] = None; import tinygrad_rnn as tg; "
    for code, environment in (
        (block + "tg.set_backend('cupy')", {}),
        (block + "tg.Tensor([1.0]).to('cupy')", {}),
        (block + "tg.zeros(1)", {"TINYGRAD_RNN_BACKEND": "cupy"}),
    ):
        result = python(code, **environment)
        assert result.returncode == 1
        assert "ImportError: the cupy backend needs CuPy: pip install 'tinygrad_rnn[cuda12]'" in result.stderr


def test_import_imports_none_of_the_extras() -> None:
    code = "import sys; import tinygrad_rnn; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = python(code)
    assert result.returncode == 0, result.stderr
    extras = {"cupy", "scipy", "numba", "matplotlib", "tqdm", "safetensors", "torch"}
    loaded = set(result.stdout.split())
    assert "numpy" in loaded
    assert loaded & extras == set()


# --- scoping ----------------------------------------------------------------------------------------------------------


def in_thread(run: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    return results[0]


def recorded() -> bool:
    return (leaf([1.0]) * 2).requires_grad


def test_use_backend_and_no_grad_hold_for_their_own_thread_alone() -> None:
    with tg.use_backend("strict"), tg.no_grad():
        assert (tg.zeros(1).backend, recorded()) == ("strict", False)
        assert in_thread(lambda: (tg.zeros(1).backend, recorded())) == ("numpy", True)


def test_use_backend_and_no_grad_hold_for_their_own_task_alone() -> None:
    async def inside(entered: asyncio.Event, checked: asyncio.Event) -> tuple[str, bool]:
        with tg.use_backend("strict"), tg.no_grad():
            entered.set()
            await checked.wait()
            return tg.zeros(1).backend, recorded()

    async def outside(entered: asyncio.Event, checked: asyncio.Event) -> tuple[str, bool]:
        await entered.wait()
        try:
            return tg.zeros(1).backend, recorded()
        finally:
            checked.set()

    async def both() -> list[tuple[str, bool]]:
        events = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(inside(*events), outside(*events)))

    assert asyncio.run(both()) == [("strict", False), ("numpy", True)]


# --- moving -----------------------------------------------------------------------------------------------------------


def test_mixing_two_backends_names_both_and_the_remedy() -> None:
    a, b = tg.Tensor(np.ones(2)), tg.Tensor(strict.asarray(np.ones(2)))
    mixes: list[Callable[[], Any]] = [
        lambda: a + b,
        lambda: b @ a,
        lambda: tg.concatenate([a, b]),
        lambda: tg.where(a > 0, b, b),
        lambda: a + strict.asarray(1.0),
        lambda: tg.einsum("i,i->", a, b),
        lambda: b[tg.Tensor(np.array([0]))],
    ]
    for mix in mixes:
        with pytest.raises(TypeError, match=r"numpy.*strict.*\.to\(|strict.*numpy.*\.to\("):
            mix()


def test_to_keeps_values_dtype_and_gradients(backend: str) -> None:
    x = tg.Tensor(np.array([1.0, -2.0]), requires_grad=True)
    there = x.to(backend)
    assert (there.backend, there.dtype) == (backend, np.float64)
    back = (there * there).to("numpy", np.float32)
    assert (back.backend, back.dtype) == ("numpy", np.float32)
    assert back.numpy().tolist() == [1.0, 4.0]
    (back * 3).sum().backward()
    assert x.grad is not None
    assert (x.grad.backend, x.grad.dtype) == ("numpy", np.float64)
    assert x.grad.numpy().tolist() == [6.0, -12.0]


def test_second_derivatives_pass_through_a_move(backend: str) -> None:
    x = tg.Tensor(np.array([1.0, -2.0]), requires_grad=True)
    y = (x.to(backend) ** 3).to("numpy").sum()
    first = tg.grad(y, x, create_graph=True)
    assert first.backend == "numpy"
    assert tg.grad(first.sum(), x).numpy().tolist() == [6.0, -12.0]


def test_to_where_it_is_already_is_the_tensor_itself(backend: str) -> None:
    x = tg.zeros(2)
    assert x.to(backend) is x
    assert x.to(backend, np.float32) is x
    assert x.to() is x


def test_numpy_gives_the_host_a_copy_or_the_memory_itself(backend: str) -> None:
    x = tg.zeros(2)
    x.numpy()[0] = 5
    assert x[0].item() == (5 if backend == "numpy" else 0)


def test_no_implicit_copy_to_the_host() -> None:
    x = tg.Tensor(strict.asarray(np.ones(2)))
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        np.asarray(x)
    with pytest.raises(TypeError, match=r"numpy and strict"):
        np.ones(2) + x


# --- what a backend computes ------------------------------------------------------------------------------------------


def points(dtype: Any) -> np.ndarray:
    """From the smallest subnormal to the largest number, of either sign, most of them where something happens."""
    limits = np.finfo(dtype)
    rng = np.random.default_rng(0)
    magnitudes = np.concatenate(
        [
            np.geomspace(float(limits.smallest_subnormal) * 8, float(limits.max) / 8, 1500),
            rng.uniform(0, 8, 2500),
            rng.uniform(8, 760, 500),
            [0.0, 0.5, 1.0, 4.0, np.nextafter(0.5, 1), np.nextafter(4, 5)],
        ]
    )
    return np.concatenate([magnitudes, -magnitudes]).astype(dtype)


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Error in units of the last place; subnormal numbers count as the smallest normal one's."""
    scale = np.maximum(np.abs(exact), float(np.finfo(got.dtype).tiny)).astype(got.dtype)
    return np.abs(got.astype(np.float64) - exact) / np.spacing(scale).astype(np.float64)


def compute(function: str, x: np.ndarray) -> np.ndarray:
    F = tg.get_backend()
    return F.to_numpy(getattr(F, function)(F.asarray(x)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_is_right_to_a_few_ulps_everywhere(backend: str, dtype: Any) -> None:
    x = points(dtype)
    got = compute("erf", x)
    assert got.dtype == dtype
    assert ulps(got, np.array([math.erf(v) for v in x.tolist()])).max() <= 4
    assert compute("erf", np.array([np.inf, -np.inf, np.nan], dtype)).tolist()[:2] == [1.0, -1.0]
    assert np.isnan(compute("erf", np.array([np.nan], dtype))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_right_to_a_few_ulps_everywhere(backend: str, dtype: Any) -> None:
    x = points(dtype)
    with localcontext(prec=40):
        exact = np.array([float(1 / (1 + Decimal(max(-v, -1e4)).exp())) if v > -1e4 else 0.0 for v in x.tolist()])
    got = compute("sigmoid", x)
    assert got.dtype == dtype
    # Where exp(-x) overflows the result is 0; the exact one is then below the smallest normal number.
    normal = exact >= float(np.finfo(dtype).tiny)
    assert ulps(got, exact)[normal].max() <= 4
    assert np.abs(got - exact)[~normal].max() <= float(np.finfo(dtype).tiny)
    assert compute("sigmoid", np.array([np.inf, -np.inf], dtype)).tolist() == [1.0, 0.0]
    assert np.isnan(compute("sigmoid", np.array([np.nan], dtype))).all()


@pytest.mark.parametrize("draw", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_depend_on_the_key_alone(backend: str, draw: str, dtype: Any) -> None:
    F = tg.get_backend()

    def numbers(key: tuple[int, int], shape: tuple[int, ...] = (3, 400)) -> np.ndarray:
        result = getattr(F, draw)(key, shape, dtype)
        assert type(result) is F.array_type or shape == ()
        return F.to_numpy(F.asarray(result))

    first = numbers((7, 1))
    assert (first.shape, first.dtype) == ((3, 400), dtype)
    numbers((7, 2))
    np.testing.assert_array_equal(numbers((7, 1)), first)
    for other in ((7, 2), (1, 7), (8, 1), (2**63 - 1, 1)):
        assert abs(np.corrcoef(numbers(other).ravel(), first.ravel())[0, 1]) < 0.15  # 5 standard deviations of 1200
    mean, spread = (0.5, 12**-0.5) if draw == "uniform" else (0.0, 1.0)
    assert abs(first.mean() - mean) < 5 * spread / 1200**0.5
    assert abs(first.std() - spread) < 0.1
    if draw == "uniform":
        assert 0 <= first.min() <= first.max() < 1
    assert numbers((7, 1), ()).shape == ()
    assert numbers((7, 1), (0, 2)).shape == (0, 2)


def indices() -> st.SearchStrategy[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """A shape, and an index of one or more int arrays into it with slices among them."""

    @st.composite
    def build(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        of_index = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
        count = math.prod(of_index)
        index: list[Any] = []
        for length in shape[: draw(st.integers(1, len(shape)))]:
            if draw(st.booleans()):
                numbers = draw(st.lists(st.integers(-length, length - 1), min_size=count, max_size=count))
                index.append(np.array(numbers, dtype=draw(st.sampled_from([np.int64, np.int32]))).reshape(of_index))
            else:
                index.append(slice(None, None, draw(st.sampled_from([1, 2, -1]))))
        return shape, tuple(index)

    return build()


@given(indices(), st.sampled_from([np.float32, np.float64]))
def test_place_adds_like_numpys_add_at(backend: str, case: Any, dtype: Any) -> None:
    shape, index = case
    F = tg.get_backend()
    expected = np.zeros(shape, dtype)
    values = np.random.default_rng(1).integers(-9, 9, expected[index].shape).astype(dtype)
    np.add.at(expected, index, values)
    arrays = [F.asarray(item) for item in index if isinstance(item, np.ndarray)]
    static = tuple(backends.HOLE if isinstance(item, np.ndarray) else item for item in index)
    placed = F.place(F.asarray(values), *arrays, shape=shape, index=static)
    np.testing.assert_array_equal(F.to_numpy(placed), expected)
    assert placed.dtype == dtype


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((3, 4), (np.array([2, 2, -1, 2]),)),
        ((3, 4), (np.array([[0, 0], [-3, 1]]),)),
        ((3, 4), (np.array([], dtype=np.int64),)),
        ((0, 4), (np.array([], dtype=np.int64),)),
        ((3, 0), (np.array([1, 1]),)),
        ((5,), (np.array([4, 4, 4]),)),
        ((3, 4), (np.array([1, 1]), np.array([-1, 3]))),
        ((3, 4), (np.array([[True, False, True, True]] * 3),)),
        ((3, 4), (np.array([True, False, True]),)),
        ((3, 4), (np.array(1),)),
        ((3, 4), (np.array([2, 2], dtype=np.uint8),)),
        ((3, 4, 2), (slice(None), np.array([0, 0]), np.array([1, 1]))),
        ((3, 4, 2), (np.array([0, 0]), slice(None), np.array([1, 1]))),
        ((3, 4, 2), (np.array([0, 0]), 2, None)),
    ],
)
def test_add_at_adds_like_numpys(backend: str, shape: tuple[int, ...], index: tuple[Any, ...]) -> None:
    F = tg.get_backend()
    expected = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    ours = F.asarray(expected.copy())
    values = np.arange(1.0, 1 + expected[index].size).reshape(expected[index].shape)
    np.add.at(expected, index, values)
    F.add_at(ours, tuple(F.asarray(i) if isinstance(i, np.ndarray) else i for i in index), F.asarray(values))
    np.testing.assert_array_equal(F.to_numpy(ours), expected)


# --- a training step --------------------------------------------------------------------------------------------------


def synchronizations(run: Callable[[], Any]) -> int:
    before = strict.synchronizations
    run()
    return strict.synchronizations - before


def test_a_training_step_in_ordinary_operations_never_waits_for_the_device() -> None:
    with tg.use_backend("strict"):
        rng = np.random.default_rng(0)
        w_x, w_h, b, w_y = (leaf(rng.normal(size=shape) * 0.5) for shape in ((3, 4), (4, 4), (4,), (4, 2)))
        xs, target = tg.Tensor(rng.normal(size=(5, 6, 3)).tolist()), tg.Tensor(rng.integers(0, 2, 6).tolist())

        def step() -> tg.Tensor:
            h = tg.zeros((6, 4))
            for x in tg.unstack(xs):
                h = tg.tanh(x @ w_x + h @ w_h + b)
            scores = h @ w_y
            picked = tg.take_along_axis(scores, target.reshape(6, 1), 1)
            loss = (tg.logsumexp(scores, axis=1, keepdims=True) - picked).mean()
            loss.backward()
            for p in (w_x, w_h, b, w_y):
                assert p.grad is not None
                p.data -= 0.5 * p.grad.data
                p._touch()
                p.grad = None
            return loss

        first = step()
        assert synchronizations(step) == 0
        for _ in range(20):
            last = step()
        assert last.item() < first.item()


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_a_training_step_of_a_layer_never_waits_for_the_device(cell: str) -> None:
    with tg.use_backend("strict"):
        rng = np.random.default_rng(0)
        embedding, layer, linear = tg.nn.Embedding(7, 4), getattr(tg.nn, f"{cell}Cell")(4, 5), tg.nn.Linear(5, 7)
        parameters = [p for module in (embedding, layer, linear) for p in module.parameters()]
        tokens, target = tg.Tensor(rng.integers(0, 7, (3, 2)).tolist()), tg.Tensor(rng.integers(0, 7, (6,)).tolist())
        generator = tg.Generator(1)

        def step() -> None:
            state, ys = layer.init_state(2), []
            for x in tg.unstack(embedding(tokens)):
                y, state = layer(x, state)
                ys.append(y)
            ys = tg.functional.dropout(tg.concatenate(ys), 0.5, generator=generator)
            tg.functional.cross_entropy(linear(ys), target).backward()
            for p in parameters:
                assert p.grad is not None
                p.data -= 0.1 * p.grad.data
                p._touch()
                p.grad = None

        step()
        assert synchronizations(step) == 0


@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    y=st.sampled_from([0, 0.0, -0.0, 1.5, float("nan"), float("-inf")]),
    dtype=st.sampled_from([np.float32, np.float64]),
    turned=st.booleans(),
    bare=st.booleans(),
)
def test_rows_are_chosen_to_the_bits_of_numpy(
    shape: tuple[int, ...], y: float, dtype: Any, turned: bool, bare: bool
) -> None:
    rng = np.random.default_rng(0)
    x = np.asarray(rng.choice([-0.0, 1.0, np.nan, np.inf], shape), dtype)
    x = np.asfortranarray(x) if turned else x
    condition = rng.random(shape if bare else (*shape[:-1], 1)) > 0.5
    before = x.tobytes()
    found, expected = backends.NUMPY.where(condition, x, y), np.where(condition, x, y)
    assert (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())
    assert x.tobytes() == before
