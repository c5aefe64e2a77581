"""Saving all that a training run needs to go on, in one safetensors file.

Arrays are the file's tensors, under names such as ``model.weight_ih``; any reader of safetensors finds the weights.
How they nest, and everything that is no array, is one JSON text in the file's metadata. Nothing is ever pickled, so
that loading a stranger's file runs no code.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygrad_rnn.backend import backend_of, get_backend
from tinygrad_rnn.tensor import Tensor

__all__ = ["CheckpointError", "load", "save"]

Arrays = dict[str, np.ndarray[Any, Any]]

FORMAT = 1


class CheckpointError(ValueError):
    """A file that `load` cannot read: damaged, cut short, or not written by `save`."""


def save(path: str | os.PathLike[str], /, **objects: Any) -> None:
    """Write ``objects`` to the file ``path``.

    The file is written aside and then put in place at once: whatever happens, ``path`` is either what it was or the
    whole of the new file.

    Parameters
    ----------
    path
        The file; its folder must exist.
    **objects
        Modules, optimizers, generators and anything else with a ``state_dict()``; tensors and arrays from any
        backend; numbers, strings, bools, None; and lists, tuples and dicts of all these.

    Raises
    ------
    TypeError
        If something can't be saved: it names where in ``objects`` it is, and nothing is written.
    OSError
        If the file can't be written.
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

    arrays: Arrays = {}
    tree = {name: _encode(value, name, arrays) for name, value in objects.items()}
    text = json.dumps({"format": FORMAT, "version": __version__, "objects": tree})
    metadata = {"tinygrad_rnn": text, "crc32": str(_checksum(text, arrays))}
    _write(os.path.realpath(path), _safetensors().save(arrays, metadata))


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
        If the file is damaged, cut short, or not written by `save`.
    OSError
        If there is no such file, or it can't be read.
    ImportError
        If the safetensors library isn't installed.
    """
    library = _safetensors()
    with open(path, "rb") as file:
        content = file.read()
    try:
        arrays = library.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # the library has no one type for what it cannot read
        raise CheckpointError(f"{os.fspath(path)} is damaged, cut short or no safetensors file: {error}") from None
    metadata = header.get("__metadata__", {})
    if "tinygrad_rnn" not in metadata:
        raise CheckpointError(
            f"{os.fspath(path)} was not written by tinygrad_rnn.save; safetensors.numpy.load_file reads plain weights"
        )
    text = metadata["tinygrad_rnn"]
    if metadata.get("crc32") != str(_checksum(text, arrays)):
        raise CheckpointError(f"{os.fspath(path)} is damaged: its checksum does not fit its content")
    try:
        saved = json.loads(text)
        if saved["format"] != FORMAT:
            raise CheckpointError(
                f"{os.fspath(path)} has format {saved['format']} of tinygrad_rnn {saved['version']}; "
                f"this version reads format {FORMAT}"
            )
        return {name: _decode(value, arrays) for name, value in saved["objects"].items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{os.fspath(path)} is damaged: {type(error).__name__}: {error}") from None


# In the JSON text numbers, strings, bools and None stand for themselves. All else is an object with one key that says
# what it is, because JSON has no tuples and no keys but strings.
def _encode(value: Any, name: str, arrays: Arrays) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return {"tensor": _add(value.numpy(), name, arrays)}
    if (backend := backend_of(value)) is not None:
        return {"array": _add(backend.to_numpy(value), name, arrays)}
    if type(value) in (list, tuple):  # a named tuple would come back as a plain one
        return {type(value).__name__: [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"save: the keys of {name} must be strings or ints, got {key!r}")
        return {"dict": [[key, _encode(item, f"{name}.{key}", arrays)] for key, item in value.items()]}
    if hasattr(value, "state_dict") and not isinstance(value, type):
        return _encode(value.state_dict(), name, arrays)
    raise TypeError(
        f"save: {name} is a {type(value).__name__}, which can't be saved; give tensors, arrays, numbers, strings, "
        "bools, None, objects with a state_dict(), or lists, tuples and dicts of these"
    )


def _add(array: np.ndarray[Any, Any], name: str, arrays: Arrays) -> str:
    """Put ``array`` among ``arrays`` under ``name``, or one like it that is free, and return that name."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"save: {name} has dtype {array.dtype}; a file holds bools, ints and floats of up to 64 bits")
    while name in arrays or name == "__metadata__":  # {"a": {"b": x}, "a.b": y} has two of the name a.b
        name += "_"
    arrays[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return name


def _decode(value: Any, arrays: Arrays) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return Tensor(get_backend().asarray(arrays[content].copy()))
    if kind == "array":
        return arrays[content].copy()
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_decode(item, arrays) for item in content)


def _checksum(text: str, arrays: Arrays) -> int:
    checksum = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        # The same bytes would pass as another dtype, and no bytes at all as another shape.
        checksum = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def _write(path: str, content: bytes) -> None:
    """Put ``content`` at ``path``, all of it or nothing, and on the disk before this returns."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        if os.path.exists(aside):
            os.unlink(aside)
        if isinstance(error, OSError):  # the user never heard of the file aside
            raise OSError(error.errno, error.strerror, path) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "tinygrad_rnn.save and load need safetensors: pip install 'tinygrad_rnn[checkpoint]'"
        ) from error
    return safetensors.numpy
