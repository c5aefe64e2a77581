"""Some of the random cells by PyTorch's scan; for many see random_steps_elsewhere.py."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("torch")

from random_steps_elsewhere import Torch, corpus, outcome

CELLS = 8


@pytest.mark.filterwarnings("ignore")
def test_pytorchs_scan_gives_the_plain_loops_numbers_or_raises():
    torch = Torch()
    kinds = Counter(outcome(program, torch)[0] for _, (_, program) in zip(range(CELLS), corpus(0), strict=False))
    assert not kinds["differs"], kinds
    assert kinds["same"] > 1, kinds


def test_ours_gives_the_plain_loops_numbers():
    programs = [program for _, (_, program) in zip(range(5 * CELLS), corpus(0), strict=False)]
    assert {outcome(program, None) for program in programs} == {("same", "")}
