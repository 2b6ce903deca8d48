"""LVBench: one line a video (`key`), its questions in `qa`, the options inside each question as lines `(A) …`.

Reported by `question_type`, of which a question has one to three. Videos are `<key>.mp4`. `time_reference` (`33:57-34:04`) is a
question's one moment; one that cannot be read so, or ends before it starts (the release has such), is taken as not known.
"""

from __future__ import annotations

import re

from services.questions.choices import letter, split_options
from services.questions.rows import Format, Place, Row, WrongRow, identity, names, naming, text, unicode, wrong
from services.schema import Question, Span

_VIDEOS = ("", "videos", "../videos", "all_videos", "../all_videos", "../scripts/videos")


def _parts(row: Row) -> list[Row]:
    asked = row.get("qa")
    if not (isinstance(asked, list) and asked and all(isinstance(part, dict) for part in asked)):
        raise wrong(row, "qa", "a list of one or more objects with uid, question, answer and question_type")
    return [{**part, "key": row.get("key")} for part in asked]


def _question(row: Row, place: Place) -> Question:
    with naming("question"):
        question, options = split_options(text(row, "question"))
    if not options:
        raise WrongRow("no options in it; valid: lines (A) …, (B) … after the question", "question")
    unicode(row.get("answer"), "answer")
    with naming("answer"):
        right = letter(row.get("answer"), len(options))
    types = names(row, "question_type", "a list of strings")
    if not types:
        raise wrong(row, "question_type", "a list of strings")
    return Question(
        identity(row, "uid"),
        place.find(f"{text(row, 'key')}.mp4", _VIDEOS),
        question,
        options,
        right,
        data_source="LVBench",
        group=types,
        moments=_moments(row.get("time_reference")),
    )


def _moments(reference: object) -> tuple[tuple[Span, ...], ...]:
    clock = r"((?:\d+:)?\d+:[0-5]\d)"
    if not (isinstance(reference, str) and (found := re.fullmatch(rf"\s*{clock}\s*-\s*{clock}\s*", reference))):
        return ()
    start, end = map(_seconds, found.groups())
    return (((start, end),),) if start <= end else ()


def _seconds(clock: str) -> float:
    """Seconds of `MM:SS`, whose minutes may be above 59, or `H:MM:SS`."""
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


LVBENCH = Format("LVBench", ("key", "qa"), ("key", "qa"), _question, parts=_parts, id="uid")
