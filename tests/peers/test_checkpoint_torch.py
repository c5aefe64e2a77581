"""Checkpoints and PyTorch: it reads ours through safetensors, and goes on from them to the same numbers."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorch_reads_every_dtype(tmp_path, dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    tg.save(tmp_path / "file", deep=[{"of": tg.Tensor(array)}, array.T, array[:0]])
    theirs = load_file(tmp_path / "file")
    assert {name: (tuple(t.shape), str(t.dtype)) for name, t in theirs.items()} == {
        "deep.0.of": ((2, 3), f"torch.{dtype}"),
        "deep.1": ((3, 2), f"torch.{dtype}"),
        "deep.2": ((0, 3), f"torch.{dtype}"),
    }
    np.testing.assert_array_equal(theirs["deep.0.of"].numpy(), array)
    np.testing.assert_array_equal(theirs["deep.1"].numpy(), array.T)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_pytorch_goes_on_from_our_weights(tmp_path, name):
    ours = getattr(nn, name)(3, 4, dtype=np.float64, generator=tg.Generator(0))
    optimizer = optim.Adam(ours.parameters(), lr=0.01)
    tg.save(tmp_path / "file", model=ours, optimizer=optimizer, step=1)
    theirs = getattr(torch.nn, name)(3, 4, dtype=torch.float64)
    with safe_open(tmp_path / "file", framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys() if key.startswith("model.")}  # noqa: SIM118
    theirs.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    xs = np.random.default_rng(0).standard_normal((5, 2, 3))
    state, their_state = ours.init_state(2), None
    for x in xs:
        y, state = ours(tg.Tensor(x), state)
        their_state = theirs(torch.from_numpy(x), their_state)
    their_y = their_state[0] if isinstance(their_state, tuple) else their_state
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_a_file_of_pytorchs_is_refused_by_what_it_is(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "plain")
    torch.save({"weight": torch.ones(3)}, tmp_path / "pickled")
    with pytest.raises(tg.CheckpointError, match=r"not written by tinygrad_rnn\.save"):
        tg.load(tmp_path / "plain")
    with pytest.raises(tg.CheckpointError, match="no safetensors file"):
        tg.load(tmp_path / "pickled")
