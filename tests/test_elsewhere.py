"""What a newcomer writes by another library's habit gets an error that says what to write here."""

import re

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import elsewhere, nn, optim
from tinygrad_rnn import functional as F

PLACES = {"tinygrad_rnn": tg, "tinygrad_rnn.functional": F, "tinygrad_rnn.nn": nn, "tinygrad_rnn.optim": optim}
PLACES["Tensor"] = tg.ones(2)
NAMES = [(where, name) for where, names in elsewhere.HERE.items() for name in names]


@pytest.mark.parametrize(("where", "name"), NAMES, ids=[f"{where}.{name}" for where, name in NAMES])
def test_names_of_other_libraries(where, name):
    here = elsewhere.HERE[where][name]
    with pytest.raises(AttributeError, match=re.escape(f"no attribute {name!r}; here it is {here}")):
        getattr(PLACES[where], name)
    for path in re.findall(r"\b(?:tg|F|optim|x)(?:\.\w+)+", here):  # what is said to be there is there
        found, *rest = path.split(".")
        value = {"tg": tg, "F": F, "optim": optim, "x": tg.ones(2)}[found]
        for part in rest:
            value = getattr(value, part)


@pytest.mark.parametrize("where", PLACES)
def test_other_names_have_no_hint(where):
    with pytest.raises(AttributeError, match=r"no attribute 'frobnicate'$"):
        PLACES[where].frobnicate  # noqa: B018
    assert not hasattr(PLACES[where], "frobnicate")


def layer(**options):
    return nn.GRU(3, 5, generator=tg.Generator(0), **options)


class Listed(nn.Module):
    def __init__(self, cells):
        self.cells = cells


class Widening(nn.Module):
    def __init__(self):
        self.decay = nn.Parameter(np.linspace(0, 1, 5))

    def forward(self, x, h):
        h = tg.tanh(x + h * self.decay)
        return h, h


XS = tg.zeros((6, 4, 3))
HABITS = {
    "a list of modules": (
        lambda: Listed([nn.GRUCell(3, 5)]),
        TypeError,
        r"Listed\.cells is a list of modules.*ModuleList",
    ),
    "a dict of modules": (lambda: Listed({"a": nn.GRUCell(3, 5)}), TypeError, "is a dict of modules"),
    "a class for a cell": (lambda: tg.scan(nn.GRUCell, XS), TypeError, r"cell is the class GRUCell.*GRUCell\(\.\.\.\)"),
    "True for the other direction": (
        lambda: nn.Recurrent(nn.GRUCell(3, 5), bidirectional=True),
        TypeError,
        "bidirectional must be the cells of the other direction, or None, got True",
    ),
    "a function for a cell": (
        lambda: nn.Recurrent(lambda x, h: (h, h)),
        TypeError,
        r"init_state\(batch\).*got function",
    ),
    "a layer in Sequential": (
        lambda: nn.Sequential(layer(), nn.Linear(5, 1))(XS),
        TypeError,
        "module 0, GRU, returned outputs and state",
    ),
    "save without names": (lambda: tg.save("x.safetensors", layer()), TypeError, r"tg\.save\(path, model=model\)"),
    "a path for a state": (
        lambda: layer().load_state_dict("x.safetensors"),
        TypeError,
        "state must be a dict.*got str",
    ),
    "another state for a generator": (
        lambda: tg.Generator(0).load_state_dict({"weight": 1}),
        ValueError,
        "holds seed and counter, got weight",
    ),
    "an array for a state": (
        lambda: nn.GRUCell(3, 5)(XS[0], np.zeros((4, 5))),
        TypeError,
        r"ndarray; tg\.Tensor makes",
    ),
    "an array for a layer's state": (lambda: layer()(XS, np.zeros((1, 4, 5))), TypeError, r"ndarray; tg\.Tensor makes"),
    "a parameter of float64": (
        lambda: tg.scan(Widening(), tg.zeros((6, 4, 5)), tg.zeros((4, 5))),
        TypeError,
        "dtype float64, expected float32: has the cell a parameter or an array of float64",
    ),
    "targets as floats": (
        lambda: F.cross_entropy(tg.zeros((4, 3)), tg.zeros(4)),
        ValueError,
        r"class indices, ints, or probabilities.*\(4, 3\); got float32 of shape \(4,\)",
    ),
    "classes last": (
        lambda: F.cross_entropy(tg.zeros((6, 4, 3)), tg.zeros((6, 4), dtype=np.int64)),
        ValueError,
        "with the classes along axis 1",
    ),
    "lengths of batch-first outputs": (
        lambda: tg.sequence_loss(F.mse_loss, tg.zeros((4, 6, 1)), tg.zeros((4, 6, 1)), [6, 5, 4, 3]),
        ValueError,
        r"lengths must have shape \(6,\).*got \(4,\); if a layer has batch_first",
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_habits_are_told_from_mistakes(habit):
    call, error, match = HABITS[habit]
    with pytest.raises(error, match=match):
        call()


def test_a_tuple_of_modules_is_held_but_not_owned():
    assert not list(Listed((nn.GRUCell(3, 5),)).parameters())


def test_a_list_for_a_pair_of_states():
    lstm = nn.LSTM(3, 5, generator=tg.Generator(0))
    h, c = lstm.init_state(4)
    ys, _ = lstm(XS, [h, c])
    np.testing.assert_array_equal(ys.numpy(), lstm(XS)[0].numpy())


def test_a_warning_of_a_slow_engine_points_to_the_caller():
    class Looking(nn.GRUCell):
        def forward(self, x, h):
            return super().forward(x if float(x.numpy().sum()) < 1 else -x, h)

    for call in (lambda cell: nn.Recurrent(cell)(XS), lambda cell: tg.scan(cell, XS)):
        with (
            tg.use_engine("auto"),
            pytest.warns(UserWarning, match="scan runs this cell by the unrolled engine") as told,
        ):
            call(Looking(3, 5))
        assert told[0].filename == __file__
