"""The evidence of a question, that is where its answer lies: how its columns are read, and how much of it a choice met.

Evidence is a `Question`'s `moments` (or `moment_frames`, until the video's frame rate makes moments of them) and
`wanted_queries`. Any may be empty: not known. Nothing learns from them; validation measures whether the right moments were seen
and the right queries asked, and the choices of selectors are compared by them without an MLLM.

Candidate frame `i` stands for the second around `i`: it shows what happens from `i - 0.5` to `i + 0.5`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from services.questions.rows import Row, names, whole, wrong
from services.schema import Question, Span

_MOMENTS = "a list of moments, each [start, end] in seconds with 0 <= start <= end or a list of such spans; or null"
_QUERIES = "a list of non-empty strings, or null"
_LONGEST = 1e9
"""Seconds; no video is as long."""


def moments(row: Row, field: str) -> tuple[tuple[Span, ...], ...]:
    """The moments in a row's `field`; empty when there is none. Raises WrongRow."""
    value = row.get(field)
    if value is None:
        return ()
    found = tuple(map(_moment, value)) if isinstance(value, list) else ((),)
    if not all(found):
        raise wrong(row, field, _MOMENTS)
    return found


def _moment(value: object) -> tuple[Span, ...]:
    """The spans of one moment, of which a single one may stand without a list around it; empty when it is no moment."""
    if not isinstance(value, list):
        return ()
    spans = [_span(part) for part in ([value] if _span(value) else value)]
    return tuple(span for span in spans if span) if all(spans) else ()


def _span(value: object) -> Span | None:
    match value:
        case [int() | float() as start, int() | float() as end] if bool not in (type(start), type(end)):
            return (float(start), float(end)) if 0 <= start <= end <= _LONGEST else None
    return None


def wanted_queries(row: Row, field: str) -> tuple[str, ...]:
    """The queries in a row's `field`; empty when there is none. Raises WrongRow."""
    if row.get(field) is None:
        return ()
    queries = names(row, field, _QUERIES)
    if not all(query.strip() for query in queries):
        raise wrong(row, field, _QUERIES)
    return queries


def moment_frames(row: Row, field: str) -> tuple[int, ...]:
    """The numbers of frames in a row's `field`; empty when there is none. Raises WrongRow."""
    found = () if row.get(field) is None else frame_numbers(row[field])
    if found is None:
        raise wrong(row, field, "a list of frame numbers from 0, or null")
    return found


def frame_numbers(value: object) -> tuple[int, ...] | None:
    """A list of frame numbers from 0; None when it is none."""
    numbers = [whole(part) for part in value] if isinstance(value, list) else [None]
    found = tuple(number for number in numbers if number is not None and number >= 0)
    return found if len(found) == len(numbers) else None


def has_moments(question: Question) -> bool:
    """Whether it is known where the answer lies, in seconds or by frame numbers."""
    return bool(question.moments or question.moment_frames)


def with_moments(question: Question, frame_rate: float) -> Question:
    """The question with a moment for each of its `moment_frames`, in a video of `frame_rate` frames per second; one whose
    moments are known stays as it is."""
    if question.moments:
        return question
    seconds = [number / frame_rate for number in question.moment_frames]
    return replace(question, moments=tuple(((second, second),) for second in seconds))


def share_seen(question: Question, frames: Sequence[int]) -> float:
    """Recall@K: the share of the moments that one of the K `frames` shows."""
    return sum(distance == 0.0 for distance in _distances(question, frames)) / len(question.moments)


def gap(question: Question, frames: Sequence[int]) -> float:
    """Seconds between a moment and the nearest second that one of `frames` stands for, the mean over the moments; a moment that
    is seen counts 0."""
    return math.fsum(_distances(question, frames)) / len(question.moments)


def coverage(question: Question, frames: Sequence[int], num_frames: int) -> float:
    """Share of those of T = `num_frames` candidates showing a moment that are among `frames`; 0 when none shows one."""
    spans = [span for spans in question.moments for span in spans]
    showing = {frame for frame in range(num_frames) if any(_distance(frame, span) == 0.0 for span in spans)}
    return len(showing.intersection(frames)) / len(showing) if showing else 0.0


def num_unreachable(question: Question, num_frames: int) -> int:
    """How many moments no candidate frame shows, of T = `num_frames`: they lie beyond the video, or in its last half second."""
    return sum(distance > 0.0 for distance in _distances(question, range(num_frames)))


def _distances(question: Question, frames: Sequence[int]) -> list[float]:
    """For each moment the seconds from it to the nearest second that one of `frames` stands for."""
    return [
        min((_distance(frame, span) for span in spans for frame in frames), default=math.inf)
        for spans in question.moments
    ]


def _distance(frame: int, span: Span) -> float:
    """Seconds between a span and the second that a frame stands for; 0 when they meet."""
    start, end = span
    return max(0.0, start - 0.5 - frame, frame - 0.5 - end)


def share_asked(question: Question, queries: Sequence[str]) -> float:
    """Share of the wanted queries all of whose words are in one of `queries`."""
    asked = [any(set(wanted.split()) <= set(query.split()) for query in queries) for wanted in question.wanted_queries]
    return sum(asked) / len(asked)
