"""Training on sequences: `tbptt`, truncated backpropagation through time, and `sequence_loss`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tinygrad_rnn.arguments import lengths_of_rows, on_host, rows_alive
from tinygrad_rnn.backend import get_backend
from tinygrad_rnn.nest import detach, leaves, map_nest
from tinygrad_rnn.ops import concatenate, mean, reshape, where
from tinygrad_rnn.ops import sum as sum_
from tinygrad_rnn.optim import Optimizer, clip_grad_norm_
from tinygrad_rnn.tensor import Tensor, as_tensor


@dataclass(frozen=True)
class Update:
    """What one update of `tbptt` did.

    Attributes
    ----------
    loss
        Of the update's own steps, 0-d, out of the graph.
    norm
        Of the gradient before clipping, 0-d; None if it was not asked to clip.
    state
        After the update's last step, out of the graph: where the next call of `tbptt` may go on from.
    stop
        How many steps of the sequence are behind it.
    """

    loss: Tensor
    norm: Tensor | None
    state: Any
    stop: int


def tbptt(
    model: Callable[[Any, Any], tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    xs: Any,
    targets: Any,
    optimizer: Optimizer,
    k1: int,
    k2: int | None = None,
    state: Any = None,
    max_norm: float | None = None,
) -> Iterator[Update]:
    """Truncated backpropagation through time: after every ``k1`` steps one update, from ``k2`` steps back.

    The gradient of an update is that of the loss of its own ``k1`` steps, with the state ``k2`` steps before their end
    taken as a constant: BPTT(k2; k1) of Williams & Peng 1990. With ``k2`` above ``k1`` windows overlap, and the steps
    before the update's own are computed again with the present weights. The window never reaches back before ``xs``::

        for update in tg.tbptt(model, F.cross_entropy, xs, targets, optimizer, k1=35, max_norm=1.0):
            bar.set_postfix(loss=update.loss.item())

    Parameters
    ----------
    model
        ``model(xs, state) -> (ys, state)`` on any number of steps, such as a layer of `tinygrad_rnn.nn`. The state is
        a nest of tensors.
    loss
        ``loss(ys, targets)``, a tensor of one element, on the steps of one update.
    xs, targets
        Nests of tensors of shape (T, ...), time first.
    optimizer
        Takes the steps; its parameters' gradients are set to None before each update.
    k1
        Steps between updates; the last update may have fewer.
    k2
        Steps that an update looks back over, at least ``k1``; None means ``k1``.
    state
        Where to start, for example ``state`` of the last update on the batch before; None leaves it to ``model``.
    max_norm
        Clip the joint norm of all gradients; see `optim.clip_grad_norm_`.

    Yields
    ------
    Update
        After each step of the optimizer. Nothing is waited for on a device until its numbers are read.

    Raises
    ------
    ValueError
        If ``k1`` is not positive, ``k2`` below ``k1``, or ``xs`` and ``targets`` differ in their number of steps.
    """
    k2 = k1 if k2 is None else k2
    if k1 < 1 or k2 < k1:
        raise ValueError(f"tbptt needs 1 <= k1 <= k2, got k1={k1} and k2={k2}")
    xs, targets = map_nest(as_tensor, xs), map_nest(as_tensor, targets)
    lengths = {place: leaf.shape[0] for place, leaf in leaves({"xs": xs, "targets": targets})}
    steps = next(iter(lengths.values()))
    if not steps or len(set(lengths.values())) > 1:
        raise ValueError(f"xs and targets must have the same steps, at least one, got {lengths}")
    return _updates(model, loss, xs, targets, optimizer, k1, k2, detach(state), max_norm, steps)


def _updates(
    model: Callable[[Any, Any], tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    xs: Any,
    targets: Any,
    optimizer: Optimizer,
    k1: int,
    k2: int,
    state: Any,
    max_norm: float | None,
    steps: int,
) -> Iterator[Update]:
    start = 0  # of the window; ``state`` is the one before it
    for first in range(0, steps, k1):
        stop = min(first + k1, steps)
        following = max(0, min(stop + k1, steps) - k2)  # where the next window starts
        ys, after = [], state
        for a, b in ((start, following), (following, stop)):
            if a < b:
                y, after = model(_cut(xs, a, b), after)
                ys.append(y)
            if b == following:
                kept = detach(after)
        window = map_nest(lambda *parts: concatenate(parts) if len(parts) > 1 else parts[0], *ys)
        error = loss(_cut(window, first - start, stop - start), _cut(targets, first, stop))
        optimizer.zero_grad()
        error.backward()
        norm = None
        if max_norm is not None:
            norm = clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
        optimizer.step()
        yield Update(error.detach(), norm, detach(after), stop)
        start, state = following, kept


def _cut(nest: Any, start: int, stop: int) -> Any:
    return map_nest(lambda leaf: leaf if (start, stop) == (0, leaf.shape[0]) else leaf[start:stop], nest)


def sequence_loss(
    loss: Callable[..., Tensor],
    output: Tensor,
    target: Tensor,
    lengths: Any = None,
    mask: Any = None,
    average: Literal["token", "sequence"] = "token",
) -> Tensor:
    """Any loss, over the real steps of padded sequences alone.

    Parameters
    ----------
    loss
        Called as ``loss(output, target, reduction="none")`` with time and batch merged to one axis, as all losses of
        `tinygrad_rnn.functional` may be: ``F.cross_entropy`` on logits (T, B, classes) and indices (T, B).
        Over further axes of its result the mean is taken.
    output, target
        Shape (T, B, ...), also where a layer has ``batch_first``: give ``tg.swapaxes(output, 0, 1)``. What they hold
        at padding, NaN even, does not matter, and gets no gradient.
    lengths
        Ints (B,): how many steps of each row are real.
    mask
        In place of ``lengths``: bools (T, B), True at real steps.
    average
        ``"token"``: over all real steps. ``"sequence"``: over each row's real steps, and then over the rows that have
        any, so that long rows count no more than short ones.

    Returns
    -------
    A tensor of one element.
    """
    output, target = as_tensor(output), as_tensor(target)
    if output.ndim < 2 or output.shape[:2] != target.shape[:2]:
        raise ValueError(f"output and target must have shapes (T, B, ...), got {output.shape} and {target.shape}")
    steps, batch = output.shape[:2]
    if average not in ("token", "sequence"):
        raise ValueError(f"average must be 'token' or 'sequence', got {average!r}")
    if lengths is not None and mask is not None:
        raise ValueError("give lengths or mask, not both")
    if lengths is not None:
        hint = "; if a layer has batch_first, give tg.swapaxes(output, 0, 1)"
        real = rows_alive(lengths_of_rows(lengths, steps, batch, hint)[0], steps)
    elif mask is None:
        real = np.ones((steps, batch), bool)
    else:
        real = on_host(mask)
        if real.shape != (steps, batch) or real.dtype.kind != "b":
            raise ValueError(f"mask must be bools of shape ({steps}, {batch}), got {real.dtype} of {real.shape}")
    counts = real.sum(axis=0)
    if not counts.any():
        raise ValueError(f"no step of the {batch} rows is real: there is nothing to average")
    share = real / (counts.sum() if average == "token" else np.maximum(counts, 1) * (counts > 0).sum())
    on_device = get_backend(output.backend).asarray
    flags = Tensor(on_device(real.reshape(-1)))
    merged = []
    for tensor in (output, target):
        rows = reshape(tensor, (steps * batch, *tensor.shape[2:]))
        merged.append(rows if real.all() else where(reshape(flags, (-1,) + (1,) * (rows.ndim - 1)), rows, 0))
    losses = loss(*merged, reduction="none")
    if not losses.ndim or losses.shape[0] != steps * batch:
        raise ValueError(f"loss must give one value for each of {steps * batch} steps, got shape {losses.shape}")
    losses = losses if losses.ndim == 1 else mean(losses, axis=tuple(range(1, losses.ndim)))
    return sum_(losses * Tensor(on_device(share.reshape(-1).astype(losses.dtype))))
