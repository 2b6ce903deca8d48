"""The file of predictions: one JSON line per question, selector and frame budget, with all that scoring needs.

Invariants: a file holds one benchmark, asked with one prompt of one MLLM, and every selector at every budget answers the same
questions; what is torn, doubled or of other questions is refused with the line, never passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.errors import UserError
from services.schema import LETTERS, Question, label
from services.scoring.benchmarks import BENCHMARKS

NAMED = 3
"""Questions that an error names."""


class Prediction(BaseModel):
    """The reply to one question, from the frames that one selector chose within one budget."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    benchmark: str
    """A name of `BENCHMARKS`."""
    question_id: str
    question_hash: str
    """`question_hash` of the question."""
    video: str
    """Path below the folder of videos; replies about one video are not independent."""
    types: list[str]
    """Groups that accuracy is reported by (`Question.group`)."""
    num_options: Annotated[int, Field(ge=2, le=len(LETTERS))]
    label: str
    """Letter of the right option."""
    selector: str
    selector_hash: str
    """Hash of all that decides the selector's choice: its weights or its code, CLIP, the texts that CLIP is asked."""
    budget: Annotated[int, Field(ge=1)]
    """K: frames that the selector may take."""
    frames: list[int]
    """Indices of the frames that were shown, one per second, ascending; the budget at most."""
    visual_tokens: Annotated[int, Field(ge=0)]
    """Visual tokens of these frames in the prompt."""
    queries: list[str]
    """Texts that CLIP compared the frames with."""
    prompt: str
    """A name of `PROMPTS`."""
    prompt_hash: str
    """Hash of all that decides the answer turn's prompt, besides question and frames."""
    model: str
    """Name of the MLLM, for people."""
    model_hash: str
    """Hash of the MLLM's files, or its name and revision on the hub."""
    reply: str | None
    """What the MLLM wrote; None when it could not be asked."""
    reason: str
    """Why it could not be asked; empty otherwise."""
    key: str
    """Hash of all that decides the reply: two rows with the same key are the same sample."""


Cell = tuple[str, int]
"""A selector and its budget."""


def question_hash(question: Question) -> str:
    """A hash of what is asked and what is right, whatever file it was read from."""
    said = json.dumps([question.question, question.options, label(question)], ensure_ascii=False)
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a whole file, in its order.

    Raises UserError, with the line, for a file that is missing, empty, torn, malformed, or breaks an invariant of this module.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of predictions; `msjoe evaluate` writes one")
    content = path.read_bytes()
    if not content:
        raise UserError(f"{path}: is empty; run its `msjoe evaluate` again")
    lines = content.split(b"\n")
    if lines.pop():
        raise UserError(
            f"{path}, line {len(lines) + 1}: is torn, the file ends within it; run its `msjoe evaluate` again, which "
            "asks only what is missing"
        )
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    _check_rows(path, rows)
    return rows


def _row(path: Path, number: int, line: bytes) -> Prediction:
    try:
        row = Prediction.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise UserError(f"{path}, line {number}: {field}: {first['msg']}; not a row of predictions") from None
    except ValueError as error:
        raise UserError(f"{path}, line {number}: is not JSON ({error}); the file is damaged") from None
    if row.benchmark not in BENCHMARKS:
        raise UserError(f"{path}, line {number}: benchmark {row.benchmark!r}; valid: {', '.join(BENCHMARKS)}")
    if row.label not in tuple(LETTERS[: row.num_options]):
        raise UserError(f"{path}, line {number}: label {row.label!r} of {row.num_options} options")
    return row


def _check_rows(path: Path, rows: Sequence[Prediction]) -> None:
    """Raises UserError where rows are doubled, or do not belong to one evaluation."""
    lines: dict[tuple[str, int, str], int] = {}
    first_of: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        place = (row.selector, row.budget, row.question_id)
        if place in lines:
            raise UserError(
                f"{path}, line {number}: question {row.question_id} with {row.selector} at {row.budget} frames stands in line "
                f"{lines[place]} already; remove one of them"
            )
        lines[place] = number
        for field in ("benchmark", "prompt", "prompt_hash", "model_hash"):
            if (mine := getattr(row, field)) != (theirs := getattr(rows[0], field)):
                raise UserError(f"{path}, line {number}: {field} {mine!r}, but line 1 has {theirs!r}; score them apart")
        if (known := hashes.setdefault(row.selector, row.selector_hash)) != row.selector_hash:
            raise UserError(
                f"{path}, line {number}: {row.selector} {row.selector_hash}, but {known} before; score the two apart"
            )
        first = rows[first_of.setdefault(row.question_id, number) - 1]
        if _asked(first) != _asked(row):
            raise UserError(
                f"{path}, line {number}: question {row.question_id} is not that of line {first_of[row.question_id]}; the file "
                "mixes two files of questions"
            )
    for one, other in pairwise(cells(rows).items()):
        if missing := [name for name in (*one[1], *other[1]) if not (name in one[1] and name in other[1])]:
            raise UserError(
                f"{path}: {_named(one[0])} and {_named(other[0])} answer different questions: {_some(missing)}; run its "
                "`msjoe evaluate` to the end"
            )


def cells(rows: Iterable[Prediction]) -> dict[Cell, dict[str, Prediction]]:
    """The rows of each selector and budget by question, in the order in which they come."""
    found: dict[Cell, dict[str, Prediction]] = {}
    for row in rows:
        found.setdefault((row.selector, row.budget), {})[row.question_id] = row
    return found


def check_questions(
    path: Path, rows: Sequence[Prediction], annotations: str, questions: Sequence[Question]
) -> list[str]:
    """The ids of questions that no row answers. Raises UserError when a row is about none of the questions, or about another
    one of that id. `annotations`: what the error calls them."""
    known = {question.id: question_hash(question) for question in questions}
    if other := dict.fromkeys(row.question_id for row in rows if known.get(row.question_id) != row.question_hash):
        raise UserError(
            f"{path}: holds replies to other questions than {annotations}, {_some(list(other))}; name the annotations that it "
            "was made of"
        )
    answered = {row.question_id for row in rows}
    return [name for name in known if name not in answered]


def _asked(row: Prediction) -> tuple[object, ...]:
    return row.question_hash, row.label, row.num_options, row.types, row.video


def _named(cell: Cell) -> str:
    return f"{cell[0]} at {cell[1]} frames"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"such as {', '.join(names[:NAMED])}{more}" if more else ", ".join(names)
