"""`msjoe frames`: the frames of a file of predictions, written in a form that other programs take (`frame_files.py`).

Invariant: what is written is what was shown. A question that could not be asked is written as such, or, where the form
cannot say that, left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.evaluation.frame_files import FORMS, content_hash, some
from services.errors import UserError, VideoError
from services.questions import read_rows
from services.schema import Question
from services.scoring import Prediction, check_questions, read_predictions
from services.storage import written_whole
from services.video import frame_numbers

Annotated = tuple[str, dict[str, Any], list[Question]]
"""A row of the annotations as it stands there: its place, its content, the questions that it gives."""


@dataclass(frozen=True)
class Export:
    """What is to be written, and where."""

    predictions: Path
    form: str
    """A name of `FORMS`."""
    selector: str | None
    """None: the only one in the predictions."""
    budgets: Sequence[int]
    """Empty: all in the predictions; AKS's and BOLT's forms hold one."""
    annotations: Sequence[Path]
    """The benchmark's files of questions, which AKS's form repeats; BOLT's has the questions from them."""
    videos: Path | None
    """The folder of its videos, whose own frames AKS's form counts."""
    out: Path


def export(asked: Export, console: Console) -> None:
    """Write the file. Raises UserError for what the predictions have not, or the form needs."""
    if asked.form not in FORMS:
        raise UserError(f"--form={asked.form}: valid: {', '.join(FORMS)}")
    suffix = ".jsonl" if asked.form == "jsonl" else ".json"
    if asked.out.suffix != suffix:
        raise UserError(f"--out={asked.out}: valid: a name that ends in {suffix}")
    rows = _rows(asked)
    questions = _annotated(asked, rows)
    refused = [row.question_id for row in rows if row.reply is None]
    if asked.form == "jsonl":
        content = "".join(json.dumps(_line(row)) + "\n" for row in rows)
    else:
        shown = {row.question_id: row for row in rows if row.reply is not None}
        value = _bolt(shown, questions) if asked.form == "bolt" else _aks(shown, questions)
        content = json.dumps(value)
        if refused:
            console.print(
                f"{len(refused)} questions could not be asked and are left out: {some(refused)}", soft_wrap=True
            )
        if short := [name for name, row in shown.items() if len(row.frames) < row.budget]:
            console.print(
                f"{len(short)} questions have fewer than {rows[0].budget} frames, all that their videos have: {some(short)}; "
                "some programs then choose frames of their own",
                soft_wrap=True,
            )
    with written_whole(asked.out) as temporary:
        temporary.write_text(content)
    console.print(f"frames: {asked.out} (hash {content_hash(content.encode())})", soft_wrap=True, markup=False)


def _rows(asked: Export) -> list[Prediction]:
    """The predictions of the selector at the budgets asked for."""
    rows = read_predictions(asked.predictions)
    selectors, budgets = {row.selector: None for row in rows}, sorted({row.budget for row in rows})
    selector = asked.selector or (next(iter(selectors)) if len(selectors) == 1 else None)
    if selector not in selectors:
        raise UserError(f"--selector={asked.selector or ''}: valid, of {asked.predictions}: {', '.join(selectors)}")
    wanted = asked.budgets or budgets
    if not {*wanted} <= {*budgets} or (len(wanted) > 1 and asked.form != "jsonl"):
        one = " (--form=jsonl takes several)" if asked.form != "jsonl" else ""
        raise UserError(
            f"--frames={','.join(map(str, asked.budgets))}: valid, of {asked.predictions}: {', '.join(map(str, budgets))}{one}"
        )
    return [row for row in rows if row.selector == selector and row.budget in wanted]


def _annotated(asked: Export, rows: Sequence[Prediction]) -> list[Annotated]:
    """The rows of the annotations, whose questions are those of the predictions; empty where the form needs none."""
    if asked.form == "jsonl":
        return []
    if not asked.annotations or (asked.form == "aks" and not asked.videos):
        needed = "--annotations and --videos" if asked.form == "aks" else "--annotations"
        raise UserError(f"--form={asked.form}: needs {needed}, as `msjoe evaluate` had them")
    root = asked.videos.absolute() if asked.videos else None
    found = [
        (f"{file}, row {number}", row, of) for file in asked.annotations for number, row, of in read_rows(file, root)
    ]
    names = ", ".join(map(str, asked.annotations))
    check_questions(asked.predictions, rows, names, [question for _, _, of in found for question in of])
    return found


def _line(row: Prediction) -> dict[str, Any]:
    """A candidate frame is the one on screen at a whole second."""
    return {
        "question_id": row.question_id,
        "seconds": row.frames if row.reply is not None else None,
        "budget": row.budget,
        "video": row.video,
        "selector": row.selector,
        "selector_hash": row.selector_hash,
        "question_hash": row.question_hash,
    } | ({} if row.reply is not None else {"reason": row.reason})


def _bolt(shown: dict[str, Prediction], annotated: Sequence[Annotated]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for question in (question for _, _, of in annotated for question in of if question.id in shown):
        frames = list(map(float, shown[question.id].frames))
        entry = {"question_id": question.id, "question": question.question, "frames": frames}
        found.setdefault(Path(question.video).stem, []).append(entry)
    return found


def _aks(shown: dict[str, Prediction], annotated: Sequence[Annotated]) -> list[dict[str, Any]]:
    """Raises UserError for rows that hold several questions, and videos that do not number their frames."""
    numbers: dict[str, list[int]] = {}
    found = []
    for place, row, of in annotated:
        if len(of) > 1:
            raise UserError(f"{place}: holds {len(of)} questions, and AKS's form one list a row; use --form=jsonl")
        for question in of:
            if question.id in shown:
                try:
                    if question.video not in numbers:
                        numbers[question.video], _ = frame_numbers(question.video)
                except VideoError as error:
                    raise UserError(f"--form=aks: {error}; use --form=jsonl, which has seconds") from None
                frames = [numbers[question.video][frame] for frame in shown[question.id].frames]
                found.append(row | {"frame_idx": frames})
    return found
