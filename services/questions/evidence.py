"""The evidence of a question, that is where its answer lies: how its columns are read, and how much of it a trajectory met.

Evidence is a `Question`'s `moments` and `wanted_queries`. Either may be empty: not known. Nothing learns from them; validation
measures whether the right moments were seen and the right queries asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.questions.rows import Row, names, wrong
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


def share_seen(question: Question, frames: Sequence[int]) -> float:
    """Share of the moments that one of `frames` shows; frame `i` stands for the second around `i`."""
    seen = [
        any(start - 0.5 <= frame <= end + 0.5 for start, end in spans for frame in frames) for spans in question.moments
    ]
    return sum(seen) / len(seen)


def share_asked(question: Question, queries: Sequence[str]) -> float:
    """Share of the wanted queries all of whose words are in one of `queries`."""
    asked = [any(set(wanted.split()) <= set(query.split()) for query in queries) for wanted in question.wanted_queries]
    return sum(asked) / len(asked)
