"""The published experiments: that their networks are the paper's, that trials run, are kept, and are shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_rnn as tg
from examples.papers import lstm97, trials
from examples.papers.__main__ import PAPERS, page

ROOT = Path(__file__).parents[1]
SETTINGS = [(name, setting) for name, paper in PAPERS.items() for setting in paper.settings]


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=[f"{name}, {setting.label}" for name, setting in SETTINGS])
def test_a_trial_of_each_setting(name, setting):
    trial = setting.run(3, True)
    assert json.loads(json.dumps(trial)) == trial
    again = setting.run(3, True)
    assert again == trial
    paper = PAPERS[name]
    assert len(paper.ours([trial])) == len(setting.published) == len(paper.columns)


WEIGHTS = {  # as the paper counts them
    "lstm97-reber": [264, 276, 276, 264, 276] * 2,
    "lstm97-two-sequence": [102] * 6,
    "lstm97-adding": [93] * 2,
    "lstm97-multiplication": [93] * 2,
    "lstm97-order": [156, 308],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_networks_have_as_many_weights_as_the_papers(name, monkeypatch):
    counts = []

    class Seen(Exception):
        pass

    def learn(net, *_):
        counts.append(sum(parameter.size for parameter in net.parameters()))
        raise Seen

    monkeypatch.setattr(lstm97, "learn", learn)
    for setting in PAPERS[name].settings:
        with pytest.raises(Seen):
            setting.run(0, True)
    assert counts == WEIGHTS[name]


def test_gates_begin_where_the_paper_says():
    form = lstm97.Network(2, 2, 0.5, input_gates=(-3, -6))
    net = lstm97.Net(lstm97.data.Adding("hochreiter97", 100), form, tg.Generator(0))
    first, second, *rest = net.cell.bias_gates.numpy()
    assert (first, second) == (-3, -6)
    assert max(map(abs, rest)) <= 0.1


def test_what_is_kept_is_not_run_again(tmp_path):
    calls = []

    def count(seed, quick):
        calls.append(seed)
        return {"solved": seed != 1, "sequences": 1000 + seed, "wrong": 2}

    setting = trials.Setting("a line", ("50 %", "1,234", "3"), 3, count)
    columns = "success", "sequences", "wrong of 2560"
    paper = trials.Paper("A title", "a source", columns, (setting,), lstm97.with_tests, lstm97.draw, "a remark")
    for seed in (1, 0):
        record = trials.Record("name", paper, tmp_path, quick=False)
        record.add("a line", {"seed": seed, "seconds": 0.5, **count(seed, False)})
    record = trials.Record("name", paper, tmp_path, quick=False)
    assert [trial["seed"] for trial in record.trials["a line"]] == [0, 1]
    assert record.table().splitlines()[-1] == "| a line | 50 % | 50 % | 1,234 | 1,000 | 3 | 2.0 | 3 | 2 |"
    assert record.picture().stat().st_size > 5000
    trials.run(record, 2, 0, False, 1, [])  # nothing is left to do
    assert calls == [1, 0]


def test_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "examples.papers", "lstm97-adding", "--quick", "--only", "100", "--out", tmp_path]
    for _ in range(2):
        done = subprocess.run([*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "| T = 100 | 100 % | 0 % | 74,000 | - | 1 | - | 10 | 1 |" in done.stdout
        assert "| T = 500 | 100 % | not run | 209,000 | not run | 0 | not run | 10 | 0 |" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"lstm97-adding-quick.json", "lstm97-adding-quick.png"}
    wrong = subprocess.run([sys.executable, "-m", "examples.papers"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "give the name of an experiment: lstm97-reber" in wrong.stderr


def test_the_page_is_what_the_results_give():
    assert (ROOT / "docs" / "results.md").read_text() == page()
