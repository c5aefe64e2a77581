"""The threads of compiled loops: their number."""

from __future__ import annotations

import os

import numpy as np
import pytest
from running import python

from tinygrad_rnn import threads
from tinygrad_rnn.threads import get_num_threads, set_num_threads


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number chosen, no library listed."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "_num_threads", None)
    monkeypatch.setattr(threads, "_blas", threads._Blas())


# The number of threads


def test_number_is_what_was_set():
    set_num_threads(3)
    assert get_num_threads() == 3
    set_num_threads(np.int64(5))
    assert (get_num_threads(), type(get_num_threads())) == (5, int)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_none_counts_the_processors_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    set_num_threads(None)
    assert get_num_threads() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        set_num_threads(None)
        assert get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_default_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_usable", lambda: 11)
    assert get_num_threads() == 11


def test_environment_gives_the_first_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_usable", lambda: 11)
    monkeypatch.setenv("TINYGRAD_RNN_NUM_THREADS", "7")
    assert get_num_threads() == 7
    set_num_threads(None)
    assert get_num_threads() == 11
    set_num_threads(2)
    assert get_num_threads() == 2


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-2, ValueError), (True, TypeError), (2.0, TypeError)])
def test_bad_numbers_are_named(value, error):
    set_num_threads(4)
    with pytest.raises(error, match=f"number of threads must be .*got {value}"):
        set_num_threads(value)
    assert get_num_threads() == 4


def test_text_is_no_number():
    with pytest.raises(TypeError, match="got '3' of type str"):
        set_num_threads("3")


@pytest.mark.parametrize("text", ["two", "", "1.5", "0", "-1"])
def test_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch, text):
    monkeypatch.setenv("TINYGRAD_RNN_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"TINYGRAD_RNN_NUM_THREADS must be .*got .*{text}"):
        get_num_threads()
    set_num_threads(2)
    assert get_num_threads() == 2


def test_bad_environment_does_not_hinder_the_import():
    assert python("import tinygrad_rnn.threads; print('done')", TINYGRAD_RNN_NUM_THREADS="two") == "done\n"


def test_import_leaves_out_what_few_need():
    code = "import sys, tinygrad_rnn.threads; print({'threadpoolctl', 'concurrent.futures'} & set(sys.modules))"
    assert python(code) == "set()\n"
