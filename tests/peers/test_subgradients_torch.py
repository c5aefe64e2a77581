"""The table of docs/subgradients.md is PyTorch's as well."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from subgradients import rows

OTHER_NAMES = {"power": "pow", "max": "amax", "min": "amin", "clip": "clamp"}


@pytest.mark.parametrize(("expression", "x", "expected"), rows())
def test_row(expression, x, expected):
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    names = {
        "x": point,
        "array": lambda values: torch.tensor(values, dtype=torch.float64),
        "std": lambda v: torch.std(v, correction=0),
        "logsumexp": lambda v: torch.logsumexp(v, 0),
    }
    for name in re.findall(r"([a-z_0-9]+)\(", expression):
        theirs = OTHER_NAMES.get(name, name)
        function = getattr(torch, theirs, None) or getattr(torch.nn.functional, theirs)
        names.setdefault(name, function)
    if "relu" in expression or "elu" in expression or "plus" in expression or "loss" in expression:
        names |= {n: getattr(torch.nn.functional, n) for n in re.findall(r"([a-z_0-9]+)\(", expression)}
    eval(re.sub(r"(\[.*?\])", r"array(\1)", expression), names).sum().backward()
    np.testing.assert_allclose(point.grad.numpy(), expected, rtol=1e-12, atol=1e-12)
