"""The scalar functions of compiled loops, against NumPy's and the C library's in float64."""

import functools
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from tinygrad_rnn.compiler.scalars import SCALARS

Array = np.ndarray[Any, Any]

BINARY = ("maximum", "minimum", "power")
EXACT = ("sqrt", "sign", "floor", "abs", "maximum", "minimum")
LIBRARY = ("sin", "cos", "power")  # of which float32 has no version of ours
VECTORIZED = tuple(name for name in SCALARS if name not in LIBRARY)
# The largest error in units of the last place. NumPy's float32 exp, expm1 and log reach 2.5, 2.6 and 3.1.
ULPS = {"exp": 1.1, "expm1": 1.75, "log": 1.0, "log1p": 1.0, "tanh": 1.5, "sigmoid": 2.5, "erf": 3.5}
FLOAT32 = np.finfo(np.float32)


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1 + small)


def reference(name: str, *arrays: Array) -> Array:
    own = {"sigmoid": sigmoid, "erf": np.frompyfunc(math.erf, 1, 1)}
    with np.errstate(all="ignore"):
        return np.asarray((own.get(name) or getattr(np, name))(*arrays)).astype(arrays[0].dtype)


def compiled(name: str, scalar: Callable[..., Any], **options: Any) -> Any:
    """A loop over arrays, the result's first."""

    def unary(out: Array, x: Array) -> None:
        for i in range(len(out)):
            out[i] = scalar(x[i])

    def binary(out: Array, x: Array, y: Array) -> None:
        for i in range(len(out)):
            out[i] = scalar(x[i], y[i])

    return njit(binary if name in BINARY else unary, **options)


@functools.cache
def loop(name: str) -> Any:
    return compiled(name, SCALARS[name], error_model="numpy")


def run(function: Callable[..., None], *arrays: Array) -> Array:
    out = np.empty_like(arrays[0])
    function(out, *arrays)
    return out


@functools.cache
def grid(dtype: Any) -> Array:
    """Numbers of all magnitudes and those around every bound, the special ones among them."""
    patterns = np.concatenate(
        [np.arange(0, 0x7F800000, 40009), np.arange(500), np.arange(0x7F800000 - 500, 0x7F800001)]
    )
    positive = patterns.astype(np.uint32).view(np.float32)
    places = [np.linspace(-limit, limit, 50001, dtype=np.float32) for limit in (110, 20, 4, 1)]
    near_one = 1 + np.arange(-500, 500, dtype=np.float32) * FLOAT32.epsneg
    return np.concatenate([positive, -positive, *places, near_one, -near_one, [np.nan]]).astype(dtype)


def operands(name: str, dtype: Any) -> tuple[Array, ...]:
    if name not in BINARY:
        return (grid(dtype),)
    some = grid(dtype)[::-1009]
    special = np.array([0, -0.0, 1, -1, 0.5, 2, 3, -2.5, np.inf, -np.inf, np.nan], dtype)
    a, b = np.meshgrid(np.concatenate([special, some[:100]]), np.concatenate([special, some[100:]]))
    return a.ravel(), b.ravel()


def ulps(result: Array, expected: Array) -> Array:
    """Error in units of the last place that a float32 of the expected value has."""
    _, exponent = np.frexp(expected)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, FLOAT32.minexp) - FLOAT32.nmant)
    return np.abs(result - expected) / unit


@pytest.mark.parametrize("name", ULPS)
def test_float32_errs_by_a_few_units_of_the_last_place(name: str) -> None:
    (x,) = operands(name, np.float32)
    result = run(loop(name), x)
    expected = reference(name, x.astype(np.float64))
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(rounded))
    infinite = np.isinf(rounded) | np.isinf(result)
    np.testing.assert_array_equal(result[infinite], rounded[infinite])
    finite = np.isfinite(rounded)
    errors = ulps(result[finite].astype(np.float64), expected[finite])
    worst = errors.argmax()
    assert errors[worst] <= ULPS[name], x[finite][worst]
    np.testing.assert_array_equal(np.signbit(result[finite]), np.signbit(rounded[finite]))


@pytest.mark.parametrize(("name", "lowest", "highest"), [("tanh", -1, 1), ("erf", -1, 1), ("sigmoid", 0, 1)])
def test_a_saturating_function_reaches_its_bounds_and_does_not_pass_them(name: str, lowest: int, highest: int) -> None:
    result = run(loop(name), grid(np.float32))
    assert (np.nanmin(result), np.nanmax(result)) == (lowest, highest)
    ends = run(loop(name), np.array([-np.inf, np.inf], np.float32))
    assert ends.tolist() == [lowest, highest]


@pytest.mark.parametrize("name", ["tanh", "expm1", "log1p"])
def test_tiny_numbers_stay_as_they_are(name: str) -> None:
    x = np.concatenate([np.arange(2000, dtype=np.uint32).view(np.float32), np.float32([1e-38, 1e-30, 1e-10])])
    for tiny in (x, -x):
        np.testing.assert_array_equal(run(loop(name), tiny).view(np.uint32), tiny.view(np.uint32))


def test_sigmoid_keeps_its_digits_where_exp_of_minus_x_overflows() -> None:
    x = np.array([-88.8, -100, -103.9, -104.1], np.float32)
    assert ulps(run(loop("sigmoid"), x).astype(np.float64), sigmoid(x.astype(np.float64))).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_give_what_numpy_gives(name: str, dtype: Any) -> None:
    arrays = operands(name, dtype)
    result, expected = run(loop(name), *arrays), reference(name, *arrays)
    np.testing.assert_array_equal(result, expected, strict=True)
    if name not in BINARY:  # of 0 and -0 NumPy's maximum may be either
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("name", LIBRARY)
def test_float32_from_the_library(name: str) -> None:
    arrays = operands(name, np.float32)
    with np.errstate(over="ignore"):
        expected = reference(name, *[array.astype(np.float64) for array in arrays]).astype(np.float32)
    np.testing.assert_allclose(run(loop(name), *arrays), expected, 2 * FLOAT32.eps, FLOAT32.smallest_subnormal)


@pytest.mark.parametrize("name", [name for name in SCALARS if name not in EXACT])
def test_float64(name: str) -> None:
    arrays = operands(name, np.float64)
    expected = reference(name, *arrays)
    np.testing.assert_allclose(run(loop(name), *arrays), expected, 4 * np.finfo(np.float64).eps, 1e-323)


@pytest.mark.parametrize("name", SCALARS)
def test_an_element_has_the_same_bits_wherever_it_stands(name: str) -> None:
    arrays = [np.random.default_rng(0).permutation(array)[:1500] for array in operands(name, np.float32)]
    whole = run(loop(name), *arrays)
    by_one = np.concatenate([run(loop(name), *[array[i : i + 1] for array in arrays]) for i in range(1500)])
    shifted = run(loop(name), *[array[5:] for array in arrays])
    called = np.array([SCALARS[name](*values) for values in zip(*arrays, strict=True)], np.float32)
    for other in (by_one, called):
        np.testing.assert_array_equal(other.view(np.uint32), whole.view(np.uint32))
    np.testing.assert_array_equal(shifted.view(np.uint32), whole[5:].view(np.uint32))


def vector_code(name: str, function: Any) -> str:
    """What a loop over float32 became, found to be vector instructions of float32."""
    run(function, *operands(name, np.float32))
    (signature,) = [s for s in function.signatures if all(argument.dtype.name == "float32" for argument in s)]
    code: str = function.inspect_llvm(signature)
    assert re.search(r"store <\d+ x float>", code)
    assert not re.search(r"<\d+ x double>", code)
    return code


@pytest.mark.parametrize("name", VECTORIZED)
def test_a_loop_over_float32_becomes_vector_instructions(name: str) -> None:
    code = vector_code(name, loop(name))
    if name in ULPS:
        assert not re.search(rf"@(llvm\.)?{name}f?(\.f\d+)?\(", code)


@pytest.mark.parametrize("name", VECTORIZED)
def test_the_options_of_the_first_caller_have_no_influence(name: str) -> None:
    spec = importlib.util.find_spec("tinygrad_rnn.compiler.scalars")
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)  # nothing in it has been compiled
    spec.loader.exec_module(fresh)
    function = compiled(name, fresh.SCALARS[name], fastmath={"contract", "reassoc", "arcp", "nsz", "afn"})
    vector_code(name, function)
    arrays = operands(name, np.float32)
    np.testing.assert_array_equal(run(function, *arrays).view(np.uint32), run(loop(name), *arrays).view(np.uint32))


@pytest.mark.parametrize("name", SCALARS)
def test_a_float64_operand_makes_it_float64(name: str) -> None:
    values = [0.3, 0.7][: 1 + (name in BINARY)]
    scalar = SCALARS[name]
    mixed = [*values[:-1], np.float32(values[-1])]
    assert scalar(*values) == pytest.approx(reference(name, *np.array(values)[:, None])[0], rel=1e-15)
    if name in BINARY:
        assert scalar(*mixed) == pytest.approx(reference(name, *np.array(mixed, float)[:, None])[0], rel=1e-15)


def test_integers_are_refused() -> None:
    with pytest.raises(TypingError):
        run(loop("exp"), np.arange(3))


def test_numba_is_imported_by_this_module_alone() -> None:
    code = "import sys, tinygrad_rnn; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
