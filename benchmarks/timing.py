"""How the benchmarks time sides that run in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def alternated(runs: Mapping[str, Callable[[], Any]], pairs: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds a call of each side, ``pairs`` times: in turn a warm-up call, then ``calls`` timed ones together.

    PyTorch's threads go on spinning after a call and would hold a core, so single calls cannot alternate.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times[name].append((time.perf_counter() - start) / calls * 1e3)
    return times
