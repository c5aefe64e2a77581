"""The gradients at kinks, ties and poles that docs/subgradients.md promises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import leaf, on_backend
from subgradients import rows

import tinygrad_rnn as tg
from tinygrad_rnn import functional


@pytest.mark.parametrize(("expression", "x", "expected"), rows())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row(expression, x, expected, dtype, backend):
    point = leaf(x, dtype)
    names = {**{n: getattr(tg, n) for n in tg.ops.__all__}, **{n: getattr(functional, n) for n in functional.__all__}}
    names |= {"x": point, "array": lambda values: on_backend(values, dtype)}
    with np.errstate(all="ignore"):
        eval(re.sub(r"(\[.*?\])", r"array(\1)", expression), names).sum().backward()
    np.testing.assert_allclose(point.grad.numpy(), expected, rtol=1e-6, atol=1e-12)


def test_the_table_is_read():
    assert len(rows()) == 26


def test_the_advice_on_where():
    x = leaf([0.0, 2.0])
    tg.where(x > 0, 1 / tg.where(x > 0, x, 1.0), x).sum().backward()
    assert x.grad.numpy().tolist() == [1, -0.25]
