"""Lanes and windows of a stream, padding and buckets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_rnn as tg
from tinygrad_rnn import data


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 9))
def test_an_epoch_of_windows(n, batch, steps):
    stream = np.arange(n)
    length = n // batch
    if length < 2:
        with pytest.raises(ValueError, match="at least"):
            data.Windows(stream, batch, steps)
        return
    windows = data.Windows(stream, batch, steps)
    for _ in range(2):
        seen, inputs = [[] for _ in range(batch)], [[] for _ in range(batch)]
        count = 0
        for x, y in windows:
            count += 1
            assert x.shape == y.shape
            assert x.shape[0] == steps or windows.position == length - 1
            assert x.shape[1] == batch
            for b in range(batch):
                inputs[b] += x[:, b].tolist()
                seen[b] += y[:, b].tolist()
        assert count == len(windows)
        for b in range(batch):
            lane = stream[b * length : (b + 1) * length].tolist()
            assert inputs[b] == lane[:-1]
            assert seen[b] == lane[1:]


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_windows_go_on_from_a_checkpoint(stop, tmp_path):
    stream = np.arange(47)
    whole = [x.tolist() for x, _ in data.Windows(stream, 2, 6)]
    assert len(whole) == 4
    first = data.Windows(stream, 2, 6)
    seen = []
    path = tmp_path / "run.safetensors"
    tg.save(path, windows=first)
    for x, _ in first:
        if len(seen) == stop:
            break
        seen.append(x.tolist())
        tg.save(path, windows=first)
    second = data.Windows(stream, 2, 6)
    second.load_state_dict(tg.load(path)["windows"])
    assert seen + [x.tolist() for x, _ in second] == whole
    assert [x.tolist() for x, _ in second] == whole


def test_windows_refuse_a_position_of_another_stream():
    state = data.Windows(np.arange(40), 2, 6).state_dict()
    with pytest.raises(ValueError, match="lanes of 20 steps, these have 21"):
        data.Windows(np.arange(42), 2, 6).load_state_dict(state)
    with pytest.raises(ValueError, match="position must be from 0 to 19, got 20"):
        data.Windows(np.arange(40), 2, 6).load_state_dict({**state, "position": 20})


def test_lanes():
    stream = np.arange(22).reshape(11, 2)
    cut = data.lanes(stream, 3)
    assert cut.shape == (3, 3, 2)
    for b in range(3):
        assert cut[:, b].tolist() == stream[3 * b : 3 * b + 3].tolist()
    with pytest.raises(TypeError, match="Vocabulary"):
        data.lanes("text", 2)
    with pytest.raises(ValueError, match=r"at least batch = 4 items, got shape \(3,\)"):
        data.lanes([1, 2, 3], 4)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        data.lanes([1, 2, 3], 0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        data.Windows([1, 2, 3], 1, 0)


@given(st.text("ab é😀\n\0", min_size=1))
def test_vocabulary(text):
    vocabulary = data.Vocabulary(text)
    codes = vocabulary.encode(text)
    assert codes.dtype == np.int64
    assert codes.shape == (len(text),)
    assert sorted(set(codes.tolist())) == list(range(len(vocabulary)))
    assert [sorted(set(text)).index(character) for character in text] == codes.tolist()
    assert vocabulary.decode(codes) == text


def test_vocabulary_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="'z' is not in the vocabulary of 2 characters"):
        data.Vocabulary("abab").encode("abz")
    for codes in ([0, 2], [-1]):
        with pytest.raises(IndexError, match="codes must be from 0 to 1"):
            data.Vocabulary("ab").decode(codes)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.sampled_from([(), (2,), (2, 3)]))
def test_pad(lengths, rest):
    random = np.random.default_rng(0)
    sequences = [random.standard_normal((n, *rest)).astype(np.float32) for n in lengths]
    padded, ours = data.pad(sequences, value=-100)
    assert padded.shape == (max(lengths), len(lengths), *rest)
    assert padded.dtype == np.float32
    assert ours.dtype == np.int64
    assert ours.tolist() == lengths
    for i, sequence in enumerate(sequences):
        assert np.array_equal(padded[: len(sequence), i], sequence)
        assert (padded[len(sequence) :, i] == -100).all()


def test_pad_keeps_ints_and_refuses():
    padded, _ = data.pad([[1, 2, 3], [4]], value=-1)
    assert padded.dtype.kind == "i"
    assert padded.T.tolist() == [[1, 2, 3], [4, -1, -1]]
    with pytest.raises(ValueError, match="at least one sequence"):
        data.pad([])
    with pytest.raises(ValueError, match="number 1 has no dimension"):
        data.pad([[1], 2])
    with pytest.raises(ValueError, match=r"number 1 has \(4, 3\)"):
        data.pad([np.zeros((5, 2)), np.zeros((4, 3))])


@given(st.lists(st.integers(1, 30), max_size=70), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_each_epoch_sees_each_sequence_once(lengths, batch, pool, seed):
    batches = data.bucketed(np.array(lengths, dtype=np.int64), batch, tg.Generator(seed), pool)
    assert sorted(np.concatenate([np.arange(0), *batches]).tolist()) == list(range(len(lengths)))
    sizes = sorted(len(rows) for rows in batches)
    assert sizes[1:] == [batch] * (len(sizes) - 1)
    assert not sizes or 0 < sizes[0] <= batch


def test_buckets_are_of_like_lengths_and_random():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    generator = tg.Generator(4)
    first, second = (data.bucketed(lengths, 10, generator) for _ in range(2))
    assert generator.counter == 2
    again = data.bucketed(lengths, 10, tg.Generator(4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert {frozenset(rows.tolist()) for rows in first} & {frozenset(rows.tolist()) for rows in second} == set()

    def padding(batches):
        return sum(lengths[rows].max() * len(rows) for rows in batches) / lengths.sum() - 1

    shuffled = data.bucketed(lengths, 10, tg.Generator(4), pool=1)
    assert padding(first) < 0.12 < 0.6 < padding(shuffled)
    # In one pool the padding is the least there can be; the batches still come in random order.
    sort = data.bucketed(lengths, 10, tg.Generator(4), pool=100)
    ordered = np.sort(lengths).reshape(-1, 10)
    assert padding(sort) == pytest.approx(ordered.max(1).sum() * 10 / lengths.sum() - 1)
    means = [lengths[rows].mean() for rows in sort]
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.4


def test_bucketed_refuses():
    with pytest.raises(ValueError, match=r"ints of shape \(N,\), got float64 of shape \(2,\)"):
        data.bucketed([1.0, 2.0], 2)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        data.bucketed([1, 2], 0)
    with pytest.raises(ValueError, match="pool must be at least 1, got 0"):
        data.bucketed([1, 2], 2, pool=0)
