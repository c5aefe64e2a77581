"""What the tests run on: NumPy, the strict stand-in for CuPy, and CuPy where it finds a GPU; and engines of scan."""

import functools
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import strict  # noqa: F401 - registers its backend
from hypothesis import HealthCheck, settings
from interpreted import check_all, interpreted

import tinygrad_rnn as tg
from tinygrad_rnn import recurrence
from tinygrad_rnn.compiler import pure

# Examples may share the ``backend`` fixture: it holds no state that they could change.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

check_all()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        choices=("numpy", "strict", "cupy"),
        help="run on this backend alone (may be given again); default: all that this machine has",
    )


@functools.cache
def available() -> list[str]:
    try:
        tg.get_backend("cupy")
    except (ImportError, RuntimeError):
        return ["numpy", "strict"]
    return ["numpy", "strict", "cupy"]


ENGINES = ("unrolled", "array", "numba")
ON_NUMPY_ALONE = ("numba",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    backends = metafunc.config.getoption("--backend") or available()
    wanted = {"backend", "engine"}.intersection(metafunc.fixturenames)
    if wanted == {"backend"}:
        metafunc.parametrize("backend", backends, indirect=True)
    elif wanted == {"engine"}:
        metafunc.parametrize("engine", ENGINES, indirect=True)
    elif wanted:
        pairs = [(b, e) for b in backends for e in ENGINES if b == "numpy" or e not in ON_NUMPY_ALONE]
        metafunc.parametrize(("backend", "engine"), pairs, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, on which new tensors are made; the test runs once on each."""
    with tg.use_backend(request.param):
        yield request.param


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an engine of `tg.scan`, by which all scans run that name none; the test runs once by each.

    An engine that is named raises if it cannot run a cell, so that none falls back unseen. What Numba would compile is
    run by Python.
    """
    with tg.use_engine(request.param), interpreted() if request.param == "numba" else nullcontext():
        yield request.param


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """What Numba would compile is run by Python."""
    with interpreted():
        yield


@pytest.fixture(autouse=True)
def _compiles_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that name no engine run scans by one that need not compile."""
    with nullcontext() if "engine" in request.fixturenames else tg.use_engine("array"):
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often `tg.scan` recorded a step; nothing is remembered from before."""
    calls = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return record(*arguments, **options)

    record = recurrence.record
    monkeypatch.setattr(recurrence, "record", counted)
    monkeypatch.setattr(pure, "_known", OrderedDict())
    return calls
