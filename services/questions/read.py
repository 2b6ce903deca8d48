"""Reading a file of questions whose form is known by its columns, strictly or not.

Invariant: every row gives a question or is refused with a reason, in the file's order. `scan_questions` hands the refused
ones back; `read_questions` counts in the log those that hold no question or whose text is not Unicode, and stops at the
first that is wrong otherwise.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.errors import UserError
from services.questions import files
from services.questions.integers import Integers
from services.questions.longvideobench import LONGVIDEOBENCH, LONGVIDEOBENCH_PARQUET
from services.questions.lvbench import LVBENCH
from services.questions.mlvu import MLVU
from services.questions.rows import Format, NoQuestion, NotUnicode, Place, Row, WrongRow
from services.questions.training import TRAINING
from services.questions.tspo import TSPO
from services.questions.verl import EASYR1, LONGVILA, VERL
from services.questions.video_r1 import VIDEO_R1
from services.questions.videomme import VIDEOMME
from services.questions.videomme_v2 import VIDEOMME_V2
from services.schema import Question

FORMATS = (
    TRAINING,
    VERL,
    LONGVILA,
    EASYR1,
    VIDEO_R1,
    TSPO,
    VIDEOMME,
    VIDEOMME_V2,
    LONGVIDEOBENCH,
    LONGVIDEOBENCH_PARQUET,
    LVBENCH,
    *MLVU,
)
"""The first that recognises a file reads it."""

REASONS = 20
"""Reasons why rows were left out that one message names."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A row that gave no question."""

    row: str
    """`row 3`, or `row 3, question 7` when the row holds several."""
    reason: str
    field: str | None
    """The field at fault, if it is one's."""
    malformed: bool
    """False: the row is sound, and asks no multiple-choice question about one video."""
    readable: bool = True
    """False: it is malformed because its text is not Unicode, which says nothing about the other rows."""

    def __str__(self) -> str:
        return f"{self.row}, field {self.field!r}: {self.reason}" if self.field else f"{self.row}: {self.reason}"


@dataclass(frozen=True)
class Recognised:
    """What a file holds."""

    format: str
    questions: tuple[Question, ...]
    refused: tuple[Refused, ...]


def scan_questions(path: Path, video_root: Path | None = None) -> Recognised:
    """Everything the file at `path` holds; videos are not looked for, save to choose between folders.

    Raises UserError for a file that is missing, empty, or of no known form.
    """
    form, outcomes = _read(path, video_root)
    if not outcomes:
        raise UserError(f"{path}: holds no questions")
    questions = tuple(outcome for outcome in outcomes if isinstance(outcome, Question))
    return Recognised(form.name, questions, tuple(outcome for outcome in outcomes if isinstance(outcome, Refused)))


def read_questions(path: Path, video_root: Path | None = None) -> list[Question]:
    """The questions of the file at `path`, in its order, with absolute video paths; videos are not looked for, save to
    choose between folders. Rows that hold no question by their form's nature are left out, counted in the log; those whose
    text is not Unicode too, each by its row and field.

    Raises UserError for a file that is missing, of no known form or without questions, and for the first other row that
    is not as its form says.
    """
    form, outcomes = _read(path, video_root)
    questions: list[Question] = []
    left_out: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Question):
            questions.append(outcome)
        elif outcome.malformed and outcome.readable:
            raise UserError(f"{path}, {outcome}")
        else:
            left_out[str(outcome) if outcome.malformed else outcome.reason] += 1
    reasons = "; ".join(f"{reason} ({count})" for reason, count in left_out.most_common(REASONS))
    reasons += f"; and {len(left_out) - REASONS} more reasons" * (len(left_out) > REASONS)
    if not questions:
        raise UserError(
            f"{path}: holds no questions" + (f" that can be taken ({form.name}): {reasons}" if reasons else "")
        )
    if left_out:
        _log.warning(
            "%s: %d questions; %d rows left out (msjoe questions names them): %s",
            path,
            len(questions),
            left_out.total(),
            reasons,
        )
    return questions


def read_rows(path: Path, video_root: Path | None = None) -> list[tuple[int, Row, list[Question]]]:
    """The rows of the file at `path` as it holds them, each with its number and the questions that it gave, perhaps none.

    Raises UserError for a file that is missing or of no known form.
    """
    _, numbered = _numbered(path, video_root)
    questions: dict[int, list[Question]] = {}
    for number, outcome in numbered:
        if isinstance(outcome, Question):
            questions.setdefault(number, []).append(outcome)
    return [(number, row, questions.get(number, [])) for number, row in files.rows(path, None) if isinstance(row, dict)]


def _read(path: Path, video_root: Path | None) -> tuple[Format, list[Question | Refused]]:
    form, numbered = _numbered(path, video_root)
    return form, [outcome for _, outcome in numbered]


def _numbered(path: Path, video_root: Path | None) -> tuple[Format, list[tuple[int, Question | Refused]]]:
    """The form, and what every row gave, with the row's number."""
    files.check(path)
    form = _recognise(path)
    root, integers = video_root or path.parent, Integers()
    outcomes = list(_outcomes(path, form, root, integers))
    if integers.doubtful:  # what they mean is known only now
        outcomes = list(_outcomes(path, form, root, integers))
    return form, outcomes


def _recognise(path: Path) -> Format:
    first = files.first_row(path)
    if first is None:
        return TRAINING  # an empty file, or one whose rows are each refused
    for form in FORMATS:
        if form.recognises(first):
            return form
    if len(TRAINING.signature) - sum(name in first for name in TRAINING.signature) == 1:
        return TRAINING  # which then names the missing field
    known = {form.name: ", ".join(form.signature) for form in reversed(FORMATS)}
    columns = ", ".join(first).encode(errors="backslashreplace").decode() or "none"
    raise UserError(
        f"{path}: no known form of questions; its columns are {columns}. Known are "
        + "; ".join(f"{name} ({columns})" for name, columns in reversed(known.items()))
    )


def _outcomes(path: Path, form: Format, root: Path, integers: Integers) -> Iterator[tuple[int, Question | Refused]]:
    rows_of_ids: dict[str, str] = {}
    stem = os.fsencode(path.stem).decode(errors="backslashreplace")  # ids are text, whatever a file's name is
    for number, whole in files.rows(path, form.columns):
        place = Place(root, stem, number, integers)
        for row, part in _parts(form, number, whole):
            try:
                if isinstance(part, WrongRow):
                    raise part
                question = form.question(part, place)
                if (first := rows_of_ids.setdefault(question.id, row)) != row:
                    raise WrongRow(f"{question.id!r} is already the id of {first}", form.id)
                yield number, question
            except (NoQuestion, WrongRow) as error:
                field = error.field if isinstance(error, WrongRow) else None
                readable = not isinstance(error, NotUnicode)
                yield number, Refused(row, str(error), field, isinstance(error, WrongRow), readable)


def _parts(form: Format, number: int, row: Row | WrongRow) -> list[tuple[str, Row | WrongRow]]:
    """The questions that one row holds, and what to call them."""
    try:
        parts = form.parts(row) if isinstance(row, dict) else (row,)
    except WrongRow as error:
        return [(f"row {number}", error)]
    if len(parts) == 1:
        return [(f"row {number}", parts[0])]
    return [(f"row {number}, question {index}", part) for index, part in enumerate(parts, start=1)]
