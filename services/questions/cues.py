"""Subtitle cues as SRT and WebVTT write them: lines of times, `start --> end`, with lines of text below.

Cue numbers, blank lines and what stands before the first cue are not relied on. An arrow is a line of times only between
times; what else has one is speech, save where times are broken: those are refused, never taken for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile

Cue = tuple[float, float | None, str]
"""Start and end in seconds on the subtitles' clock (None: shown until the video ends), and the text with its markup."""

VALID = "00:00:01,500 --> 00:00:03,000"
_CLOCK = r"[-−]?(?:\d{1,6}:)?\d{1,6}:\d{1,6}(?:[.,]\d{1,9})?"
_SPAN = re.compile(rf"\s*({_CLOCK})\s*-->\s*({_CLOCK})(?:\s.*)?")
_OTHER_ARROW = re.compile(rf"\s*{_CLOCK}\s*(?!-->)(?:[-–—=]+>?|>|→)\s*{_CLOCK}\s*")
_MAYBE_CLOCK = re.compile(r"[-+−]?(?:[\d:.,]|nan)*", re.IGNORECASE)
_CUT_OFF = re.compile(r"[-−\d:.,\s>]+")


def seconds(clock: str) -> float | None:
    """Seconds that `00:00:01,500`, `00:01.500` or `-00:00:01` say; None for what is no time."""
    if re.fullmatch(rf"\s*{_CLOCK}\s*", clock) is None:
        return None
    plain = clock.strip().lstrip("-−")
    *_, hours, minutes, rest = ["0", *plain.replace(",", ".").split(":")]
    value = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    return value if clock.strip() == plain else -value


def read_cues(content: str) -> Iterator[Cue]:
    """The cues in the file's order. Raises ValueError naming the line for times that cannot be read."""
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_web = lines[0].startswith("WEBVTT")
    starts = [index for index in range(len(lines)) if _is_times(lines, index)]
    if not is_web:
        _check_others(lines, starts)
        lines = _without_end(lines, starts)
    for index, following in pairwise([*starts, len(lines) + 1]):
        text = lines[index + 1 : following]
        if is_web:
            text = list(takewhile(str.strip, text))
        elif following < len(lines) and text and _number(text[-1]) is not None:
            text = text[:-1]  # the next cue's number
        span = _SPAN.fullmatch(lines[index])
        assert span is not None
        yield seconds(span[1]) or 0.0, seconds(span[2]), " ".join(text)


def _is_times(lines: Sequence[str], index: int) -> bool:
    """Whether this line is a cue's times. Raises ValueError when it was meant to be, and is not."""
    line = lines[index]
    if "-->" not in line:
        return False
    if _SPAN.fullmatch(line):
        opens = index == 0 or not lines[index - 1].strip() or _number(lines[index - 1]) is not None
        return opens or "," in line or "." in line  # within a text, `10:30 --> 11:00` is speech
    if _is_broken(line) or _is_numbered(lines, index):
        raise ValueError(f"line {index + 1}: {line[:60]!r}; valid: {VALID}")
    return False


def _is_broken(line: str) -> bool:
    """Whether there are times on one side of an arrow, and on the other something else."""
    left, arrow, right = line.partition("-->")
    sides = [left.strip(), (right.split() or [""])[0]]
    if not arrow:
        return False
    likely = [_MAYBE_CLOCK.fullmatch(side) is not None for side in sides]
    if all(likely) and re.search(r":|nan", "".join(sides), re.IGNORECASE):
        return True
    return any(re.fullmatch(_CLOCK, side) and re.search(r":.*:|[.,]", side) for side in sides)


def _check_others(lines: Sequence[str], starts: Sequence[int]) -> None:
    """Raises ValueError for times with another arrow, and for text that no cue follows."""
    first = starts[0] if starts else len(lines)
    for index, line in enumerate(lines):
        other = _OTHER_ARROW.fullmatch(line) and (index < first or _is_numbered(lines, index))
        if other or (not starts and line.strip() and _number(line) is None):
            place = "before the first line of times" if index < first else f"in line {index + 1}"
            raise ValueError(f"{line[:60]!r} {place}; valid: {VALID}")


def _without_end(lines: list[str], starts: Sequence[int]) -> list[str]:
    """Without the number of a cue that the file ends before. Raises ValueError when it ends within its times."""
    last = max((index for index, line in enumerate(lines) if line.strip()), default=0)
    if not starts or last <= starts[-1] + 1:
        return lines
    following = (_number(lines[starts[-1] - 1]) or 0) + 1
    cut_off = _CUT_OFF.fullmatch(lines[last]) and _is_numbered(lines, last)
    if cut_off and (":" in lines[last] or _number(lines[last - 1]) == following):
        raise ValueError(f"line {last + 1}: {lines[last][:60]!r}, where the file ends; valid: {VALID}")
    return lines[:last] if _number(lines[last]) == following and not lines[last - 1].strip() else lines


def _is_numbered(lines: Sequence[str], index: int) -> bool:
    """Whether a cue's number stands above."""
    return index >= 1 and _number(lines[index - 1]) is not None and (index == 1 or not lines[index - 2].strip())


def _number(line: str) -> int | None:
    """The number of a cue, if that is what the line says."""
    said = line.strip()
    return int(said) if said.isdecimal() and len(said) < 10 else None
