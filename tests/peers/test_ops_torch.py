"""Every operation with a gradient against PyTorch: values, gradients and second gradients, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from case import results, tensors
from cases import CASES

import tinygrad_rnn as tg

# With an int and an array on two sides of a slice NumPy, and so we, put the array's axis first; PyTorch does not.
OTHER_ORDER = "(2, 3, 4)[1, :, i]"
SMOOTH = [case for cases in CASES.values() for case in cases if case.torch and OTHER_ORDER not in case.note]


def close(ours, theirs) -> None:
    expected = theirs.detach().numpy(force=True)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_against_pytorch(case):
    drawn = case.draw()
    ours = tensors(drawn, requires_grad=True)
    theirs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in drawn]
    ys, zs = results(case.ours(*ours)), results(case.torch(torch, *theirs))
    assert len(ys) == len(zs)
    for y, z in zip(ys, zs, strict=True):
        close(y, z)
    ours, theirs = [x for x in ours if x.requires_grad], [x for x in theirs if x.requires_grad]
    if not ys:
        return
    draw = np.random.default_rng(1)
    cotangents = [np.asarray(draw.standard_normal(y.shape)) for y in ys]
    given = [torch.tensor(c, requires_grad=True) for c in cotangents]
    first = tg.grad(ys, ours, [tg.Tensor(c) for c in cotangents], create_graph=True)
    expected = torch.autograd.grad(zs, theirs, given, create_graph=True)
    for g, h in zip(first, expected, strict=True):
        close(g, h)
    # Gradients of a weighted sum of the gradients; an operation linear in its operands has none.
    weights = [np.asarray(draw.standard_normal(g.shape)) for g in first]
    bent = [(g * tg.Tensor(w)).sum() for g, w in zip(first, weights, strict=True) if g.requires_grad]
    torch_bent = sum((h * torch.tensor(w)).sum() for h, w in zip(expected, weights, strict=True))
    second = tg.grad(bent, ours, allow_unused=True) if bent else [None] * len(ours)
    if isinstance(torch_bent, torch.Tensor) and torch_bent.requires_grad:
        wanted = torch.autograd.grad(torch_bent, theirs, allow_unused=True, materialize_grads=True)
    else:
        wanted = [torch.zeros_like(x) for x in theirs]
    for x, g, h in zip(ours, second, wanted, strict=True):
        close(tg.zeros_like(x) if g is None else g, h)
