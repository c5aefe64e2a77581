"""Recurrent layers beside Keras: the outputs that its own tests give, to seven digits, for constant weights.

Source: keras-team/keras, keras/src/layers/rnn, the tests of SimpleRNN, GRU and LSTM. There all kernels are 0.01, all
recurrent kernels 0.02, all biases 0.03, and the sequences count up from 0 in float32. All units are then alike, and all
gates have the same weights, but for the forget bias.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.nest import leaves

# Each case: the batch, steps and features; units; what differs; the last output of each row, the same in all units,
# or the list of its units.
CASES = {
    "rnn": (nn.RNNCell, (2, 3, 4), 4, {}, [0.405432, 0.73605347]),
    "rnn, backwards": (nn.RNNCell, (2, 3, 4), 4, {"reverse": True}, [0.11144729, 0.5528889]),
    "rnn, twice": (nn.RNNCell, (2, 3, 4), 4, {"twice": True}, [0.40559256, 0.7361247]),
    "rnn, from a state": (nn.RNNCell, (2, 4, 3), 4, {"start": True}, [0.33621645, 0.6262637]),
    "rnn, from a state, backwards": (
        nn.RNNCell,
        (2, 4, 3),
        4,
        {"start": True, "reverse": True},
        [0.07344437, 0.43043602],
    ),
    "gru": (nn.GRUCell, (3, 6, 4), 3, {}, [0.5217289, 0.6371659, 0.39384964]),
    "gru, backwards": (nn.GRUCell, (3, 6, 4), 3, {"reverse": True}, [0.24406259, 0.611516, 0.3928808]),
    "gru, reset before": (nn.ChoGRUCell, (3, 6, 4), 3, {}, [0.51447755, 0.6426879, 0.40208298]),
    "gru, no bias": (nn.GRUCell, (3, 6, 4), 3, {"bias": False}, [0.49988455, 0.64701194, 0.4103359]),
    "gru, twice": (nn.GRUCell, (2, 3, 4), 4, {"twice": True}, [0.29542392, 0.5885018]),
    "gru, from a state": (
        nn.GRUCell,
        (2, 4, 3),
        2,
        {"start": True},
        [[0.23774096, 0.33508456], [0.83659905, 1.0227708]],
    ),
    "gru, from a state, backwards": (
        nn.GRUCell,
        (2, 4, 3),
        2,
        {"start": True, "reverse": True},
        [[0.13486053, 0.23261218], [0.78257304, 0.9691353]],
    ),
    "lstm": (nn.LSTMCell, (3, 6, 4), 3, {}, [0.6288687, 0.86899155, 0.9460773]),
    "lstm, backwards": (nn.LSTMCell, (3, 6, 4), 3, {"reverse": True}, [0.35622165, 0.74789524, 0.8872726]),
    "lstm, forget bias": (nn.LSTMCell, (3, 6, 4), 3, {"forget": 0.03}, [0.57019705, 0.8661914, 0.9459622]),
    "lstm, no bias": (nn.LSTMCell, (3, 6, 4), 3, {"bias": False}, [0.54986924, 0.86226785, 0.9443936]),
    "lstm, twice": (nn.LSTMCell, (2, 3, 4), 4, {"twice": True}, [0.3124785, 0.6863672]),
    "lstm, from a state": (
        nn.LSTMCell,
        (2, 4, 3),
        2,
        {"start": True},
        [[0.20574439, 0.3558822], [0.64930826, 0.66276]],
    ),
    "lstm, from a state, backwards": (
        nn.LSTMCell,
        (2, 4, 3),
        2,
        {"start": True, "reverse": True},
        [[0.13281618, 0.2790356], [0.5839337, 0.5992567]],
    ),
    "lstm, lengths": (nn.LSTMCell, (2, 4, 3), 2, {"lengths": [3, 2]}, [0.11755939, 0.28556206]),
}


def constant(make, features, units, bias=True, forget=1.0):
    """The cell with the constants of Keras. Its GRU has both our biases at 0.03, its other layers only one bias."""
    cell = make(features, units, bias=bias)
    values = {"weight_ih": 0.01, "weight_hh": 0.02, "bias_ih": 0.03, "bias_hh": 0.03 * (make is nn.GRUCell)}
    state = {name: np.full(p.shape, values[name], np.float32) for name, p in cell.named_parameters()}
    if bias and make is nn.LSTMCell:
        state["bias_ih"][units : 2 * units] = forget
    cell.load_state_dict({name: on_backend(value) for name, value in state.items()})
    return cell


def counting(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_last_outputs(name, backend, engine):
    make, (batch, steps, features), units, options, expected = CASES[name]
    cell = constant(make, features, units, **{key: options[key] for key in ("bias", "forget") if key in options})
    xs = on_backend(counting(batch, steps, features).swapaxes(0, 1))
    state = None
    if "start" in options:
        h = on_backend(counting(batch, units))
        state = (h, h) if make is nn.LSTMCell else h
    run = {"reverse": "reverse" in options, "lengths": options.get("lengths")}
    ys, state = tg.scan(cell, xs, state, **run)
    if "twice" in options:
        ys, state = tg.scan(cell, xs, state, **run)
    h = leaves(state)[0][1].numpy()
    columns = np.array(expected) if np.ndim(expected) == 2 else np.repeat(np.array(expected)[:, None], units, 1)
    assert h.shape == (batch, units)
    np.testing.assert_allclose(h, columns, rtol=1e-6, atol=1e-6)
    if "lengths" not in options:
        np.testing.assert_array_equal(ys.numpy()[0 if "reverse" in options else -1], h)


def test_each_output_of_masked_sequences(backend, engine):
    cell = constant(nn.LSTMCell, 3, 2)
    xs = on_backend(counting(2, 4, 3).swapaxes(0, 1))
    ys, _ = tg.scan(cell, xs, lengths=[3, 2])
    expected = [[0.0158891, 0.05552048, 0.11755939, 0], [0.14185596, 0.28556206, 0, 0]]
    for unit in range(2):
        np.testing.assert_allclose(ys.numpy()[:, :, unit].T, expected, rtol=1e-6, atol=1e-6)
