"""The training format: multiple-choice questions, one a row, as parquet or JSON lines; both read alike.

| field | type | |
|---|---|---|
| `id` | string | unique within the file |
| `video` | string | path; a relative one starts from the video root, else from the file's folder |
| `question` | string | |
| `options` | list of strings | 2 to 26, without letters; the first is A |
| `answer` | string | letter of the right option |
| `pass_rate` | number 0…1 or null | optional: share of right answers of the base MLLM |
| `data_source` | string or null | optional |

Other columns are ignored. Rows are counted from 1; of JSON lines, a row is a line of the file, and blank ones are passed
over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import UserError
from services.schema import LETTERS, Question

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("pass_rate", pa.float64()),
        ("data_source", pa.string()),
    ]
)


def read_questions(path: Path, video_root: Path | None = None) -> list[Question]:
    """The questions of the file at `path`, in its order, with absolute video paths; videos are not looked for.

    Raises UserError for a missing, empty or unknown file, and for the first row that is not as the format says.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such questions file")
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of questions file {path.suffix!r}; valid: {', '.join(readers)}")
    root = video_root or path.parent
    questions: list[Question] = []
    rows_of_ids: dict[str, int] = {}
    for number, row in readers[path.suffix](path):
        question = _question(row, root, f"{path}, row {number}")
        if question.id in rows_of_ids:
            raise UserError(
                f"{path}, row {number}, field 'id': {question.id!r} is already the id of row {rows_of_ids[question.id]}"
            )
        rows_of_ids[question.id] = number
        questions.append(question)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def write_questions(questions: Iterable[Question], path: Path) -> None:
    """Write the training format, parquet or JSON lines by `path`'s suffix; `read_questions` gives the same back."""
    rows = [{**asdict(question), "options": list(question.options)} for question in questions]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        raise UserError(f"{path}: unknown kind of questions file {path.suffix!r}; valid: .parquet, .jsonl")


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        known = [name for name in file.schema_arrow.names if name in SCHEMA.names]
        batches = file.iter_batches(columns=known)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, row {number}: not JSON ({error}); valid: one object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {number}: {type(row).__name__} instead of an object with the fields")
            yield number, row


def _question(row: dict[str, Any], root: Path, place: str) -> Question:
    """The question of one row. Raises UserError naming `place`, the first wrong field and what would be valid."""

    def wrong(name: str, valid: str) -> UserError:
        found = repr(row[name]) if name in row else "missing"
        return UserError(f"{place}, field {name!r}: {found}; valid: {valid}")

    for name in ("id", "video", "question"):
        if not _is_text(row.get(name)):
            raise wrong(name, "a non-empty string")
    options = row.get("options")
    if not (isinstance(options, list) and 2 <= len(options) <= len(LETTERS) and all(map(_is_text, options))):
        raise wrong("options", f"a list of 2 to {len(LETTERS)} non-empty strings")
    letters = LETTERS[: len(options)]
    answer = row.get("answer")
    if not (isinstance(answer, str) and len(answer) == 1 and answer in letters):
        raise wrong("answer", f"one letter of {', '.join(letters)}")
    rate = row.get("pass_rate")
    if rate is not None and not (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1):
        raise wrong("pass_rate", "a number from 0 to 1, or null when never measured")
    source = row.get("data_source")
    if not (source is None or isinstance(source, str)):
        raise wrong("data_source", "a string, or null")
    return Question(
        id=row["id"],
        video=os.path.abspath(root / row["video"]),
        question=row["question"],
        options=tuple(options),
        answer=answer,
        pass_rate=None if rate is None else float(rate),
        data_source=source or "",
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
