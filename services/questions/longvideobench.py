"""LongVideoBench: `candidates` (JSON) or `option0…option4` with N/A for none (parquet), `correct_choice` an index from 0.

Reported by `duration_group` (15, 60, 600 or 3600 seconds), and by `question_category` and `level` where the file has them.
As released, videos are in `videos/` and subtitles in `subtitles/` beside the file. The test split has no answers.
`position` is read as numbers of the video's own frames which the question refers to (ours: the authors do not say what it is;
all numbers fit 25 frames per second). One that cannot be read so is taken as not known.
"""

from __future__ import annotations

from services.questions.evidence import frame_numbers
from services.questions.rows import (
    Format,
    NoQuestion,
    Place,
    Row,
    identity,
    labels,
    number,
    optional_text,
    text,
    texts,
    unanswered,
    whole,
    wrong,
)
from services.schema import LETTERS, Question

_REPORTED = {"question_category": "category", "level": "level"}
_OPTIONS = tuple(f"option{index}" for index in range(5))
_VIDEOS = ("", "videos", "../videos")
_SUBTITLES = ("", "subtitles", "../subtitles")


def _question(row: Row, place: Place) -> Question:
    if "candidates" not in row:
        row = row | {"candidates": [row[name] for name in _OPTIONS if row.get(name) not in (None, "N/A")]}
    options, said = texts(row, "candidates"), row.get("correct_choice")
    if unanswered(said) or said in (-1, "@"):
        raise NoQuestion("no answer is published")
    right, group = whole(said), whole(row.get("duration_group"))
    if right is None or not 0 <= right < len(options):
        raise wrong(row, "correct_choice", f"an index from 0 to {len(options) - 1}")
    if group is None:
        raise wrong(row, "duration_group", "a number of seconds")
    return Question(
        identity(row, "id"),
        place.find(text(row, "video_path"), _VIDEOS),
        text(row, "question"),
        options,
        LETTERS[right],
        data_source="LongVideoBench",
        group=(str(group), *labels(row, _REPORTED)),
        subtitles=place.find(subtitles, _SUBTITLES) if (subtitles := optional_text(row, "subtitle_path")) else None,
        subtitle_offset=number(row, "starting_timestamp_for_subtitles", "a number of seconds"),
        moment_frames=frame_numbers(row.get("position")) or (),
    )


_SIGNATURE = ("id", "video_path", "question", "duration_group")
_COLUMNS = (*_SIGNATURE, "correct_choice", "subtitle_path", "starting_timestamp_for_subtitles", "position", *_REPORTED)
LONGVIDEOBENCH = Format("LongVideoBench", (*_SIGNATURE, "candidates"), (*_COLUMNS, "candidates"), _question)
LONGVIDEOBENCH_PARQUET = Format("LongVideoBench", (*_SIGNATURE, "option0"), (*_COLUMNS, *_OPTIONS), _question)
