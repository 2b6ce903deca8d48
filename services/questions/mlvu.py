"""MLVU, dev and test: JSON (`answer` is the option's text) and the parquet form (`answer` is a letter, the options stand in
the question too). A dev question has 4 candidates, a test question 6.

Reported by task. The generation tasks (sub-scene captioning, summary) have no candidates: no questions for us. As released,
dev videos are in `video/<number>_<task>/` beside the folder `json/`, test videos in `video/`.
Where two candidates say the same, the answer is the first, as in the parquet form.
"""

from __future__ import annotations

from services.questions.choices import letter, split_options
from services.questions.rows import (
    Format,
    NoQuestion,
    Place,
    Row,
    identity,
    naming,
    text,
    texts,
    unanswered,
    unicode,
    whole,
    wrong,
)
from services.schema import LETTERS, Question

_TASKS = {"findNeedle": "needle"}
"""Names of tasks in the JSON that differ from those of its file and of the parquet form."""
_FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
TEST_OPTIONS = 6


def _json(row: Row, place: Place) -> Question:
    task = text(row, "question_type")
    if row.get("candidates") is None:
        raise NoQuestion(f"open-ended: the task {' '.join(task.split())} has no candidates")
    options, answer = texts(row, "candidates", may_be_empty=True), row.get("answer")
    unicode(answer, "answer")
    if unanswered(answer):
        raise NoQuestion("no answer is published")
    count = whole(answer)
    said = str(answer if count is None else count).strip()
    same = [index for index, option in enumerate(options) if option.strip() == said]
    if not same:
        raise wrong(row, "answer", "the text of one of the candidates")
    return _question(
        row, place, "video", text(row, "question").strip(), options, LETTERS[same[0]], _TASKS.get(task, task)
    )


def _parquet(row: Row, place: Place) -> Question:
    options = texts(row, "candidates", may_be_empty=True)
    with naming("question"):
        question, _ = split_options(text(row, "question"))
    if row.get("answer") is None:
        raise NoQuestion("no answer is published")
    unicode(row["answer"], "answer")
    with naming("answer"):
        right = letter(row["answer"], len(options))
    return _question(row, place, "video_name", question, options, right, text(row, "task_type"))


def _question(
    row: Row, place: Place, video: str, question: str, options: tuple[str, ...], right: str, task: str
) -> Question:
    tasks = (f"{folder}{_FOLDERS[task]}" for folder in ("", "video/", "../video/")) if task in _FOLDERS else ()
    folders = ("", *tasks, "video", "../video", "../MLVU_Test/video")
    return Question(
        identity(row, "question_id") if "question_id" in row else place.id,
        place.find(text(row, video), folders),
        question,
        options,
        right,
        data_source="MLVU",
        group=(task,),
    )


def _is_test(row: Row) -> bool:
    candidates = row.get("candidates")
    return isinstance(candidates, list) and len(candidates) == TEST_OPTIONS


_JSON = ("video", "question", "question_type")
_JSON_COLUMNS = (*_JSON, "candidates", "answer", "question_id")
_PARQUET = ("video_name", "question", "candidates", "task_type")
_PARQUET_COLUMNS = (*_PARQUET, "answer", "question_id")
MLVU = (
    Format("MLVU test", _JSON, _JSON_COLUMNS, _json, suits=_is_test, id="question_id"),
    Format("MLVU dev", _JSON, _JSON_COLUMNS, _json, id="question_id"),
    Format("MLVU test", _PARQUET, _PARQUET_COLUMNS, _parquet, suits=_is_test, id="question_id"),
    Format("MLVU dev", _PARQUET, _PARQUET_COLUMNS, _parquet, id="question_id"),
)
