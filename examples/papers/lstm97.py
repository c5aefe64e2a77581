"""Hochreiter & Schmidhuber 1997, Long Short-Term Memory: the paper's own network, its own learning, its own rules.

One sequence at a time, plain gradient descent, gradients through the memory alone (`LSTM97Cell`); learning ends when
the paper's rule is met, or is given up after some multiple of the sequences that the paper needed. Beside it a recipe
of today, held to the same rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

import tinygrad_rnn as tg
from examples.papers.networks import Form, Modern, Network, failures, linear
from examples.papers.trials import Paper, Setting, Trial
from tinygrad_rnn import data

SOURCE = "Hochreiter & Schmidhuber 1997, Long Short-Term Memory, Neural Computation 9(8)"
MODERN = "modern recipe"  # the lines of `Modern`, with which no paper's figures compare
TESTS = 2560  # sequences on which the network that has learned is judged


def by_stream(task: data.Task, form: Form, most: int, seed: int, quick: bool) -> Trial:
    """A trial that ends when the latest sequences of the training stream satisfy the paper (experiments 4 to 6)."""
    generator = tg.Generator(seed)
    net = form.net(task, generator)
    window = 20 if quick else task.window
    wrong: deque[bool] = deque(maxlen=window)
    errors: deque[float] = deque(maxlen=window)
    count = total = 0
    for total, (miss, error) in enumerate(net.learn(task, generator), 1):
        count += miss - (len(wrong) == window and wrong[0])
        wrong.append(miss)
        errors.append(error)
        enough = len(wrong) == window and count <= task.allowed
        if (enough and sum(errors) / window < task.error_below) or total == (40 if quick else most):
            break
    solved = len(wrong) == window and count <= task.allowed and sum(errors) / window < task.error_below
    missed, error = failures(net, task, task.batch(20 if quick else TESTS, generator))
    return {"solved": solved, "sequences": total, "wrong": missed, "error": error}


def by_test(task: data.Task, form: Form, most: int, seed: int, quick: bool) -> Trial:
    """A trial that ends when a set of 256 sequences satisfies the paper, looked at every 500 (experiment 3)."""
    generator = tg.Generator(seed)
    net = form.net(task, generator)
    test = task.batch(20 if quick else task.window, generator)
    first, solved, total = None, False, 0
    for total, _ in enumerate(net.learn(task, generator), 1):
        if total % (20 if quick else 500) == 0:
            missed, error = failures(net, task, test)
            if missed <= task.allowed and first is None:
                first = total
            solved = missed <= task.allowed and error < task.error_below
        if solved or total == (40 if quick else most):
            break
    missed, error = failures(net, task, task.batch(20 if quick else TESTS, generator))
    return {"solved": solved, "first": first, "sequences": total, "wrong": missed, "error": error}


def by_strings(form: Form, most: int, seed: int, quick: bool) -> Trial:
    """A trial of experiment 1, which ends when all 512 strings are right, looked at every 100 presentations."""
    many = data.reber_strings(6000, tg.Generator(seed // 10), distinct=False)  # ten initial states for each set
    known = many[:256]
    test = [string for string in many if string not in known][:256]
    generator = tg.Generator(1000 + seed)
    task = data.EmbeddedReber(known)
    everything = data.EmbeddedReber(known + test).all()
    net = form.net(task, generator)
    missed = total = 0
    for total, _ in enumerate(net.learn(task, generator), 1):
        if total % (20 if quick else 100) == 0:
            missed, _ = failures(net, task, everything)
            if not missed:
                break
        if total == (40 if quick else most):
            break
    return {"solved": not missed, "sequences": total, "wrong": missed}


# -- what is shown


def share(trials: list[Trial]) -> str:
    return f"{100 * sum(trial['solved'] for trial in trials) / len(trials):.0f} %"


def mean(trials: list[Trial], what: str) -> str:
    """The mean of the trials that succeeded, and its standard error."""
    values = np.array([trial[what] for trial in trials if trial["solved"]], float)
    if not len(values):
        return "-"
    return f"{values.mean():,.0f}" + (f" ± {values.std(ddof=1) / len(values) ** 0.5:,.0f}" if len(values) > 1 else "")


def with_tests(trials: list[Trial]) -> tuple[str, ...]:
    wrong = [trial["wrong"] for trial in trials if trial["solved"]]
    return share(trials), mean(trials, "sequences"), f"{np.mean(wrong):.1f}" if wrong else "-"


def with_first(trials: list[Trial]) -> tuple[str, ...]:
    solved, sequences, _ = with_tests(trials)
    fraction = [trial["wrong"] / TESTS for trial in trials if trial["solved"]]
    return solved, mean(trials, "first"), sequences, f"{np.mean(fraction):.6f}" if fraction else "-"


def draw(axes: Any, settings: Sequence[Setting], trials: Sequence[list[Trial]]) -> None:
    """Sequences until success: each trial a dot, the paper's mean a bar."""
    for row, (setting, found) in enumerate(zip(settings, trials, strict=True)):
        done = [trial["sequences"] for trial in found if trial["solved"]]
        given_up = [trial["sequences"] for trial in found if not trial["solved"]]
        axes.plot(done, [row] * len(done), "o", color="tab:blue", alpha=0.5, label=None if row else "ours, solved")
        axes.plot(given_up, [row] * len(given_up), "x", color="tab:red", label=None if row else "ours, given up")
        published = setting.published[-2 if len(setting.published) > 2 else 1].replace(",", "")
        if published != "-":
            ends = [row - 0.3, row + 0.3]
            axes.plot([float(published)] * 2, ends, color="black", label=None if row else "published mean")
    axes.set_yticks(range(len(settings)), [setting.label for setting in settings])
    axes.set_xscale("log")
    axes.set_xlabel("training sequences")
    axes.invert_yaxis()
    axes.legend()


# -- the experiments

STRINGS = partial(Network, reach=0.2, bias="gates", output_bias=False)
FOURS, THREES = partial(STRINGS, 4, 1, output_gates=(-1, -2, -3, -4)), partial(STRINGS, 3, 2, output_gates=(-1, -2, -3))
REBER = [  # label, network, rate, published
    ("4 blocks of 1, rate 0.1", FOURS, 0.1, "100 %", "39,740"),
    ("3 blocks of 2, rate 0.1", THREES, 0.1, "100 %", "21,730"),
    ("3 blocks of 2, rate 0.2", THREES, 0.2, "97 %", "14,060"),
    ("4 blocks of 1, rate 0.5", FOURS, 0.5, "97 %", "9,500"),
    ("3 blocks of 2, rate 0.5", THREES, 0.5, "100 %", "8,440"),
]
SIGNS = partial(Network, 3, 1, output_bias=False, input_gates=(-1, -3, -5), output_gates=(-2, -4, -6))
SEQUENCES = [  # form, signal, network, published: first rule, second rule, wrong
    ("3a", 3, SIGNS(1.0), "27,380", "39,850", "0.000195"),
    ("3a", 1, SIGNS(1.0), "58,370", "64,330", "0.000117"),
    ("3b", 3, SIGNS(1.0), "41,740", "43,250", "0.00828"),
    ("3b", 1, SIGNS(1.0), "74,950", "78,430", "0.01500"),
    ("3c", 3, SIGNS(0.1), "-", "269,650", "0.00558"),
    ("3c", 1, SIGNS(0.1), "-", "565,640", "0.00441"),
]
SUM = Network(2, 2, 0.5, input_gates=(-3, -6))
PRODUCT = Network(2, 2, 0.1)
ORDER_6A, ORDER_6B = Network(2, 2, 0.5, input_gates=(-2, -4)), Network(3, 2, 0.1, input_gates=(-2, -4, -6))

COUNTED = "Each count begins with the first sequence and ends with the last of the 2000 that satisfied the rule."


Line: TypeAlias = tuple[str, str, str, int, data.Task, Network, int]


def streamed(title: str, table: int, remarks: str, *lines: Line, linear_too: bool = False) -> Paper:
    """Experiments 4 to 6. A line: label, sequences and wrong as published, trials, task, network, most sequences."""
    settings = []
    for how, squash in (("", tg.sigmoid), (", linear output", linear))[: 1 + linear_too]:
        for label, sequences, wrong, trials, task, form, most in lines:
            trial = partial(by_stream, task, replace(form, squash=squash), most)
            settings.append(Setting(label + how, ("100 %", sequences, wrong), trials, trial))
    for label, _, _, trials, task, _, most in lines:
        modern = Modern(linear if linear_too else tg.sigmoid)
        settings.append(Setting(f"{label}, {MODERN}", ("-",) * 3, trials, partial(by_stream, task, modern, most)))
    columns = "success", "sequences", "wrong of 2560"
    return Paper(title, f"{SOURCE}, table {table}", columns, tuple(settings), with_tests, draw, remarks)


PAPERS = {
    "lstm97-reber": Paper(
        "Experiment 1: embedded Reber grammar",
        SOURCE + ", table 1",
        ("success", "presentations"),
        (
            *(
                Setting(label + how, tuple(said), 30, partial(by_strings, net(rate=rate, truncated=not how), 100_000))
                for how in ("", ", whole gradient")
                for label, net, rate, *said in REBER
            ),
            Setting(MODERN, ("-", "-"), 30, partial(by_strings, Modern(), 100_000)),
        ),
        lambda trials: (share(trials), mean(trials, "sequences")),
        draw,
        "**Not reproduced so far.** By the paper's own learning no trial succeeded within 100,000 presentations. "
        "With the whole gradient, beyond the memory, 30 to 80 % do, in one to four times as many presentations as the "
        "paper's. An update after every step, other ranges of g and h, linear outputs and other first weights, tried "
        "in a program made for that, brought at most half of the trials through either. Experiment 6, with the same "
        "network and learning, comes out.\n\nThe published means are those of 3 sets of strings with 10 initial "
        "states each, as are ours. All strings are looked at after every 100 presentations; how often the paper "
        "looked is not said. The strings to learn from are 256 as the grammar gives them, short ones many times; no "
        "string of the test is among them.\n\nA public rerun with Adam, cybertronai/schmidhuber-problems, reports a "
        "mean of 4,800 presentations.",
    ),
    "lstm97-two-sequence": Paper(
        "Experiment 3: noise and signal on one line, T = 100",
        SOURCE + ", tables 4 to 6",
        ("success", "first rule", "second rule", "fraction wrong"),
        tuple(
            Setting(
                f"{form}, signal of {signal}",
                ("100 %", *said),
                10,
                partial(by_test, data.TwoSequence(form, 100, signal), net, 1_500_000 if form == "3c" else 300_000),
            )
            for form, signal, net, *said in SEQUENCES
        )
        + tuple(
            Setting(
                f"{form}, signal of {signal}, {MODERN}",
                ("-",) * 4,
                10,
                partial(by_test, data.TwoSequence(form, 100, signal), Modern(), 300_000),
            )
            for form, signal, *_ in SEQUENCES
        ),
        with_first,
        draw,
        "The test set of 256 is looked at after every 500 sequences. 3c has one rule. Ours needs about half as many "
        "sequences as the paper's network in 3a and 3b, a tenth and a third in 3c, and is wrong more often "
        "afterwards.",
    ),
    "lstm97-adding": streamed(
        "Experiment 4: adding",
        7,
        "The paper's output units are logistic. With those the task is **not reproduced**: after 500,000 sequences "
        "1.6 % are still off by more than 0.04, nearly all of them with a target below 0.1 or above 0.9, which a "
        "logistic unit reaches only slowly, so that 2000 right ones in a row do not come; the whole gradient, tried "
        "besides, is no better. With a linear output unit, and everything else as it was, it comes out for T = 100. "
        "For T = 500 either unit takes about four times the paper's sequences; one trial of each was given up after "
        "1,000,000. "
        + COUNTED
        + " A public rerun with Adam, cybertronai/schmidhuber-problems, reports for T = 100 a mean squared error of "
        "0.0007 after 256,000 sequences; an error of 0.04 squared is 0.0016.",
        ("T = 100", "74,000", "1", 10, data.Adding("hochreiter97", 100), SUM, 500_000),
        ("T = 500", "209,000", "0", 10, data.Adding("hochreiter97", 500), SUM, 1_000_000),
        linear_too=True,
    ),
    "lstm97-multiplication": streamed(
        "Experiment 5: multiplication, T = 100",
        8,
        "Learning ends when fewer than n of the last 2000 errors exceed 0.04. Ours takes about twice as many sequences "
        "as the paper's; for n = 13 with the paper's logistic output 4,000,000 were not enough. The modern recipe "
        "takes a twentieth.",
        ("n = 140", "482,000", "139", 10, data.Multiplication(100, 140), PRODUCT, 2_500_000),
        ("n = 13", "1,273,000", "14", 10, data.Multiplication(100, 13), PRODUCT, 4_000_000),
        linear_too=True,
    ),
    "lstm97-order": streamed(
        "Experiment 6: temporal order",
        9,
        COUNTED + " Two trials of 6b were given up after 2,000,000 sequences. A public rerun with Adam, "
        "cybertronai/schmidhuber-problems, reports 6a at half the length after 6,400 sequences.",
        ("6a", "31,390", "1", 20, data.TemporalOrder("6a"), ORDER_6A, 300_000),
        ("6b", "571,100", "2", 10, data.TemporalOrder("6b"), ORDER_6B, 2_000_000),
    ),
}
