"""Operations that act on each element by itself; operands broadcast against each other, as in NumPy."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn.backend import Array
from tinygrad_rnn.ops.declare import Operand, operation, over_time, scalar
from tinygrad_rnn.ops.over_time import shifted
from tinygrad_rnn.tensor import Tensor

__all__ = [
    "abs",
    "add",
    "astype",
    "clip",
    "cos",
    "divide",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "ones_like",
    "power",
    "reciprocal",
    "remainder",
    "sigmoid",
    "sign",
    "sin",
    "sqrt",
    "square",
    "subtract",
    "tanh",
    "to_backend",
    "where",
    "zeros_like",
]

ELEMENTWISE = True


@scalar("a + b")
@over_time(jointly=True)
@operation(ELEMENTWISE, a=lambda F, g: g, b=lambda F, g: g)
def add(F: Any, a: Operand, b: Operand, /) -> Array:
    """Sum of two tensors."""
    return F.add(a, b)


@scalar("a - b")
@over_time(jointly=True)
@operation(ELEMENTWISE, a=lambda F, g: g, b=lambda F, g: F.negative(g))
def subtract(F: Any, a: Operand, b: Operand, /) -> Array:
    """Difference of two tensors."""
    return F.subtract(a, b)


@scalar("a * b")
@over_time(each=("a", "b"))
@operation(ELEMENTWISE, a=lambda F, g, b: g * b, b=lambda F, g, a: g * a)
def multiply(F: Any, a: Operand, b: Operand, /) -> Array:
    """Product of two tensors, element by element."""
    return F.multiply(a, b)


@scalar("a / b")
@over_time(each=("a",))
@operation(ELEMENTWISE, a=lambda F, g, b: g / b, b=lambda F, g, out, b: -g * out / b)
def divide(F: Any, a: Operand, b: Operand, /) -> Array:
    """Quotient of two tensors, element by element."""
    return F.divide(a, b)


@scalar("-x")
@over_time(jointly=True)
@operation(ELEMENTWISE, x=lambda F, g: -g)
def negative(F: Any, x: Operand, /) -> Array:
    """``-x``."""
    return F.negative(x)


# Where the exponent is 0 the power is constant in the base, even at base 0; where the base is 0 the power is
# constant in a positive exponent. Both follow PyTorch.
def _power_base(F: Any, g: Any, base: Any, exponent: Any) -> Any:
    if isinstance(exponent, (int, float)):
        return g * (exponent * F.power(base, exponent - 1)) if exponent else g * 0
    return g * F.where(exponent == 0, 0, exponent * F.power(base, F.where(exponent == 0, 1, exponent - 1)))


def _power_exponent(F: Any, g: Any, out: Any, base: Any, exponent: Any) -> Any:
    if isinstance(base, (int, float)):
        base = F.ones_like(out) * base
    constant = F.logical_and(base == 0, exponent >= 0)
    return g * F.where(constant, 0, out * F.log(F.where(constant, 1, base)))


@scalar("power(base, exponent)")
@operation(ELEMENTWISE, base=_power_base, exponent=_power_exponent)
def power(F: Any, base: Operand, exponent: Operand, /) -> Array:
    """``base`` to the power ``exponent``."""
    return base**exponent  # NumPy's operator knows squares and roots, its power does not


@scalar("exp(x)")
@operation(ELEMENTWISE, x=lambda F, g, out: g * out)
def exp(F: Any, x: Operand, /) -> Array:
    """Exponential function."""
    return F.exp(x)


@scalar("expm1(x)")
@operation(ELEMENTWISE, x=lambda F, g, out: g * (out + 1))
def expm1(F: Any, x: Operand, /) -> Array:
    """``exp(x) - 1``, exact near 0."""
    return F.expm1(x)


@scalar("log(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: g / x)
def log(F: Any, x: Operand, /) -> Array:
    """Natural logarithm."""
    return F.log(x)


@scalar("log1p(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: g / (x + 1))
def log1p(F: Any, x: Operand, /) -> Array:
    """``log(1 + x)``, exact near 0."""
    return F.log1p(x)


@scalar("sqrt(x)")
@operation(ELEMENTWISE, x=lambda F, g, out: g / (2 * out))
def sqrt(F: Any, x: Operand, /) -> Array:
    """Square root."""
    return F.sqrt(x)


@scalar("x * x")
@operation(ELEMENTWISE, x=lambda F, g, x: g * (2 * x))
def square(F: Any, x: Operand, /) -> Array:
    """``x * x``."""
    return F.square(x)


@scalar("one / x")
@operation(ELEMENTWISE, x=lambda F, g, out: -g * F.square(out))
def reciprocal(F: Any, x: Operand, /) -> Array:
    """``1 / x``."""
    return F.divide(1, x)


@scalar("abs(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: g * F.sign(x))
def abs(F: Any, x: Operand, /) -> Array:
    """Absolute value; its gradient at 0 is 0."""
    return F.abs(x)


@scalar("sin(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: g * F.cos(x))
def sin(F: Any, x: Operand, /) -> Array:
    """Sine of an angle in radians."""
    return F.sin(x)


@scalar("cos(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: -g * F.sin(x))
def cos(F: Any, x: Operand, /) -> Array:
    """Cosine of an angle in radians."""
    return F.cos(x)


@scalar("tanh(x)")
@operation(ELEMENTWISE, x=lambda F, g, out: g * (1 - out * out))
def tanh(F: Any, x: Operand, /) -> Array:
    """Hyperbolic tangent."""
    return F.tanh(x)


@scalar("sigmoid(x)")
@operation(ELEMENTWISE, x=lambda F, g, out: g * (out - out * out))
def sigmoid(F: Any, x: Operand, /) -> Array:
    """Logistic function, ``1 / (1 + exp(-x))``."""
    return F.sigmoid(x)


TWO_OVER_ROOT_PI = 1.1283791670955126


@scalar("erf(x)")
@operation(ELEMENTWISE, x=lambda F, g, x: g * (TWO_OVER_ROOT_PI * F.exp(-F.square(x))))
def erf(F: Any, x: Operand, /) -> Array:
    """Error function, ``2 / sqrt(pi)`` times the integral of ``exp(-t * t)`` from 0 to x."""
    return F.erf(x)


# At a tie each side gets half; where one is NaN, and so the result, each gets all.
@scalar("maximum(a, b)")
@operation(
    ELEMENTWISE,
    a=lambda F, g, a, b: F.where(a == b, g / 2, F.where(a < b, 0, g)),
    b=lambda F, g, a, b: F.where(a == b, g / 2, F.where(a > b, 0, g)),
)
def maximum(F: Any, a: Operand, b: Operand, /) -> Array:
    """The larger of two tensors, element by element; at a tie the gradient is halved."""
    return F.maximum(a, b)


@scalar("minimum(a, b)")
@operation(
    ELEMENTWISE,
    a=lambda F, g, a, b: F.where(a == b, g / 2, F.where(a > b, 0, g)),
    b=lambda F, g, a, b: F.where(a == b, g / 2, F.where(a < b, 0, g)),
)
def minimum(F: Any, a: Operand, b: Operand, /) -> Array:
    """The smaller of two tensors, element by element; at a tie the gradient is halved."""
    return F.minimum(a, b)


def _clip_x(F: Any, g: Any, x: Any, min: Any, max: Any) -> Any:
    if min is not None:
        g = F.where(x >= min, g, 0)
    return g if max is None else F.where(x <= max, g, 0)


def _clipped(min: float | None, max: float | None) -> str:
    expression = "x" if min is None else "maximum(x, min)"
    return expression if max is None else f"minimum({expression}, max)"


@scalar(_clipped)
@operation(ELEMENTWISE, x=_clip_x)
def clip(F: Any, x: Operand, /, min: float | None = None, max: float | None = None) -> Array:
    """``x`` limited to [min, max]; None leaves a side open. The gradient passes at the limits themselves."""
    if min is None and max is None:
        raise ValueError("clip needs min, max or both")
    if min is not None:
        x = F.maximum(x, min)
    return x if max is None else F.minimum(x, max)


@scalar("where(condition, x, y)")
@operation(
    ELEMENTWISE,
    x=lambda F, g, condition: F.where(condition, g, 0),
    y=lambda F, g, condition: F.where(condition, 0, g),
)
def where(F: Any, condition: Operand, x: Operand, y: Operand, /) -> Array:
    """``x`` where ``condition`` holds, elsewhere ``y``."""
    return F.where(condition, x, y)


@scalar("x")
@over_time(shifted)
@operation(x=lambda F, g: g)
def astype(F: Any, x: Operand, /, dtype: Any) -> Array:
    """``x`` with elements of another dtype."""
    return F.astype(x, dtype)


@operation(x=lambda F, g, home: F.to_backend(g, home))
def _to_backend(F: Any, x: Operand, /, backend: str, home: str) -> Array:
    return F.to_backend(x, backend)


def to_backend(x: Tensor, backend: str) -> Tensor:
    """``x`` copied to another backend; see `Tensor.to`."""
    return _to_backend(x, backend, x.backend)


@scalar("a // b")
@operation(ELEMENTWISE)
def floor_divide(F: Any, a: Operand, b: Operand, /) -> Array:
    """Quotient rounded down; has no gradient."""
    return F.floor_divide(a, b)


@scalar("a % b")
@operation(ELEMENTWISE)
def remainder(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a - b * floor(a / b)``; has no gradient."""
    return F.remainder(a, b)


@scalar("sign(x)")
@operation(ELEMENTWISE)
def sign(F: Any, x: Operand, /) -> Array:
    """-1, 0 or 1; has no gradient."""
    return F.sign(x)


@scalar("floor(x)")
@operation(ELEMENTWISE)
def floor(F: Any, x: Operand, /) -> Array:
    """The largest integer not above ``x``; has no gradient."""
    return F.floor(x)


@scalar("x != x")
@operation(ELEMENTWISE)
def isnan(F: Any, x: Operand, /) -> Array:
    """Where ``x`` is not a number."""
    return F.isnan(x)


@scalar("abs(x) == infinity")
@operation(ELEMENTWISE)
def isinf(F: Any, x: Operand, /) -> Array:
    """Where ``x`` is infinite."""
    return F.isinf(x)


@scalar("abs(x) < infinity")
@operation(ELEMENTWISE)
def isfinite(F: Any, x: Operand, /) -> Array:
    """Where ``x`` is neither infinite nor NaN."""
    return F.isfinite(x)


@scalar("a == b")
@operation(ELEMENTWISE)
def equal(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a == b``, element by element."""
    return F.equal(a, b)


@scalar("a != b")
@operation(ELEMENTWISE)
def not_equal(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a != b``, element by element."""
    return F.not_equal(a, b)


@scalar("a < b")
@operation(ELEMENTWISE)
def less(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a < b``, element by element."""
    return F.less(a, b)


@scalar("a <= b")
@operation(ELEMENTWISE)
def less_equal(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a <= b``, element by element."""
    return F.less_equal(a, b)


@scalar("a > b")
@operation(ELEMENTWISE)
def greater(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a > b``, element by element."""
    return F.greater(a, b)


@scalar("a >= b")
@operation(ELEMENTWISE)
def greater_equal(F: Any, a: Operand, b: Operand, /) -> Array:
    """``a >= b``, element by element."""
    return F.greater_equal(a, b)


@scalar("a & b")
@operation(ELEMENTWISE)
def logical_and(F: Any, a: Operand, b: Operand, /) -> Array:
    """Where both hold."""
    return F.logical_and(a, b)


@scalar("a | b")
@operation(ELEMENTWISE)
def logical_or(F: Any, a: Operand, b: Operand, /) -> Array:
    """Where one of them holds."""
    return F.logical_or(a, b)


@scalar("not x")
@operation(ELEMENTWISE)
def logical_not(F: Any, x: Operand, /) -> Array:
    """Where ``x`` does not hold."""
    return F.logical_not(x)


@scalar("zero")
@over_time(shifted)
@operation()
def zeros_like(F: Any, x: Operand, /) -> Array:
    """Zeros of the shape, dtype and backend of ``x``."""
    return F.zeros_like(x)


@scalar("one")
@over_time(shifted)
@operation()
def ones_like(F: Any, x: Operand, /) -> Array:
    """Ones of the shape, dtype and backend of ``x``."""
    return F.ones_like(x)
