"""Random cells by every engine of `scan` against the plain loop, and whether that would find an error.

The search goes on in ``python tests/random_steps.py --engine array --cells 20000``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted, rows_last
from random_steps import Outcome, fails_alike, outcome, shrunk, slope_error
from step_drawing import drawn
from step_program import Leaf, Line, Value, text_of

import tinygrad_rnn as tg
from tinygrad_rnn.nest import leaves, map_nest

WAYS = {  # by name: the engine, how many cells, and what is otherwise meanwhile
    "array": ("array", 300, ()),
    "numba": ("numba", 300, (interpreted,)),
    "numba, rows last": ("numba", 200, (interpreted, rows_last)),
}
COMPILED = 20  # so many small cells are compiled, which takes a second or two for each
REFUSED = {"array": 0.15, "numba": 0.25}  # at most such a share of cells is refused, or trembles
randoms = st.randoms(use_true_random=False)


@pytest.mark.parametrize("way", WAYS)
def test_engine_is_the_plain_loop(backend, way):
    name, cells, otherwise = WAYS[way]
    if name == "numba" and backend != "numpy":
        pytest.skip("Numba runs on NumPy alone")
    counts: Counter[str] = Counter()

    @settings(max_examples=cells if backend == "numpy" else cells // 10)
    @given(randoms)
    def check(random):
        program = drawn(random)
        result = outcome(program, name)
        counts[result.kind] += 1
        assert not result.failed, f"{result.message}\n\n{text_of(program, name)}"

    with ExitStack() as stack:
        for context in otherwise:
            stack.enter_context(context())
        check()
    assert counts["refused"] + counts["trembles"] <= REFUSED[name] * counts.total(), counts


def test_what_numba_compiles_is_the_plain_loop():
    counts: Counter[str] = Counter()
    for seed in range(COMPILED):
        program = drawn(Random(seed))
        result = outcome(program, "numba")
        counts[result.kind] += 1
        assert not result.failed, f"{result.message}\n\n{text_of(program, 'numba')}"
    assert counts["same"] > COMPILED / 2, counts


@given(randoms)
@settings(max_examples=100)
def test_the_plain_loop_has_the_slopes_of_its_loss(random):
    error = slope_error(drawn(random))
    assert error is None or error < 1e-7


SCAN, TANH = tg.scan, tg.tanh  # errors are planted in their place


def plain(*arguments):
    return SCAN(*arguments, engine="unrolled")


def cut_before_the_last_step(cell, xs, state, reverse, *options):
    """The same values, but the last step passes no gradient back."""
    if leaves(xs)[0][1].shape[0] == 1 or reverse or state is None or any(options):
        return plain(cell, xs, state, reverse, *options)
    ys, state = plain(cell, map_nest(lambda leaf: leaf[:-1], xs), state)
    last, state = plain(cell, map_nest(lambda leaf: leaf[-1:], xs), tg.detach(state))
    return map_nest(lambda a, b: tg.concatenate([a, b]), ys, last), state


def without_reset(cell, xs, state, reverse, lengths, reset, expose):
    return plain(cell, xs, state, reverse, lengths, None, expose)


def ints_of_the_first_step(cell, xs, *others):
    """As if they were constants."""
    fixed = map_nest(lambda x: tg.broadcast_to(x[:1], x.shape) if x.dtype.kind == "i" else x, xs)
    return plain(cell, fixed, *others)


def of_outputs(function):
    def wrong(*arguments):
        ys, *rest = plain(*arguments)
        return map_nest(lambda y: function(y) if y.dtype.kind == "f" else y, ys), *rest

    return wrong


PLANTED = {
    "a cut before the last step": cut_before_the_last_step,
    "no reset": without_reset,
    "ints of the first step": ints_of_the_first_step,
    "values": of_outputs(lambda y: y * (1 + 1e-8)),
    "gradients": of_outputs(lambda y: tg.scale_gradient(y, 1 + 1e-8)),
    "second derivatives": of_outputs(lambda y: y + 1e-6 * tg.square(y - tg.stop_gradient(y))),
}


def plant(monkeypatch, wrong):
    def scan(cell, xs, state=None, reverse=False, lengths=None, reset=None, expose=(), engine="auto"):
        run = plain if engine == "unrolled" else wrong
        return run(cell, xs, state, reverse, lengths, reset, expose)

    monkeypatch.setattr(tg, "scan", scan)


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found(monkeypatch, error):
    plant(monkeypatch, PLANTED[error])
    assert any(outcome(drawn(Random(seed)), "array").kind == "differs" for seed in range(150))


def test_a_loop_under_another_name_is_told(monkeypatch):
    plant(monkeypatch, plain)
    kinds = Counter(outcome(drawn(Random(seed)), "array").kind for seed in range(40))
    assert kinds["refused"] > 10
    assert set(kinds) == {"refused", "same"}


def test_what_mere_rounding_moves_is_set_aside(monkeypatch):
    h = Value("h0", ("B", 2))
    chaos = replace(
        drawn(Random(0)),
        steps=9,
        weights=(),
        inputs=(Leaf(Value("x0", ("B", 2)), 1, True),),
        states=(Leaf(h, 2, True),),
        lines=(Line("tg.sin(40 * {0} + {1})", ("h0", "x0"), (Value("v0", ("B", 2)),)),),
        xs="x0",
        state="h0",
        outputs="v0",
        following={"h0": "v0"},
        exposed=(),
        again=0,
        lengths=None,
        reset=None,
        fresh=None,
        wanted=("xs_x0",),
        order=1,
    )

    def rounded(cell, xs, state, *others):
        return plain(cell, xs, state * (1 + 2.3e-16), *others)

    plant(monkeypatch, rounded)
    assert outcome(chaos, "array").kind == "trembles"
    plant(monkeypatch, of_outputs(lambda y: tg.scale_gradient(y, 1.1)))
    assert outcome(replace(chaos, steps=3), "array").kind == "differs"


def test_a_wrong_slope_is_found(monkeypatch):
    monkeypatch.setattr(tg, "tanh", lambda x: tg.scale_gradient(TANH(x), 1.001))
    assert any((slope_error(drawn(Random(seed))) or 0) > 1e-7 for seed in range(30))


def test_a_failure_is_made_small_and_fails_when_it_is_run(monkeypatch):
    plant(monkeypatch, without_reset)
    fails = fails_alike("array", Outcome("differs"))
    program = next(p for p in (drawn(Random(seed)) for seed in range(150)) if fails(p))
    small = shrunk(program, fails)
    assert len(small.lines) <= 2
    assert small.reset is not None
    text = text_of(small, "array")
    with pytest.raises(AssertionError, match="differs by"):
        exec(text, {})
    monkeypatch.undo()
    exec(text.replace('"array"', '"unrolled"'), {})
