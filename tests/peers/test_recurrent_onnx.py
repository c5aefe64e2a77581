"""Recurrent layers beside ONNX: every node test of its operators RNN, GRU and LSTM, and its reference evaluator.

The node tests have equal weights everywhere, so they cannot tell gates apart; the evaluator, given random ones, can.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import on_backend
from onnx.backend.test.case import node as node_tests
from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401 - importing them makes their tests
from onnx.reference import ReferenceEvaluator

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nest import leaves

KINDS = ("RNN", "GRU", "LSTM")
# All tests that the imports above make, without a choice: one that is not of these operators would fail below.
CASES = {case.name: case for case in node_tests._NodeTestCases}
INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
}
OUTPUTS = {"RNN": ("Y", "Y_h"), "GRU": ("Y", "Y_h"), "LSTM": ("Y", "Y_h", "Y_c")}
# Our gates among those of ONNX: r, z, n of z, r, h; and i, f, g, o of i, o, f, c.
ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}


def arranged(kind, rows):
    return np.concatenate([np.split(rows, len(ORDER[kind]))[gate] for gate in ORDER[kind]])


def options_of(node):
    """The attributes of a node; one that we do not know is an error, not a default."""
    options = {"direction": "forward", "layout": 0, "linear_before_reset": 0}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        options[attribute.name] = value.decode() if isinstance(value, bytes) else value
    assert set(options) <= {"direction", "layout", "linear_before_reset", "hidden_size"}
    assert options["direction"] in ("forward", "reverse", "bidirectional")
    return options


def cell_of(kind, options, given, direction):
    """Our cell for one direction of a node, with its weights."""
    W, R = given["W"][direction], given["R"][direction]
    hidden = R.shape[1]
    made = {"RNN": nn.RNNCell, "GRU": nn.GRUCell if options["linear_before_reset"] else nn.ChoGRUCell}
    make = nn.PeepholeLSTMCell if "P" in given else made.get(kind, nn.LSTMCell)
    cell = make(W.shape[1], hidden, dtype=W.dtype)
    B = given["B"][direction] if "B" in given else np.zeros(2 * len(W), W.dtype)
    values = {"weight_ih": W, "weight_hh": R, "bias_ih": B[: len(W)], "bias_hh": B[len(W) :]}
    values = {name: arranged(kind, rows) for name, rows in values.items()}
    if "P" in given:
        values |= dict(zip(("peephole_i", "peephole_o", "peephole_f"), np.split(given["P"][direction], 3), strict=True))
    cell.load_state_dict({name: on_backend(value) for name, value in values.items()})
    return cell


def runs(node, given):
    """Each way in which we can run a node: its name, Y as (T, B, directions, H), the states as (directions, B, H)."""
    kind, options = node.op_type, options_of(node)
    x = on_backend(given["X"])
    time_first = tg.swapaxes(x, 0, 1) if options["layout"] else x
    steps, batch, _ = time_first.shape
    count = len(given["W"])
    assert count == 1 + (options["direction"] == "bidirectional")
    cells = [cell_of(kind, options, given, direction) for direction in range(count)]
    assert options.get("hidden_size", cells[0].hidden_size) == cells[0].hidden_size
    parts = []
    for name in ("initial_h", "initial_c")[: len(cells[0].parts)]:
        start = given.get(name, np.zeros((count, batch, cells[0].hidden_size), given["X"].dtype))
        parts.append(np.swapaxes(start, 0, 1) if name in given and options["layout"] else start)
    starts = [tuple(on_backend(part[i]) for part in parts) for i in range(count)]
    if kind != "LSTM":
        starts = [start[0] for start in starts]
    lengths = given.get("sequence_lens")

    ys, lasts = [], []
    for i, (cell, start) in enumerate(zip(cells, starts, strict=True)):
        reverse = options["direction"] == "reverse" or i == 1
        y, last = tg.scan(cell, time_first, start, reverse=reverse, lengths=lengths)
        ys.append(y)
        lasts.append([leaf for _, leaf in leaves(last)])
    yield "scan", tg.stack(ys, axis=2), [tg.stack(part) for part in zip(*lasts, strict=True)]
    if options["direction"] == "reverse":  # the layers go forward, or both ways
        return

    layer = nn.Recurrent(*cells, batch_first=bool(options["layout"]))
    y, last = layer(x, tuple(starts) if count == 2 else starts[0], lengths)
    y = tg.swapaxes(y, 0, 1) if options["layout"] else y
    lasts = [[leaf for _, leaf in leaves(part)] for part in (last if count == 2 else [last])]
    states = [tg.stack(part) for part in zip(*lasts, strict=True)]
    yield "Recurrent", tg.reshape(y, (steps, batch, count, -1)), states
    if type(cells[0]) not in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
        return

    make, dtype = getattr(nn, kind), given["X"].dtype
    layer = make(
        x.shape[-1],
        cells[0].hidden_size,
        bidirectional=count == 2,
        batch_first=bool(options["layout"]),
        dtype=dtype,
    )
    layer.load_state_dict(
        {
            name + suffix: value
            for cell, suffix in zip(cells, ("_l0", "_l0_reverse"), strict=False)
            for name, value in cell.state_dict().items()
        }
    )
    given_state = tuple(on_backend(part) for part in parts)
    y, last = layer(x, given_state if kind == "LSTM" else given_state[0], lengths)
    y = tg.swapaxes(y, 0, 1) if options["layout"] else y
    yield kind, tg.reshape(y, (steps, batch, count, -1)), [leaf for _, leaf in leaves(last)]


def check(node, inputs, outputs, tolerance):
    """Hold every way of running the node against ``outputs``; say which ways there were."""
    assert (node.domain, node.op_type in KINDS) == ("", True)
    names = [name for name, present in zip(INPUTS[node.op_type], [*node.input, *[""] * 8], strict=False) if present]
    given = dict(zip(names, inputs, strict=True))
    wanted = [name for name, present in zip(OUTPUTS[node.op_type], node.output, strict=False) if present]
    assert "Y_h" in wanted
    ways = []
    for way, y, states in runs(node, given):
        y = y.numpy()
        batch_first = options_of(node)["layout"]
        found = {"Y": y.transpose(1, 0, 2, 3) if batch_first else y.transpose(0, 2, 1, 3)}
        for name, state in zip(("Y_h", "Y_c"), states, strict=False):
            found[name] = np.swapaxes(state.numpy(), 0, 1) if batch_first else state.numpy()
        for name, expected in zip(wanted, outputs, strict=True):
            assert found[name].shape == expected.shape, (way, name)
            np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=f"{way} {name}")
        ways.append(way)
    return ways


def test_all_node_tests_are_here():
    kinds = [case.model.graph.node[0].op_type for case in CASES.values()]
    assert {kind: kinds.count(kind) for kind in KINDS} == {"RNN": 6, "GRU": 6, "LSTM": 6}
    assert len(node_tests._NodeTestCases) == len(CASES) == 18
    for kind, prefix in (("RNN", ("simple_rnn", "rnn")), ("GRU", "gru"), ("LSTM", "lstm")):
        assert sum(name.removeprefix("test_").startswith(prefix) for name in CASES) == kinds.count(kind)


@pytest.mark.parametrize("name", CASES)
def test_node(name, backend, engine):
    case = CASES[name]
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    ways = check(node, inputs, outputs, 1e-5)
    expected = 1 if name.endswith("_reverse") else 2 if node.op_type == "GRU" or "peepholes" in name else 3
    assert len(ways) == expected


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "linear before reset", "LSTM", "peepholes"])
def test_random_weights_beside_the_reference_evaluator(kind, direction, layout, backend, engine):
    operator = {"linear before reset": "GRU", "peepholes": "LSTM"}.get(kind, kind)
    steps, batch, features, hidden = 5, 4, 3, 2
    count, gates = 1 + (direction == "bidirectional"), len(ORDER[operator])
    rng = np.random.default_rng(0)
    shapes = {
        "X": (batch, steps, features) if layout else (steps, batch, features),
        "W": (count, gates * hidden, features),
        "R": (count, gates * hidden, hidden),
        "B": (count, 2 * gates * hidden),
        "initial_h": (batch, count, hidden) if layout else (count, batch, hidden),
        "initial_c": (batch, count, hidden) if layout else (count, batch, hidden),
        "P": (count, 3 * hidden),
    }
    names = [name for name in INPUTS[operator] if name in shapes and (name != "P" or kind == "peepholes")]
    feeds = {name: rng.standard_normal(shapes[name]) for name in names}
    extra = {"linear_before_reset": int(kind != "GRU")} if operator == "GRU" else {}
    node = onnx.helper.make_node(
        operator,
        inputs=[name if name in feeds else "" for name in INPUTS[operator] if name != "P" or name in feeds],
        outputs=list(OUTPUTS[operator]),
        hidden_size=hidden,
        direction=direction,
        layout=layout,
        **extra,
    )
    outputs = ReferenceEvaluator(node).run(None, feeds)
    ways = check(node, list(feeds.values()), outputs, 1e-12)
    assert len(ways) == (1 if direction == "reverse" else 2 if kind in ("GRU", "peepholes") else 3)
