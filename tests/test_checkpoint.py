"""Checkpoints: everything comes back bit for bit, whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys

import numpy as np
import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import checkpoint, nn, optim

posix = pytest.mark.skipif(os.name != "posix", reason="links, permissions and limits are otherwise elsewhere")


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
        "odd \ud800": [tg.ones(2), "\ud800"],
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
    for own in (loaded["array"], loaded["tensor"]._data):  # not a view of the file's content
        assert own.flags.writeable
        assert own.flags.owndata
    np.testing.assert_array_equal(loaded["array"], values)
    np.testing.assert_array_equal(loaded["view"], values.T[::-1])


def test_numpys_scalars_and_byte_orders(tmp_path):
    big = np.arange(3, dtype=">f4")
    tg.save(tmp_path / "file", scalars=[np.float64(0.1), np.int8(-3), np.bool_(True)], big=big)
    loaded = tg.load(tmp_path / "file")
    assert bits(loaded["scalars"]) == bits([0.1, -3, True])
    assert bits(loaded["big"]) == bits(big.astype("<f4"))


def test_floats_that_json_lacks(tmp_path):
    tg.save(tmp_path / "file", floats=[float("inf"), -np.inf, np.float32("nan"), float("nan")])
    assert str(tg.load(tmp_path / "file")["floats"]) == "[inf, -inf, nan, nan]"


@pytest.mark.parametrize("wrap", [lambda nest: [nest], lambda nest: (nest,), lambda nest: {"a": nest}])
def test_the_deepest_nest_that_is_saved_is_loaded(tmp_path, wrap):
    nest = 1
    for _ in range(50):
        nest = wrap(nest)
    with pytest.raises(TypeError, match="nested deeper"):  # noqa: PT012
        for _ in range(50):
            tg.save(tmp_path / "file", nest=nest)
            assert tg.load(tmp_path / "file")["nest"] == nest
            nest = wrap(nest)


def test_too_much_that_is_no_array(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "TEXT", 10_000)
    tg.save(tmp_path / "file", losses=[0.0] * 1000, name='"' * 2000)
    for losses in ([0.0] * 3000, 10**5000):
        with pytest.raises(ValueError, match=r"put numbers in arrays|4300 digits"):
            tg.save(tmp_path / "file", losses=losses)
    assert len(tg.load(tmp_path / "file")["losses"]) == 1000


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


class FullDisk:
    """The system's calls as `save` makes them, of which the ``last`` one works and no later one does.

    Files are written in pieces of 100 bytes, so that there are many writes to fail.
    """

    def __init__(self, patched, last):
        self.calls, self.last = [], last
        limited = self.limited

        class Raw(io.FileIO):
            def write(self, piece):
                return limited("write", super().write)(piece[:100])

        def opened(path, mode):
            return io.BufferedWriter(limited("open", Raw)(path, mode), 100)

        patched.setattr(checkpoint, "open", opened, raising=False)
        for name in ("chmod", "fsync", "replace", "open"):
            patched.setattr(os, name, limited(f"os.{name}", getattr(os, name)))

    def limited(self, name, function):
        def call(*arguments):
            self.calls.append(name)
            if len(self.calls) > self.last:
                raise OSError(errno.ENOSPC, "disk full")
            return function(*arguments)

        return call


@posix
def test_a_disk_full_at_any_call_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tg.save(path, step=1, weight=tg.zeros(300))
    before = path.read_bytes()
    for last in range(1000):
        with monkeypatch.context() as patched:
            disk = FullDisk(patched, last)
            try:
                tg.save(path, step=2, weight=tg.ones(300))
                break
            except OSError as error:
                caught = error
        assert (caught.errno, caught.filename) == (errno.ENOSPC, str(path))
        assert str(caught).count("file") == 1  # not the one aside as well
        if "os.replace" in disk.calls[:last]:  # too late: what failed is to be sure of it
            assert tg.load(path)["step"] == 2
        else:
            assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert disk.calls.count("write") > 10
    calls = [call for call, after in zip(disk.calls, [*disk.calls[1:], None], strict=True) if call != after]
    assert calls == ["open", "os.chmod", "write", "os.fsync", "os.replace", "os.open", "os.fsync"]
    assert tg.load(path)["step"] == 2


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_file_may_grow_no_further(tmp_path, there):
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    tg.save(path, step=1, weight=tg.zeros(5000))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 100, 4096, 8192, len(before) - 1):
        if not there:
            path.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError, match="file") as caught:
                tg.save(path, step=2, weight=tg.ones(5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [before] * there


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


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    tg.save(tmp_path / "link", step=1)
    assert (tmp_path / "link").is_symlink()
    assert tg.load(tmp_path / "file") == {"step": 1}
    tg.save(tmp_path / "link", step=2)
    assert (tmp_path / "link").is_symlink()
    assert tg.load(tmp_path / "file") == {"step": 2}


@posix
def test_permissions_are_those_of_the_old_file_or_of_any_new_one(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        tg.save(path, step=1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o664):
            path.chmod(mode)
            tg.save(path, step=mode)
            assert tg.load(path) == {"step": mode}
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@posix
def test_nobody_else_can_read_a_private_file_while_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tg.save(path, step=1)
    path.chmod(0o600)
    modes = []

    class Watched(io.FileIO):
        def write(self, content):
            modes.append(stat.S_IMODE(os.fstat(self.fileno()).st_mode))
            return super().write(content)

    monkeypatch.setattr(checkpoint, "open", Watched, raising=False)
    tg.save(path, step=2)
    assert modes == [0o600]


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone gives files away")
def test_a_file_that_root_saves_stays_its_owners(tmp_path):
    path = tmp_path / "file"
    tg.save(path, step=1)
    os.chown(path, 1234, 5678)
    tg.save(path, step=2)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


@posix
def test_what_could_not_be_written_in_place_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tg.save(path, step=1)
    path.chmod(0o444)
    if os.geteuid() == 0:  # who may write to anything
        monkeypatch.setattr(os, "access", lambda path, _: bool(os.stat(path).st_mode & stat.S_IWUSR))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("file", "pipe", "null"):
        with pytest.raises(PermissionError, match=name):
            tg.save(tmp_path / name, step=2)
    assert tg.load(path) == {"step": 1}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_longest_name_that_a_file_may_have(tmp_path):
    path = tmp_path / ("é" * 125 + ".bin")
    tg.save(path, step=1)
    assert tg.load(path) == {"step": 1}


def test_the_same_objects_give_the_same_bytes(tmp_path):
    contents = set()
    for _ in range(8):
        tg.save(tmp_path / "file", b=tg.ones(2), a=np.zeros(3, np.int8), step=1)
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "file"
    tg.save(path, step=1)
    before = path.read_bytes()
    loop = []
    loop.append(loop)
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
        (np.zeros(2, [("x", "f4")])[0], "thing is a void"),  # which would come back as a tuple
        (np.timedelta64(5, "ns"), "thing is a timedelta64"),  # as an int
        (np.longdouble(1), "thing is a longdouble"),
        ([[loop]], "thing.* holds itself"),
    ):
        with pytest.raises(TypeError, match=where):
            tg.save(path, fine=np.ones(2), thing=value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "file"
    tg.save(path, model=nn.Linear(2, 2), none=tg.zeros((0, 4)), step=3)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], b"PK\x03\x04 something else", whole + b"more", whole.replace(b"3", b"4", 1)):
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
    with pytest.raises(tg.CheckpointError, match=r"file can't be loaded: format 99 .* reads format 1"):
        tg.load(tmp_path / "file")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, tmp_path / "file")
    with pytest.raises(tg.CheckpointError, match=r"file can't be loaded: not written by tinygrad_rnn\.save"):
        tg.load(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="absent"):
        tg.load(tmp_path / "absent")
    with pytest.raises(tg.CheckpointError, match=re.escape(f"{tmp_path} can't be loaded: it is not a file")):
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
