"""JSON-lines files that a run appends to and anyone may read meanwhile.

Invariants: every line that ends in a newline is one whole JSON object; whatever a killed process left half-written at the
end is never read and is cut off by the next append. File names that are not UTF-8 are JSON's escapes of what Python makes of
them (`\\udcca`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from services.errors import UserError
from services.writing import writing


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append one line a row, in one write, on the operating system's side when this returns.

    Raises ValueError for a number that JSON cannot say (NaN, infinity), UserError when the file system refuses.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with writing(path), path.open("a+b") as file:
        _cut_torn_tail(file)
        file.write(lines.encode(errors="backslashreplace"))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows in the order they were written, one at a time; none when there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}): remove that line") from error


def cut_after(path: Path, step: int) -> None:
    """Forget the rows of steps after `step`, which are the last ones of the file; nothing when there is no such file."""
    if not path.exists():
        return
    with writing(path), path.open("r+b") as file:
        _cut_torn_tail(file)
        file.seek(0)
        end = 0
        while (line := file.readline()) and json.loads(line)["step"] <= step:
            end = file.tell()
        file.truncate(end)


def _cut_torn_tail(file: Any) -> None:
    """Leave `file`, open for reading and writing, ending in a newline or empty."""
    if file.seek(0, 2) == 0:
        return
    file.seek(-1, 2)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
