"""Video-MME-v2: eight lettered `options` in one text or a list, `answer` a letter, four questions to a video.

The four questions of a video are a group that is scored as a whole (`services/scoring/groups.py`): `group_type` says how, and
for `logic` the `group_structure` of its steps. Only the last question of a group has `level`, `second_head` and `third_head`.
Videos are `<video_id>.mp4`; the subtitles, which are single words, are not read.
"""

from __future__ import annotations

from services.questions.choices import letter, split_options, unlabelled
from services.questions.rows import Format, Place, Row, identity, labels, naming, text, texts, unicode, wrong
from services.schema import Question

_VIDEOS = ("", "data", "../data", "videos", "../videos")
_REPORTED = {"level": "level", "second_head": "second head", "third_head": "third head"}


def _question(row: Row, place: Place) -> Question:
    question, kind = text(row, "question"), text(row, "group_type")
    with naming("options"):
        options = _options(row)
    unicode(row.get("answer"), "answer")
    with naming("answer"):
        right = letter(row.get("answer"), len(options))
    if kind not in ("relevance", "logic"):
        raise wrong(row, "group_type", "relevance or logic")
    structure = f" {text(row, 'group_structure')}" if kind == "logic" else ""
    return Question(
        identity(row, "question_id"),
        place.find(f"{identity(row, 'video_id')}.mp4", _VIDEOS),
        question,
        options,
        right,
        data_source="Video-MME-v2",
        group=(f"group type: {kind}{structure}", *labels(row, _REPORTED)),
    )


def _options(row: Row) -> tuple[str, ...]:
    if isinstance(row.get("options"), list):
        return unlabelled(texts(row, "options"))
    _, options = split_options(f"?\n{text(row, 'options')}")
    if not options:
        raise wrong(row, "options", "lines A. …, B. … and so on, or a list of them")
    return options


_SIGNATURE = ("video_id", "question_id", "question", "options", "group_type")
VIDEOMME_V2 = Format(
    "Video-MME-v2", _SIGNATURE, (*_SIGNATURE, "answer", "group_structure", *_REPORTED), _question, id="question_id"
)
