"""VideoMME: lettered `options`, `answer` a letter, reported by `duration` (short, medium, long), and by `domain`,
`sub_category` and `task_type` where the file has them.

Videos are `<videoID>.mp4`, in `data/` beside the table as released; subtitles `<videoID>.srt`, in `subtitle/`. Not every
video has subtitles, and the table does not say which.
"""

from __future__ import annotations

import os

from services.questions.choices import letter, unlabelled
from services.questions.rows import Format, Place, Row, identity, labels, naming, text, texts, unicode
from services.schema import Question

_VIDEOS = ("", "data", "../data", "videos", "../videos")
_SUBTITLES = ("", "subtitle", "../subtitle")
_REPORTED = {"domain": "domain", "sub_category": "sub-category", "task_type": "task type"}


def _question(row: Row, place: Place) -> Question:
    with naming("options"):
        options = unlabelled(texts(row, "options"))
    unicode(row.get("answer"), "answer")
    with naming("answer"):
        right = letter(row.get("answer"), len(options))
    video = text(row, "videoID")
    subtitles = place.find(f"{video}.srt", _SUBTITLES)
    return Question(
        identity(row, "question_id"),
        place.find(f"{video}.mp4", _VIDEOS),
        text(row, "question"),
        options,
        right,
        data_source="VideoMME",
        group=(text(row, "duration"), *labels(row, _REPORTED)),
        subtitles=subtitles if os.path.exists(subtitles) else None,
    )


VIDEOMME = Format(
    "VideoMME",
    ("videoID", "question_id", "question", "options", "duration"),
    ("videoID", "question_id", "question", "options", "answer", "duration", *_REPORTED),
    _question,
    id="question_id",
)
