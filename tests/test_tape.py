"""The walk backwards: right whatever the graph looks like, without recursion, and freeing all that it held."""

import gc
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import gradient, leaf, on_backend
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_rnn as tg

# --- right whatever the graph looks like ------------------------------------------------------------------------------


def test_shared_subexpressions_and_one_tensor_used_many_times(backend: str) -> None:
    x = leaf([1.0, 2.0])
    h = x * x
    (h * h + h + x + x).sum().backward()
    assert gradient(x) == [8.0, 38.0]
    y = leaf(1.0)
    total = y
    for _ in range(99):
        total = total + y
    total.backward()
    assert gradient(y) == 100.0


def test_a_ladder_of_doublings_is_walked_once_a_node(backend: str) -> None:
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2**60 paths
        y = y + y
    y.backward()
    assert gradient(x) == 2.0**60


def test_gradients_accumulate_over_backwards(backend: str) -> None:
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    assert gradient(x) == [5.0, 7.0]
    assert first is not None
    assert first.numpy().tolist() == [3.0, 3.0]  # what the user holds is not written to


def test_backward_goes_on_from_leaves_made_on_the_way(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = leaf([5.0, 6.0])
    (x * y.detach() + y * x.detach()).sum().backward()
    assert gradient(x) == [5.0, 6.0]
    assert gradient(y) == [1.0, 2.0]


def shares(a: tg.Tensor, b: tg.Tensor) -> bool:
    host = [getattr(tensor.data, "_host", tensor.data) for tensor in (a, b)]
    return np.shares_memory(*host)


LINEAR: list[Callable[..., tg.Tensor]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a + a,
    lambda a, b: a.T,
    lambda a, b: a.reshape(4).reshape(2, 2),
    lambda a, b: a.astype(np.float32).astype(np.float64),
    lambda a, b: a[::-1],
    lambda a, b: a + b.sum(axis=0),
    lambda a, b: tg.stack([tg.unstack(a)[0], tg.unstack(b)[1]]),
    lambda a, b: tg.concatenate([a[:1], b[1:]]),
    lambda a, b: tg.concatenate(tg.split(a, 2, axis=1)[::-1], axis=1),
    lambda a, b: tg.broadcast_to(a, (2, 2)) + tg.broadcast_to(b[0], (2, 2)),
    lambda a, b: -b,
    lambda a, b: tg.where(on_backend([[True, False], [False, True]]), a, b),
    lambda a, b: tg.expand_dims(a, 0)[0],
    lambda a, b: a.detach() * 0 + b,
]


@given(
    st.lists(st.tuples(st.integers(0, len(LINEAR) - 1), st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=7)
)
def test_any_graph_of_linear_operations_has_the_right_gradient_in_memory_of_its_own(
    backend: str, program: list[tuple[int, int, int]]
) -> None:
    def run(a: tg.Tensor, b: tg.Tensor) -> tg.Tensor:
        values = [a, b]
        for operation, i, j in program:
            values.append(LINEAR[operation](values[i % len(values)], values[j % len(values)]))
        return values[-1] + values[len(values) // 2]

    rng = np.random.default_rng(0)
    a, b = leaf(rng.integers(-4, 5, (2, 2))), leaf(rng.integers(-4, 5, (2, 2)))
    cotangent = on_backend(rng.integers(-4, 5, (2, 2)), np.float64)
    out = run(a, b)
    if not out.requires_grad:
        return
    kept = cotangent.numpy().copy()
    out.backward(cotangent)
    np.testing.assert_array_equal(cotangent.numpy(), kept)
    zeros = np.zeros((2, 2))
    for position, tensor in enumerate((a, b)):
        units = np.eye(4).reshape(4, 2, 2)
        pairs = [(unit, zeros) if position == 0 else (zeros, unit) for unit in units]
        with tg.no_grad():
            expected = [(run(*map(on_backend, pair)).numpy() * kept).sum() for pair in pairs]
        if tensor.grad is None:
            assert not np.any(expected)
        else:
            np.testing.assert_array_equal(np.ravel(gradient(tensor)), expected)
            assert not shares(tensor.grad, cotangent)
            assert not shares(tensor.grad, tensor)
    if a.grad is not None and b.grad is not None:
        assert not shares(a.grad, b.grad)


USES: dict[str, Callable[[tg.Tensor, tg.Tensor], tg.Tensor]] = {
    "rows": lambda x, w: x @ w,
    "transposed": lambda x, w: (x @ w) @ w.T,
    "inside": lambda x, w: tg.tanh(x @ (w * 2)),
    "batched": lambda x, w: tg.stack([x, x]) @ w,
    "row": lambda x, w: w[1] * x.sum(),
    "square": lambda x, w: w * w,
}


@given(
    uses=st.lists(
        st.tuples(st.sampled_from(sorted(USES)), st.sampled_from([0, 1, 3, 700, 1100])), min_size=1, max_size=6
    )
)
def test_a_weight_gets_the_sum_of_what_its_uses_give(backend: str, uses: list[tuple[str, int]]) -> None:
    w = leaf([[0.5, -0.25, 1.0], [0.125, 2.0, -1.0]])
    xs = [on_backend(np.cos(np.arange(rows * 2.0) + i).reshape(rows, 2)) for i, (_, rows) in enumerate(uses)]
    losses = [USES[use](x, w).sum() for (use, _), x in zip(uses, xs, strict=True)]
    expected = sum(tg.grad(loss, w, retain_graph=True).numpy() for loss in losses)
    tg.stack(losses).sum().backward()
    np.testing.assert_allclose(gradient(w), expected, rtol=1e-9, atol=1e-12)


def test_a_weight_used_at_every_step_has_one_product_for_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[int] = []

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        multiplied.append(len(b))
        return np.asarray(a @ b)

    w = leaf(np.ones((2, 3)))
    loss = tg.stack([on_backend(np.ones((30, 2))) @ w for _ in range(100)]).sum()
    monkeypatch.setattr(tg.backend.NUMPY, "matmul", matmul)
    loss.backward()
    assert multiplied == [1020, 1020, 960]
    assert gradient(w) == [[3000.0] * 3] * 2


def test_gradients_of_different_leaves_share_no_memory(backend: str) -> None:
    a, b, c = leaf([[1.0, 2.0]]), leaf([[3.0, 4.0]]), leaf([[5.0], [6.0]])
    (a + b + c.T).sum().backward()
    grads = [tensor.grad for tensor in (a, b, c)]
    assert all(g is not None for g in grads)
    for i, g in enumerate(grads):
        for other in grads[i + 1 :]:
            assert not shares(g, other)  # type: ignore[arg-type]
    array = grads[0].data  # type: ignore[union-attr]
    array *= 0
    assert gradient(b) == [[1.0, 1.0]]
    x = leaf([1.0, 2.0])
    cotangent = on_backend([1.0, 1.0])
    x.backward(cotangent)
    first, second = tg.grad(x + x.reshape(2), [x, x], grad_outputs=cotangent)
    assert not shares(first, second)
    assert x.grad is not None
    assert not shares(x.grad, cotangent)
    assert not shares(first, cotangent)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0).reshape(3, 4)[::-1, ::2],
        np.lib.stride_tricks.sliding_window_view(np.arange(6.0), 3),
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(2.0),
        np.zeros((0, 3)),
        np.zeros((2, 0)),
    ],
    ids=["reversed", "transposed", "strided", "overlapping", "repeated", "fortran", "0-d", "no rows", "no columns"],
)
def test_inputs_of_any_layout(array: np.ndarray) -> None:
    x = tg.Tensor(array, requires_grad=True)
    (x * x + tg.exp(x).reshape(-1).sum()).sum().backward()
    gradient(x)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 2 * array + np.exp(array) * array.size, rtol=1e-12)
    assert x.grad.data.flags.writeable


# --- everything is iterative, and freed -------------------------------------------------------------------------------


def chain(steps: int) -> tuple[tg.Tensor, tg.Tensor]:
    w = leaf(1.0)
    h = w
    for _ in range(steps // 2):
        h = tg.tanh(h) * w
    return w, h


def test_a_tape_of_200_000_steps_is_walked_and_freed_without_recursion() -> None:
    w, h = chain(200_000)
    h.backward()
    assert np.isfinite(gradient(w))
    del h


def test_a_tape_of_200_000_steps_is_dropped_without_recursion() -> None:
    _, h = chain(200_000)
    del h
    _, h = chain(200_000)
    loss = h * 2
    del h, loss


# Recursion over so long a tape would take tens of megabytes. From 3.13 on CPython itself lets nested deallocation go
# deeper before it unwinds, and needs between half a megabyte and one.
STACK = 256 * 1024 if sys.version_info < (3, 13) else 2 * 1024 * 1024


@pytest.mark.parametrize("ending", ["h.backward()", "h.backward(retain_graph=True)", "tg.grad(h, w)", "pass"])
def test_a_long_tape_in_a_thread_with_a_small_stack(ending: str) -> None:
    # In a process of its own: running out of stack ends the process.
    code = f"""
        import threading
        import tinygrad_rnn as tg

        def run():
            w = tg.Tensor(1.0, requires_grad=True)
            h = w
            for _ in range(100_000):
                h = tg.tanh(h) * w
            {ending}
            del h
            done.append(True)

        done = []
        threading.stack_size({STACK})
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        print(done)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "[True]\n"), result.stderr[-2000:]


@pytest.fixture
def no_collector() -> Iterator[None]:
    while gc.collect():  # finalizers of other tests may leave more to collect
        pass
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_memory_after_10_000_steps_is_that_after_100() -> None:
    w, b = leaf([[0.5, 0.1], [0.2, 0.3]]), leaf([0.1, 0.2])
    x, state = on_backend([[1.0, -1.0], [0.0, 1.0]]), on_backend([[0.0, 0.0], [0.0, 0.0]])

    def steps(count: int) -> int:
        nonlocal state
        for _ in range(count):
            state = tg.tanh(x + state.detach() @ w.T + b)
            state.sum().backward()
            for p in (w, b):
                assert p.grad is not None
                p.data[...] -= 0.01 * p.grad.data
                p._touch()
                p.grad = None
        # The collector finds nothing to free; asking it only empties Python's own stocks of small tuples.
        assert gc.collect() == 0
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_100 = steps(100)
        after_10_000 = steps(9_900)
    finally:
        tracemalloc.stop()
    assert after_10_000 - after_100 < 4096


def fails(run: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError):
        run()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "use",
    [
        lambda w: tg.unstack(tg.exp(w))[0].sum().backward(),
        lambda w: tg.concatenate(tg.split(w, 2)).sum().backward(),
        lambda w: tg.grad(tg.grad((w**3).sum(), w, create_graph=True).sum(), w),
        lambda w: tg.sigmoid(w @ w).sum(),
        lambda w: (w * w).sum().backward(retain_graph=True),
        lambda w: fails((w * w).backward),
        lambda w: (w @ leaf([[1.0, 2.0]]).T + leaf([1.0])).sum().backward(),
        lambda w: leaf(1.0).backward(),
    ],
    ids=["unstack", "split", "second derivative", "dropped", "retained", "error", "leaves dropped", "leaf"],
)
def test_no_reference_cycle_is_left(backend: str, use: Callable[[tg.Tensor], Any]) -> None:
    w = leaf([[0.5, 0.1], [0.2, 0.3]])
    use(w)  # fills caches
    gc.collect()
    use(w)
    assert gc.collect() == 0


def test_backward_frees_what_the_graph_kept(backend: str) -> None:
    w = leaf(np.ones((100, 100)))
    tracemalloc.start()
    try:
        y = tg.exp(w)
        for _ in range(9):
            y = tg.exp(y * 0)
        loss = y.sum()
        del y
        before = tracemalloc.get_traced_memory()[0]
        loss.backward()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert before - after > 8 * 80_000  # ten results of 80 000 bytes, less one gradient, though ``loss`` is still held


# --- recording or not -------------------------------------------------------------------------------------------------


def test_no_grad_is_a_context_manager_and_a_decorator(backend: str) -> None:
    x = leaf([1.0])
    with tg.no_grad():
        assert not (x * 2).requires_grad
        with tg.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @tg.no_grad()
    def evaluate(x: tg.Tensor) -> tg.Tensor:
        """Doubled."""
        return x * 2

    assert not evaluate(x).requires_grad
    assert not evaluate(x).requires_grad
    assert evaluate.__name__ == "evaluate"
    with pytest.raises(KeyError), tg.no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_gradients_under_no_grad_are_of_what_was_recorded_before(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    with tg.no_grad():
        y.backward()
    assert gradient(x) == [2.0, 4.0]


def test_a_new_tensor_made_under_no_grad_may_require_a_gradient(backend: str) -> None:
    with tg.no_grad():
        x = leaf(2.0)
    (x * x).backward()
    assert gradient(x) == 4.0


def test_detach_shares_memory_and_stops_the_gradient(backend: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * 2
    d = y.detach()
    assert d.data is y.data
    assert not d.requires_grad
    (y * d).sum().backward()
    assert gradient(x) == [4.0, 8.0]


def test_threads_differentiate_each_their_own() -> None:
    shared = leaf(np.linspace(-1, 1, 50))
    results: dict[int, np.ndarray] = {}

    def run(k: int) -> None:
        for _ in range(100):
            results[k] = tg.grad((tg.tanh(shared * k) ** 2).sum(), shared).numpy()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        t = np.tanh(shared.numpy() * k)
        np.testing.assert_allclose(results[k], 2 * t * (1 - t**2) * k, atol=1e-14)
