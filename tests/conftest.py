"""Which backends the tests run on: NumPy, the strict stand-in for CuPy, and CuPy where it finds a GPU."""

import functools
import os
from collections.abc import Iterator

import pytest
import strict  # noqa: F401 - registers its backend
from hypothesis import HealthCheck, settings

import tinygrad_rnn as tg

# Examples may share the ``backend`` fixture: it holds no state that they could change.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backend") or available()
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, on which new tensors are made; the test runs once on each."""
    with tg.use_backend(request.param):
        yield request.param
