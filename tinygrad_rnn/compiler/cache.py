"""A folder of the user's own in which generated source, and what Numba compiles of it, is kept between processes.

It is ``$TINYGRAD_RNN_CACHE``, or ``tinygrad_rnn`` in the user's cache folder. Source is used only if it is, byte for
byte, what would be generated now; and the folder only if nobody else can write to it. Without a folder that can be
used, each process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from functools import cache
from importlib import util
from pathlib import Path
from types import ModuleType

VARIABLE = "TINYGRAD_RNN_CACHE"


def module_of(source: str, keyed_by: str) -> ModuleType | None:
    """A module of ``source`` from the folder; another one if ``keyed_by`` changes. None if there is no folder."""
    folder = _folder(os.environ.get(VARIABLE, ""))
    if folder is None:
        return None
    name = "loop_" + hashlib.sha256(f"{keyed_by}\n{source}".encode()).hexdigest()[:32]
    path = folder / f"{name}.py"
    try:
        if not path.is_file() or path.read_bytes() != source.encode():
            _write(path, source)
        spec = util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        exec(compile(source, str(path), "exec"), vars(module))
    except OSError:
        return None
    sys.modules[name] = module  # where Numba looks for it
    return module


def _write(path: Path, source: str) -> None:
    """Write aside and rename, so that no other process meets half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(source)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@cache
def _folder(given: str) -> Path | None:
    """The folder, made if need be; None if it cannot be written, or others could."""
    try:
        folder = Path(given) if given else _user_folder() / "tinygrad_rnn"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            found = folder.stat()
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
                return None
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        return None


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
