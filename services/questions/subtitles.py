"""Subtitle files, and which of their lines belong to which frames: SRT (VideoMME) and both JSON shapes of LongVideoBench.

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
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from services.errors import UserError

SHORTEST = 1.0
"""Seconds."""

_CLOCK = r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)"
_TIME = re.compile(rf"\s*{_CLOCK}\s*")
_SPAN = re.compile(rf"\s*({_CLOCK})\s*-->\s*({_CLOCK})(?:\s.*)?")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Subtitle:
    start: float
    end: float
    text: str

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def read_subtitles(path: Path | str, offset: float = 0.0, duration: float = math.inf) -> tuple[Subtitle, ...]:
    """The subtitles of a `.srt` or `.json` file in time order, `offset` seconds earlier than the file says; those without
    an end are shown until the video's, at `duration` seconds.

    Markup and line breaks are taken out of the text; a subtitle without text says nothing, and is left out.
    Raises UserError naming the file and the place for one that cannot be read.
    """
    path = Path(path)
    readers = {".srt": _srt, ".json": _json}
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of subtitles {path.suffix!r}; valid: {', '.join(readers)}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from error
    found = (
        Subtitle(start - offset, duration if end is None else end - offset, " ".join(_TAG.sub("", text).split()))
        for start, end, text in readers[path.suffix](content, path)
    )
    return tuple(sorted((subtitle for subtitle in found if subtitle.text), key=lambda subtitle: subtitle.start))


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


def _srt(content: str, path: Path) -> Iterator[tuple[float, float | None, str]]:
    """Cues: a number, a line `start --> end`, lines of text; the numbers and blank lines are not relied on."""
    lines = content.splitlines()
    starts = [index for index, line in enumerate(lines) if "-->" in line]
    before = [line for line in lines[: starts[0] if starts else None] if line.strip() and not line.strip().isdigit()]
    if before:
        raise UserError(f"{path}: {before[0][:60]!r} before the first line of times; valid: SRT")
    for index, following in pairwise([*starts, len(lines) + 1]):
        span = _SPAN.fullmatch(lines[index])
        if span is None:
            raise UserError(f"{path}, line {index + 1}: {lines[index]!r}; valid: 00:00:01,500 --> 00:00:03,000")
        text = lines[index + 1 : following]
        if following < len(lines) and text and text[-1].strip().isdigit():
            text = text[:-1]  # the next cue's number
        yield _seconds(*span.group(2, 3, 4)), _seconds(*span.group(6, 7, 8)), " ".join(text)


def _json(content: str, path: Path) -> Iterator[tuple[float, float | None, str]]:
    """A list of `{"start": "00:00:01.500", "end": …, "line"}` or `{"timestamp": [1.5, 3.0 or null], "text"}`."""
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: {type(entries).__name__} instead of a list of subtitles")
    for number, entry in enumerate(entries, start=1):
        subtitle = _spoken(entry) if isinstance(entry, dict) and "timestamp" in entry else _written(entry)
        if subtitle is None:
            raise UserError(
                f"{path}, subtitle {number}: {str(entry)[:100]}; valid: an object with start, end and line, or with "
                "timestamp (two numbers of seconds) and text"
            )
        yield subtitle


def _spoken(entry: dict[str, Any]) -> tuple[float, float | None, str] | None:
    match entry:
        case {"timestamp": [int() | float() as start, int() | float() | None as end], "text": str(text)}:
            return start, end, text
    return None


def _written(entry: object) -> tuple[float, float | None, str] | None:
    match entry:
        case {"start": str(start), "end": str(end), "line": str(text)}:
            first, last = _TIME.fullmatch(start), _TIME.fullmatch(end)
            if first and last:
                return _seconds(*first.groups()), _seconds(*last.groups()), text
    return None


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
