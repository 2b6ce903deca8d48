"""Rows that a run goes back behind, when it goes on from an older step."""

from __future__ import annotations

from pathlib import Path

import pytest

from services import jsonl


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "va'])
def test_rows_of_later_steps_are_forgotten(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    jsonl.append(path, [{"step": step, "name": f"ü{n}"} for step in range(4) for n in range(2)])
    path.write_bytes(path.read_bytes() + torn)
    for last in (3, 1, 1, -1):
        jsonl.cut_after(path, last)
        assert [row["step"] for row in jsonl.read(path)] == [step for step in range(last + 1) for _ in range(2)]
    jsonl.append(path, [{"step": 0}])
    assert path.read_text() == '{"step": 0}\n'
    jsonl.cut_after(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()
