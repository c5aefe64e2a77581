"""The folder of machine code: whose it is, what is used of it, and what happens without one."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn.compiler import build, cache, native
from tinygrad_rnn.compiler.native import Kind, Native

TEXT = "def loop(i, j, x):\n    for k in range(i, j):\n        x[k] = x[k] + float64(1)\n"
KINDS = [Kind(np.dtype(np.float64), 1, "C")]
REMEMBERED = cache._folder, native._loaded, native.surroundings, native.processor


@pytest.fixture(autouse=True)
def _forgets():
    """Nothing that is remembered of folders and functions comes into a test, or leaves it."""
    for known in REMEMBERED:
        known.cache_clear()
    yield
    for known in REMEMBERED:
        known.cache_clear()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Named by the variable, and not there yet."""
    path = tmp_path / "a" / "b"
    monkeypatch.setenv(cache.VARIABLE, str(path))
    return path


@pytest.fixture
def built(monkeypatch):
    """What was compiled since."""
    names = []
    before = build.machine_code
    monkeypatch.setattr(build, "machine_code", lambda *given: names.append(given[0]) or before(*given))
    return names


def ran(text=TEXT):
    """What a compiled function makes of zeros, in a process that remembers nothing."""
    native._loaded.cache_clear()
    x = np.zeros(3)
    assert not Native("loop", KINDS, text).call(0, 3, x)
    return x.tolist()


# The folder


def test_it_is_made_for_the_user_alone(folder):
    before = os.umask(0)
    try:
        cache.keep("name", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["name"]
    assert cache.found("name") == b"content"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_one_that_others_can_write_to_is_not_used(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert ran() == [1, 1, 1]
    assert not list(folder.iterdir())


def test_one_that_others_can_read_is_used(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    cache.keep("name", b"content")
    assert cache.found("name") == b"content"


def test_one_of_another_user_is_not_used(folder, monkeypatch):
    folder.mkdir(parents=True, mode=0o700)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    cache.keep("name", b"content")
    assert not list(folder.iterdir())


def test_without_the_variable_it_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.keep("name", b"content")
    assert (tmp_path / "tinygrad_rnn" / "name").is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache._user_folder() == tmp_path / "home" / ".cache"


def refuses(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("there", [True, False])
def test_a_home_that_is_read_only(folder, monkeypatch, built, there):
    if there:
        folder.mkdir(parents=True)
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuses)
    monkeypatch.setattr(Path, "mkdir", Path.mkdir if there else refuses)
    for _ in range(2):
        assert ran() == [1, 1, 1]
    assert len(built) == 2
    assert not list(folder.glob("*"))


def test_a_home_that_becomes_read_only(folder, monkeypatch, built):
    monkeypatch.setattr(cache.tempfile, "mkstemp", refuses)
    for _ in range(2):
        assert ran() == [1, 1, 1]
    assert len(built) == 2


@pytest.mark.parametrize("home", ["nobody", "a file"])
def test_without_a_home(monkeypatch, tmp_path, home):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    for name in (cache.VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "home", nobody if home == "nobody" else lambda: tmp_path / "file")
    assert ran() == [1, 1, 1]


# What is kept


def test_what_was_compiled_is_found_again(folder, built):
    for _ in range(3):
        assert ran() == [1, 1, 1]
    assert built == ["loop"]
    (path,) = folder.iterdir()
    assert path.suffix == ".o"


def test_what_was_compiled_of_other_source_is_not(folder, built):
    ran()
    assert ran(TEXT.replace("(1)", "(2)")) == [2, 2, 2]
    assert len(built) == len(list(folder.iterdir())) == 2


def test_nor_for_other_kinds(folder, built):
    ran()
    x = np.zeros(3, np.float32)
    assert not Native("loop", [Kind(x.dtype, 1, "C")], TEXT).call(0, 3, x)
    x = np.zeros((3, 2))
    assert not Native("loop", [Kind(x.dtype, 1, "A")], TEXT).call(0, 3, x[:, 0])
    assert len(built) == len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["emptied", "junk", "cut", "changed", "another's"])
def test_damaged_files_are_replaced(folder, built, damage):
    ran()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    other = whole[:-1] + b"\0"
    damaged = {"emptied": b"", "junk": b"\x93junk" * 99, "cut": whole[: len(whole) // 2], "changed": bytes(changed)}
    path.write_bytes(damaged.get(damage, other if other != whole else whole + b"\0"))
    for _ in range(2):
        assert ran() == [1, 1, 1]
    assert len(built) == 2
    assert cache.found(path.name) is not None


def test_a_folder_in_the_place_of_a_file(folder, built):
    ran()
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    for _ in range(2):
        assert ran() == [1, 1, 1]
    assert len(built) == 3
    assert [other.name for other in folder.iterdir()] == [path.name]


def test_a_link_in_the_place_of_a_file_is_not_written_through(folder, tmp_path):
    ran()
    (path,) = folder.iterdir()
    path.unlink()
    other = tmp_path / "other"
    other.write_text("precious")
    path.symlink_to(other)
    assert ran() == [1, 1, 1]
    assert other.read_text() == "precious"
    assert not path.is_symlink()


def test_what_is_written_halfway_is_taken_away(folder, monkeypatch):
    monkeypatch.setattr(os, "replace", refuses)
    assert ran() == [1, 1, 1]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["NUMBA_CPU_FEATURES", "NUMBA_OPT"])
def test_settings_of_numba_stand_for_other_code(folder, monkeypatch, built, name):
    before = native.surroundings()
    monkeypatch.setenv(name, "1")
    native.processor.cache_clear()
    native.surroundings.cache_clear()
    assert native.surroundings() != before


@pytest.mark.parametrize("changed", native.FILES)
def test_a_change_of_what_it_comes_of_stands_for_other_code(monkeypatch, tmp_path, changed):
    for name in native.FILES:
        shutil.copy(Path(native.__file__).with_name(f"{name}.py"), tmp_path)
    before = native.surroundings()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native.surroundings.cache_clear()
    assert native.surroundings() == before
    (tmp_path / f"{changed}.py").write_text("#")
    native.surroundings.cache_clear()
    assert native.surroundings() != before


def test_all_that_generated_source_calls_is_looked_at():
    """Compiled functions that generated source calls, and what these call in turn."""
    looked_at = {Path(native.__file__).with_name(f"{name}.py") for name in native.FILES}
    pending, seen = [f for f in build.SPACE.values() if hasattr(f, "py_func") or inspect.isfunction(f)], set()
    while pending:
        function = getattr(found := pending.pop(), "py_func", found)
        if function not in seen and "tinygrad_rnn" in Path(inspect.getfile(function)).parts:
            seen.add(function)
            assert Path(inspect.getfile(function)) in looked_at
            pending += [f for f in inspect.getclosurevars(function).globals.values() if hasattr(f, "py_func")]
    assert len(seen) > 10


def test_code_that_calls_what_is_not_there_is_not_loaded(folder, built):
    """LLVM would end the process."""
    ran()
    (path,) = folder.iterdir()
    cache.keep(path.name, b"no_such_function " + cache.found(path.name))
    for _ in range(2):
        assert ran() == [1, 1, 1]
    assert len(built) == 2


# Several processes

SCRIPT = """
import sys
import numpy as np
import tinygrad_rnn as tg

sys.stdin.read(1)  # until all have come so far
xs = tg.Tensor(np.arange(12.0).reshape(4, 3, 1))
with tg.no_grad():
    ys, last = tg.scan(lambda x, h: (h, 0.5 * h + x), xs, tg.zeros((3, 1), np.float64), engine="numba")
expected, h = [], np.zeros((3, 1))
for x in xs.numpy():
    expected.append(h)
    h = 0.5 * h + x
np.testing.assert_allclose(ys.numpy(), expected)
np.testing.assert_allclose(last.numpy(), h)
print("numba" in sys.modules)
"""


def started():
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_processes_that_begin_at_once(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(native.__file__).parents[2]))
    processes = [started() for _ in range(4)]
    try:
        for process in processes:
            process.stdin.write("x")
            process.stdin.flush()
        results = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, results, strict=True)] == [
        (0, "")
    ] * 4
    assert {path.suffix for path in folder.iterdir()} == {".o"}
    output, errors = started().communicate("x", timeout=100)
    assert (output, errors) == ("False\n", "")  # what takes so long to import is not needed
