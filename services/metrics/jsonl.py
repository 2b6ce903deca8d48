"""`metrics.jsonl`: one row a step, which report, benchmarks and tests read back.

Invariants: it is valid JSON: a value that is not finite stands there as `null`. A step that is written again replaces itself
and all later ones when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services import jsonl

FILE = "metrics.jsonl"


def write_metrics(run_dir: Path, step: int, values: Mapping[str, float]) -> None:
    """Append the row of a step; on disk when this returns."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    jsonl.append(run_dir / FILE, [{"step": step, **finite}])


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, steps ascending. A row replaces those of its own and later steps that were
    written before it."""
    rows: list[dict[str, Any]] = []
    for row in jsonl.read(run_dir / FILE):
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows
