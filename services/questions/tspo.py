"""TSPO-10K: `original_question` with its options, `original_answer`, `video`; `type` is `general` or `specific`.

`problem` and `solution` of the same rows say less: the options are not there. The long videos that TSPO joins from a
`specific` row's video and others are made while it trains; here the question is about the row's own video.
"""

from __future__ import annotations

from dataclasses import replace

from services.questions.rows import Format, Place, Row, optional_text, text
from services.questions.verl import asked
from services.schema import Question


def _question(row: Row, place: Place) -> Question:
    answer, kind = ("original_answer", row.get("original_answer")), optional_text(row, "type")
    words, video = text(row, "original_question"), text(row, "video")
    return replace(asked(row, place, "original_question", words, answer, video, kind), data_source="TSPO-10K")


_SIGNATURE = ("video", "original_question", "original_answer")
TSPO = Format("TSPO-10K", _SIGNATURE, (*_SIGNATURE, "type"), _question)
