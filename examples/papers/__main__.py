"""Published experiments, run again by their own protocol: ``python -m examples.papers NAME``.

Prints a table of what was published and what came out here, draws a figure, and keeps each trial in a JSON file. Trials
run in processes, one for each core; one that is in the file is not run again, so an interrupted run goes on where it
was. ``--quick`` only shows that everything works: it stops each trial after a few sequences.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from examples.papers import characters, digits, files, lags, lstm97, music, networks, order, translation
from examples.papers.trials import RESULTS, Record, chosen, run

PAPERS = {
    name: paper
    for module in (lstm97, lags, order, music, translation, digits, characters)
    for name, paper in module.PAPERS.items()
}


def page() -> str:
    """All results, as Markdown."""
    parts = [
        "# Published tables, run again\n",
        "Made by `python -m examples.papers --page` of the files in `results/`. Each table by "
        "`python -m examples.papers NAME`.\n\nA mean is that of the trials that succeeded, with its standard error. "
        f"Where fewer trials were run than in the paper, the last column says so.\n\n{networks.MODERN}\n",
    ]
    records = {name: Record(name, paper, RESULTS, quick=False) for name, paper in PAPERS.items()}
    parts += ["| table | lines run | trials |", "|---|---|---|"]
    for name, paper in PAPERS.items():
        trials = [len(found) for found in records[name].trials.values()]
        parts.append(f"| `{name}`: {paper.title} | {sum(map(bool, trials))} of {len(trials)} | {sum(trials)} |")
    parts.append("")
    for name, paper in PAPERS.items():
        record = records[name]
        if any(record.trials.values()):
            hours = sum(trial["seconds"] for trials in record.trials.values() for trial in trials) / 3600
            parts += [
                f"## {paper.title}\n",
                f"`{name}`: {paper.source}. {hours:.1f} hours of one core.\n",
                f"{record.table()}\n",
                f"{paper.remarks}\n",
                f"![{paper.title}](results/{name}.png)\n",
            ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.papers",
        description=__doc__,
        epilog="experiments:\n" + "\n".join(f"  {name:24}{paper.title}" for name, paper in PAPERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=PAPERS, metavar="NAME", help="which experiment, of those below")
    parser.add_argument("--quick", action="store_true", help="stop each trial after a few sequences")
    parser.add_argument("--trials", type=int, help="how many of each setting (default: as many as in the paper)")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the next have the next")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time (default: one a core)")
    parser.add_argument("--only", nargs="+", default=[], help="only settings with these labels, or parts of them")
    parser.add_argument("--data", default="runs/data", help="the folder of data sets; what is not there is fetched")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/papers"),
        help="the folder of the JSON files and figures (default: runs/papers; the documentation shows docs/results)",
    )
    parser.add_argument("--page", action="store_true", help="write docs/results.md anew from docs/results")
    options = parser.parse_args()
    if options.page:
        RESULTS.with_suffix(".md").write_text(page())
        return
    if options.name is None:
        parser.error(f"give the name of an experiment: {', '.join(PAPERS)}")
    os.environ.setdefault(files.FOLDER, options.data)
    record = Record(options.name, PAPERS[options.name], options.out, options.quick)
    try:
        settings = chosen(record.paper.settings, options.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    run(record, settings, options.trials, options.seed, options.quick, options.jobs)
    if options.quick:
        print("\nEach trial was stopped after a few sequences: this shows that it runs, not what comes out.\n")
    print(record.table())
    if any(record.trials.values()):
        print(f"\nkept in {record.path}, drawn in {record.picture()}")


if __name__ == "__main__":
    main()
