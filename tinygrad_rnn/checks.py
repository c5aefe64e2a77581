"""Holding gradients against central differences: `gradcheck` and `gradgradcheck`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.gradients import grad
from tinygrad_rnn.ops.declare import apply, apply_with_results
from tinygrad_rnn.ops.rule import Rule
from tinygrad_rnn.tensor import Tensor, _backend, _name

Call = tuple[Rule, tuple[Any, ...], tuple[Any, ...], tuple[Tensor, ...]]


class GradientError(AssertionError):
    """A gradient that central differences contradict."""


def gradcheck(
    f: Callable[..., Any], inputs: Tensor | Sequence[Any], eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> bool:
    """Hold the gradient of ``f`` against central differences.

    The results of ``f`` are multiplied by fixed random cotangents and summed; the gradient of that sum is compared for
    each element of each input. A wrong element of the Jacobian shows in it, at two calls of ``f`` for each
    element of the inputs.

    Parameters
    ----------
    f
        Called with ``inputs``. Returns a Tensor or a sequence of them, of which those of floats are compared.
    inputs
        A Tensor or a sequence of arguments. Those Tensors that require a gradient are checked and must be float64.
        ``f`` may also reach them by another way, as a module reaches its parameters.
    eps
        Half the distance of the two points of a difference.
    atol, rtol
        A gradient may differ from a difference ``d`` by ``atol + rtol * abs(d)``.

    Returns
    -------
    True. Inputs and their ``grad`` are as they were.

    Raises
    ------
    GradientError
        If a gradient differs; it names the input, the element, both numbers and the operation that is to blame.
    TypeError
        If an input that requires a gradient is not float64, or a result is no Tensor or of narrower floats.
    ValueError
        If no input requires a gradient.
    """
    arguments = _arguments(inputs)
    return _check(f, arguments, [f"inputs[{i}]" for i in range(len(arguments))], eps, atol, rtol)


def gradgradcheck(
    f: Callable[..., Any], inputs: Tensor | Sequence[Any], eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> bool:
    """Hold the gradient of the gradient of ``f`` against central differences of the gradient.

    This is `gradcheck` of the vector-Jacobian product of ``f``, as a function of the inputs and of the cotangents of
    the results. Arguments and errors are those of `gradcheck`.
    """
    arguments = _arguments(inputs)
    needed = [x for x in arguments if _needs(x)]
    results = _results(f(*arguments))
    backward = [i for i, result in enumerate(results) if result.requires_grad]
    if not backward:
        raise ValueError("no result of f depends on its inputs through operations that have a gradient")
    cotangents = _cotangents([results[i] for i in backward], seed=1)
    for cotangent in cotangents:
        cotangent.requires_grad = True

    def vjp(*args: Any) -> list[Tensor]:
        outputs = _results(f(*args[: len(arguments)]))
        given = args[len(arguments) :]
        found = grad([outputs[i] for i in backward], needed, given, create_graph=True, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    labels = [f"inputs[{i}]" for i in range(len(arguments))] + [f"the cotangent of result {i}" for i in backward]
    return _check(vjp, [*arguments, *cotangents], labels, eps, atol, rtol)


def _arguments(inputs: Any) -> list[Any]:
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not any(_needs(x) for x in arguments):
        raise ValueError("none of the inputs requires a gradient: make one with Tensor(..., requires_grad=True)")
    for i, x in enumerate(arguments):
        if _needs(x) and x.dtype != np.float64:
            raise TypeError(
                f"inputs[{i}] must be float64, in which a difference of two results still has figures left, "
                f"got {_name(x)} of {x.dtype}"
            )
    return arguments


def _needs(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _results(value: Any) -> list[Tensor]:
    """The results of a function that are floats, in order."""
    results = list(_flat(value))
    for i, result in enumerate(results):
        if result.dtype.kind == "f" and result.dtype != np.float64:
            raise TypeError(f"result {i} of f is {result.dtype}: f must compute in float64")
    return [result for result in results if result.dtype.kind == "f"]


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        raise TypeError(f"f must return a Tensor or a sequence of them, got {type(value).__name__}")


def _cotangents(results: list[Tensor], seed: int) -> list[Tensor]:
    # No stream that inputs are likely drawn from: a cotangent equal to an input makes a transposed product symmetric.
    draw = np.random.default_rng((seed, 1997))
    return [Tensor(_backend(result).asarray(draw.standard_normal(result.shape))) for result in results]


def _check(f: Callable[..., Any], arguments: list[Any], labels: list[str], *tolerances: float) -> bool:
    found = _contradiction(f, arguments, labels, *tolerances)
    if found:
        raise GradientError(f"{found}. {_diagnosis(f, arguments, *tolerances)}")
    return True


def _contradiction(
    f: Callable[..., Any], arguments: list[Any], labels: list[str], eps: float, atol: float, rtol: float
) -> str:
    """Where the gradient and the differences of ``f`` differ most, in the first input in which they do; "" if none."""
    results = _results(f(*arguments))
    cotangents = _cotangents(results, seed=0)
    needed = [i for i, x in enumerate(arguments) if _needs(x)]
    roots = [(result, cotangent) for result, cotangent in zip(results, cotangents, strict=True) if result.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(needed)
    if roots:
        outputs, given = zip(*roots, strict=True)
        gradients = grad(outputs, [arguments[i] for i in needed], given, allow_unused=True, retain_graph=True)
    for i, gradient in zip(needed, gradients, strict=True):
        x = arguments[i]
        label = f"{labels[i]}, {_name(x)}"
        analytic = np.zeros(x.shape) if gradient is None else gradient.numpy()
        if analytic.shape != x.shape or analytic.dtype != x.dtype:
            return f"{label}: its gradient has shape {analytic.shape} and dtype {analytic.dtype}"
        numeric = _differences(f, arguments, x, cotangents, eps)
        error = np.abs(analytic - numeric)
        wrong = ~(error <= atol + rtol * np.abs(numeric))  # so that a NaN on either side is wrong too
        if wrong.any():
            worst = np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), -1))
            index = tuple(int(k) for k in np.unravel_index(worst, x.shape))
            return (
                f"{label}, element {index}: backward gives {analytic[index]:.10g}, central differences "
                f"{numeric[index]:.10g} ({int(wrong.sum())} of {x.size} elements differ)"
            )
    return ""


def _differences(
    f: Callable[..., Any], arguments: list[Any], x: Tensor, cotangents: list[Tensor], eps: float
) -> np.ndarray[Any, Any]:
    """Central differences of the results of ``f``, times ``cotangents`` and summed, by each element of ``x``."""
    backend, original, host = _backend(x), x._data, x.numpy()
    weights = [cotangent.numpy() for cotangent in cotangents]
    numeric = np.zeros(x.shape)
    try:  # x gets arrays of ours for a while: the caller's memory, perhaps read-only or shared, is never written
        for index in np.ndindex(x.shape):
            ends, values = [], []
            for step in (eps, -eps):
                moved = np.array(host)
                moved[index] += step
                x._data = backend.asarray(moved)
                ends.append(host[index] + step)
                values.append([result.numpy() for result in _results(f(*arguments))])
            # Subtract before summing: the sum of many results would drown the difference.
            change = sum(float(np.sum(w * (a - b))) for w, a, b in zip(weights, *values, strict=True))
            numeric[index] = change / (ends[0] - ends[1])
    finally:
        x._data = original
    return numeric


def _diagnosis(f: Callable[..., Any], arguments: list[Any], *tolerances: float) -> str:
    """Which operation is to blame: the first whose own gradient and forward contradict each other."""
    calls: list[Call] = []
    with tape.listen(lambda *call: calls.append(call)):
        results = _results(f(*arguments))
    for rule, operands, params, outputs in calls:
        found = _contradiction_in_call(rule, operands, params, outputs, *tolerances)
        if found:
            shapes = ", ".join(
                str(operand.shape) if isinstance(operand, Tensor) else str(operand) for operand in operands
            )
            numbers_differ = "differences" in found  # rather than shapes
            return (
                f"Likely operation: {rule.name!r} on operands of shapes {shapes}. By itself: {found}."
                + " If that is no mistake, it has a kink or a pole there." * numbers_differ
            )
    again = _results(f(*arguments))
    if any(not np.array_equal(a.numpy(), b.numpy(), equal_nan=True) for a, b in zip(results, again, strict=True)):
        return "Each operation agrees with differences by itself, but f gives other results when called again."
    return (
        "Each operation agrees with differences by itself: f is probably not differentiable there, "
        "or takes a value out of the graph (detach, data, numpy)."
    )


def _contradiction_in_call(
    rule: Rule, operands: tuple[Any, ...], params: tuple[Any, ...], outputs: tuple[Tensor, ...], *tolerances: float
) -> str:
    leaves = []
    for operand in operands:
        leaf = operand.detach() if isinstance(operand, Tensor) else operand
        if _needs(operand) and operand.dtype == np.float64:
            leaf.requires_grad = True
        leaves.append(leaf)
    node = outputs[0]._node if outputs else None
    if node is None or not any(_needs(leaf) for leaf in leaves):
        return ""
    run = apply_with_results if node.plan is tape.SELECT else apply
    labels = [f"operand {i}" for i in range(len(leaves))]
    try:
        return _contradiction(lambda *xs: run(rule, xs, params), leaves, labels, *tolerances)
    except Exception as error:  # a gradient that cannot even be computed is the answer, not an accident
        return f"its gradient raises {type(error).__name__}: {error}"
