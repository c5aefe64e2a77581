"""The folder of generated source: whose it is, what is used of it, and what happens without one."""

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
from numba.core.dispatcher import Dispatcher

from tinygrad_rnn.compiler import cache, jit

SOURCE = "def loop(x):\n    return x + 1\n"
TEXT = "def loop(x):\n    for i in range(x.shape[0]):\n        x[i] = x[i] + float64(1)\n"


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    """Nothing that is remembered of folders and functions comes into a test, or leaves it."""
    modules = dict(sys.modules)
    for known in (cache._folder, jit._compiled, jit._called):
        known.cache_clear()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    yield
    for known in (cache._folder, jit._compiled, jit._called):
        known.cache_clear()
    for name in set(sys.modules).difference(modules):
        if name.startswith("loop_"):
            del sys.modules[name]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Named by the variable, and not there yet."""
    path = tmp_path / "a" / "b"
    monkeypatch.setenv(cache.VARIABLE, str(path))
    return path


def ran(text=TEXT):
    """What the compiled function makes of zeros, and the function."""
    function = jit._compiled(text)
    x = np.zeros(3)
    function(x)
    return x.tolist(), function


def again(text=TEXT):
    """The same, as another process would do it."""
    jit._compiled.cache_clear()
    return ran(text)


# The folder


def test_it_is_made_for_the_user_alone(folder):
    before = os.umask(0)
    try:
        module = cache.module_of(SOURCE, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(module.__spec__.origin).parent == folder
    assert module.loop(1) == 2


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_one_that_others_can_write_to_is_not_used(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert cache.module_of(SOURCE, "") is None
    assert ran()[0] == [1, 1, 1]
    assert not list(folder.iterdir())


def test_one_that_others_can_read_is_used(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    assert cache.module_of(SOURCE, "") is not None


def test_one_of_another_user_is_not_used(folder, monkeypatch):
    folder.mkdir(parents=True, mode=0o700)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert cache.module_of(SOURCE, "") is None
    assert not list(folder.iterdir())


def test_without_the_variable_it_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = cache.module_of(SOURCE, "")
    assert Path(module.__spec__.origin).parent == tmp_path / "tinygrad_rnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache._user_folder() == tmp_path / "home" / ".cache"


def refuses(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("there", [True, False])
def test_a_home_that_is_read_only(folder, monkeypatch, there):
    if there:
        folder.mkdir(parents=True)
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuses)
    monkeypatch.setattr(Path, "mkdir", Path.mkdir if there else refuses)
    assert cache.module_of(SOURCE, "") is None
    result, function = ran()
    assert result == [1, 1, 1]
    assert not function.stats.cache_hits
    assert function.stats.cache_path is None


def test_a_home_that_becomes_read_only(folder, monkeypatch):
    assert ran()[0] == [1, 1, 1]
    monkeypatch.setattr(cache.tempfile, "mkstemp", refuses)
    assert cache.module_of(SOURCE, "") is None


@pytest.mark.parametrize("home", ["nobody", "a file"])
def test_without_a_home(monkeypatch, tmp_path, home):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    for name in (cache.VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "home", nobody if home == "nobody" else lambda: tmp_path / "file")
    assert cache.module_of(SOURCE, "") is None
    assert ran()[0] == [1, 1, 1]


# Source


@pytest.mark.parametrize("found", ["def loop(x):\n    return 666\n", "", "def loop(x", SOURCE + "\n"])
def test_source_that_is_not_what_would_be_generated_is_replaced(folder, found):
    path = Path(cache.module_of(SOURCE, "").__spec__.origin)
    path.write_text(found)
    assert cache.module_of(SOURCE, "").loop(1) == 2
    assert path.read_text() == SOURCE
    assert [other.name for other in folder.iterdir()] == [path.name]


def test_source_that_is_no_text_is_replaced(folder):
    path = Path(cache.module_of(SOURCE, "").__spec__.origin)
    path.write_bytes(b"\xff\xfe\x00")
    assert cache.module_of(SOURCE, "").loop(1) == 2


def test_a_folder_in_the_place_of_the_source(folder):
    path = Path(cache.module_of(SOURCE, "").__spec__.origin)
    path.unlink()
    path.mkdir()
    assert cache.module_of(SOURCE, "") is None
    assert [other.name for other in folder.iterdir()] == [path.name]


def test_a_link_in_the_place_of_the_source_is_not_written_through(folder, tmp_path):
    path = Path(cache.module_of(SOURCE, "").__spec__.origin)
    path.unlink()
    other = tmp_path / "other"
    other.write_text("precious")
    path.symlink_to(other)
    assert cache.module_of(SOURCE, "").loop(1) == 2
    assert other.read_text() == "precious"


def test_what_is_written_halfway_is_taken_away(folder, monkeypatch):
    cache.module_of(SOURCE, "")
    monkeypatch.setattr(os, "replace", refuses)
    assert cache.module_of(SOURCE, "another") is None
    assert len(list(folder.iterdir())) == 1


def test_names_stand_for_the_source_and_what_it_calls(folder):
    names = {
        cache.module_of(*given).__name__ for given in [(SOURCE, ""), (SOURCE, "x"), (SOURCE + "#", ""), (SOURCE, "")]
    }
    assert len(names) == 3


@pytest.mark.parametrize("changed", ["jit.py", "product.py", "scalars.py"])
def test_a_change_of_what_it_calls_gives_another_name(folder, monkeypatch, tmp_path, changed):
    here = Path(jit.__file__).parent
    for name in ("jit.py", "product.py", "scalars.py"):
        shutil.copy(here / name, tmp_path / name)
    names = [jit._compiled(TEXT).py_func.__module__]
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    for _ in range(2):
        jit._called.cache_clear()
        jit._compiled.cache_clear()
        names.append(jit._compiled(TEXT).py_func.__module__)
        (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"#")
    assert names[0] == names[1] != names[2]


def test_all_that_it_calls_is_looked_at():
    """Compiled functions that generated source calls, and what these call in turn."""
    looked_at = {Path(jit.__file__).with_name(name) for name in ("jit.py", "product.py", "scalars.py")}
    pending, seen = [f for f in jit.SPACE.values() if hasattr(f, "py_func") or inspect.isfunction(f)], set()
    while pending:
        function = getattr(found := pending.pop(), "py_func", found)
        if function not in seen and "tinygrad_rnn" in Path(inspect.getfile(function)).parts:
            seen.add(function)
            assert Path(inspect.getfile(function)) in looked_at
            pending += [f for f in inspect.getclosurevars(function).globals.values() if hasattr(f, "py_func")]
    assert len(seen) > 10


# What Numba keeps there


def test_what_was_compiled_is_found_again(folder):
    result, first = ran()
    assert isinstance(first, Dispatcher)
    assert (sum(first.stats.cache_hits.values()), sum(first.stats.cache_misses.values())) == (0, 1)
    assert Path(first.stats.cache_path).parent == folder
    result, second = again()
    assert second is not first
    assert result == [1, 1, 1]
    assert (sum(second.stats.cache_hits.values()), sum(second.stats.cache_misses.values())) == (1, 0)


def test_what_was_compiled_of_other_source_is_not(folder):
    ran()
    result, other = again(TEXT.replace("(1)", "(2)"))
    assert result == [2, 2, 2]
    assert not other.stats.cache_hits


def test_source_that_was_changed_and_put_right_again(folder):
    _, first = ran()
    path = Path(first.py_func.__code__.co_filename)
    path.write_text(path.read_text().replace("(1)", "(2)"))
    assert again()[0] == [1, 1, 1]
    assert again()[0] == [1, 1, 1]


NUMBA = "Numba reads what it kept without a guard; a damaged file raises at the first call"


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["emptied", "junk", "cut"])
def test_damaged_files_of_numba(folder, kind, damage):
    ran()
    (path,) = (folder / "__pycache__").glob(f"*.{kind}")
    whole = path.read_bytes()
    path.write_bytes({"emptied": b"", "junk": b"\x93junk" * 99, "cut": whole[: len(whole) // 2]}[damage])
    assert again()[0] == [1, 1, 1]
    result, function = again()
    assert result == [1, 1, 1]
    assert sum(function.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_files_of_numba_that_are_gone(folder, kind):
    ran()
    for path in (folder / "__pycache__").glob(f"*.{kind}"):
        path.unlink()
    assert again()[0] == [1, 1, 1]


# Several processes

SCRIPT = """
import sys
import numpy as np
import tinygrad_rnn as tg
from tinygrad_rnn.compiler import jit

sys.stdin.read(1)  # until all have come so far
functions = []
compiled = jit._compiled
jit._compiled = lambda text: functions.append(compiled(text)) or functions[-1]
xs = tg.Tensor(np.arange(12.0).reshape(4, 3, 1))
with tg.no_grad():
    ys, last = tg.scan(lambda x, h: (h, 0.5 * h + x), xs, tg.zeros((3, 1), np.float64), engine="numba")
expected, h = [], np.zeros((3, 1))
for x in xs.numpy():
    expected.append(h)
    h = 0.5 * h + x
np.testing.assert_allclose(ys.numpy(), expected)
np.testing.assert_allclose(last.numpy(), h)
assert functions
for counts in ([f.stats.cache_hits for f in functions], [f.stats.cache_misses for f in functions]):
    print(sum(sum(count.values()) for count in counts))
"""


def started():
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_processes_that_begin_at_once(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(jit.__file__).parents[2]))
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
    assert [other.suffix for other in folder.iterdir() if other.is_file()] == [".py"]
    assert not {path.suffix for path in (folder / "__pycache__").iterdir()}.difference({".nbi", ".nbc"})
    (source,) = folder.glob("*.py")
    assert source.read_text().startswith(jit.HEAD)
    output, errors = started().communicate("x", timeout=100)
    assert (output.split(), errors) == (["1", "0"], "")
