"""Subtitle files, and which of their lines belong to which frames: SRT (VideoMME), WebVTT, both JSON shapes of LongVideoBench.

Times are seconds of the video. Which subtitles go with a set of frames, and where between them, is LongVideoBench's rule:
those on screen at one of the frames (a short one counts as `SHORTEST` long around its middle), each before the first
frame after its middle.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any, Literal

from services.errors import QuestionError
from services.questions.cues import Cue, read_cues, seconds
from services.questions.encodings import decoded
from services.questions.rows import NO_TEXT

SHORTEST = 1.0
"""Seconds."""

_ENDLESS = 1e9
"""Seconds that no video has."""
_TAG = re.compile(
    r"</?(?:[ibus]|ruby|rt)(?:\.[\w.-]+)?>|</?font(?:\s[^<>]*)?>|(?-i:</?c(?:\.[^<>\s]+)?>|<v(?:\.[^<>\s]+)?\s[^<>]*>|</v>"
    r"|<lang\s[^<>]*>|</lang>)|<\d+:\d\d(?::\d\d)?[.,]\d+>|\{\\[^{}]*\}",
    re.IGNORECASE,
)
"""Markup of SRT and WebVTT; all else between angle brackets is text."""
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z][A-Za-z\d]*);")


@dataclass(frozen=True)
class Subtitle:
    start: float
    end: float
    text: str

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def read_subtitles(path: Path | str, offset: float = 0.0, duration: float = math.inf) -> tuple[Subtitle, ...]:
    """The subtitles of a `.srt`, `.vtt` or `.json` file in time order, `offset` seconds earlier than the file says; those
    without an end are shown until the video's, at `duration` seconds.

    Markup and line breaks are taken out of the text, entities are the characters they name; a subtitle without text says
    nothing, and is left out. Raises QuestionError naming the file and the place for one that cannot be read.
    """
    path = Path(path)
    readers = {".srt": read_cues, ".vtt": read_cues, ".json": _json}
    if path.suffix.lower() not in readers:
        raise QuestionError(f"{path}: unknown kind of subtitles {path.suffix!r}; valid: {', '.join(readers)}")
    try:
        cues = [
            (start, end, _plain(text)) for start, end, text in readers[path.suffix.lower()](decoded(path.read_bytes()))
        ]
    except OSError as error:
        raise QuestionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise QuestionError(f"{path}: {error}") from error
    found = (
        Subtitle(start - offset, duration if end is None else end - offset, text) for start, end, text in cues if text
    )
    return tuple(sorted(found, key=lambda subtitle: subtitle.start))


def _plain(text: str) -> str:
    """What is shown of a cue's text. Raises ValueError for what is no text."""
    text = _ENTITY.sub(lambda entity: unescape(entity[0]), _TAG.sub("", _BREAK.sub(" ", text)))
    if found := NO_TEXT.search(text):
        raise ValueError(f"subtitle {text[:60]!r}: has {found[0]!a}, which is no text; valid: Unicode text")
    return " ".join(text.split())


def overlapping(subtitles: Sequence[Subtitle], seconds: Sequence[float]) -> tuple[Subtitle, ...]:
    """The subtitles that are on screen at one or more of `seconds`, each once, in their order."""
    times = sorted(seconds)

    def shown(subtitle: Subtitle) -> bool:
        start, end = subtitle.start, subtitle.end
        if end - start < SHORTEST:
            start, end = subtitle.middle - SHORTEST / 2, subtitle.middle + SHORTEST / 2
        first = bisect_left(times, start)
        return first < len(times) and times[first] < end

    return tuple(filter(shown, subtitles))


def interleave(
    frames_seconds: Sequence[float], subtitles: Sequence[Subtitle]
) -> list[tuple[Literal["frame"], int] | tuple[Literal["subtitle"], str]]:
    """Frames, by their index in `frames_seconds` (ascending), with the texts of `subtitles` between them.

    Both keep their order; a subtitle stands after the last frame that is not later than its middle.
    """
    parts: list[tuple[Literal["frame"], int] | tuple[Literal["subtitle"], str]] = []
    shown = 0
    for subtitle in subtitles:
        while shown < len(frames_seconds) and frames_seconds[shown] <= subtitle.middle:
            parts.append(("frame", shown))
            shown += 1
        parts.append(("subtitle", subtitle.text))
    return parts + [("frame", index) for index in range(shown, len(frames_seconds))]


def _json(content: str) -> Iterator[Cue]:
    """A list of `{"start": "00:00:01.500", "end": …, "line"}` or `{"timestamp": [1.5, 3.0 or null], "text"}`."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(entries, list):
        raise ValueError(f"{type(entries).__name__} instead of a list of subtitles")
    for number, entry in enumerate(entries, start=1):
        cue = _spoken(entry) if isinstance(entry, dict) and "timestamp" in entry else _written(entry)
        if cue is None:
            raise ValueError(
                f"subtitle {number}: {str(entry)[:100]}; valid: an object with start, end and line, or with "
                "timestamp (two numbers of seconds) and text"
            )
        yield cue


def _spoken(entry: dict[str, Any]) -> Cue | None:
    match entry:
        case {"timestamp": [start, end], "text": str(text)} if _is_second(start) and (end is None or _is_second(end)):
            return start, end, text
    return None


def _is_second(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ENDLESS


def _written(entry: object) -> Cue | None:
    match entry:
        case {"start": str(start), "end": str(end), "line": str(text)}:
            first, last = seconds(start), seconds(end)
            if first is not None and last is not None:
                return first, last, text
    return None
