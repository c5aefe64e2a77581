"""The table of docs/subgradients.md."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "subgradients.md"


def rows() -> list[tuple[str, list[float], list[float]]]:
    """Expression, point, gradient."""
    found = re.findall(r"^\| `(.+)` \| ([^|]+) \| ([^|]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return [(f, [float(v) for v in x.split(",")], [float(v) for v in g.split(",")]) for f, x, g in found]
