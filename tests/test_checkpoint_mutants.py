"""Checkpoints that are damaged or forged: `load` refuses them with its one error, or gives what was saved."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as plain

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim

MUTANTS = 20_000


def bits(value: Any) -> Any:
    """Something that is equal if and only if the values are, to the bit."""
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [bits(item) for item in value]
    if isinstance(value, (tg.Tensor, np.ndarray)):
        array = value.numpy() if isinstance(value, tg.Tensor) else value
        return type(value), array.shape, array.dtype, array.tobytes()
    return type(value), repr(value)


def joined(header: bytes | str | dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file of a header and what follows."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return len(header).to_bytes(8, "little") + header + body


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def forged(objects: Any, **arrays: np.ndarray) -> bytes:
    """A file with a right checksum; ``objects`` is the JSON text of what it holds, or that as Python objects."""
    objects = objects if isinstance(objects, str) else json.dumps(objects)
    return sealed(f'{{"format": 1, "version": "0", "objects": {objects}}}', arrays)


def sealed(text: str, arrays: dict[str, np.ndarray]) -> bytes:
    content = text.encode()
    for name, array in sorted(arrays.items()):
        content += f"{name} {array.dtype.name} {array.shape}".encode() + array.tobytes()
    return plain(arrays, {"tinygrad_rnn": f"{zlib.crc32(content):08x} {text}"})


def small(folder: Path, seed: int) -> bytes:
    generator = tg.Generator(seed)
    cell = nn.RNNCell(1, 2, generator=generator)
    optimizer = optim.SGD(cell.parameters(), lr=0.1 + seed, momentum=0.9)
    state = {"h": (generator.normal((1, 2)), [tg.arange(3)]), 1: np.array(True)}
    tg.save(folder / "small", cell=cell, optimizer=optimizer, generator=generator, state=state, losses=[0.1, None])
    return (folder / "small").read_bytes()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One in memory, if the machine has such."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    return small(folder, 0)


def outcome(content: bytes, folder: Path) -> Any:
    """What `load` gives, to the bit, or None where it refuses."""
    path = str(folder / "mutant")
    with open(path, "wb", buffering=0) as file:
        file.write(content)
    try:
        return bits(tg.load(path))
    except tg.CheckpointError as caught:
        error = str(caught)
    assert error.startswith(path)
    assert len(error) < 500
    return None


def test_a_forged_file_loads_if_what_it_holds_is_right(folder):
    arrays = {"x": np.arange(3.0), "a": np.zeros((0, 2), np.int8)}
    assert outcome(forged({"x": {"array": "x"}, "a": {"tuple": [{"array": "a"}]}}, **arrays), folder) == bits(
        {"x": arrays["x"], "a": (arrays["a"],)}
    )


def test_every_single_bit(whole, folder):
    right = outcome(whole, folder)
    assert right is not None
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            assert outcome(flipped, folder) in (None, right), (position, bit)


def test_every_length(whole, folder):
    for length in range(len(whole)):
        assert outcome(whole[:length], folder) is None
        assert outcome(whole[length:], folder) is None or length == 0
    for more in (b"\0", b" ", b"more", whole):
        assert outcome(whole + more, folder) is None


def mutated_bytes(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.choices(range(len(whole) + 1), k=2))
    piece = whole[start:end]
    how = draw.randrange(8)
    if how == 0:
        mutant = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            mutant[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        return bytes(mutant)
    if how == 1:
        return whole[:start]
    if how == 2:
        return whole[:start] + draw.randbytes(draw.randint(1, 16)) + whole[start:]
    if how == 3:
        return whole[:start] + whole[end:]
    if how == 4:
        return whole[:end] + piece + whole[end:]
    if how == 5:
        return whole[:start] + draw.randbytes(end - start) + whole[end:]
    if how == 6:
        return whole[:start] + other[start:]
    return whole[:start] + piece[::-1] + whole[end:]


ODD = [None, True, -1, 0, 1, 3, 2**31, 2**63, 2**64, 1e308, 0.5, "", "x", "F32", "U8", "BOOL", [], [1], [0, 4], {}]


def mutated_header(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """Another header, well-formed as JSON and of the length it claims, before the same arrays."""
    header, body = parts(whole)
    for _ in range(draw.randint(1, 2)):
        name = draw.choice(list(header))
        entry = header[name]
        how = draw.randrange(7)
        if how == 0:
            entry[draw.choice(list(entry))] = draw.choice(ODD)
        elif how == 1:
            header[draw.choice([*header, "new"])] = draw.choice([*header.values(), *ODD])
        elif how == 2:
            del header[name]
        elif how == 3 and isinstance(entry.get("shape"), list):
            entry["shape"] = draw.choice([entry["shape"][::-1], [*entry["shape"], 1], [2**40, 0], [4]])
        elif how == 4 and isinstance(entry.get("dtype"), str):
            entry["dtype"] = draw.choice(["I32", "F16", "F64", "BF16", "U8", "C64", "F8_E5M2", "f32"])
        elif how == 5 and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = [max(offset + draw.choice([-4, 0, 4]), 0) for offset in entry["data_offsets"]]
        else:
            header = dict(draw.sample(list(header.items()), len(header)))
        if not header or not all(isinstance(entry, dict) and entry for entry in header.values()):
            break
    text = json.dumps(header, indent=draw.choice([None, 1]))
    if draw.random() < 0.2:
        text = text.replace(*draw.choice([(":", ":NaN,"), ("{", "[", 1), ("0", "00"), ('"', "'"), ("F32", "F\\u0033")]))
    return joined(text, body)


def mutated_text(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """Another text of what the arrays are, under a right checksum."""
    text = parts(whole)[0]["__metadata__"]["tinygrad_rnn"].partition(" ")[2]
    arrays = {name: np.ones(2) for name in ("cell.weight_ih", "cell.bias_ih", "state.1")}
    start, end = sorted(draw.choices(range(len(text) + 1), k=2))
    end = min(end, start + draw.randint(0, 12))
    new = draw.choice(["", "[", "]", "{", "}", '"', ",", ":", "1", "-", "NaN", "null", '{"list": []}', "\\ud800", "é"])
    return sealed(text[:start] + new + text[end:], arrays)


@pytest.mark.parametrize("mutate", [mutated_bytes, mutated_header])
def test_mutants(mutate, whole, folder):
    right, other, draw = outcome(whole, folder), small(folder, 1), random.Random(0)
    refused = 0
    for _ in range(MUTANTS * 2 // 5):
        mutant = mutate(whole, other, draw)
        found = outcome(mutant, folder)
        assert found in (None, right) or mutant == other
        refused += found is None
    assert refused > MUTANTS / 5


def test_mutants_under_a_right_checksum(whole, folder):
    draw = random.Random(0)
    found = [outcome(mutated_text(whole, b"", draw), folder) for _ in range(MUTANTS // 5)]
    assert found.count(None) > MUTANTS / 20


def u8(shape: Any, offsets: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": shape, "data_offsets": offsets, **more}


DEEP = 100_000
MEGA = np.ones(1 << 20, np.uint8)
METADATA = {"tinygrad_rnn": '00000000 {"format": 1}'}
FOUR = u8([4], [0, 4])

# What a stranger may send, who can make a right checksum.
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": bytes(8),
    "zeros": bytes(4096),
    "text": b"once upon a time, there was a file" * 10,
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": pickle.dumps([print]) * 5,
    "header beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "header of 99 MB": (99_000_000).to_bytes(8, "little") + b"{}",
    "header of terabytes": (1 << 42).to_bytes(8, "little") + b"{}",
    "header of all bits": b"\xff" * 8 + b"{}",
    "header that is a list": joined("[]"),
    "header that is a number": joined("1"),
    "header of latin-1": joined(b'{"\xe9": 1}'),
    "header of utf-16": joined("{}".encode("utf-16")),
    "header of nothing": joined("{}"),
    "array of terabytes": joined({"a": u8([1 << 42], [0, 1 << 42]), "__metadata__": METADATA}),
    "array of terabytes, offsets of four": joined({"a": u8([1 << 42], [0, 4]), "__metadata__": METADATA}, b"abcd"),
    "array past all integers": joined({"a": u8([1 << 62, 8], [0, 4]), "__metadata__": METADATA}, b"abcd"),
    "array of floats": joined({"a": u8([4], [0.0, 4.0]), "__metadata__": METADATA}, b"abcd"),
    "shape below zero": joined({"a": u8([-1, -4], [0, 4]), "__metadata__": METADATA}, b"abcd"),
    "shape of a hundred": joined({"a": u8([1] * 100, [0, 1]), "__metadata__": METADATA}, b"a"),
    "shape of nothing by all": joined({"a": u8([0, 2**63, 2**63], [0, 0]), "__metadata__": METADATA}),
    "offsets below zero": joined({"a": u8([4], [-4, 0]), "b": FOUR, "__metadata__": METADATA}, b"abcd"),
    "offsets backwards": joined({"a": u8([4], [4, 0]), "b": FOUR, "__metadata__": METADATA}, b"abcd"),
    "offsets that overlap": joined({"a": FOUR, "b": u8([4], [2, 6]), "__metadata__": METADATA}, b"abcdef"),
    "offsets the same": joined({"a": FOUR, "b": FOUR, "__metadata__": METADATA}, b"abcd"),
    "offsets with a hole": joined({"a": FOUR, "b": u8([4], [5, 9]), "__metadata__": METADATA}, b"abcdefghi"),
    "offsets missing": joined({"a": {"dtype": "U8", "shape": [4]}, "__metadata__": METADATA}, b"abcd"),
    "offsets of text": joined({"a": u8([4], ["0", "4"]), "__metadata__": METADATA}, b"abcd"),
    "offsets of one": joined({"a": u8([4], [0]), "__metadata__": METADATA}, b"abcd"),
    "array of null": joined({"a": None, "__metadata__": METADATA}),
    "dtype unknown": joined({"a": {**FOUR, "dtype": "F4"}, "__metadata__": METADATA}, b"abcd"),
    "dtype of text": joined({"a": {**FOUR, "dtype": "uint8"}, "__metadata__": METADATA}, b"abcd"),
    "dtype of nothing": joined({"a": {**FOUR, "dtype": None}, "__metadata__": METADATA}, b"abcd"),
    "dtype that NumPy lacks": joined({"a": {**FOUR, "dtype": "BF16", "shape": [2]}, "__metadata__": METADATA}, b"abcd"),
    "dtype that save refuses": forged({"a": {"array": "a"}}, a=np.ones(2, np.complex64)),
    "bool of two": forged({"a": {"array": "a"}}, a=np.array([1, 2], np.uint8).view(bool)),
    "metadata of null": joined({"__metadata__": None}),
    "metadata of a list": joined({"__metadata__": ["tinygrad_rnn"]}),
    "metadata of text": joined({"__metadata__": "tinygrad_rnn"}),
    "metadata of no text": joined({"__metadata__": {"tinygrad_rnn": 1}}),
    "metadata empty": joined({"__metadata__": {"tinygrad_rnn": ""}}),
    "deep header": joined('{"__metadata__": ' + "[" * DEEP + "]" * DEEP + "}"),
    "deep header, unended": joined('{"a": ' * DEEP),
    "deep text": forged("[" * DEEP + "]" * DEEP),
    "deep lists": forged('{"a": ' + '{"list": [' * DEEP + "]}" * DEEP + "}"),
    "array twice": joined(f'{{"a": {json.dumps(FOUR)}, "a": {json.dumps(FOUR)}}}', b"abcd"),
    "metadata twice": joined(f'{{"__metadata__": {{}}, {json.dumps(parts(forged({}))[0])[1:]}'),
    "metadata's key twice": joined(json.dumps(parts(forged({}))[0]).replace('{"tiny', '{"tinygrad_rnn": "", "tiny')),
    "name twice": forged('{"a": 1, "a": 2}'),
    "kind twice": forged('{"a": {"list": [], "list": []}}'),
    "NaN in the header": joined('{"__metadata__": NaN}'),
    "NaN in the text": forged('{"a": NaN}'),
    "infinity in the text": forged('{"a": -Infinity}'),
    "float that is none": forged({"a": {"float": "1.0"}}),
    "float of a list": forged({"a": {"float": []}}),
    "int of many digits": forged('{"a": ' + "9" * 100_000 + "}"),
    "no objects": sealed('{"format": 1, "version": "0"}', {}),
    "no format": sealed('{"version": "0", "objects": {}}', {}),
    "format of text": sealed('{"format": "1", "version": "0", "objects": {}}', {}),
    "long format": sealed(json.dumps({"format": "1" * 100_000, "version": "0", "objects": {}}), {}),
    "text that is a list": sealed("[]", {}),
    "text that is no JSON": sealed("{'a': 1}", {}),
    "objects of a list": forged([1]),
    "bare list": forged({"a": [1, 2]}),
    "bare lists": forged('{"a": [' + "[]," * 300_000 + "[]]}"),
    "bare dicts": forged('{"a": [' + "{}," * 300_000 + "{}]}"),
    "kind unknown": forged({"a": {"set": [1]}}),
    "kind missing": forged({"a": {}}),
    "two kinds": forged({"a": {"list": [], "tuple": []}}),
    "list of a number": forged({"a": {"list": 1}}),
    "dict of a number": forged({"a": {"dict": 1}}),
    "dict of triples": forged({"a": {"dict": [[1, 2, 3]]}}),
    "dict with a list for a key": forged({"a": {"dict": [[[], 1]]}}),
    "array that is absent": forged({"a": {"array": "b"}}),
    "array named by a list": forged({"a": {"array": ["a"]}}, a=np.ones(1)),
    "one array many times": forged({"a": {"list": [{"array": "a"}] * 1000}}, a=MEGA),
    "one tensor many times": forged({"a": {"list": [{"tensor": "a"}] * 1000}}, a=MEGA),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_little_memory(name, folder):
    content = HOSTILE[name]
    assert len(content) < 2 << 20
    path = folder / "hostile"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(tg.CheckpointError) as caught:
            tg.load(path)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert "checksum" not in str(caught.value) or name == "metadata empty"  # refused for what it is
    assert len(str(caught.value)) < 500
    # JSON takes more room as Python's objects than as text: an empty dict of three characters some 70 bytes. And an
    # open file has its buffer, 128 KiB from Python 3.14 on.
    assert peak < 40 * len(content) + 100_000 + io.DEFAULT_BUFFER_SIZE


# What the traced memory leaves out, such as the library's own; and what a file could make Python do.
SCRIPT = """
import resource, sys
import tinygrad_rnn as tg

folder, count = sys.argv[1], int(sys.argv[2])
tg.load(f"{folder}/good")
forbidden = []

def hook(event, arguments):
    if event in ("exec", "compile", "import", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen"):
        forbidden.append((event, str(arguments)))

pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (128 << 20),) * 2)
sys.addaudithook(hook)
for path in [*(f"{folder}/{i}" for i in range(count)), *sys.argv[3:]]:
    try:
        tg.load(path)
    except tg.CheckpointError:
        continue
    raise SystemExit(f"{path} loads")
assert not forbidden, forbidden
eval("1")
assert forbidden  # the hook works
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_runs_waits_or_fills_the_memory(whole, folder):
    sparse = {"arrays": whole, "header": (1 << 31).to_bytes(8, "little") + b"{}"}  # large files that take no room
    for name, start in sparse.items():
        (folder / name).write_bytes(start)
        os.truncate(folder / name, 1 << 32)
    os.mkfifo(folder / "fifo")
    (folder / "good").write_bytes(whole)
    for i, content in enumerate(HOSTILE.values()):
        (folder / str(i)).write_bytes(content)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        special = [*(folder / name for name in (*sparse, "fifo", "socket", ".")), "/dev/null", "/dev/zero"]
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, folder, str(len(HOSTILE)), *special],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 0, result.stderr


def test_a_good_file_takes_memory_in_proportion(folder):
    arrays = {f"a{i}": np.random.default_rng(i).standard_normal((100, 1000)) for i in range(10)}
    path = folder / "large"
    tg.save(path, **arrays)
    tracemalloc.start()
    try:
        assert len(tg.load(path)) == len(arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.2 * path.stat().st_size
