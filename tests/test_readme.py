"""The Python of the README, of docs/sequences.md and of docs/scan.md runs as it stands, the tour with fewer updates."""

import re
from pathlib import Path

import numpy as np
import pytest
from interpreted import interpreted

import tinygrad_rnn as tg
from tinygrad_rnn import functional as F
from tinygrad_rnn import nn

README = Path(__file__).parents[1] / "README.md"
SCAN = README.parent / "docs" / "scan.md"


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


def test_scan_does_what_the_loop_of_the_tour_does():
    names: dict = {}
    exec(blocks()[0].replace("range(100)", "range(1)").replace("optimizer.step()", ""), names)
    looped = names["loss"].item()
    exec(blocks()[2], names)
    assert names["loss"].item() == pytest.approx(looped, rel=1e-5)


def test_the_declaration_shown_is_the_one_in_the_source():
    source = (README.parent / "tinygrad_rnn" / "ops" / "elementwise.py").read_text(encoding="utf-8")
    assert "x=lambda F, g, out: g * (1 - out * out)" in blocks()[3]
    assert "x=lambda F, g, out: g * (1 - out * out)" in source


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


def test_the_page_on_scan(capsys):
    names: dict = {}
    threads = tg.get_num_threads()
    try:
        with tg.use_engine("auto"), interpreted():
            for block in blocks(SCAN):
                exec(block, names)
        assert tg.get_num_threads() == 2
    finally:
        tg.set_num_threads(threads)
    printed = capsys.readouterr().out
    said = [line.strip() for block in blocks(SCAN) for line in re.findall(r"print\(.*\)  # (?:\.\.\. )?(.*)", block)]
    assert len(said) == 3
    for line in said:
        assert line.removesuffix(" ...") in printed
    assert "the loop backwards:" in printed
    assert names["recurrent"].weight.grad.shape == (64, 16)
    assert names["plan"].engine == "numba"
    assert not np.array_equal(names["centred"].mean.numpy(), np.zeros(8))


def excerpt() -> str:
    """The lines of a plan that the page on scan shows."""
    plan = tg.plan(nn.GRUCell(8, 16), tg.zeros((20, 4, 8)), engine="numba")
    lines = str(plan).splitlines()
    loop = next(i for i, line in enumerate(lines) if line.startswith("  at each step"))
    forwards = loop + 1 + len(plan.forward.loop)
    saved = next(i for i, line in enumerate(lines) if line.startswith("saved"))
    shown = [*lines[: loop + 1], "    …", *lines[forwards - 7 : forwards], "…", *lines[saved:]]
    return "\n".join(["```text", *shown[: shown.index("the loop backwards:")]]).rstrip() + "\n```\n"


PICKED = np.array([[1], [0], [2]])
HARD = {  # what an engine may have no code for, as a cell would have it
    "`tg.logsumexp`": lambda h: tg.logsumexp(h, axis=1, keepdims=True),
    "`F.softmax`": lambda h: F.softmax(h, axis=1),
    "`tg.var`, `tg.std`": lambda h: tg.std(h, axis=1, keepdims=True),
    "`tg.prod`": lambda h: tg.prod(h, axis=1, keepdims=True),
    "`tg.cumsum`": lambda h: tg.cumsum(h, axis=1),
    "`tg.argmax(h)`, `tg.argmin(h)`": lambda h: tg.one_hot(tg.argmax(h, axis=1), 4),
    "`tg.argsort(h)`": lambda h: tg.argsort(h, axis=1) * 0.1,
    "`tg.any(h)`, `tg.all(h)`": lambda h: tg.any(h > 0, axis=1, keepdims=True) * 0.1,
    "`h[:, 2:]`": lambda h: h[:, 2:3],
    "`h[[2, 0, 1]]`": lambda h: h[[2, 0, 1]],
    "`tg.take_along_axis(h, ...)`": lambda h: tg.take_along_axis(h, PICKED, axis=1),
    "`tg.scatter_add(h, ...)`": lambda h: tg.scatter_add(h, PICKED[:, 0], tg.ones((3, 4))),
    "`tg.flip(h)`": lambda h: tg.flip(h, axis=1),
    "`tg.roll(h, ...)`": lambda h: tg.roll(h, 1, axis=1),
    "`tg.pad(h, ...)`": lambda h: tg.pad(h, ((0, 0), (0, 1)))[:, 1:],
    "`tg.tile(h, ...)`": lambda h: tg.tile(h[:, :2], (1, 2)),
    "`h.reshape(...)` that parts or joins axes longer than 1": lambda h: tg.sum(h.reshape((3, 2, 2)), axis=2)[:, :1],
    "`tg.einsum`": lambda h: tg.einsum("bi,ij->bj", h, tg.eye(4)),
    "`tg.outer`": lambda h: tg.outer(h[:, 0], tg.ones(4)),
    "`A @ h`, a product from the left": lambda h: tg.ones((3, 3)) @ h,
    "`A @ h` of more than two axes, as attention to a memory is": lambda h: tg.sum(
        tg.ones((3, 5, 4)) @ tg.expand_dims(h, 2), axis=1
    ),
    "`h @ h.T`, a product of two that change": lambda h: tg.sum(h @ h.T, axis=1, keepdims=True),
    "`tg.power`, `tg.erf`, `tg.clip`, `tg.sign`": lambda h: tg.sign(tg.clip(tg.erf(h), 0, 1)) + tg.abs(h) ** 1.5,
    "`tg.remainder`, `tg.floor_divide`": lambda h: tg.remainder(h, 0.5) + tg.floor_divide(h, 0.5),
    "float16": lambda h: h.to(dtype=np.float16).to(dtype=np.float32),
}


def uncoded() -> str:
    """A list of what the numba engine has no code for; the array engine has for all."""
    names = []
    for name, act in HARD.items():

        def cell(x, h, act=act):
            h = tg.tanh(x + act(h))
            return h, h

        xs = tg.Tensor(np.ones((5, 3, 4), np.float32), requires_grad=True)
        assert tg.plan(cell, xs, tg.zeros((3, 4)), engine="array").engine == "array"
        try:
            tg.plan(cell, xs, tg.zeros((3, 4)), engine="numba")
        except TypeError as reason:
            assert "the numba engine has no code for" in str(reason)  # noqa: PT017 - it may also have code
            names.append(f"- {name}\n")
    return "".join([*names, "\n"])


MADE = re.compile(r"(?<=<!-- Made by `python tests/test_readme.py`. -->\n).*?(?=<!-- Here it ends. -->\n)", re.DOTALL)


def test_the_parts_of_the_page_on_scan_that_are_made_are_up_to_date():
    numbers = re.compile(r"(?<=\.py:)\d+")  # of lines, which every edit moves
    plan, names = MADE.findall(SCAN.read_text(encoding="utf-8"))
    assert numbers.sub("", plan) == numbers.sub("", excerpt()), "python tests/test_readme.py makes it anew"
    assert names == uncoded(), "python tests/test_readme.py makes it anew"


def test_links_lead_somewhere():
    """Between the pages, and within the page on scan."""
    for page in (README, *README.parent.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    text = SCAN.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
    assert anchors.issuperset(re.findall(r"\]\(#([^)]+)\)", text))


if __name__ == "__main__":
    parts = iter((excerpt(), uncoded()))
    SCAN.write_text(MADE.sub(lambda _: next(parts), SCAN.read_text(encoding="utf-8")), encoding="utf-8")
