"""Checkpoints: everything comes back bit for bit, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import sys

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import checkpoint, nn, optim


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
        "numbers": [0, -(2**100), 1.5, -0.0, 5e-324, float("inf"), True, None, "text, ünicode"],
        "zero-size": tg.zeros((0, 4)),
        "arrays": [np.array(2.5), np.zeros((3, 0, 2), np.int8), np.array([-0.0, np.nan, np.inf])],
        3: "a key that is an int",
        "a": {"b": tg.ones(1)},
        "a.b": tg.zeros(2),  # the name in the file that the line above has taken
    }
    tg.save(tmp_path / "file", state=state, step=7)
    loaded = tg.load(tmp_path / "file")
    assert set(loaded) == {"state", "step"}
    assert type(loaded["step"]) is int
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


def test_numpys_scalars_and_byte_orders(tmp_path):
    big = np.arange(3, dtype=">f4")
    tg.save(tmp_path / "file", scalars=[np.float64(0.1), np.int8(-3), np.bool_(True)], big=big)
    loaded = tg.load(tmp_path / "file")
    assert bits(loaded["scalars"]) == bits([0.1, -3, True])
    assert bits(loaded["big"]) == bits(big.astype("<f4"))


def test_any_name_will_do(tmp_path):
    objects = {"path": 1, "__metadata__": np.ones(2), "tinygrad_rnn": np.zeros(1)}
    tg.save(tmp_path / "file", **objects)
    assert bits(tg.load(tmp_path / "file")) == bits(objects)
    tg.save(tmp_path / "file")
    assert tg.load(tmp_path / "file") == {}


def test_a_tensor_comes_back_on_the_current_backend_without_its_past(tmp_path):
    weight = tg.Tensor([1.0, 2.0], requires_grad=True)
    with tg.use_backend("strict"):
        tg.save(tmp_path / "file", y=weight * 2, array=tg.ones(2)._data)
        loaded = tg.load(tmp_path / "file")
    assert (loaded["y"].backend, loaded["y"].requires_grad, type(loaded["array"])) == ("strict", False, np.ndarray)
    assert tg.load(tmp_path / "file")["y"].backend == "numpy"
    assert loaded["y"].numpy().tolist() == [2.0, 4.0]


def test_weights_are_readable_by_others(tmp_path):
    from safetensors.numpy import load_file

    layer = nn.Linear(3, 2)
    tg.save(tmp_path / "file", model=layer)
    arrays = load_file(tmp_path / "file")
    assert set(arrays) == {"model.weight", "model.bias"}
    np.testing.assert_array_equal(arrays["model.weight"], layer.weight.numpy())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: optim.RMSprop(p, lr=0.01),
        lambda p: optim.Adagrad(p, lr=0.1),
        lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: optim.AdamW(p, lr=0.01),
    ],
    ids=["SGD", "RMSprop", "Adagrad", "Adam", "AdamW"],
)
def test_every_optimizer_goes_on_as_if_never_saved(tmp_path, make):
    def some_steps(layer, optimizer):
        for k in range(3):
            optimizer.zero_grad()
            (layer(tg.full((2, 3), k + 0.5)) ** 2).sum().backward()
            optimizer.step()

    layer = nn.Linear(3, 2, generator=tg.Generator(0))
    optimizer = make(layer.parameters())
    some_steps(layer, optimizer)
    tg.save(tmp_path / "file", layer=layer, optimizer=optimizer)
    saved = tg.load(tmp_path / "file")
    assert bits(saved["optimizer"]) == bits(optimizer.state_dict())
    other = nn.Linear(3, 2, generator=tg.Generator(1))
    resumed = make(other.parameters())
    other.load_state_dict(saved["layer"])
    resumed.load_state_dict(saved["optimizer"])
    some_steps(layer, optimizer)
    some_steps(other, resumed)
    assert bits(other.state_dict()) == bits(layer.state_dict())
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())


def test_every_schedule_goes_on_as_if_never_saved(tmp_path):
    def make():
        optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        parts = [optim.LinearLR(optimizer, total_iters=3), optim.StepLR(optimizer, 2)]
        return optimizer, optim.SequentialLR(optimizer, parts, milestones=[3])

    def rates(optimizer, schedule, count):
        for _ in range(count):
            optimizer.step()
            schedule.step()
            yield optimizer.state_dict()["param_groups"][0]["lr"]

    straight = list(rates(*make(), 9))
    assert len(set(straight)) > 5
    for stop in range(9):
        optimizer, schedule = make()
        before = list(rates(optimizer, schedule, stop))
        tg.save(tmp_path / "file", optimizer=optimizer, schedule=schedule)
        saved, (optimizer, schedule) = tg.load(tmp_path / "file"), make()
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        assert before + list(rates(optimizer, schedule, 9 - stop)) == straight


def test_a_generator_goes_on_as_if_never_saved(tmp_path, backend):
    generator = tg.Generator(5)
    generator.normal((3,))
    tg.save(tmp_path / "file", generator=generator)
    other = tg.Generator(0)
    other.load_state_dict(tg.load(tmp_path / "file")["generator"])
    assert bits(other.uniform((4,))) == bits(generator.uniform((4,)))


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
            with pytest.raises(OSError, match="disk full") as caught:
                tg.save(path, step=2)
        assert caught.value.filename == str(path)
        assert str(caught.value).count("file") == 1  # not the one aside as well
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tg.save(path, step=1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tg.save(path, step=2)
    assert tg.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "file"):
        with pytest.raises(OSError, match=path.name):
            tg.save(path, step=1)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    tg.save(tmp_path / "link", step=1)
    assert (tmp_path / "link").is_symlink()
    assert tg.load(tmp_path / "file") == {"step": 1}


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "file"
    tg.save(path, step=1)
    before = path.read_bytes()
    for value, where in (
        (object(), "thing"),
        ({"a": [1, {2}]}, r"thing\.a\.1 is a set"),
        ({"a": (None, b"bytes")}, r"thing\.a\.1 is a bytes"),
        ({(1, 2): 3}, r"the keys of thing .* \(1, 2\)"),
        ([{True: 3}], r"the keys of thing\.0 .* True"),
        (nn.Linear, "thing is a type"),
        (1j, "thing is a complex"),
        (np.complex64(1), "thing is a complex"),
        (np.array([1j]), "thing has dtype complex128"),
        (np.array(["text"]), "thing has dtype <U4"),
        (np.array([None]), "thing has dtype object"),
        (np.zeros(2, [("x", "f4")]), "thing has dtype"),
    ):
        with pytest.raises(TypeError, match=where):
            tg.save(path, fine=np.ones(2), thing=value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "file"
    tg.save(path, model=nn.Linear(2, 2), none=tg.zeros((0, 4)), step=3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in (*damaged, b"", b"PK\x03\x04 something else", whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(tg.CheckpointError, match=re.escape(str(path))):
            tg.load(path)


@pytest.mark.parametrize(("old", "new"), [(b'"F32"', b'"I32"'), (b"[0,4]", b"[0,5]")])
def test_another_dtype_or_shape_for_the_same_bytes_is_damage(tmp_path, old, new):
    path = tmp_path / "file"
    tg.save(path, full=tg.ones(3), empty=tg.zeros((0, 4)))
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(tg.CheckpointError, match="checksum"):
        tg.load(path)


def test_another_format_is_refused_by_its_number(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT", 99)
        tg.save(tmp_path / "file", step=1)
    with pytest.raises(tg.CheckpointError, match=r"file has format 99 .* reads format 1"):
        tg.load(tmp_path / "file")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, tmp_path / "file")
    with pytest.raises(tg.CheckpointError, match="file"):
        tg.load(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="absent"):
        tg.load(tmp_path / "absent")
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        tg.load(tmp_path)


def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"tinygrad_rnn\[checkpoint\]"):
        tg.save(tmp_path / "file", step=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImportError, match=r"tinygrad_rnn\[checkpoint\]"):
        tg.load(tmp_path / "file")
