"""The reports of an evaluation: self-contained HTML pages of its scores and its evidence, with questions on which selectors
part.

Invariants: the page refers to nothing outside itself; everything a model wrote is escaped; the same evaluation makes the same
page. Pixels are read here, from the frame cache that the command sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from cluster import figures
from cluster.pages import render
from services.errors import VideoError
from services.frames import FrameCache
from services.schema import LETTERS, Question
from services.scoring import RULES, Prediction
from services.scoring.evidence import Choice
from services.scoring.extraction import lenient
from services.scoring.score import letter
from services.writing import writing

FILE, EVIDENCE_FILE = "report.html", "evidence.html"
LOOKED_AT = 4
"""Questions that the page looks at."""
MAIN = "lenient"
"""The rule of the curve, and of what is called right."""


def write_report(
    folder: Path,
    scores: Mapping[str, Any],
    rows: Sequence[Prediction],
    questions: Mapping[str, Question],
    cache: FrameCache,
) -> Path:
    """Make `folder/report.html`; returns its path. `questions`: by id."""
    most = max(row.budget for row in rows)
    with matplotlib.rc_context(figures.STYLE):
        return _write(
            folder / FILE,
            "evaluation.html.j2",
            scores=scores,
            rules=RULES,
            main=MAIN,
            most=most,
            kinds=list(dict.fromkeys((scores["headline"], "micro"))),
            curve=_curve(scores, lambda result: result["rules"][MAIN][scores["headline"]], "accuracy"),
            looked_at=[_look(parts, questions[name], cache) for name, parts in _parting(rows, most).items()],
            letters=LETTERS,
        )


def write_evidence(folder: Path, title: str, evidence: Mapping[str, Any], choices: Sequence[Choice]) -> Path:
    """Make `folder/evidence.html` of the scores and of the choices they are of; returns its path."""
    most = max(choice.budget for choice in choices)
    by_question: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.budget == most:
            by_question.setdefault(choice.question.id, []).append(choice)

    def apart(parts: Sequence[Choice]) -> float:
        recalls = [part.measures["recall"] for part in parts]
        return max(recalls) - min(recalls)

    parting = sorted(by_question.values(), key=apart, reverse=True)[:LOOKED_AT]
    with matplotlib.rc_context(figures.STYLE):
        return _write(
            folder / EVIDENCE_FILE,
            "evidence.html.j2",
            title=title,
            evidence=evidence,
            most=most,
            curve=_curve(evidence, lambda result: result["recall"], "mean"),
            looked_at=[
                {
                    "question": parts[0].question,
                    "video": Path(parts[0].question.video).name,
                    "plot": figures.moments_plot(
                        parts[0].num_frames,
                        parts[0].question.moments,
                        {part.selector: part.frames for part in parts},
                    ),
                }
                for parts in parting
            ],
        )


def _write(path: Path, template: str, **shown: Any) -> Path:
    page = render(template, **shown)
    with writing(path):
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _curve(scores: Mapping[str, Any], estimate_of: Callable[[Mapping[str, Any]], Mapping[str, Any]], value: str) -> str:
    """Percentages over the budgets, with their intervals, a line per selector. `value`: the name of an estimate's value."""
    budgets = sorted({result["budget"] for result in scores["results"]})
    points: dict[str, list[tuple[float, float, float] | None]] = {}
    for result in scores["results"]:
        estimate = estimate_of(result)
        low, high = estimate["interval"] or (estimate[value],) * 2
        line = points.setdefault(result["selector"], [None] * len(budgets))
        line[budgets.index(result["budget"])] = 100 * estimate[value], 100 * low, 100 * high
    return figures.intervals_plot(budgets, points)


def _parting(rows: Sequence[Prediction], budget: int) -> dict[str, list[Prediction]]:
    """The rows at the budget of the first questions on which some selectors are right and others wrong; else of the first."""
    by_question: dict[str, list[Prediction]] = {}
    for row in rows:
        if row.budget == budget:
            by_question.setdefault(row.question_id, []).append(row)
    order = sorted(
        by_question, key=lambda name: len({letter(lenient, row) == row.label for row in by_question[name]}) < 2
    )
    return {name: by_question[name] for name in order[:LOOKED_AT]}


def _look(rows: Sequence[Prediction], question: Question, cache: FrameCache) -> dict[str, Any]:
    """What the template shows of one question: its text, and what each selector took and led to."""
    return {"question": question, "parts": [_part(row, question, cache) for row in rows]}


def _part(row: Prediction, question: Question, cache: FrameCache) -> dict[str, Any]:
    said, thumbnails, no_frames = letter(lenient, row), [], row.reason
    try:
        if row.frames and (video := cache.find(question.video)):
            pixels = cache.read(video.key, row.frames)
            thumbnails = list(zip(row.frames, map(figures.thumbnail, pixels), strict=True))
    except (OSError, VideoError) as error:
        no_frames = str(error)
    return {"row": row, "letter": said, "thumbnails": thumbnails, "no_frames": no_frames}
