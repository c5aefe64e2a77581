"""The registry of cases, `CASES`: elementwise operations, reductions and tensors from nothing.

Those that rearrange, index and multiply are in ``cases_structure.py``.
"""

from __future__ import annotations

import math
from functools import partial

import cases_structure  # noqa: F401 - adds its cases
import numpy as np
from case import CASES, apart, case, dims, fixed, flags, grid, named, nonzero, positive, real

__all__ = ["CASES"]

# Elementwise, one operand.


def _numpy_erf(x):
    return np.vectorize(math.erf, otypes=[float])(x).astype(x.dtype)


UNARY = {
    **dict.fromkeys(("cos", "exp", "expm1", "negative", "sigmoid", "sin", "square", "tanh", "erf"), real),
    **dict.fromkeys(("log", "log1p", "sqrt"), positive),
    **{"abs": apart, "reciprocal": nonzero},
}
NUMPY_UNARY = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": _numpy_erf}
for _name, _draw in UNARY.items():
    for _shape in ((3, 3), (2, 3), (), (0, 3)):
        case(_name, [_draw(*_shape)], named(_name), named(_name), NUMPY_UNARY.get(_name))

ODD_VALUES = [[0.0, -0.0, 1.5, -2.0], [math.nan, math.inf, -math.inf, 1e30]]
for _name in ("isnan", "isinf", "isfinite", "logical_not", "floor", "sign", "zeros_like", "ones_like"):
    for _drawn in (fixed(ODD_VALUES), apart(0, 3), apart()):
        case(_name, [_drawn], named(_name))
case("logical_not", [flags(5)], named("logical_not"))


# Elementwise, two operands.

BINARY = {
    "add": (real, real),
    "subtract": (real, real),
    "multiply": (real, real),
    "divide": (real, nonzero),
    "power": (positive, real),
    "maximum": (apart, partial(apart, offset=0.07)),
    "minimum": (apart, partial(apart, offset=0.07)),
}
TORCH_NAMES = {"power": "pow"}
PAIRS = (
    ((3, 3), (3, 3)),
    ((3, 1), (4,)),
    ((2, 3), ()),
    ((), ()),
    ((0, 3), (3,)),
    ((2, 1, 3), (4, 1)),
    ((1, 1), (2, 2)),
)
for _name, (_first, _second) in BINARY.items():
    for _a, _b in PAIRS:
        case(_name, [_first(*_a), _second(*_b)], named(_name), named(TORCH_NAMES.get(_name, _name)))
for _name in ("add", "subtract", "multiply", "divide"):
    case(_name, [nonzero(2, 3)], *[lambda F, x, op=_name: getattr(F, op)(x, 1.5)] * 2, note="number right")
for _operator, _name in ((lambda x: 2 - x, "subtract"), (lambda x: 2 / x, "divide"), (lambda x: 2.5**x, "power")):
    case(_name, [nonzero(2, 3)], *[lambda F, x, f=_operator: f(x)] * 2, note="number left")
for _name in ("maximum", "minimum"):
    case(
        _name,
        [apart(3, 3)],
        lambda F, x, name=_name: getattr(F, name)(x, 0.25),
        lambda F, x, name=_name: getattr(F, name)(x, F.full_like(x, 0.25)),
        note="number",
    )
for _exponent in (0, 1, 2, 3, -1, -2, 0.5, 2.5):
    _base = positive if _exponent % 1 else nonzero
    case("power", [_base(2, 3)], *[lambda F, x, n=_exponent: x**n] * 2, note=f"exponent {_exponent}")
for _name in ("add", "multiply", "divide", "power"):
    case(_name, [nonzero(2, 3), fixed([2, 1, 3])], named(_name), named(TORCH_NAMES.get(_name, _name)), note="ints")

TIED = [[1.0, 2.0, -3.5], [0.0, 2.5, -3.5]], [[1.0, 3.0, -3.5], [-1.0, 2.5, 4.0]]
for _name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or"):
    for _drawn in ([fixed(x) for x in TIED], [real(2, 1), real(3)], [real(0, 3), real()]):
        case(_name, _drawn, named(_name))
for _name in ("floor_divide", "remainder"):
    for _drawn in ([apart(2, 3), nonzero(3)], [fixed([7, -7, 7, -7]), fixed([3, 3, -3, -3])], [real(0), nonzero()]):
        case(_name, _drawn, named(_name))


# Elementwise, others.

for _low, _high in ((-0.5, 0.5), (None, 0.1), (0.0, None)):
    case(
        "clip",
        [apart(3, 3)],
        lambda F, x, low=_low, high=_high: F.clip(x, low, high),
        lambda F, x, low=_low, high=_high: F.clip(x, low, high),
        note=f"{_low} to {_high}",
    )
case("clip", [apart()], *[lambda F, x: F.clip(x, -1, 1)] * 2)
case("clip", [apart(0, 2)], *[lambda F, x: F.clip(x, -1, 1)] * 2)
for _c, _x, _y in (
    ((3, 3), (3, 3), (3, 3)),
    ((3, 1), (4,), (3, 4)),
    ((2,), (), (3, 1)),
    ((), (), ()),
    ((0, 1), (3,), ()),
):
    case("where", [flags(*_c), real(*_x), real(*_y)], named("where"), named("where"))
case("where", [flags(2, 3), real(2, 3)], *[lambda F, c, x: F.where(c, x, 0)] * 2, note="number right")
case("where", [flags(2, 3, 1), real(2, 3, 4)], *[lambda F, c, x: F.where(c, x, -1.5)] * 2, note="rows, number right")
case("where", [flags(2, 3), real(3)], *[lambda F, c, x: F.where(c, 1.5, x)] * 2, note="number left")


def _through_float32(F, x):
    """float64 to float32 and back, once by name and once by multiplying with float64."""
    return F.astype(F.astype(x, np.float32), np.float64) * 2, F.astype(x, np.float32) * F.ones_like(x)


case(
    "astype",
    [grid(3, 3)],
    _through_float32,
    lambda torch, x: (x.float().double() * 2, x.float() * torch.ones_like(x)),
    lambda x: (x.astype(np.float32).astype(float) * 2, x.astype(np.float32) * np.ones_like(x)),
    note="float32 and back",
    eps=2.0**-6,  # exact in float32 too, since the values are
)
case("astype", [grid(3)], lambda F, x: F.astype(x, np.int64), numpy=lambda x: x.astype(np.int64), note="to int")
case("to_backend", [real(3, 3)], lambda F, x: F.to_backend(x, "numpy"), lambda torch, x: x.clone(), lambda x: x)


# Reductions.


def _torch_reduction(name, torch, x, axis=None, keepdims=False, **named):
    return getattr(torch, name)(x, dim=dims(x, axis), keepdim=keepdims, **named)


def _torch_prod(torch, x, axis=None, keepdims=False):
    for a in sorted((a % x.ndim for a in dims(x, axis if not isinstance(axis, int) else (axis,))), reverse=True):
        x = torch.prod(x, dim=a, keepdim=keepdims)
    return x


def _numpy_logsumexp(x, axis=None, keepdims=False):
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


REDUCTIONS = {
    "sum": (real, partial(_torch_reduction, "sum"), None),
    "mean": (real, partial(_torch_reduction, "mean"), None),
    "max": (apart, partial(_torch_reduction, "amax"), None),
    "min": (apart, partial(_torch_reduction, "amin"), None),
    "var": (real, partial(_torch_reduction, "var", correction=0), None),
    "std": (real, partial(_torch_reduction, "std", correction=0), None),
    "logsumexp": (real, partial(_torch_reduction, "logsumexp"), _numpy_logsumexp),
    "prod": (nonzero, _torch_prod, None),
}
AXES = (
    *[((3, 3), {}), ((2, 3), {"axis": 0}), ((2, 3), {"axis": -1, "keepdims": True}), ((5,), {"axis": 0})],
    *[((2, 3, 2), {"axis": (0, 2)}), ((2, 3, 2), {"axis": (-1, 1), "keepdims": True}), ((2, 3), {"keepdims": True})],
)


def _reduction(op, shape, named, suffix=""):
    draw, torch, numpy = REDUCTIONS[op]
    case(
        op,
        [draw(*shape)],
        lambda F, x: getattr(F, op)(x, **named),
        partial(lambda torch, F, x: torch(F, x, **named), torch),
        numpy and (lambda x: numpy(x, **named)),
        note=f"{'x'.join(map(str, shape)) or '0d'} {named or ''}{suffix}",
    )


for _name in REDUCTIONS:
    for _shape, _named in AXES:
        _reduction(_name, _shape, _named)
    if _name not in ("var", "std"):
        _reduction(_name, (), {})
    if _name in ("sum", "prod"):
        _reduction(_name, (0, 3), {"axis": 0})
    _reduction(_name, (0, 3), {"axis": 1})
for _name in ("var", "std"):
    case(
        _name,
        [real(3, 4)],
        lambda F, x, op=_name: getattr(F, op)(x, axis=1, ddof=1),
        lambda F, x, op=_name: getattr(F, op)(x, dim=1),
        note="ddof 1",
    )
case("logsumexp", [fixed([1000.0, 1001.0, -1e5])], named("logsumexp"), lambda F, x: F.logsumexp(x, 0),
     lambda x: (1000 + np.log(1 + math.e)).astype(x.dtype), note="large")  # fmt: skip
for _zeros in ([0.0, 2.0, 3.0], [0.0, 2.0, 0.0, 4.0], [0.0, 0.0, 0.0]):
    case("prod", [fixed(_zeros)], named("prod"), named("prod"), note=f"{_zeros.count(0)} zeros")
for _shape, _axis in (((3, 3), 0), ((2, 3), -1), ((0, 3), 1)):
    case("cumsum", [real(*_shape)], lambda F, x, a=_axis: F.cumsum(x, axis=a), lambda F, x, a=_axis: F.cumsum(x, dim=a))
for _name in ("argmax", "argmin"):
    for _axis in (None, 0, -1):
        case(_name, [apart(3, 4)], lambda F, x, op=_name, a=_axis: getattr(F, op)(x, axis=a))
case("argsort", [apart(3, 4)], lambda F, x: F.argsort(x))
case("argsort", [apart(3, 4)], lambda F, x: F.argsort(x, axis=0))
for _name in ("all", "any"):
    for _named in ({}, {"axis": 0}, {"axis": (0, -1), "keepdims": True}):
        case(_name, [flags(2, 3)], lambda F, x, op=_name, named=_named: getattr(F, op)(x, **named))
    case(_name, [flags(0, 3)], lambda F, x, op=_name: getattr(F, op)(x, axis=0))


# Tensors from nothing.

case("zeros", [], lambda F: F.zeros((2, 3), np.float32))
case("zeros", [], lambda F: F.zeros(2), numpy=lambda: np.zeros(2, np.float32), note="default")
case("ones", [], lambda F: F.ones((2, 0), np.float64))
case("ones", [], lambda F: F.ones(()), numpy=lambda: np.ones((), np.float32), note="default")
case("full", [], lambda F: F.full((2, 2), 3))
case("full", [], lambda F: F.full(2, 1.5), numpy=lambda: np.full(2, 1.5, np.float32), note="a float")
case("arange", [], lambda F: F.arange(4))
case("arange", [], lambda F: F.arange(3, -2, -2))
case("arange", [], lambda F: F.arange(0.5, 2.0, 0.5), numpy=lambda: np.arange(0.5, 2, 0.5, np.float32), note="floats")
case("linspace", [], lambda F: F.linspace(-1, 1, 5, dtype=np.float64))
case("linspace", [], lambda F: F.linspace(0, 1), numpy=lambda: np.linspace(0, 1, dtype=np.float32), note="default")
case("eye", [], lambda F: F.eye(3, dtype=np.float64))
case("eye", [], lambda F: F.eye(2, 3), numpy=lambda: np.eye(2, 3, dtype=np.float32), note="default")
for _drawn in (fixed([0, 2, 1]), fixed([[1], [2]]), fixed(1), fixed(np.zeros((0,), int))):
    case("one_hot", [_drawn], lambda F, i: F.one_hot(i, 3), numpy=lambda i: np.eye(3, dtype=np.float32)[i])
