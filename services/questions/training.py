"""The training format: multiple-choice questions, one a row, as parquet or JSON; all forms read alike.

| field | type | |
|---|---|---|
| `id` | string | unique within the file |
| `video` | string | path, or `file://` address; a relative one starts from the video root, else from the file's folder |
| `question` | string | |
| `options` | list of strings | 2 to 26, without letters; the first is A |
| `answer` | string | letter of the right option |
| `pass_rate` | number 0…1 or null | optional: share of right answers of the base MLLM |
| `pass_rate_samples` | whole number or null | optional: over how many answers |
| `pass_rate_model` | string or null | optional: of which MLLM |
| `data_source` | string or null | optional |
| `group` | list of strings or null | optional: groups that accuracy is reported by |
| `subtitles` | string or null | optional: path, as that of the video |
| `subtitle_offset` | number or null | optional: seconds on the subtitles' clock at which the video starts |
| `moments` | list or null | optional: what must be seen, each thing as `[start, end]` in seconds, or as a list of such spans |
| `wanted_queries` | list of strings or null | optional: queries that find the moments |
| `moment_frames` | list of integers or null | optional: in place of `moments`, numbers of the video's own frames from 0 |

Other columns are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import UserError
from services.questions.evidence import moment_frames, moments, wanted_queries
from services.questions.rows import (
    Format,
    Place,
    Row,
    names,
    number,
    optional_text,
    text,
    texts,
    unicode,
    whole,
    written_path,
    wrong,
)
from services.schema import LETTERS, Question, label
from services.storage import written_whole

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("pass_rate", pa.float64()),
        ("pass_rate_samples", pa.int64()),
        ("pass_rate_model", pa.string()),
        ("data_source", pa.string()),
        ("group", pa.list_(pa.string())),
        ("subtitles", pa.string()),
        ("subtitle_offset", pa.float64()),
        ("moments", pa.list_(pa.list_(pa.list_(pa.float64())))),
        ("wanted_queries", pa.list_(pa.string())),
        ("moment_frames", pa.list_(pa.int64())),
    ]
)


def write_questions(questions: Iterable[Question], path: Path) -> None:
    """Write the training format, parquet or JSON lines by `path`'s suffix, whole or not at all; `read_questions` gives the
    same back. Raises UserError for another suffix, for a question without an answer, or when the file system refuses."""
    check_suffix(path)
    rows = [_row(question) for question in questions]
    with written_whole(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
        else:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _row(question: Question) -> dict[str, Any]:
    subtitles = question.subtitles and written_path(question.subtitles)
    paths = {"video": written_path(question.video), "subtitles": subtitles}
    return {
        **asdict(question),
        **paths,
        "answer": label(question),
        "options": [*question.options],
        "group": [*question.group],
    }


def check_suffix(path: Path) -> None:
    """Raises UserError for a path that `write_questions` does not know how to write."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"{path}: unknown kind of questions file {path.suffix!r}; valid: .parquet, .jsonl")


def _question(row: Row, place: Place) -> Question:
    id, video, question, options = text(row, "id"), text(row, "video"), text(row, "question"), texts(row, "options")
    letters = LETTERS[: len(options)]
    answer = row.get("answer")
    unicode(answer, "answer")
    if not (isinstance(answer, str) and answer in tuple(letters)):
        raise wrong(row, "answer", f"one letter of {', '.join(letters)}")
    rate = row.get("pass_rate")
    if rate is not None and (isinstance(rate, bool) or not (isinstance(rate, int | float) and 0 <= rate <= 1)):
        raise wrong(row, "pass_rate", "a number from 0 to 1, or null when never measured")
    samples = None if row.get("pass_rate_samples") is None else whole(row["pass_rate_samples"]) or 0
    if samples is not None and samples <= 0:
        raise wrong(row, "pass_rate_samples", "a positive whole number, or null")
    source, subtitles = optional_text(row, "data_source"), optional_text(row, "subtitles")
    group = names(row, "group", "a list of strings, or null") if row.get("group") is not None else ()
    return Question(
        id=id,
        video=place.find(video),
        question=question,
        options=options,
        answer=answer,
        pass_rate=None if rate is None else float(rate),
        pass_rate_samples=samples,
        pass_rate_model=optional_text(row, "pass_rate_model"),
        data_source=source,
        group=group,
        subtitles=place.find(subtitles) if subtitles else None,
        subtitle_offset=number(row, "subtitle_offset", "a number of seconds, or null"),
        moments=moments(row, "moments"),
        wanted_queries=wanted_queries(row, "wanted_queries"),
        moment_frames=moment_frames(row, "moment_frames"),
    )


TRAINING = Format("training format", ("id", "video", "question", "options", "answer"), SCHEMA.names, _question)
