"""Scalar functions by NumPy's names, for loops that Numba compiles; only an engine that needs Numba imports this file.

In float32 all but ``sin``, ``cos`` and ``power`` are plain arithmetic without branches, so that LLVM turns a loop over
an array into vector instructions. Those three, and in float64 nearly all, call the C library, one element at a time.

The bits of a result depend neither on the place of its element in an array nor on the caller's ``fastmath``: products
that are to be fused with a sum are marked so one by one, and no others may be. (What calls the C library is beyond our
control: where Intel's SVML is installed, Numba puts that in its place.)

The coefficients are fits of least maximum relative error (least squares, reweighted as Lawson does), rounded to float32
one after another, the later ones fitted anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import njit, types  # type: ignore[import-not-found, unused-ignore]
from numba.extending import intrinsic, overload  # type: ignore[import-not-found, unused-ignore]

Function = Callable[..., Any]

# A division is a branch without NumPy's error model, and a call that is not inlined ends vectorization. What is not
# given here would be inherited from the first caller.
_OPTIONS: Any = {"error_model": "numpy", "fastmath": False, "forceinline": True}
_compiled: Callable[[Function], Function] = njit(**_OPTIONS)
_emitted: Callable[[Function], Any] = intrinsic

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the machine has an instruction for it."""
    signature = ir.FunctionType(_FLOAT, [_FLOAT] * 3)
    return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [_FLOAT], signature), [a, b, c])


@_emitted
def _multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fused(builder, *arguments)

    return types.float32(types.float32, types.float32, types.float32), emit


@_emitted
def plus(typing_context: Any, a: Any, b: Any) -> Any:
    """``a + b`` as a term of a sum whose terms may be added up in any order, so that several are added at once."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc",))

    return a(a, a), emit


def _polynomial(*coefficients: float) -> Any:
    """The polynomial with these coefficients, the constant one first, as a function of a float32."""

    @_emitted
    def evaluate(typing_context: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *lower, result = [ir.Constant(_FLOAT, coefficient) for coefficient in coefficients]
            for coefficient in reversed(lower):
                result = _fused(builder, result, arguments[0], coefficient)
            return result

        return types.float32(types.float32), emit

    return evaluate


@_emitted
def _bits(typing_context: Any, x: Any) -> Any:
    """The bits of a float32, as an int32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.int32(types.float32), emit


@_emitted
def _from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that has these bits, an int32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), emit


# Numba takes a Python float for a float64, and a sum of int32 for an int64: hence these names, and the casts below.
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_INFINITY, _NAN = np.float32(np.inf), np.float32(np.nan)
_MANTISSA_BITS, _EXPONENT_BIAS = np.int32(23), np.int32(127)
_LOG2_E = np.float32(math.log2(math.e))
_LN2_HIGH = np.float32(355 / 512)  # so short that its product with an exponent is exact
_LN2_LOW = np.float32(math.log(2) - 355 / 512)
_TINY = np.float32(2.0**-25)  # below it expm1(x) and log1p(x) round to x


# exp(x) = 2**k exp(r) with an integer k and abs(r) <= log(2) / 2.

_SHIFT = np.float32(1.5 * 2**23)  # a sum with it is rounded to an integer, which stands in its lowest bits
_SHIFT_BITS = np.int32(_SHIFT.view(np.int32))
_EXP_LOW, _EXP_HIGH = np.float32(-104), np.float32(89)  # beyond them exp is 0 and infinity
_EXPM1_LOW = np.float32(-20)  # below it expm1 is -1
_exp_tail = _polynomial(
    0.4999999403953552, 0.1666652113199234, 0.04166828840970993, 0.008368703536689281, 0.0013818938750773668
)
_expm1_tail = _polynomial(
    0.4999999701976776, 0.1666654497385025, 0.04166746139526367, 0.008366432040929794, 0.0013868435053154826
)


@_compiled
def _reduced(x: Any) -> Any:
    """k and r."""
    shifted = _multiply_add(x, _LOG2_E, _SHIFT)
    k = shifted - _SHIFT
    r = _multiply_add(k, -_LN2_LOW, _multiply_add(k, -_LN2_HIGH, x))
    return np.int32(_bits(shifted) - _SHIFT_BITS), r


@_compiled
def _two_to(k: Any) -> Any:
    return _from_bits(np.int32(np.int32(k + _EXPONENT_BIAS) << _MANTISSA_BITS))


@_compiled
def _exp_of_reduced(r: Any) -> Any:
    return _multiply_add(r * r, _exp_tail(r), r) + _ONE


@_compiled
def _exp_within(x: Any) -> Any:
    k, r = _reduced(x)
    y = _exp_of_reduced(r)
    half = np.int32(k >> np.int32(1))  # 2**k itself may be too large or too small for a float32
    return y * _two_to(half) * _two_to(np.int32(k - half))


@_compiled
def _exp(x: Any) -> Any:
    x = _EXP_LOW if x < _EXP_LOW else x  # written so, NaN stays NaN
    return _exp_within(_EXP_HIGH if x > _EXP_HIGH else x)


@_compiled
def _sigmoid(x: Any) -> Any:
    y = -abs(x)
    y = _exp_within(_EXP_LOW if y < _EXP_LOW else y)
    return (y if x < _ZERO else _ONE) / (_ONE + y)


@_compiled
def _expm1(x: Any) -> Any:
    y = _EXPM1_LOW if x < _EXPM1_LOW else x
    k, r = _reduced(_EXP_HIGH if y > _EXP_HIGH else y)
    half_scale = _two_to(np.int32(k - np.int32(1)))
    y = _multiply_add(half_scale, _multiply_add(r * r, _expm1_tail(r), r), half_scale - _HALF) * _TWO
    return x if abs(x) < _TINY else y


@_compiled
def _expm1_of_negative(x: Any) -> Any:
    """`_expm1` without what it does for large and for tiny x."""
    k, r = _reduced(_EXPM1_LOW if x < _EXPM1_LOW else x)
    scale = _two_to(k)
    return _multiply_add(scale, _multiply_add(r * r, _expm1_tail(r), r), scale - _ONE)


# tanh(x) = 1 - 2 u / (1 + u) with u = exp(-2 x), for x >= 0; where that is below a half, x + x**3 P(x**2).

_TANH_SMALL = np.float32(0.55)
_TANH_LOW = np.float32(-20)  # below it exp(-2 x) is nothing to 1
_tanh_tail = _polynomial(
    -0.33333316445350647, 0.13332544267177582, -0.0538475476205349, 0.02105071395635605, -0.0062428489327430725
)


@_compiled
def _tanh(x: Any) -> Any:
    y = abs(x)
    k, r = _reduced(_TANH_LOW if -_TWO * y < _TANH_LOW else -_TWO * y)
    u = _exp_of_reduced(r) * _two_to(k)
    square = y * y
    small = _multiply_add(y * square, _tanh_tail(square), y)
    return np.copysign(small if y < _TANH_SMALL else _ONE - (u + u) / (_ONE + u), x)


# erf(x) = -expm1(-x P(x)), for x >= 0.

_ERF_HIGH = np.float32(3.95)  # beyond it erf is 1
_erf_exponent = _polynomial(
    1.128379225730896,
    0.6366150379180908,
    0.10283217579126358,
    -0.019400542601943016,
    0.0003706972347572446,
    0.0010710833594202995,
    -0.00027515870169736445,
    9.459497960051522e-06,
    3.6346430078992853e-06,
)


@_compiled
def _erf(x: Any) -> Any:
    y = abs(x)
    y = _ERF_HIGH if y > _ERF_HIGH else y
    return np.copysign(_expm1_of_negative(-y * _erf_exponent(y)), x)


# log(x) = k log(2) + log(1 + f) with an integer k and 1 + f between sqrt(1/2) and sqrt(2).

_ROOT_HALF_BITS = np.int32(np.float32(math.sqrt(0.5)).view(np.int32))
_SMALLEST_NORMAL = np.float32(2.0**-126)
_TWO_TO_23 = np.float32(2.0**23)
_log_tail = _polynomial(
    0.3333333134651184,
    -0.250008225440979,
    0.20001250505447388,
    -0.1662331521511078,
    0.14201273024082184,
    -0.13160189986228943,
    0.12764762341976166,
    -0.07638184726238251,
)


@_compiled
def _log_plus(x: Any, correction: Any) -> Any:
    """log(x) plus something much smaller."""
    denormal = x < _SMALLEST_NORMAL
    bits = _bits(x * _TWO_TO_23 if denormal else x)
    k = np.int32(np.int32(bits - _ROOT_HALF_BITS) >> _MANTISSA_BITS)
    f = _from_bits(np.int32(bits - np.int32(k << _MANTISSA_BITS))) - _ONE
    k_float = np.float32(np.int32(k - _MANTISSA_BITS) if denormal else k)
    square = f * f
    y = _multiply_add(square * f, _log_tail(f), _multiply_add(k_float, _LN2_LOW, correction))
    y = _multiply_add(k_float, _LN2_HIGH, _multiply_add(square, -_HALF, y) + f)
    y = y if x < _INFINITY else x
    y = -_INFINITY if x == _ZERO else y
    return _NAN if x < _ZERO else y


@_compiled
def _log(x: Any) -> Any:
    return _log_plus(x, _ZERO)


@_compiled
def _log1p(x: Any) -> Any:
    u = _ONE + x
    y = _log_plus(u, (x - (u - _ONE)) / u)  # what u lost of x
    return x if abs(x) < _TINY else y


# In float64, and what is the same in both.


def _library(function: Function) -> Function:
    return _compiled(lambda x: function(x))


@_compiled
def _sigmoid_double(x: Any) -> Any:
    y = math.exp(-abs(x))
    return (y if x < 0.0 else 1.0) / (1.0 + y)


def _sign_of(one: Any) -> Function:
    zero = one - one

    @_compiled
    def sign(x: Any) -> Any:
        result = one if x > zero else x
        result = -one if x < zero else result
        return zero if x == zero else result

    return sign


@_compiled
def _maximum(a: Any, b: Any) -> Any:
    return a if (a >= b) | (a != a) else b


@_compiled
def _minimum(a: Any, b: Any) -> Any:
    return a if (a <= b) | (a != a) else b


@_compiled
def _power(base: Any, exponent: Any) -> Any:
    return base**exponent


def where(condition: Any, x: Any, y: Any) -> Any:
    """One of two numbers of any kind, both read before one is chosen: reading only one would end vectorization."""
    return x if condition else y


@overload(where, jit_options=_OPTIONS)
def _chosen(condition: Any, x: Any, y: Any) -> Function:
    return where


def _by_dtype(single: Function, double: Function) -> Function:
    def scalar(*operands: Any) -> Any:
        return (single if all(type(operand) is np.float32 for operand in operands) else double)(*operands)

    @overload(scalar, jit_options=_OPTIONS)
    def choose(*operands: Any) -> Function | None:
        if not {*operands} <= {types.float32, types.float64}:
            return None
        chosen = single if types.float64 not in operands else double

        def call(*operands: Any) -> Any:
            return chosen(*operands)

        return call

    return scalar


def _alike(function: Function) -> Function:
    return _by_dtype(function, function)


SCALARS: dict[str, Function] = {
    "exp": _by_dtype(_exp, _library(math.exp)),
    "expm1": _by_dtype(_expm1, _library(math.expm1)),
    "log": _by_dtype(_log, _library(math.log)),
    "log1p": _by_dtype(_log1p, _library(math.log1p)),
    "tanh": _by_dtype(_tanh, _library(math.tanh)),
    "sigmoid": _by_dtype(_sigmoid, _sigmoid_double),
    "erf": _by_dtype(_erf, _library(math.erf)),
    "sign": _by_dtype(_sign_of(np.float32(1)), _sign_of(np.float64(1))),
    "sin": _alike(_library(math.sin)),
    "cos": _alike(_library(math.cos)),
    "sqrt": _alike(_library(np.sqrt)),
    "floor": _alike(_library(np.floor)),
    "abs": _alike(_library(abs)),
    "maximum": _alike(_maximum),
    "minimum": _alike(_minimum),
    "power": _alike(_power),
}
"""Functions for Python and for compiled code. All operands of one are float32, or else it computes in float64."""
