"""Running the trials of an experiment, keeping what came of them, and showing it beside what was published."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import tinygrad_rnn as tg

Trial: TypeAlias = dict[str, Any]  # what a run returns, and its seed and seconds
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@dataclass(frozen=True)
class Setting:
    """One line of a published table.

    Attributes
    ----------
    label
        What tells it from the other lines.
    published
        For each column what the paper says.
    trials
        How many there were in the paper, or are asked for where it has none.
    run
        ``run(seed, quick)`` does one and returns what is to be kept, in JSON's types.
    """

    label: str
    published: tuple[str, ...]
    trials: int
    run: Callable[[int, bool], Trial]


Draw: TypeAlias = Callable[[Any, Sequence[Setting], Sequence[list[Trial]]], None]


@dataclass(frozen=True)
class Paper:
    """A published table.

    Attributes
    ----------
    columns
        What is compared.
    ours
        From the trials of a setting the same for us, as text.
    draw
        Draws a figure of the trials: ``draw(axes, settings, trials of each)``.
    remarks
        What a reader has to know: where the protocol is open, and what was decided.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    settings: tuple[Setting, ...]
    ours: Callable[[list[Trial]], tuple[str, ...]]
    draw: Draw
    remarks: str


def dots(value: str, label: str, column: int = -1, log: bool = False) -> Draw:
    """A figure with a dot for a value of each trial, and a bar where the paper's number in that column is."""

    def draw(axes: Any, settings: Sequence[Setting], trials: Sequence[list[Trial]]) -> None:
        for row, (setting, found) in enumerate(zip(settings, trials, strict=True)):
            axes.plot([trial[value] for trial in found], [row] * len(found), "o", color="tab:blue", alpha=0.5)
            try:
                published = float(setting.published[column])
            except ValueError:
                continue
            axes.plot([published] * 2, [row - 0.3, row + 0.3], color="black")
        axes.set_yticks(range(len(settings)), [setting.label for setting in settings])
        axes.set_ylim(len(settings) - 0.5, -0.5)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(f"{label} (dots: ours; bars: published)")

    return draw


def curves(names: Sequence[str], label: str) -> Draw:
    """A figure of what each trial keeps of its epochs as ``"curve"``, a list with a number for each name."""

    def draw(axes: Any, settings: Sequence[Setting], trials: Sequence[list[Trial]]) -> None:
        axes.figure.set_figheight(4)
        for setting, found in zip(settings, trials, strict=True):
            for trial in found:
                for name, values in zip(names, zip(*trial["curve"], strict=True), strict=True):
                    axes.plot(range(1, len(values) + 1), values, label=f"{setting.label}: {name}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend()

    return draw


class Record:
    """What is known of a paper's trials, in a JSON file that is written anew after each."""

    def __init__(self, name: str, paper: Paper, folder: Path, quick: bool) -> None:
        self.paper = paper
        self.path = folder / f"{name}{'-quick' if quick else ''}.json"
        self.trials: dict[str, list[Trial]] = {setting.label: [] for setting in paper.settings}
        if self.path.exists():
            known = json.loads(self.path.read_text())["trials"]
            self.trials |= {label: known[label] for label in self.trials if label in known}

    def add(self, label: str, trial: Trial) -> None:
        """Keep a trial."""
        self.trials[label] = sorted([*self.trials[label], trial], key=lambda trial: int(trial["seed"]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        setting = {
            "tinygrad_rnn": version("tinygrad_rnn"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        aside.write_text(json.dumps({"with": setting, "trials": self.trials}, indent=1) + "\n")
        aside.replace(self.path)

    def table(self) -> str:
        """Published beside ours, as Markdown."""
        columns = [part for name in self.paper.columns for part in (f"{name}: published", "ours")]
        lines = [f"| | {' | '.join(columns)} | trials: published | ours |", "|---" * (len(columns) + 3) + "|"]
        for setting in self.paper.settings:
            trials = self.trials[setting.label]
            ours = self.paper.ours(trials) if trials else ("not run",) * len(self.paper.columns)
            cells = [cell for pair in zip(setting.published, ours, strict=True) for cell in pair]
            published = "-" if set(setting.published) == {"-"} else setting.trials
            lines.append(f"| {setting.label} | {' | '.join(cells)} | {published} | {len(trials)} |")
        return "\n".join(lines)

    def picture(self) -> Path:
        """The figure beside the JSON file."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        settings = [setting for setting in self.paper.settings if self.trials[setting.label]]
        figure, axes = pyplot.subplots(figsize=(8, 1.8 + 0.6 * len(settings)), layout="constrained")
        self.paper.draw(axes, settings, [self.trials[setting.label] for setting in settings])
        axes.set_title(self.paper.title)
        path = self.path.with_suffix(".png")
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        return path


def chosen(settings: Sequence[Setting], only: Sequence[str]) -> list[Setting]:
    """The settings with these labels or, where there is none, with these parts of labels; without any all.

    Raises
    ------
    ValueError
        If nothing goes by such a label.
    """
    found = []
    for part in only:
        exact = [setting for setting in settings if setting.label == part]
        matching = exact or [setting for setting in settings if part in setting.label]
        if not matching:
            raise ValueError(f"no setting is called {part!r}; there are: {'; '.join(one.label for one in settings)}")
        found += matching
    return [setting for setting in settings if setting in found or not only]


def run(record: Record, settings: Sequence[Setting], trials: int | None, seed: int, quick: bool, jobs: int) -> None:
    """Run the trials that are not in the record yet, ``jobs`` at a time, each in a process of its own."""
    from tqdm import tqdm

    todo = [
        (setting, number)
        for setting in settings
        for number in range(seed, seed + (trials or (1 if quick else setting.trials)))
        if number not in [trial["seed"] for trial in record.trials[setting.label]]
    ]
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # for the processes that are started here
    print(f"{len(todo)} trials to run, {jobs} at a time; known already: {sum(map(len, record.trials.values()))}")
    with ProcessPoolExecutor(jobs, get_context("spawn"), tg.set_num_threads, (1,)) as pool:
        running = {pool.submit(_timed, setting.run, number, quick): setting for setting, number in todo}
        bar = tqdm(as_completed(running), total=len(todo), unit="trial")
        for future in bar:
            record.add(running[future].label, future.result())
            bar.set_postfix_str(running[future].label)


def _timed(function: Callable[[int, bool], Trial], seed: int, quick: bool) -> Trial:
    start = time.perf_counter()
    found = function(seed, quick)
    return {"seed": seed, "seconds": round(time.perf_counter() - start, 1), **found}
