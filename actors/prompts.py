"""The two turns' chat messages and the parsers of their replies: one place for rollout, evaluation and serving.

A parser never raises: a reply of any shape gives queries (perhaps none) or a letter (perhaps None), and whether the format
was kept. The formats are ours; the paper does not publish its prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.chat import Message, Part
from services.questions.subtitles import Subtitle, interleave
from services.schema import LETTERS, Question, ShownAs

_QUERY_LINE = re.compile(r"\s*<query>([^<>]*[^<>\s][^<>]*)</query>\s*")
_ANSWER = re.compile(r"<answer>\s*([A-Z])\s*</answer>")

_ASK_LETTER = "Answer with the letter of the right option as <answer>X</answer>."
_ASK_FREELY = "Answer in a few words."

VIDEO: Part = {"type": "video"}
IMAGE: Part = {"type": "image"}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _user(*content: Part) -> list[Message]:
    return [{"role": "user", "content": [*content]}]


def _with_options(question: Question) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return "\n".join([question.question, *lines])


def query_messages(
    question: Question, *, show_options: bool = True, max_queries: int = 4, has_video: bool = True
) -> list[Message]:
    """Messages of the query turn: preview frames (unless there are none), the question, the request for visual queries."""
    asked = _with_options(question) if show_options else question.question
    request = (
        f"These frames preview a long video. Question about it:\n{asked}\n"
        "Reason about what must be seen to answer. "
        f"Then write up to {max_queries} short visual queries, one per line, each as <query>...</query>."
    )
    return _user(*([VIDEO] if has_video else []), _text(request))


def answer_messages(
    question: Question,
    seconds: Sequence[float] = (),
    subtitles: Sequence[Subtitle] = (),
    shown_as: ShownAs = "video",
    request: str | None = None,
) -> list[Message]:
    """Messages of the answer turn: the key frames, the question, the request for one letter, or for a few words when the
    question has no options. `request`: the text that asks it all, in place of ours.

    Images stand behind their `seconds`, with the `subtitles` between them; a video has its subtitles, in time order, behind it,
    and before these the seconds of its frames when no two share a patch.
    """
    ours = f"{_with_options(question)}\n{_ASK_LETTER if question.options else _ASK_FREELY}"
    parts: list[Part] = []
    if shown_as != "images":
        spoken = "".join(f"{subtitle.start:.0f} s: {subtitle.text}\n" for subtitle in subtitles)
        when = f"Seconds of the frames: {', '.join(f'{second:g}' for second in seconds)}\n"
        parts = [VIDEO, *([_text(when)] if shown_as == "doubled" else [])]
        parts += [_text(f"Subtitles:\n{spoken}")] if spoken else []
    else:
        for part in interleave(seconds, subtitles):
            if part[0] == "frame":
                parts += [_text(f"{seconds[part[1]]:g} s: "), IMAGE, _text("\n")]
            else:
                parts.append(_text(f"Subtitle: {part[1]}\n"))
    return _user(*parts, _text(ours if request is None else request))


def parse_queries(reply: str, max_queries: int = 4) -> tuple[tuple[str, ...], bool]:
    """The reply's queries, at most `max_queries`, and whether it kept the format.

    A query is a line that is exactly `<query>text</query>`. The format is kept when there are 1 to `max_queries` of them
    and no other line holds a query tag.
    """
    lines = reply.splitlines()
    queries = [match.group(1).strip() for line in lines if (match := _QUERY_LINE.fullmatch(line))]
    tagged = sum("<query" in line or "</query" in line for line in lines)
    return tuple(queries[:max_queries]), 1 <= len(queries) <= max_queries and tagged == len(queries)


def parse_answer(reply: str, num_options: int) -> tuple[str | None, bool]:
    """The letter of the last `<answer>X</answer>` (None when there is none), and whether the format was kept.

    The format is kept when there is exactly one such tag and its letter is one of the options'.
    """
    letters = _ANSWER.findall(reply)
    if not letters:
        return None, False
    return letters[-1], len(letters) == 1 and letters[-1] in LETTERS[:num_options]
