"""Products: ``matmul``, its general form ``einsum``, and products of all elements along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod as product
from typing import Any

from tinygrad_rnn.backend import Array
from tinygrad_rnn.ops.declare import Operand, operation, over_time, sum_to
from tinygrad_rnn.ops.elementwise import multiply
from tinygrad_rnn.ops.indexing import axis_range, getitem
from tinygrad_rnn.ops.over_time import lettered, products, summed_letters
from tinygrad_rnn.ops.reduction import Axis, axes_of, sum
from tinygrad_rnn.ops.shape import concatenate, expand_dims, reshape, squeeze, transpose
from tinygrad_rnn.tensor import Tensor, TensorLike, as_tensor

__all__ = [
    "einsum",
    "matmul",
    "outer",
    "prod",
]


def _rows(F: Any, x: Any) -> Any:
    """All axes but the last made into one."""
    return x if x.ndim == 2 else F.reshape(x, (product(x.shape[:-1]), x.shape[-1]))


def _matmul_a(F: Any, g: Any, a_shape: tuple[int, ...], b: Any) -> Any:
    if b.ndim == 2:
        return F.matmul(g, b.T)
    return sum_to(F, F.matmul(g, F.swapaxes(b, -1, -2)), a_shape)


def _matmul_b(F: Any, g: Any, a: Any, b_shape: tuple[int, ...]) -> Any:
    if len(b_shape) == 2:  # one product over all rows, however many axes they fill
        return F.outer_sum(_rows(F, a), _rows(F, g))
    return sum_to(F, F.matmul(F.swapaxes(a, -1, -2), g), b_shape)


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the outer products of rows of ``a`` and rows of ``b``."""
    return matmul(b.T, a).T


def _side_by_side(F: Any, x: Any) -> Any:
    """The matrices of all steps (T, m, n) as one, (m, T * n), and copied, in whichever order is faster, if need be."""
    steps, rows, columns = x.shape
    first, second, third = x.strides
    if first != third * columns and steps > 1 and x.size:
        if second < third:
            return F.reshape(F.in_order(F.transpose(x, (0, 2, 1))), (steps * columns, rows)).T
        return F.reshape(F.in_order(F.transpose(x, (1, 0, 2))), (rows, steps * columns))
    return F.reshape(F.transpose(x, (1, 0, 2)), (rows, steps * columns))


def _summed_products(rule: Any, params: Any, operands: Sequence[Any], timed: Sequence[bool]) -> Any:
    """The sum over time of products is one product, in which time is part of the axis that is summed over."""
    a, b = operands
    if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2] or not all(timed):
        return None
    *batch, rows, inner = a.shape
    columns, last = b.shape[-1], a.ndim  # the last axis, if there is time
    first = range(1, last - 1)
    to_wide, to_tall = (*first, last - 1, 0, last), (*first, 0, last - 1, last)

    def run(F: Any, steps: int, a: Any, b: Any) -> Any:
        if not batch:
            return F.matmul(_side_by_side(F, a), _side_by_side(F, F.transpose(b, (0, 2, 1))).T)
        wide = F.reshape(F.transpose(a, to_wide), (*batch, rows, steps * inner))
        return F.matmul(wide, F.reshape(F.transpose(b, to_tall), (*batch, steps * inner, columns)))

    return run


@over_time(products, total=_summed_products, each=("a", "b"))
@operation(a=_matmul_a, b=_matmul_b)
def _matmul(F: Any, a: Operand, b: Operand, /) -> Array:
    if b.ndim == 2 and a.ndim > 2:
        return F.reshape(F.matmul(_rows(F, a), b), (*a.shape[:-1], b.shape[-1]))
    return F.matmul(a, b)


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """Matrix product over the last axis of ``a`` and the last but one of ``b``; other axes broadcast.

    A 1-d operand is a row on the left and a column on the right, and its axis does not appear in the result.
    """
    a = a if isinstance(a, Tensor) else _beside(a, b)
    b = b if isinstance(b, Tensor) else _beside(b, a)
    a_shape, b_shape = a._data.shape, b._data.shape
    if not a_shape or not b_shape or a_shape[-1] != b_shape[-2 if len(b_shape) > 1 else 0]:
        raise ValueError(
            f"matmul: the last axis of the first operand must match the last but one of the second, "
            f"got shapes {a_shape} and {b_shape}"
        )
    if len(a_shape) > 1 and len(b_shape) > 1:
        return _matmul(a, b)
    result = _matmul(a if a.ndim > 1 else expand_dims(a, 0), b if b.ndim > 1 else expand_dims(b, 1))
    axes = ((-2,) if a.ndim == 1 else ()) + ((-1,) if b.ndim == 1 else ())
    return squeeze(result, axes)


def _beside(value: Any, other: Any) -> Tensor:
    """``value`` as an operand beside ``other``: lists of floats take its dtype."""
    like = (
        other.dtype
        if isinstance(other, Tensor) and isinstance(value, (list, tuple)) and other.dtype.kind == "f"
        else None
    )
    return Tensor(value, dtype=like)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """All products of an element of ``a`` and one of ``b``, both taken as 1-d."""
    return multiply(reshape(a, (-1, 1)), reshape(b, (1, -1)))


def prod(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Product over ``axis``.

    A tree of products: it needs no VJP of its own, and is right at zeros to any order, where ``out / x`` is not.
    """
    x = as_tensor(x)
    axes = axes_of(axis, x.ndim)
    rest = [a for a in range(x.ndim) if a not in axes]
    tree = reshape(transpose(x, (*rest, *axes)), (*[x.shape[a] for a in rest], product(x.shape[a] for a in axes)))
    while (length := tree.shape[-1]) > 1:
        half = length // 2
        pairs = tree[..., :half] * tree[..., half : 2 * half]
        tree = pairs if length % 2 == 0 else concatenate([pairs, tree[..., -1:]], axis=-1)
    out = tree[..., 0] if tree.shape[-1] else sum(tree, axis=-1) + 1  # a product of nothing, still of the graph
    return expand_dims(out, tuple(sorted(axes))) if keepdims else out


def _einsum_operands(
    F: Any,
    g: Any,
    operands: list[Any],
    operands_shape: list[tuple[int, ...]],
    wanted: tuple[int, ...],
    subscripts: str,
) -> list[Any]:
    """For each operand: the product of the cotangent and the other operands, summed to its letters."""
    inputs, result = subscripts.split("->")
    letters = inputs.split(",")
    gradients: list[Any] = [None] * len(operands)
    for i in wanted:
        others = [letters[k] for k in range(len(operands)) if k != i]
        known = set(result).union(*others)
        own = "".join(letter for letter in letters[i] if letter in known)
        pulled = F.einsum(
            f"{','.join([result, *others])}->{own}", g, *[operands[k] for k in range(len(operands)) if k != i]
        )
        shape = operands_shape[i]
        if pulled.shape != shape:  # letters that only this operand has were summed away: all get the same cotangent
            lengths = iter(pulled.shape)
            full = tuple(next(lengths) if x in known else 1 for x in letters[i])
            # Length 1 broadcasts, and so may be longer in the cotangent, or in this operand.
            longest = tuple(n if m == 1 else m for m, n in zip(full, shape, strict=True))
            pulled = F.broadcast_to(F.reshape(pulled, full), longest)
        gradients[i] = sum_to(F, pulled, shape)
    return gradients


@over_time(lettered, total=summed_letters, each=("operands",))
@operation(operands=_einsum_operands)
def _einsum(F: Any, /, *operands: Operand, subscripts: str) -> Array:
    return F.einsum(subscripts, *operands)


def einsum(subscripts: str, *operands: Tensor) -> Tensor:
    """Sum of products by Einstein's convention, as in NumPy: letters name axes, ``...`` stands for any others.

    Examples
    --------
    ``einsum("bi,hi->bh", x, w)`` is ``x @ w.T``.
    """
    tensors = [as_tensor(t) for t in operands]
    inputs, arrow, result = subscripts.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if len(letters) != len(tensors):
        raise ValueError(f"einsum: {subscripts!r} names {len(letters)} operands, got {len(tensors)}")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in subscripts]
    most = max(
        (t.ndim - len(x.replace("...", "")) for x, t in zip(letters, tensors, strict=True) if "..." in x), default=0
    )
    dots = "".join(spare[:most])
    for i, (named, tensor) in enumerate(zip(letters, tensors, strict=True)):
        count = tensor.ndim - len(named.replace("...", ""))
        letters[i] = named = named.replace("...", dots[most - count :] if count > 0 else "")
        if len(named) != tensor.ndim:
            raise ValueError(f"einsum: {subscripts!r} names {len(named)} axes of operand {i}, which has {tensor.ndim}")
        unique = "".join(dict.fromkeys(named))
        if unique != named:  # a repeated letter is a diagonal
            lengths = {letter: tensor.shape[named.index(letter)] for letter in unique}
            if any(lengths[c] != n for c, n in zip(named, tensor.shape, strict=True)):
                raise ValueError(f"einsum: {named!r} needs a diagonal, got operand {i} of shape {tensor.shape}")
            grid = {c: axis_range(tensor, lengths[c], k, len(unique)) for k, c in enumerate(unique)}
            tensors[i] = getitem(tensor, tuple(grid[letter] for letter in named))
            letters[i] = unique
    if arrow:
        result = result.replace("...", dots)
    else:
        everything = "".join(letters)
        result = dots + "".join(sorted(c for c in set(everything) - set(dots) if inputs.count(c) == 1))
    return _einsum(*tensors, subscripts=f"{','.join(letters)}->{result}")
