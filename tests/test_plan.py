"""What `tg.plan` says of a cell."""

from __future__ import annotations

import ast

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import nn

STEPS, ROWS, INPUT, HIDDEN = 7, 3, 4, 5


def inputs(**options):
    return tg.Tensor(np.zeros((STEPS, ROWS, INPUT), np.float32), **options)


@pytest.mark.parametrize("name", ["array", "numba"])
def test_a_gru_by_hand(name):
    plan = tg.plan(nn.GRUCell(INPUT, HIDDEN), inputs(), engine=name)
    assert plan.engine == name
    state, gates = 2 * ROWS * HIDDEN * 3 * HIDDEN, 2 * ROWS * INPUT * 3 * HIDDEN
    assert plan.forward.products == (state, gates)
    assert plan.backward.products == (state, state + gates)  # both weights; nobody asked for the input's gradient
    assert not any("matmul" in line for line in plan.forward.after)
    assert any("matmul" in line for line in plan.forward.before)
    assert sum("= matmul(" in line for line in plan.backward.summed) == 2
    four = {"r", "z", "n", "n_h"}
    assert four <= set(plan.saved)
    assert all(plan.saved[name] == 4 * ROWS * HIDDEN for name in four)


def test_the_input_has_a_gradient_only_if_it_is_asked_for():
    cell = nn.LSTMCell(INPUT, HIDDEN)
    without, with_it = (tg.plan(cell, inputs(requires_grad=ask)).backward.products[1] for ask in (False, True))
    assert with_it - without == 2 * ROWS * INPUT * 4 * HIDDEN


def test_names_and_lines_are_those_of_the_cell():
    def cell(x, h):
        candidate = tg.tanh(x + h)
        h = 0.5 * (candidate + h)
        return h, h

    text = str(tg.plan(cell, inputs(), tg.Tensor(np.zeros((ROWS, INPUT), np.float32)), engine="numba"))
    assert "candidate = tanh(" in text
    assert "candidate = tg.tanh(x + h)" in text
    assert "test_plan.py:" in text
    assert "candidate1" in text.split("the loop forwards:")[1]


class Skips(nn.Module):
    def __init__(self):
        self.gate, self.skip = nn.Linear(INPUT, INPUT), nn.Linear(INPUT, INPUT)

    def forward(self, x, h):
        z = tg.sigmoid(self.gate(x) + self.gate(h))
        h = z * h + (1 - z) * self.skip(x)
        return h, h


def test_each_value_has_a_name_of_its_own_and_arguments_theirs():
    """Not those by which a layer within the cell calls them."""
    way = tg.plan(Skips(), inputs(), tg.Tensor(np.zeros((ROWS, INPUT), np.float32)), engine="array").forward
    lines = [line.partition(" #")[0] for line in (*way.same, *way.before, *way.loop, *way.after)]
    made = [line.partition(" = ")[0] for line in lines]
    assert len({*made}) == len(made)
    assert any("matmul(x, " in line for line in way.before)
    assert any("matmul(h, " in line for line in way.loop)


def test_parameters_are_called_by_where_they_are():
    assert Skips().skip.weight.name == "Skips.skip.weight"
    assert nn.ModuleList([nn.Linear(2, 2)])[0].bias.name == "ModuleList.0.bias"
    assert nn.LSTM(2, 3).weight_hh_l0.name == "LSTM.weight_hh_l0"


def test_nothing_is_saved_where_nothing_is_learned():
    cell = nn.GRUCell(INPUT, HIDDEN).requires_grad_(False)
    plan = tg.plan(cell, inputs())
    assert plan.backward is None
    assert not plan.saved
    assert "backwards" not in str(plan).replace("backwards, b0", "").replace("if backwards", "")


def test_it_changes_nothing():
    generator = tg.Generator(3)
    cell = nn.Zoneout(nn.LSTMCell(INPUT, HIDDEN), 0.5, generator)
    before = generator.state_dict()
    tg.plan(cell, inputs(), lengths=[1, 7, 2])
    assert generator.state_dict() == before


@pytest.mark.parametrize("name", ["auto", "array"])
def test_a_cell_that_looks_at_values_has_none(name):
    def cell(x, h):
        return h, h if float(h.sum()) > 0 else x

    with pytest.raises(TypeError, match="makes a float of"):
        tg.plan(cell, inputs(), tg.Tensor(np.zeros((ROWS, INPUT), np.float32)), engine=name)


def test_numba_has_no_plan_on_another_backend():
    with (
        tg.use_backend("strict"),
        pytest.raises(TypeError, match="numba engine runs on NumPy, not on strict"),
    ):
        tg.plan(nn.GRUCell(INPUT, HIDDEN), tg.zeros((STEPS, ROWS, INPUT)), engine="numba")


@pytest.mark.parametrize("name", ["b", "i", "k", "n", "r", "t"])
def test_names_of_the_cell_do_not_hide_those_of_the_code(name):
    """What is generated with the names is what runs, so it may be looked at as a program too."""
    names: dict = {}
    exec(f"def cell(x, h):\n    {name} = tg.tanh(x + h)\n    return {name} * h, {name} * x", {"tg": tg}, names)
    state = tg.Tensor(np.zeros((ROWS, INPUT), np.float32))
    source = tg.plan(names["cell"], inputs(), state, engine="numba").forward.source
    tree = ast.parse(source)
    loops = {node.target.id for node in ast.walk(tree) if isinstance(node, ast.For)}
    given = {argument.arg for argument in ast.walk(tree) if isinstance(argument, ast.arg)}
    made = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and f"{name}" in target.id and "tanh" in ast.unparse(node.value)
    }
    assert made
    assert not made & (loops | given)


def test_the_unrolled_engine_has_no_plan():
    with pytest.raises(ValueError, match="unrolled"):
        tg.plan(nn.GRUCell(INPUT, HIDDEN), inputs(), engine="unrolled")
