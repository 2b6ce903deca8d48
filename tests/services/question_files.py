"""The question files that tests read, and how they are written with other rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parents[1] / "data" / "questions"


def rows_of(name: str) -> list[dict]:
    content = (DATA / name).read_text()
    return json.loads(content) if content.startswith("[") else [json.loads(line) for line in content.splitlines()]


def save(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path
