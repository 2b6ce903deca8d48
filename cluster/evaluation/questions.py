"""The questions of an evaluation: read from the files of one benchmark, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.errors import UserError
from services.questions import read_questions, scan_questions
from services.schema import Question
from services.scoring import BENCHMARKS


def read_annotations(benchmark: str, files: Sequence[Path], videos: Path | None) -> list[Question]:
    """The questions of all `files`, in their order, with videos below `videos` (None: beside each file).

    Raises UserError for a file of another benchmark, a row that is not as its form says, and an id that comes twice.
    """
    formats, found = BENCHMARKS[benchmark].formats, dict[str, Question]()
    for file in files:
        form = scan_questions(file, videos).format
        if formats and form not in formats:
            names = [name for name, row in BENCHMARKS.items() if form in row.formats] or ["training"]
            raise UserError(
                f"{file}: is {form}, not {' or '.join(formats)}; use --benchmark={names[0]}, or another file"
            )
        for question in read_questions(file, videos):
            if question.id in found:
                raise UserError(
                    f"{file}: {question.id!r} is already the id of a question of another file; name each once"
                )
            found[question.id] = question
    return list(found.values())
