"""The Python of the README and of docs/sequences.md runs as it stands, with fewer updates."""

import re
from pathlib import Path

import tinygrad_rnn as tg

README = Path(__file__).parents[1] / "README.md"


def blocks(page: Path = README) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


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


def test_the_page_on_sequences(capsys):
    names: dict = {}
    for block in blocks(README.parent / "docs" / "sequences.md"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("|dL/dc|") == 1
    assert names["ledger"].runs[0].state["c"].shape == (20,)
    assert names["gates"]["f"].shape == (20, 4, 16)
    assert names["drawing"].source.startswith("digraph")
    assert names["update"].stop == 20
    assert names["loss"].requires_grad
