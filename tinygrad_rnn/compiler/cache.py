"""A folder of the user's own in which machine code is kept between processes.

It is ``$TINYGRAD_RNN_CACHE``, or ``tinygrad_rnn`` in the user's cache folder. A file is used only if it is, byte for
byte, what was kept; and the folder only if nobody else can write to it. Without a folder that can be used, each process
compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

VARIABLE = "TINYGRAD_RNN_CACHE"
_HASH = hashlib.sha256().digest_size  # bytes, of what follows in a file


def found(name: str) -> bytes | None:
    """What was kept under a name; None if nothing was, or it is damaged."""
    folder = _folder(os.environ.get(VARIABLE, ""))
    if folder is None:
        return None
    try:
        content = (folder / name).read_bytes()
    except OSError:
        return None
    kept = content[_HASH:]
    return kept if hashlib.sha256(kept).digest() == content[:_HASH] else None


def keep(name: str, content: bytes) -> None:
    """Keep it under a name, if there is a folder: written aside and renamed, so that no process meets half a file."""
    folder = _folder(os.environ.get(VARIABLE, ""))
    if folder is None:
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, folder / name)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        pass  # a disk that is full, say, costs only time


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
