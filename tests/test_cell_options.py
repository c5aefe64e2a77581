"""Every cell with every option: first and second derivatives through five steps against central differences.

``docs/cells.md`` has the table of errors; ``python tests/test_cell_options.py`` makes it anew.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import cell_cases
import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.compiler import pure
from tinygrad_rnn.nest import leaves, map_nest

PAGE = Path(__file__).parent.parent / "docs" / "cells.md"
STEPS, BATCH, SIZE = 5, 4, 2
EPS = 3e-6
CELLS = {
    "RNN": lambda **k: nn.RNNCell(SIZE, SIZE, **k),
    "RNN, ReLU": lambda **k: nn.RNNCell(SIZE, SIZE, nonlinearity="relu", **k),
    "RNN, PReLU": lambda **k: nn.RNNCell(SIZE, SIZE, nonlinearity=nn.PReLU(SIZE, dtype=np.float64), **k),
    "GRU": lambda **k: nn.GRUCell(SIZE, SIZE, **k),
    "LSTM": lambda **k: nn.LSTMCell(SIZE, SIZE, **k),
    "GRU, leaky ReLU": lambda **k: nn.GRUCell(SIZE, SIZE, activation=tg.functional.leaky_relu, **k),
    "LSTM, PReLU": lambda **k: nn.LSTMCell(SIZE, SIZE, activation=nn.PReLU(SIZE, dtype=np.float64), **k),
    "LSTM, projected": lambda **k: nn.LSTMCell(SIZE, 3, proj_size=SIZE, **k),
    **cell_cases.CELLS,
}
LENGTHS = [5, 2, 5, 4]
RESET = np.zeros((STEPS, BATCH), bool)
RESET[[2, 1], [0, 2]] = True


class Clipped(nn.Module):
    """Clips the gradient of every part of the state at every step, at a norm that is never reached."""

    def __init__(self, cell):
        self.cell = cell

    def init_state(self, batch):
        return self.cell.init_state(batch)

    def forward(self, x, state):
        return self.cell(x, map_nest(lambda s: tg.clip_gradient(s, 1e6) if s.dtype.kind == "f" else s, state))


def generator():
    return tg.Generator(5)


# What makes of a cell, and of a second one like it, a layer; and with what it is called.
OPTIONS = {
    "plain": (lambda a, b: nn.Recurrent(a), {}),
    "lengths": (lambda a, b: nn.Recurrent(a), {"lengths": LENGTHS}),
    "reset": (lambda a, b: nn.Recurrent(a), {"reset": RESET}),
    "both directions": (lambda a, b: nn.Recurrent(a, b), {"lengths": LENGTHS, "reset": RESET}),
    "two layers": (lambda a, b: nn.Recurrent([a, b], residual=True, dropout=0.5, generator=generator()), {}),
    "expose": (lambda a, b: nn.Recurrent(a), {"expose": ["h"], "lengths": LENGTHS}),
    "clipping": (lambda a, b: nn.Recurrent(Clipped(a)), {}),
    "recurrent dropout": (lambda a, b: nn.Recurrent(nn.RecurrentDropout(a, 0.5, generator())), {}),
    "zoneout": (lambda a, b: nn.Recurrent(nn.Zoneout(a, 0.3, generator())), {}),
    "DropConnect": (lambda a, b: nn.Recurrent(nn.DropConnect(a, 0.5, generator())), {}),
    "residual": (lambda a, b: nn.Recurrent(nn.Residual(a)), {}),
    "learned state": (lambda a, b: nn.Recurrent(nn.LearnedState(a)), {}),
}
WITHOUT = {("mingru", "DropConnect"): "has no recurrent weight"}


def layer_of(cell, option):
    """A layer in float64 with random weights, and the arguments of its call."""
    make, arguments = OPTIONS[option]
    layer = make(CELLS[cell](dtype=np.float64), CELLS[cell](dtype=np.float64))
    draw = np.random.default_rng(0)
    for parameter in layer.parameters():
        parameter.data = on_backend(0.6 * draw.standard_normal(parameter.shape)).data
    return layer, arguments


def places(layer):
    found = []
    for path, parameter in layer.named_parameters():
        *above, last = path.split(".")
        owner = layer
        for name in above:
            owner = getattr(owner, name)
        found.append((owner, last, parameter.data))
    return found


def derivatives(cell, option, orders=(0, 1)):
    """Relative errors of the first and second derivative along random directions of input, state and weights."""
    layer, arguments = layer_of(cell, option)
    draw = np.random.default_rng(1)
    xs = draw.standard_normal((STEPS, BATCH, SIZE))
    state = map_nest(
        lambda leaf: draw.standard_normal(leaf.shape) if leaf.dtype.kind == "f" else leaf.numpy(),
        layer.init_state(BATCH),
    )
    points = [xs, *[leaf for _, leaf in leaves(state)], *[tg.get_backend().to_numpy(p) for *_, p in places(layer)]]
    moving = [i for i, point in enumerate(points) if point.dtype.kind == "f"]
    steps = {i: draw.standard_normal(points[i].shape) for i in moving}
    others = {i: draw.standard_normal(points[i].shape) for i in moving}
    averages = [buffer.numpy().copy() for buffer in layer.buffers()]
    rows: list[np.ndarray] = []

    def along(distance, order):
        """The sum of results weighted at random, or its derivative along ``others``, ``distance`` along ``steps``."""
        moved = [on_backend(p + distance * steps[i] if i in steps else p) for i, p in enumerate(points)]
        for i in moving:
            moved[i].requires_grad = True
        for module in layer.modules():
            if hasattr(module, "generator"):
                module.generator = generator()  # the same masks again
        for buffer, values in zip(layer.buffers(), averages, strict=True):
            buffer.data = on_backend(values).data  # and the same running averages
        given = iter(moved)
        x = next(given)
        start = map_nest(lambda _: next(given), state)
        for (owner, name, _), weight in zip(places_, given, strict=True):
            vars(owner)[name] = weight
        if "learned" in option:
            start = None  # it is among the weights
        results = [leaf for _, leaf in leaves(list(layer(x, start, **arguments))) if leaf.dtype.kind == "f"]
        if not rows:
            rows.extend(draw.standard_normal(leaf.shape) for leaf in results)
        total = sum((leaf * on_backend(row)).sum() for leaf, row in zip(results, rows, strict=True))
        if order == 0:
            return total, moved
        found = tg.grad(total, [moved[i] for i in moving], create_graph=True, allow_unused=True)
        slope = sum((g * on_backend(others[i])).sum() for i, g in zip(moving, found, strict=True) if g is not None)
        return slope, moved

    places_ = places(layer)
    errors = []
    for order in orders:
        value, moved = along(0.0, order)
        found = tg.grad(value, [moved[i] for i in moving], allow_unused=True)
        ours = sum((g.numpy() * steps[i]).sum() for i, g in zip(moving, found, strict=True) if g is not None)
        near, far = [along(d, order)[0].item() - along(-d, order)[0].item() for d in (EPS, 2 * EPS)]
        difference = (8 * near - far) / (12 * EPS)  # five points: a layer norm of two units is nearly a step
        errors.append(abs(ours - difference) / max(abs(difference), 1.0))
    return errors


every = pytest.mark.parametrize(
    ("cell", "option"), [(c, o) for c in CELLS for o in OPTIONS if (c, o) not in WITHOUT], ids=str
)


@every
def test_first_and_second_derivatives(cell, option, backend, engine):
    # The second order takes long, and is made of the same operations: on one backend it is enough.
    errors = derivatives(cell, option, (0, 1) if backend == "numpy" else (0,))
    assert max(errors) < 1e-6


def test_the_check_can_fail(monkeypatch, engine):
    monkeypatch.setattr(pure, "_known", OrderedDict())  # what is remembered of pure cells holds the right sigmoid
    monkeypatch.setattr(tg.nn.cells, "sigmoid", lambda x: tg.scale_gradient(tg.sigmoid(x), 1.001))
    first, second = derivatives("GRU", "lengths")
    assert first > 1e-6
    assert second > 1e-6


def test_the_page_has_every_cell_and_option():
    rows = re.findall(r"^\|([^|]+)\|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (_, head), (_, line), *body = rows
    assert [name.strip() for name in head.split("|")] == list(OPTIONS)
    assert set(line) <= set("-|")
    assert [cell.strip() for cell, _ in body] == list(CELLS)
    for cell, errors in body:
        for option, error in zip(OPTIONS, errors.split("|"), strict=True):
            if (cell.strip(), option) in WITHOUT:
                assert error.strip() == "–"
            else:
                assert float(error) < 1e-6


def page():
    lines = [
        "# Cells and options",
        "",
        "Every cell runs with every option of `nn.Recurrent` and in every wrapper. The number is the larger of the",
        "relative errors of the first and the second derivative through five steps, in float64, along a random",
        "direction of inputs, state and weights, against differences. Made by `python tests/test_cell_options.py`.",
        "",
        "| cell | " + " | ".join(OPTIONS) + " |",
        "|---|" + "---|" * len(OPTIONS),
    ]
    for cell in CELLS:
        errors = ["–" if (cell, o) in WITHOUT else f"{max(derivatives(cell, o)):.0e}" for o in OPTIONS]
        lines.append(f"| {cell} | {' | '.join(errors)} |")
    reasons = "; ".join(f"{cell} {reason}" for (cell, _), reason in WITHOUT.items())
    return "\n".join([*lines, "", f"– {reasons}.", ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
