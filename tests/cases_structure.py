"""Cases for operations that rearrange, join, part, index and multiply."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from case import case, dims, fixed, flags, ints, named, real

from tinygrad_rnn.backend import HOLE, fill

# Rearranging.

for _shape, _to in (((2, 6), (3, -1)), ((3, 3), (9,)), ((4,), (2, 1, 2)), ((1, 1), ()), ((2, 3), -1), ((0, 3), (3, 0))):
    case(
        "reshape",
        [real(*_shape)],
        lambda F, x, to=_to: F.reshape(x, to),
        lambda F, x, to=_to: F.reshape(x, to if isinstance(to, tuple) else (to,)),
    )
case("expand_dims", [real(3, 3)], lambda F, x: F.expand_dims(x, 1), lambda F, x: x[:, None])
case("expand_dims", [real(2, 3)], lambda F, x: F.expand_dims(x, (0, -1)), lambda F, x: x[None, ..., None])
case("expand_dims", [real()], lambda F, x: F.expand_dims(x, -1), lambda F, x: x[None])
case("squeeze", [real(1, 3, 1)], lambda F, x: F.squeeze(x), lambda F, x: F.squeeze(x))
case("squeeze", [real(1, 3, 1, 3)], lambda F, x: F.squeeze(x, -2), lambda F, x: F.squeeze(x, -2))
case("squeeze", [real(1, 0, 1)], lambda F, x: F.squeeze(x, (0, 2)), lambda F, x: F.squeeze(x, (0, 2)))
for _shape, _axes in (((3, 3), None), ((2, 3, 4), None), ((2, 3, 4), (2, 0, 1)), ((2, 3, 0), (-1, 0, -2)), ((), None)):
    case(
        "transpose",
        [real(*_shape)],
        lambda F, x, axes=_axes: F.transpose(x, axes),
        lambda F, x, axes=_axes: F.permute(x, axes or tuple(range(x.ndim))[::-1]),
    )
for _from, _to in ((0, -1), ((0, 1), (-1, 0)), ((2, 0), (0, 1))):
    case("moveaxis", [real(2, 3, 4)], *[lambda F, x, a=_from, b=_to: F.moveaxis(x, a, b)] * 2)
for _shape, _pair in (((3, 3), (0, 1)), ((2, 3, 4), (-1, 0))):
    case("swapaxes", [real(*_shape)], *[lambda F, x, pair=_pair: F.swapaxes(x, *pair)] * 2)
for _shape, _to in (((3, 1), (2, 3, 3)), ((), (2, 3)), ((2, 3), (2, 3)), ((1, 3), (0, 3)), ((1, 1), (2, 1))):
    case("broadcast_to", [real(*_shape)], *[lambda F, x, to=_to: F.broadcast_to(x, to)] * 2)
for _shape, _axis in (((3, 3), None), ((2, 3), 0), ((2, 3, 2), (0, -1)), ((0, 2), 1)):
    case(
        "flip", [real(*_shape)],
        lambda F, x, a=_axis: F.flip(x, a),
        lambda F, x, a=_axis: F.flip(x, (a,) if isinstance(a, int) else dims(x, a)),
    )  # fmt: skip
for _shape, _shift, _axis in (((3, 3), 1, None), ((2, 4), 5, 1), ((3, 4), (1, -2), (0, 1)), ((3, 0), 1, 0)):
    case("roll", [real(*_shape)], *[lambda F, x, s=_shift, a=_axis: F.roll(x, s, a)] * 2)
for _width in (1, (0, 2), ((1, 0), (2, 3)), ((0, 0), (0, 0))):
    case(
        "pad", [real(3, 3)],
        lambda F, x, w=_width: F.pad(x, w, constant_values=1.5),
        lambda F, x, w=_width: F.nn.functional.pad(
            x, [int(n) for n in np.broadcast_to(w, (2, 2))[::-1].ravel()], value=1.5
        ),
    )  # fmt: skip
for _shape, _reps in (((3, 3), 2), ((2, 3), (2, 1, 3)), ((3,), (2, 2)), ((2, 1), (3, 1)), ((), 3), ((2, 3), (0, 1))):
    case(
        "tile", [real(*_shape)],
        lambda F, x, r=_reps: F.tile(x, r),
        lambda F, x, r=_reps: F.tile(x, (r,) if isinstance(r, int) else r),
    )  # fmt: skip


# Joining and parting.

for _shapes, _axis in ((((3, 3), (3, 3)), 0), (((2, 1), (2, 3), (2, 2)), -1), (((0, 3), (2, 3)), 0), (((2,),), 0)):
    case(
        "concatenate", [real(*s) for s in _shapes],
        lambda F, *xs, a=_axis: F.concatenate(xs, axis=a),
        lambda F, *xs, a=_axis: F.cat(xs, dim=a),
    )  # fmt: skip
for _shape, _count, _axis in (((3, 3), 2, 0), ((2, 3), 3, -1), ((), 2, 0), ((0, 2), 2, 1)):
    case(
        "stack", [real(*_shape)] * _count,
        lambda F, *xs, a=_axis: F.stack(xs, axis=a),
        lambda F, *xs, a=_axis: F.stack(xs, dim=a),
    )  # fmt: skip
case("concatenate", [real(2), real(3)], lambda F, a, b: F.concatenate([a, b, a]), lambda F, a, b: F.cat([a, b, a]),
     note="one part twice")  # fmt: skip
for _shape, _axis, _used in (
    ((3, 3), 0, slice(None)),
    ((2, 4), -1, slice(1, 3)),
    ((3, 2), 1, slice(1)),
    ((2, 0), 0, slice(2)),
):
    case(
        "unstack", [real(*_shape)],
        lambda F, x, a=_axis, used=_used: F.unstack(x, a)[used],
        lambda F, x, a=_axis, used=_used: F.unbind(x, a)[used],
        lambda x, a=_axis, used=_used: list(np.moveaxis(x, a, 0))[used],
        note=f"axis {_axis} {_used}",
    )  # fmt: skip
for _shape, _cuts, _axis, _used in (
    *[((4, 3), 2, 0, (0, 1)), ((2, 6), 3, -1, (1,)), ((3, 3), 1, 0, (0,)), ((5,), [1, 4], 0, (0, 1, 2))],
    *[((2, 5), [2, 3], 1, (0, 2)), ((4, 2), [0, 2, 2], 0, (3, 1)), ((0, 2), 2, 0, (0,)), ((3, 3), [1, 2], 1, (2, 0))],
):
    case(
        "split", [real(*_shape)],
        lambda F, x, n=_cuts, a=_axis, used=_used: [F.split(x, n, a)[i] for i in used],
        lambda F, x, n=_cuts, a=_axis, used=_used: [F.tensor_split(x, n, a)[i] for i in used],
        note=f"{_cuts} axis {_axis} used {_used}",
    )  # fmt: skip


# Indexing.


for _shape, _text, *_arrays in (
    *[((3, 3), "1"), ((3, 4), "-1, ::2"), ((3, 4), "..."), ((2, 3, 4), "..., 0"), ((3,), "-2"), ((3, 4), "()")],
    *[((3, 4), "None, 1:, None, 2"), ((4,), "1:1"), ((), "None"), ((0, 3), "1:"), ((3,), "i", fixed([False] * 3))],
    *[((3, 3), "i", flags(3, 3)), ((3, 4), "i", flags(3)), ((2, 3), ":, i", flags(3)), ((2, 2, 3), "i", flags(2, 2))],
    *[((4, 3), "i", fixed([0, -1, 0, 2, 0])), ((4, 3), "i", ints(4, 2, 3)), ((3, 4), ":, i", ints(4, 5))],
    *[((3, 3), "i, j", ints(3, 6), ints(3, 6)), ((3, 4), "i, j", ints(3, 2, 1), ints(4, 3)), ((4,), "i", ints(4))],
    *[((2, 3, 4), "i, :, j", ints(2, 5), ints(4, 5)), ((2, 3, 4), "1, :, i", ints(4, 3)), ((4, 2), "i", ints(4, 0))],
    *[((3, 4), "i, 1:3", ints(3, 5)), ((3, 4), "i, ..., None", ints(3, 2)), ((5, 2), "i, 0", ints(5, 7))],
    *[((2, 3, 4), "i, None, j", ints(2, 2), ints(4, 2)), ((3, 4), ":, i, None", ints(4, 3)), ((2,), "i", ints(2, 9))],
):
    _at = eval(f"lambda i=None, j=None: np.s_[{_text}]")
    case(
        "getitem", [real(*_shape), *_arrays],
        lambda F, x, *arrays, at=_at: x[at(*arrays)],
        lambda F, x, *arrays, at=_at: x[at(*arrays)],
        note=f"{_shape}[{_text}]",
    )  # fmt: skip
case("getitem", [real(3, 4)], lambda F, x: x[::-1, 3:0:-2], lambda F, x: x.flip(0)[:, [3, 1]], note="negative steps")


def _numpy_place(shape, at, values, *arrays):
    result = np.zeros(shape, values.dtype)
    np.add.at(result, at(*arrays), values)
    return result


def _torch_place(shape, at, torch, values, *arrays):
    spots = torch.arange(math.prod(shape)).reshape(shape)[at(*arrays)]
    result = torch.zeros(math.prod(shape), dtype=values.dtype)
    return result.index_add(0, spots.reshape(-1), values.reshape(-1)).reshape(shape)


for _values, _shape, _index, *_arrays in (
    *[((3, 3), (3, 5), (slice(None), slice(1, 4))), ((4,), (2, 4), (1,)), ((), (3,), (-1,))],
    *[((6,), (3,), (HOLE,), ints(3, 6)), ((5, 3), (4, 3), (HOLE,), ints(4, 5))],
    *[((2, 6), (2, 3), (slice(None), HOLE), ints(3, 6)), ((3,), (3, 3), (0, HOLE), ints(3, 3))],
    *[((3, 3), (3, 3), (HOLE, HOLE), ints(3, 3, 1), ints(3, 3)), ((0, 2), (3, 2), (HOLE,), ints(3, 0))],
    *[((2, 2, 3), (4, 3), (HOLE,), ints(4, 2, 2)), ((3,), (4,), (HOLE,), fixed([True, False, True, True]))],
):  # fmt: skip
    _at = lambda *arrays, index=_index: fill(index, arrays)  # noqa: E731
    case(
        "place", [real(*_values), *_arrays],
        lambda F, v, *arrays, shape=_shape, index=_index: F.place(v, *arrays, shape=shape, index=index),
        partial(_torch_place, _shape, _at),
        partial(_numpy_place, _shape, _at),
    )  # fmt: skip


def _numpy_scatter_add(x, index, values):
    result = x.copy()
    np.add.at(result, index, values)
    return result


for _x, _values, _ints in (
    *[((4, 3), (5, 3), fixed([0, -1, 0, 2, 0])), ((3,), (2, 4), ints(3, 2, 4)), ((3, 3), (3,), fixed(1))],
    *[((3,), (0,), ints(3, 0)), ((4,), (2,), fixed([True, False, False, True]))],
):
    case(
        "scatter_add", [real(*_x), _ints, real(*_values)],
        named("scatter_add"),
        lambda F, x, i, v: x.index_put((i,), v, accumulate=True),
        _numpy_scatter_add,
    )  # fmt: skip
for _shape, _ints, _axis in (
    *[((3, 3), ints(9, 5), None), ((4, 2), ints(4, 6), 0), ((2, 4), ints(4, 2, 3), -1), ((2, 3, 2), fixed(-1), 1)],
    *[((3, 2), ints(3, 0), 0), ((2, 3), fixed([[0, 0], [5, -1]]), None)],
):
    case(
        "take", [real(*_shape), _ints],
        lambda F, x, i, a=_axis: F.take(x, i, a),
        lambda F, x, i, a=_axis: x.reshape(-1)[i] if a is None else x[(slice(None),) * (a % x.ndim) + (i,)],
    )  # fmt: skip
for _shape, _ints, _axis in (
    *[((3, 3), ints(3, 3, 3), 0), ((2, 4), ints(4, 2, 5), -1), ((3, 4), ints(3, 1, 4), 0), ((2, 3), ints(3, 2, 0), 1)],
    *[((2, 3, 4), ints(3, 2, 1, 1), 1), ((3,), fixed([0, 0, -1, 0]), 0), ((3, 1), ints(1, 3, 4), 1)],
):
    case(
        "take_along_axis", [real(*_shape), _ints],
        lambda F, x, i, a=_axis: F.take_along_axis(x, i, a),
        lambda F, x, i, a=_axis: F.take_along_dim(x, i % x.shape[a], a),
    )  # fmt: skip


# Products.

for _a, _b in (
    *[((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3, 3), (3, 3)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4))],
    *[((2, 2, 3), (2, 3, 4)), ((2, 3), (5, 3, 2)), ((2, 1, 2, 3), (3, 3, 2)), ((3,), (2, 3, 4)), ((2, 2, 3), (3,))],
    *[((0, 3), (3, 2)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 3)), ((1, 2, 3), (4, 3, 2)), ((2, 2, 3), (1, 3, 2))],
    *[((2, 1, 2, 3), (3, 2)), ((1, 3), (3, 1)), ((2, 2, 2), (2, 2, 2)), ((0,), (0,))],
):
    case("matmul", [real(*_a), real(*_b)], named("matmul"), named("matmul"))
case("matmul", [real(3, 3)], *[lambda F, x: x @ x.T] * 2, note="by its own transpose")
for _text, *_shapes in (
    *[("ij,jk->ik", (2, 3), (3, 4)), ("ij,kj", (3, 3), (3, 3)), ("bi,hi->bh", (2, 3), (4, 3)), ("i,i", (3,), (3,))],
    *[("ij->ji", (2, 3)), ("ij->j", (2, 3)), ("ij->", (2, 3)), ("ii->i", (3, 3)), ("ii", (3, 3)), ("ba", (2, 3))],
    *[("iij->j", (2, 2, 3)), ("iii->i", (2, 2, 2)), ("ijij->ij", (2, 3, 2, 3)), ("ii,ij->j", (3, 3), (3, 3))],
    *[("ij,k->i", (2, 3), (4,)), ("ij,kl->", (2, 3), (2, 2)), ("i,j->ij", (2,), (3,)), ("i,i->i", (3,), (3,))],
    *[("...ij,...jk->...ik", (2, 2, 3), (3, 4)), ("...i,i->...", (2, 3, 4), (4,)), ("b...->...b", (2, 3, 2))],
    *[("...i,...i", (2, 1, 3), (4, 3)), ("i...,i->...", (3, 2), (3,)), ("...,...->...", (2, 3), (3,))],
    *[("ij,jk,kl->il", (2, 3), (3, 2), (2, 4)), ("i,ij,j", (2,), (2, 3), (3,)), (",i->i", (), (3,))],
    *[("ij,ij,ij->ij", (3, 3), (3, 3), (3, 3)), ("bi,bj,ij->b", (2, 3), (2, 2), (3, 2))],
    *[("ij,jk->ik", (2, 0), (0, 3)), ("ij,jk->ik", (0, 3), (3, 2))],
    *[("ij,ij->i", (2, 3), (2, 1)), ("ij,j->", (2, 3), (1,)), ("ij,ij->ij", (1, 3), (2, 1)), ("ij,jk", (2, 1), (3, 2))],
):  # fmt: skip
    case(
        "einsum", [real(*s) for s in _shapes],
        lambda F, *xs, text=_text: F.einsum(text, *xs),
        lambda F, *xs, text=_text: F.einsum(text, *xs),
        note=_text,
    )  # fmt: skip
for _a, _b in (((3,), (3,)), ((2,), (3,)), ((2, 2), (3,)), ((0,), (2,))):
    case("outer", [real(*_a), real(*_b)], named("outer"), lambda F, a, b: F.outer(a.reshape(-1), b.reshape(-1)))
