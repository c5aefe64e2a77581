"""Checkpoints under SIGKILL, which no handler softens: whatever the instant, the old file is there or the new one.

As a script, ``test_checkpoint_kill.py FILE random|lines|in-place``, this is what is killed: it forks itself, which is
quick, trains and saves in the child, and after each kill checks the file and goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tinygrad_rnn as tg
from tinygrad_rnn import checkpoint, nn, optim

if os.name != "posix":
    pytest.skip("forks", allow_module_level=True)

KILLS = 300


class Run:
    """A small training run with all that one has: weights, optimizer, schedule, generator, position, nested state."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = tg.Generator(seed)
        self.cells = [nn.LSTMCell(2, 5, generator=self.generator), nn.GRUCell(5, 4, generator=self.generator)]
        self.optimizer = optim.Adam([p for cell in self.cells for p in cell.parameters()], lr=0.01)
        self.schedule = optim.CosineAnnealingLR(self.optimizer, 50)
        self.state = {"cells": [cell.init_state(3) for cell in self.cells], "mean": tg.zeros((3, 4))}
        self.data = tg.Generator(9).normal((40, 3, 2))
        self.position, self.count = 0, 0

    def step(self) -> None:
        x = tg.functional.dropout(self.data[self.position], 0.3, generator=self.generator)
        states = []
        for cell, state in zip(self.cells, self.state["cells"], strict=True):
            x, state = cell(x, state)
            states.append(tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach())
        self.optimizer.zero_grad()
        ((x - self.state["mean"]) ** 2).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self.state = {"cells": states, "mean": self.state["mean"] * 0.9 + x.detach() * 0.1}
        self.position, self.count = (self.position + 1) % len(self.data), self.count + 1

    def save(self, path: str) -> None:
        parts = {"generator": self.generator, "optimizer": self.optimizer, "schedule": self.schedule}
        tg.save(path, cells=self.cells, state=self.state, position=self.position, count=self.count, **parts)

    @classmethod
    def load(cls, path: str) -> Run:
        run, saved = cls(seed=1), tg.load(path)
        for cell, state in zip(run.cells, saved["cells"], strict=True):
            cell.load_state_dict(state)
        for name in ("generator", "optimizer", "schedule"):
            getattr(run, name).load_state_dict(saved[name])
        run.state, run.position, run.count = saved["state"], saved["position"], saved["count"]
        return run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(child) -> int:
    """Run ``child`` in a fork, which it must not outlive but by an error."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def check(path: str, announced: int) -> tuple[int, str]:
    """The step that the file is of, which is the last one said to be saved or the next, and a digest of the file."""
    count = tg.load(path)["count"]
    assert announced <= count <= announced + 1, f"step {announced} was saved, the file is of step {count}"
    return count, hashlib.sha256(Path(path).read_bytes()).hexdigest()


def clear(path: str) -> int:
    """How many files a killed save left, which are deleted and must be the documented ones."""
    left = [name for name in os.listdir(os.path.dirname(path)) if name != os.path.basename(path)]
    for name in left:
        assert name.startswith(f".{os.path.basename(path)}."), name
        assert name.endswith(".tmp"), name
        os.unlink(os.path.join(os.path.dirname(path), name))
    return len(left)


def at_random(path: str) -> dict[str, int]:
    run = Run()
    start = time.perf_counter()
    for _ in range(5):
        run.step()
        run.save(path)
    period = (time.perf_counter() - start) / 5
    Run().save(path)
    announced = mmap.mmap(-1, 8)  # shared with the children
    draw = random.Random(0)
    seen: dict[int, str] = {}
    asides = 0

    def train() -> None:
        run = Run.load(path)
        os.write(ready, b"x")
        while True:
            run.step()
            run.save(path)
            announced[:8] = run.count.to_bytes(8, "little")

    for _ in range(KILLS):
        loaded, ready = os.pipe()
        pid = forked(train)
        os.close(ready)
        assert os.read(loaded, 1) == b"x"
        os.close(loaded)
        time.sleep(draw.uniform(0, 2 * period))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status), "the child failed by itself"
        count, digest = check(path, int.from_bytes(announced[:8], "little"))
        announced[:8] = count.to_bytes(8, "little")
        assert seen.setdefault(count, digest) == digest
        asides += clear(path)
    straight = Run()
    os.fsync = lambda descriptor: None  # nothing is killed any more
    for count in range(1, max(seen) + 1):
        straight.step()
        if count in seen:
            straight.save(path)
            assert check(path, count)[1] == seen[count], f"step {count} is not what a run never killed gives"
    return {"kills": KILLS, "steps": max(seen), "asides": asides}


def in_place(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()


def at_every_line(path: str) -> dict[str, int]:
    """A kill before every line that writes, one after the other."""
    run = Run()
    run.save(path)
    asides, counts = 0, []
    for line in range(1, 1000):

        def save_until(line: int = line) -> None:
            left = line

            def trace(frame, event, _):
                nonlocal left
                if frame.f_code is not checkpoint._write.__code__:
                    return None
                if event == "line":
                    left -= 1
                    if left == 0:
                        die()
                return trace

            run = Run.load(path)
            run.step()
            sys.settrace(trace)
            run.save(path)

        before = tg.load(path)["count"]
        status = os.waitpid(forked(save_until), 0)[1]
        count, _ = check(path, before)
        asides += clear(path)
        counts.append(count - before)
        if not os.WIFSIGNALED(status):
            assert (os.waitstatus_to_exitcode(status), count) == (0, before + 1)
            break
    return {"kills": line - 1, "asides": asides, "before": counts.count(0), "after": counts[:-1].count(1)}


def killed(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "folder").mkdir()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a fork has but one thread
    command = [sys.executable, __file__, tmp_path / "folder" / "run.safetensors", how]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_kills_at_random_instants_leave_a_whole_file_and_resuming_is_exact(tmp_path):
    result = killed(tmp_path, "random")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kills"] == KILLS
    assert report["steps"] > KILLS / 10
    assert report["asides"] > 0  # some fell within a save: one in five on a disk, one in thirty on a disk in memory


def test_kills_before_every_line_that_writes_leave_the_old_file_or_the_new_one(tmp_path):
    result = killed(tmp_path, "lines")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["before"] >= 10
    assert report["after"] >= 3
    assert 5 <= report["asides"] < report["kills"]


def test_the_kills_notice_a_file_written_in_place(tmp_path):
    result = killed(tmp_path, "in-place")
    assert result.returncode == 1
    assert "CheckpointError" in result.stderr


if __name__ == "__main__":
    path, how = sys.argv[1:]
    if how == "in-place":
        checkpoint._write = in_place
    print(json.dumps(at_random(path) if how == "random" else at_every_line(path)))
