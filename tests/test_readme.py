"""The README's Python runs as it stands, with fewer updates."""

import re
from pathlib import Path

import tinygrad_rnn as tg

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_tour_trains():
    names: dict = {}
    tour = blocks()[0]
    assert "range(100)" in tour
    exec(tour.replace("range(100)", "range(5)"), names)
    after_five = names["loss"].item()
    exec(tour.replace("range(100)", "range(1)"), names)
    assert after_five < names["loss"].item() or after_five < 0.5


def test_gradients_as_functions():
    names = {"tg": tg}
    exec(blocks()[1], names)
    assert names["slope"].item() == 12
    assert tg.grad(names["slope"].detach() * names["x"], names["x"]).item() == 12


def test_the_declaration_shown_is_the_one_in_the_source():
    source = (README.parent / "tinygrad_rnn" / "ops" / "elementwise.py").read_text(encoding="utf-8")
    assert "x=lambda F, g, out: g - g * (out * out)" in blocks()[2]
    assert "x=lambda F, g, out: g - g * (out * out)" in source
