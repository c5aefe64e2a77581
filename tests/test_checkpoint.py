"""Checkpoints: everything comes back bit for bit, whole or not at all."""

from __future__ import annotations

import errno
import os
import sys

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim


def bits(value):
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(bits(item) for item in value)
    if isinstance(value, (tg.Tensor, np.ndarray)):
        array = value.numpy() if isinstance(value, tg.Tensor) else value
        return type(value).__name__, array.shape, array.dtype, array.tobytes()
    return type(value), value


def test_nests_of_anything(tmp_path, backend):
    state = {
        "pair": (tg.zeros((2, 3)), [tg.Tensor(1.5), {"deep": tg.arange(3)}]),
        "empty": [(), [], {}],
        "numbers": [0, -(2**40), 1.5, float("inf"), True, None, "text, ünicode"],
        "zero-size": tg.zeros((0, 4)),
    }
    tg.save(tmp_path / "file", state=state, step=7)
    loaded = tg.load(tmp_path / "file")
    assert set(loaded) == {"state", "step"}
    assert loaded["step"] == 7
    assert bits(loaded["state"]) == bits(state)
    assert loaded["state"]["pair"][0].backend == backend


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_dtypes(tmp_path, dtype):
    values = np.array([[0, 1], [1, 0]], dtype)
    tg.save(tmp_path / "file", array=values, tensor=tg.Tensor(values), view=values.T[::-1])
    loaded = tg.load(tmp_path / "file")
    assert loaded["array"].dtype == loaded["tensor"].dtype == dtype
    np.testing.assert_array_equal(loaded["array"], values)
    np.testing.assert_array_equal(loaded["view"], values.T[::-1])


def test_weights_are_readable_by_others(tmp_path):
    from safetensors.numpy import load_file

    layer = nn.Linear(3, 2)
    tg.save(tmp_path / "file", model=layer)
    np.testing.assert_array_equal(load_file(tmp_path / "file")["model.weight"], layer.weight.numpy())


def training(seed=0):
    generator = tg.Generator(seed)
    cell = nn.LSTMCell(2, 3, generator=generator)
    optimizer = optim.Adam(cell.parameters(), lr=0.01)
    schedule = optim.CosineAnnealingLR(optimizer, 10)
    return cell, optimizer, schedule, generator


def steps(count, cell, optimizer, schedule, generator, state):
    for _ in range(count):
        y, state = cell(tg.functional.dropout(generator.normal((4, 2)), 0.5, generator=generator), state)
        optimizer.zero_grad()
        (y * y).sum().backward()
        optimizer.step()
        schedule.step()
        state = tuple(part.detach() for part in state)
    return state


def test_a_resumed_run_reaches_the_same_bits(tmp_path, backend):
    straight = training()
    end = steps(6, *straight, straight[0].init_state(4))
    first = training()
    state = steps(3, *first, first[0].init_state(4))
    names = ("cell", "optimizer", "schedule", "generator")
    tg.save(tmp_path / "file", state=state, **dict(zip(names, first, strict=True)))
    second = training(seed=1)
    saved = tg.load(tmp_path / "file")
    for name, part in zip(names, second, strict=True):
        part.load_state_dict(saved[name])
    resumed = steps(3, *second, saved["state"])
    assert bits(resumed) == bits(end)
    assert bits(second[0].state_dict()) == bits(straight[0].state_dict())
    assert bits(second[1].state_dict()) == bits(straight[1].state_dict())


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tg.save(path, step=1)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                tg.save(path, step=2)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_saved(tmp_path):
    for value, where in ((object(), "thing"), ({"a": [1, {2}]}, "thing.a.1"), (np.array([1j]), "thing")):
        with pytest.raises(TypeError, match=where):
            tg.save(tmp_path / "file", thing=value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "file"
    tg.save(path, model=nn.Linear(2, 2), step=3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    for position in rng.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in (*damaged, b"", b"PK\x03\x04 something else", whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(tg.CheckpointError, match="file"):
            tg.load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, tmp_path / "file")
    with pytest.raises(tg.CheckpointError, match="file"):
        tg.load(tmp_path / "file")
    with pytest.raises(OSError, match="absent"):
        tg.load(tmp_path / "absent")


def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"tinygrad_rnn\[checkpoint\]|tinygrad_rnn\[examples\]"):
        tg.save(tmp_path / "file", step=1)
    assert list(tmp_path.iterdir()) == []
