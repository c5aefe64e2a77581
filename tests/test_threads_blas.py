"""BLAS held to one thread, in all threads that ask for it, and set back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import threadpoolctl
from running import PATIENCE, in_threads, needs_fork, python
from test_threads import fresh  # noqa: F401 - a fixture

from tinygrad_rnn import threads
from tinygrad_rnn.threads import blas_limited


class Library:
    """Stands in for threadpoolctl's view of a library: one number for the process, or one for each thread."""

    user_api = "blas"

    def __init__(self, number: int | None = 6, internal_api: str = "openblas", threading_layer: str = "pthreads"):
        self.internal_api, self.threading_layer = internal_api, threading_layer
        self.numbers: dict[int, int] = {}
        self.first = number
        self.calls = 0

    def key(self) -> int:
        return 0 if (self.internal_api, self.threading_layer) == ("openblas", "pthreads") else threading.get_ident()

    def get_num_threads(self) -> int | None:
        return self.numbers.get(self.key(), self.first)

    def set_num_threads(self, number: int) -> None:
        self.calls += 1
        self.numbers[self.key()] = number


class Controlled(Library):
    """As threadpoolctl 3.8 has it: the first thread to set the number keeps the right to, until it gives it up."""

    controller: int | None = None

    def set_num_threads(self, number: int) -> None:
        if self.controller is None:
            self.controller = threading.get_ident()
        if self.controller == threading.get_ident():
            super().set_num_threads(number)

    def clear_controlling_thread(self) -> None:
        if self.controller == threading.get_ident():
            self.controller = None


class Loaded:
    """What is loaded: stands in for ``ThreadpoolController`` and counts how often it was built."""

    def __init__(self, *libraries: Library) -> None:
        self.libraries = list(libraries)
        self.built = 0

    def __call__(self) -> Loaded:
        self.built += 1
        return self

    @property
    def lib_controllers(self) -> list[Library]:
        return list(self.libraries)


def loaded(monkeypatch: pytest.MonkeyPatch, *libraries: Library) -> Loaded:
    stand_in = Loaded(*libraries)
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", stand_in)
    return stand_in


PER_THREAD = [("mkl", "intel"), ("openblas", "openmp")]
KINDS = [("openblas", "pthreads"), *PER_THREAD]


@pytest.fixture
def real() -> Iterator[list[threadpoolctl.LibController]]:
    """NumPy's own BLAS, set to three threads."""
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    if not libraries:
        pytest.skip("this NumPy's BLAS has no number of threads")
    former = [library.num_threads for library in libraries]
    for library in libraries:
        threads._set(library, 3)
    yield libraries
    for library, number in zip(libraries, former, strict=True):
        threads._set(library, number)


def test_real_library_is_limited_and_set_back(real):
    for _ in range(2):
        with blas_limited():
            assert [library.num_threads for library in real] == [1] * len(real)
            with blas_limited():
                assert [library.num_threads for library in real] == [1] * len(real)
            assert [library.num_threads for library in real] == [1] * len(real)
        assert [library.num_threads for library in real] == [3] * len(real)


def overlapping(numbers, inside, outside) -> None:
    """One thread enters, another enters, the first leaves, the second leaves; both live until the end."""
    first_in, second_in, first_out, end = (threading.Event() for _ in range(4))

    def first():
        with blas_limited():
            first_in.set()
            assert second_in.wait(PATIENCE)
            assert numbers() == inside
        first_out.set()
        assert end.wait(PATIENCE)
        assert numbers() == outside

    def second():
        try:
            assert first_in.wait(PATIENCE)
            with blas_limited():
                second_in.set()
                assert first_out.wait(PATIENCE)
                assert numbers() == inside
            assert numbers() == outside
        finally:
            end.set()

    in_threads(first, second)


def test_real_library_is_set_back_by_whoever_leaves_last(real):
    overlapping(lambda: [library.num_threads for library in real], [1] * len(real), [3] * len(real))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Library, Controlled])
def test_overlapping_blocks_of_two_threads(monkeypatch: pytest.MonkeyPatch, make, kind):
    library = make(6, *kind)
    loaded(monkeypatch, library)
    overlapping(library.get_num_threads, 1, 6)
    with blas_limited():
        assert library.get_num_threads() == 1
    assert library.get_num_threads() == 6


def test_number_is_set_back_after_an_error(monkeypatch: pytest.MonkeyPatch):
    library = Library(6)
    loaded(monkeypatch, library)
    with pytest.raises(ValueError, match="inside"), blas_limited():
        raise ValueError("inside")
    assert library.get_num_threads() == 6
    assert threads._blas.inside == []


def test_an_earlier_number_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    library = Library(6)
    loaded(monkeypatch, library)
    for number in (6, 1, 4):
        library.set_num_threads(number)
        with blas_limited():
            assert library.get_num_threads() == 1
        assert library.get_num_threads() == number


def test_each_library_gets_its_own_number_back(monkeypatch: pytest.MonkeyPatch):
    libraries = [Library(6), Library(3), Library(4, "mkl", "intel"), Library(1), Library(None)]
    loaded(monkeypatch, *libraries)
    with blas_limited():
        assert [library.get_num_threads() for library in libraries] == [1, 1, 1, 1, None]
    assert [library.get_num_threads() for library in libraries] == [6, 3, 4, 1, None]


def test_only_blas_is_limited(monkeypatch: pytest.MonkeyPatch):
    other = Library(6, "openmp", "")
    other.user_api = "openmp"
    loaded(monkeypatch, other)
    with blas_limited():
        assert other.get_num_threads() == 6
    assert other.calls == 0


def test_nothing_is_set_that_is_one_already(monkeypatch: pytest.MonkeyPatch):
    one, six = Library(1), Library(6)
    loaded(monkeypatch, one, six)
    with blas_limited(), blas_limited(), blas_limited():
        pass
    assert (one.calls, six.calls) == (0, 2)


def test_libraries_are_listed_again_only_after_an_import(monkeypatch: pytest.MonkeyPatch):
    early, late = Library(6), Library(8)
    stand_in = loaded(monkeypatch, early)
    for _ in range(3):
        with blas_limited():
            pass
    assert stand_in.built == 1
    with blas_limited():
        stand_in.libraries.append(late)
        monkeypatch.setitem(sys.modules, "a_module_that_loads_blas", threading)
        assert late.get_num_threads() == 8
        with blas_limited():
            assert (early.get_num_threads(), late.get_num_threads()) == (1, 1)
        assert (early.get_num_threads(), late.get_num_threads()) == (1, 1)
    assert (early.get_num_threads(), late.get_num_threads()) == (6, 8)
    assert stand_in.built == 2


def test_limit_of_another_thread_is_left_to_it(monkeypatch: pytest.MonkeyPatch):
    library = Controlled(6)
    loaded(monkeypatch, library)
    library.controller = -1  # some other thread
    with blas_limited():
        assert library.get_num_threads() == 6
        library.numbers[0] = 2  # the other thread changes its mind
        library.controller = None
    assert library.get_num_threads() == 2
    with blas_limited():
        assert library.get_num_threads() == 1
    assert library.get_num_threads() == 2


def test_many_threads_enter_and_leave(monkeypatch: pytest.MonkeyPatch):
    shared, own = Controlled(6), Library(4, "mkl", "intel")
    loaded(monkeypatch, shared, own)

    def work():
        for _ in range(300):
            with blas_limited():
                assert (shared.get_num_threads(), own.get_num_threads()) == (1, 1)
            assert own.get_num_threads() == 4

    in_threads(*[work] * 6)
    assert shared.get_num_threads() == 6
    assert threads._blas.inside == []


def test_without_threadpoolctl_it_does_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with blas_limited(), blas_limited():
        assert threads._blas.libraries == []


@needs_fork
@pytest.mark.parametrize(("forker_inside", "in_child"), [(False, "6 6"), (True, "1 6")])
def test_a_forked_child_is_limited_only_by_its_own_thread(forker_inside, in_child):
    printed = python(
        f"""if True:
        import contextlib, os, threading
        import threadpoolctl
        from test_threads_blas import Controlled, Loaded
        from tinygrad_rnn.threads import blas_limited

        library = Controlled(6)
        threadpoolctl.ThreadpoolController = Loaded(library)
        inside, leave = threading.Event(), threading.Event()

        def other():
            with blas_limited():
                inside.set()
                leave.wait(20)

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(20)
        with blas_limited() if {forker_inside} else contextlib.nullcontext():
            child = os.fork()
            within = library.get_num_threads()
        if child == 0:
            print("child", within, library.get_num_threads(), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent", within, library.get_num_threads(), flush=True)
        leave.set()
        thread.join()
        print("end", library.get_num_threads())
        """
    )
    assert printed.splitlines() == [f"child {in_child}", "parent 1 1", "end 6"]
