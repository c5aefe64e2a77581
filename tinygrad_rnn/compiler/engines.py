"""Which engines there are, and which of them runs a scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any

NAMES = ("auto", "numba", "array", "unrolled")
_chosen: ContextVar[str] = ContextVar("tinygrad_rnn_engine", default="auto")


@contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Inside the ``with`` block, in this thread or asyncio task, ``engine="auto"`` means this engine; see `scan`.

    Raises
    ------
    ValueError
        If there is no engine of that name.
    """
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen(engine: str) -> str:
    """The engine that an argument ``engine`` means."""
    return _chosen.get() if engine == "auto" else _checked(engine)


def candidates(engine: str, backend: str) -> tuple[str, ...]:
    """The engines that may be tried for ``engine``, the fastest first."""
    if engine != "auto":
        return (engine,)
    return NAMES[1:] if backend == "numpy" and _numba_is_here() else NAMES[2:]


@cache
def _numba_is_here() -> bool:
    return find_spec("numba") is not None


@cache
def engine_named(name: str) -> Any:
    """The module that is the engine."""
    if name == "array":
        from tinygrad_rnn.compiler import array

        return array
    try:
        from tinygrad_rnn.compiler import jit
    except ImportError as error:
        raise ImportError("engine 'numba' needs Numba: pip install 'tinygrad_rnn[fast]'") from error
    return jit


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"engine must be one of {', '.join(NAMES)}, got {name!r}")
    return name
