"""The training files of the RL libraries: verl, and EasyR1 with its descendant LongVILA-R1.

All three keep question and options in one text and say the answer as letter, `(B)`, `<answer>B</answer>` or the option's
text; rows without options (mathematics, counts, free answers) hold no question for us.
"""

from __future__ import annotations

from services.questions.choices import is_letter, letter_of, split_options
from services.questions.rows import (
    Format,
    NoQuestion,
    Place,
    Row,
    naming,
    one_video,
    optional_text,
    text,
    unicode,
    wrong,
)
from services.schema import Question


def asked(
    row: Row, place: Place, field: str, words: str, answer: tuple[str, object], video: str, kind: str = ""
) -> Question:
    """The question in `words`, which stand in `field`, by its `kind` or else its data source; `answer` is a field and
    what it says."""
    with naming(field):
        question, options = split_options(words)
    if not options and isinstance(answer[1], str) and is_letter(answer[1]):
        raise NoQuestion(f"its answer is a letter, but no options can be read in {field}")
    if not options:
        raise NoQuestion("open-ended: no options in the question")
    unicode(answer[1], answer[0])
    with naming(answer[0]):
        letter = letter_of(answer[1], options, place.integers)
    source = optional_text(row, "data_source")
    group = (kind or source,) if kind or source else ()
    return Question(place.id, place.find(video), question, options, letter, data_source=source, group=group)


def _verl(row: Row, place: Place) -> Question:
    video, reward = one_video(row, "videos"), row.get("reward_model")
    if not (isinstance(reward, dict) and "ground_truth" in reward):
        raise wrong(row, "reward_model", "an object with ground_truth")
    return asked(
        row, place, "prompt", _user_text(row), ("reward_model.ground_truth", reward["ground_truth"]), video=video
    )


def _user_text(row: Row) -> str:
    """What the user says in the only user turn of `prompt`, a list of chat messages of text or of parts."""
    messages = row.get("prompt")
    if not (isinstance(messages, list) and all(isinstance(message, dict) for message in messages)):
        raise wrong(row, "prompt", "a list of messages with role and content")
    contents = [message.get("content") for message in messages if message.get("role") == "user"]
    if len(contents) != 1:
        raise NoQuestion("no user turn" if not contents else "several user turns")
    parts = contents[0] if isinstance(contents[0], list) else [{"text": contents[0]}]
    said = [part.get("text") or "" for part in parts if isinstance(part, dict)]
    for words in said:
        unicode(words, "prompt")
    if not all(isinstance(words, str) for words in said):
        raise wrong(row, "prompt", "a user message whose content is text, or a list of parts")
    return "\n".join(said).strip()


def _easyr1(row: Row, place: Place) -> Question:
    answer, kind = ("answer", row.get("answer")), optional_text(row, "problem_type")
    return asked(row, place, "problem", text(row, "problem"), answer, one_video(row, "videos"), kind)


VERL = Format("verl", ("prompt", "reward_model"), ("prompt", "videos", "reward_model", "data_source"), _verl)
_COLUMNS = ("problem", "answer", "videos", "problem_type", "data_source")
LONGVILA = Format(
    "LongVILA-R1", ("problem", "answer", "videos"), _COLUMNS, _easyr1, suits=lambda row: isinstance(row["videos"], str)
)
EASYR1 = Format("EasyR1", ("problem", "answer"), _COLUMNS, _easyr1)
