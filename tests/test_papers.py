"""The published experiments: that their networks are the paper's, that trials run, are kept, and are shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinygrad_rnn as tg
from examples.papers import files, lags, lstm97, music, networks, order, translation, trials
from examples.papers.__main__ import PAPERS, page
from tinygrad_rnn import data

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
    "lstm97-adding": [93] * 4,
    "lstm97-multiplication": [93] * 4,
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

    monkeypatch.setattr(networks, "one_by_one", learn)
    for setting in PAPERS[name].settings:
        if lstm97.MODERN not in setting.label:
            with pytest.raises(Seen):
                setting.run(0, True)
    assert counts == WEIGHTS[name]


def test_other_networks_have_as_many_weights_as_was_counted():
    forms = {"2a, p = 100": 10504, "2b, p = 100": 10504, "2c, p = q = 50": 364, "2c, p = q = 100": 664}
    for label, _, _, task, form, _ in lags.LINES[:4]:
        net = form.net(task, tg.Generator(0))
        assert sum(parameter.size for parameter in net.parameters()) == forms[label]
    counts = {unit: music.chung("JSB_Chorales.mat", unit, False, 1, 0, True)["weights"] for unit in music.CELLS}
    assert counts == {"tanh": 27_888, "GRU": 22_904, "LSTM": 21_508}  # with outputs, peepholes, and two biases


def test_the_modern_recipe_learns():
    task = data.TwoSequence("3a", 100, 3)
    trial = lstm97.by_test(task, networks.Modern(), 5_000, 0, False)
    assert trial["solved"]
    assert trial["wrong"] < 26  # of 2560
    biases = networks.Modern().net(task, tg.Generator(0)).rnn.bias_hh_l0.numpy().reshape(4, networks.HIDDEN)
    np.testing.assert_array_equal(biases[0], -biases[1])  # the gates of input and of forgetting
    assert 0 <= biases[1].min() < biases[1].max() <= np.log(110)


def test_sequences_of_long_lags():
    batch = lags.Lag("2c", 5, 20).batch(300, tg.Generator(1))
    codes = batch.xs.argmax(-1)
    assert set(batch.xs.sum(-1)[0]) == {1}
    for row, length in enumerate(batch.lengths):
        first, which, *middle, last = codes[:length, row]
        assert (first, last) == (5, 6)  # b and e
        assert batch.targets[row, which - 7] == 1
        assert len(middle) >= 20
        assert max(middle) < 5
    assert batch.lengths.mean() == pytest.approx(2 + 20 + 10, abs=2)
    for form in ("2a", "2b"):
        batch = lags.Lag(form, 5).batch(50, tg.Generator(1))
        codes = batch.xs.argmax(-1)
        assert codes.shape == (5, 50)
        last = (batch.targets[-1] if form == "2a" else batch.targets).argmax(-1)
        assert (last == codes[0]).all()
        assert ((codes[1:] == np.arange(4)[:, None]).all()) == (form == "2a")
        if form == "2a":
            assert (batch.targets[:-1].argmax(-1) == codes[1:]).all()


def test_the_regularizer_is_that_of_the_paper():
    """By the Jacobian of each step and the gradient by each state, which a loop gives."""
    generator, steps, batch = tg.Generator(0), 4, 3
    net = order.Net(generator)
    xs = generator.normal((steps, batch, 6))
    added = tg.Tensor(np.zeros((steps, batch, order.HIDDEN), np.float32), requires_grad=True)
    scores, states = net(xs, added)
    loss = tg.sum(tg.square(scores))
    loss.backward()
    found = order.regularizer(added.grad, states, net.cell.weight_hh)

    h, kept = tg.zeros((batch, order.HIDDEN)), []
    for x in tg.unstack(xs):
        h = tg.Tensor(h.numpy(), requires_grad=True) if not kept else h
        _, h = net.cell(net.input(x), h)
        kept.append(h)
    by_state = [g.numpy() for g in tg.grad(tg.sum(tg.square(net.out(h))), kept)]
    weight, ratios = net.cell.weight_hh.numpy(), []
    for after, g in zip(kept[1:], by_state[1:], strict=True):
        for row in range(batch):
            jacobian = (1 - after.numpy()[row][:, None] ** 2) * weight
            ratios.append(np.linalg.norm(g[row] @ jacobian) / np.linalg.norm(g[row]))
    assert found.item() == pytest.approx(np.mean((np.array(ratios) - 1) ** 2), rel=1e-4)
    smaller = order.regularizer(added.grad * 1e-6, states, net.cell.weight_hh)
    assert smaller.item() == pytest.approx(found.item(), rel=1e-4)
    vanished = order.regularizer(added.grad * 1e-18, states, net.cell.weight_hh)
    assert vanished.item() == 0


def test_noise_on_the_weights_is_taken_off_again():
    parameter = tg.nn.Parameter(tg.ones(1000))
    before = parameter.data
    with music.noisy([parameter], 0.1, tg.Generator(0)):
        assert parameter.numpy().std() == pytest.approx(0.1, rel=0.1)
        (parameter * parameter).sum().backward()
        assert (parameter.grad.numpy() == 2 * parameter.numpy()).all()
    assert parameter.data is before


def test_words_are_written_backwards():
    codes, wanted, lengths = translation.words(200, 3, 10, tg.Generator(0))
    assert set(lengths) == set(range(3, 11))
    for row, length in enumerate(lengths):
        assert (wanted[:length, row] == codes[:length, row][::-1]).all()
        assert (codes[length:, row] == translation.END).all()
        assert (wanted[length:, row] == translation.END).all()


def test_data_sets_come_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(files.FOLDER, str(tmp_path))
    (tmp_path / "tinyshakespeare.txt").write_text("another text")
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt is not the file expected"):
        files.shakespeare(quick=False)


def test_gates_begin_where_the_paper_says():
    form = networks.Network(2, 2, 0.5, input_gates=(-3, -6))
    net = form.net(data.Adding("hochreiter97", 100), tg.Generator(0))
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
    trials.run(record, paper.settings, 2, 0, False, 1)  # nothing is left to do
    assert calls == [1, 0]


def test_settings_are_chosen_by_their_labels():
    settings = [trials.Setting(label, (), 1, lambda *_: {}) for label in ("6a", "6b", "6a, modern recipe")]
    for only, expected in (([], [0, 1, 2]), (["6a"], [0]), (["modern", "6b"], [1, 2]), (["6"], [0, 1, 2])):
        assert trials.chosen(settings, only) == [settings[i] for i in expected]
    with pytest.raises(ValueError, match=r"no setting is called '7'; there are: 6a; 6b; 6a, modern recipe"):
        trials.chosen(settings, ["6a", "7"])


def test_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "examples.papers", "lstm97-adding", "--quick", "--only", "100", "--out", tmp_path]
    for _ in range(2):
        done = subprocess.run([*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "| T = 100 | 100 % | 0 % | 74,000 | - | 1 | - | 10 | 1 |" in done.stdout
        assert "| T = 500 | 100 % | not run | 209,000 | not run | 0 | not run | 10 | 0 |" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"lstm97-adding-quick.json", "lstm97-adding-quick.png"}
    assert "stopped after a few sequences" in done.stdout
    wrong = subprocess.run([*command, "--only", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no setting is called 'nothing'; there are: T = 100" in wrong.stderr
    wrong = subprocess.run([sys.executable, "-m", "examples.papers"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "give the name of an experiment: lstm97-reber" in wrong.stderr


def test_the_page_is_what_the_results_give():
    assert (ROOT / "docs" / "results.md").read_text() == page()
