"""Saving all that a training run needs to go on, in one safetensors file.

Arrays are the file's tensors, under names such as ``model.weight_ih``; any reader of safetensors finds the weights.
How they nest, and everything that is no array, is one JSON text in the file's metadata, after a checksum of all.
Nothing is ever pickled, so that loading a stranger's file runs no code. It takes memory in proportion to its size.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from tinygrad_rnn.backend import backend_of, get_backend
from tinygrad_rnn.tensor import Tensor

__all__ = ["CheckpointError", "load", "save"]

Arrays = dict[str, np.ndarray[Any, Any]]

FORMAT = 1
HEADER = 100_000_000  # bytes: the safetensors library reads no longer one
TEXT = HEADER * 2 // 5  # characters, of which the header escapes many
DEPTH = 64  # levels: what can be saved must be loaded within Python's limit on recursion


class CheckpointError(ValueError):
    """What `load` cannot read: damaged, cut short, not written by `save`, or no file at all but a folder."""


def save(path: str | os.PathLike[str], /, *unnamed: Any, **objects: Any) -> None:
    """Write ``objects`` to the file ``path``.

    The file is written aside and then put in place at once: whatever happens, ``path`` is either what it was or the
    whole of the new file, which keeps the permissions of the old one. A process that is killed may leave a
    ``.NAME.*.tmp`` beside it, which can be deleted.

    Parameters
    ----------
    path
        The file; its folder must exist. A symbolic link stays, and the file that it names is written.
    **objects
        Modules, optimizers, generators and anything else with a ``state_dict()``; tensors and arrays from any
        backend; numbers, strings, bools, None; and lists, tuples and dicts of all these.

    Raises
    ------
    TypeError
        If something can't be saved: it names where in ``objects`` it is, and nothing is written.
    ValueError
        If there is too much that is no array (long lists belong in arrays), or an int of over 4300 digits.
    OSError
        If the file can't be written, is read-only, or is a folder or a device.
    ImportError
        If the safetensors library isn't installed.

    Examples
    --------
    >>> tg.save("run.safetensors", model=model, optimizer=optimizer, step=120)
    >>> run = tg.load("run.safetensors")
    >>> model.load_state_dict(run["model"])
    >>> optimizer.load_state_dict(run["optimizer"])
    """
    from tinygrad_rnn import __version__

    if unnamed:
        raise TypeError("save: name what is saved, tg.save(path, model=model)")
    arrays: Arrays = {}
    tree = {name: _encode(value, name, arrays) for name, value in objects.items()}
    text = json.dumps({"format": FORMAT, "version": __version__, "objects": tree})
    if len(text) > TEXT:
        raise ValueError(f"save: {len(text)} characters of what is no array, of at most {TEXT}; put numbers in arrays")
    metadata = {"tinygrad_rnn": f"{_checksum(text, arrays)} {text}"}  # one entry: the library shuffles several
    _write(os.path.realpath(path), _safetensors().numpy.save(arrays, metadata))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote to the file ``path``.

    Returns
    -------
    A dict with the names that `save` was given. Where there was an object with a ``state_dict()`` there is now that
    dict, for its ``load_state_dict``. Tensors come back on the current backend, without gradient; arrays come back as
    NumPy arrays, NumPy's scalars as Python numbers. Everything else is as it was, to the bit.

    Raises
    ------
    CheckpointError
        If the file is damaged, cut short, or not written by `save`; or if ``path`` is a folder or a device.
    OSError
        If there is no such file, or it can't be read.
    ImportError
        If the safetensors library isn't installed.
    """
    library, name = _safetensors(), os.fspath(path)
    if not stat.S_ISREG(os.stat(name).st_mode):  # opening a pipe would wait for ever, reading a device never end
        raise CheckpointError(f"{name} can't be loaded: it is not a file")
    with open(name, "rb") as file:
        try:
            return _read(file, library)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, library.SafetensorError) as error:
            what = str(error) if isinstance(error, CheckpointError) else f"damaged: {type(error).__name__}: {error}"
            raise CheckpointError(f"{name} can't be loaded: {what[:300]}") from None


def _read(file: BinaryIO, library: Any) -> dict[str, Any]:
    # Nothing large is read before the sizes are known to fit.
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, HEADER):
        raise CheckpointError(f"cut short, or no safetensors file: a header of {length} bytes in {size}")
    header = _parse(file.read(length).decode())
    metadata = header.pop("__metadata__", {})
    end = max((info["data_offsets"][1] for info in header.values()), default=0)
    if end != size - 8 - length:
        raise CheckpointError(f"damaged or cut short: arrays of {end} bytes in {size - 8 - length}")
    if "tinygrad_rnn" not in metadata:
        raise CheckpointError("not written by tinygrad_rnn.save; safetensors.numpy.load_file reads plain weights")
    checksum, _, text = metadata["tinygrad_rnn"].partition(" ")
    file.seek(0)
    arrays = library.numpy.load(file.read(size))
    if checksum != _checksum(text, arrays):
        raise CheckpointError("damaged: its checksum does not fit its content")
    saved = _parse(text)
    if saved["format"] != FORMAT:
        raise CheckpointError(f"format {saved['format']} of version {saved['version']}; this one reads format {FORMAT}")
    return {name: _decode(value, arrays) for name, value in saved["objects"].items()}


def _parse(text: str) -> Any:
    """JSON to the letter: Python's own reader takes NaN, and keys given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise CheckpointError("damaged: a key is given twice")
        return found

    def refuse(constant: str) -> None:
        raise CheckpointError(f"damaged: {constant} in its JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


# In the JSON text numbers, strings, bools and None stand for themselves. All else is an object with one key that says
# what it is, because JSON has no tuples, no keys but strings, and neither NaN nor infinity.
def _encode(value: Any, name: str, arrays: Arrays, depth: int = 0) -> Any:
    if depth > DEPTH:
        raise TypeError(f"save: {name} is nested deeper than {DEPTH} levels, or holds itself")
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return {"tensor": _add(value.numpy(), name, arrays)}
    if (backend := backend_of(value)) is not None:
        return {"array": _add(backend.to_numpy(value), name, arrays)}
    if type(value) in (list, tuple):  # a named tuple would come back as a plain one
        return {type(value).__name__: [_encode(item, f"{name}.{i}", arrays, depth + 1) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"save: the keys of {name} must be strings or ints, got {key!r}")
        return {"dict": [[key, _encode(item, f"{name}.{key}", arrays, depth + 1)] for key, item in value.items()]}
    if hasattr(value, "state_dict") and not isinstance(value, type):
        return _encode(value.state_dict(), name, arrays, depth + 1)
    raise TypeError(
        f"save: {name} is a {type(value).__name__}, which can't be saved; give tensors, arrays, numbers, strings, "
        "bools, None, objects with a state_dict(), or lists, tuples and dicts of these"
    )


def _add(array: np.ndarray[Any, Any], name: str, arrays: Arrays) -> str:
    """Put ``array`` among ``arrays`` under ``name``, or one like it that is free, and return that name."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"save: {name} has dtype {array.dtype}; a file holds bools, ints and floats of up to 64 bits")
    name = name.encode(errors="backslashreplace").decode()  # a lone surrogate is no Unicode
    while name in arrays or name == "__metadata__":  # {"a": {"b": x}, "a.b": y} has two of the name a.b
        name += "_"
    arrays[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return name


def _decode(value: Any, arrays: Arrays) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return Tensor(get_backend().asarray(_take(content, arrays)))
    if kind == "array":
        return _take(content, arrays)
    if kind == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_decode(item, arrays) for item in content)


def _take(name: str, arrays: Arrays) -> np.ndarray[Any, Any]:
    # Taken away: a short text that names one array many times would fill the memory with copies of it.
    array = arrays.pop(name)
    if array.dtype.kind not in "fiub" or (array.dtype == bool and (array.view(np.uint8) > 1).any()):
        raise CheckpointError(f"damaged: array {name} of dtype {array.dtype} is none that save writes")
    return array.copy()


def _checksum(text: str, arrays: Arrays) -> str:
    checksum = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        # The same bytes would pass as another dtype, and no bytes at all as another shape.
        checksum = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.data, checksum)
    return f"{checksum:08x}"


def _write(path: str, content: bytes) -> None:
    """Put ``content`` at ``path``, all of it or nothing, and on the disk before this returns."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.tmp")
    try:
        old = os.stat(path) if os.path.exists(path) else None
        if old and not (stat.S_ISREG(old.st_mode) and os.access(path, os.W_OK)):  # replacing it would not fail
            raise PermissionError(errno.EACCES, "Read-only, or not a file")
        with open(aside, "xb") as file:
            if old:  # before there is anything in it to read
                with contextlib.suppress(OSError, AttributeError):  # others than root can't, Windows has none
                    os.chown(aside, old.st_uid, old.st_gid)
                os.chmod(aside, stat.S_IMODE(old.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        if isinstance(error, OSError):  # the user never heard of the file aside
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("save and load need safetensors: pip install 'tinygrad_rnn[checkpoint]'") from error
    return safetensors
