"""The letters before options, however they are written: `(A)`, `A.`, `A)`, `A:`, `A、`, `[A]`, `**A.**`, `- A.`, `Ａ．`.

Pure text. Marks are looked for in a copy of the text whose full-width letters and brackets are plain ones, place by place,
so what stands between them is left as it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.schema import LETTERS

_PLAIN = str.maketrans(
    {0xFF21 + index: letter for index, letter in enumerate(LETTERS)}
    | {0xFF41 + index: letter.lower() for index, letter in enumerate(LETTERS)}
    | dict(zip(map(ord, "（）［］【】＊\u3000\r\u2028\u2029"), "()[][]* \n\n\n", strict=True))
)
_SPACE = r"[^\S\n]"
_BULLET = rf"(?:[*+]{_SPACE}+|\d{{1,2}}[.)]{_SPACE}+|[-–—•·●○▪◦‣]{_SPACE}*)?"
_BEFORE = r"(?<![^\s,;/|，；。？！：?:])"
"""What may stand before a mark within a line."""
_WITHIN = rf"(?:(?<=[．：])|(?={_SPACE}|[^\x00-\x7f]))"
"""A mark that prose has too is full-width within a line, or before a space or text that needs none between words."""


@dataclass(frozen=True)
class _Style:
    """A way to write a mark; `@` is its letter, `~` the end of its bold face."""

    mark: str
    within: str = ""
    """What must follow it within a line, where prose has the same."""
    shortest: int = 2
    """Options that a single line must hold, where prose has the same."""


_STYLES = (
    _Style(r"\(@\)~[.．:：、]?"),
    _Style(r"@~[.．](?![A-Za-z]\.)", within=_WITHIN),
    _Style(r"@~\)"),
    _Style(r"@~[:：]", within=_WITHIN, shortest=3),
    _Style(r"@~、"),
    _Style(r"\[@\]~[.．:：]?"),
)


def _pattern(style: _Style, letters: str, before: str, after: str = "") -> re.Pattern[str]:
    mark = rf"(?P<bold>\*{{1,3}})?{style.mark}~".replace("@", f"(?P<letter>{letters})")
    return re.compile(before + mark.replace("~", r"(?(bold)\*{0,3})") + after + rf"{_SPACE}*", re.MULTILINE)


_LINES, _INLINE, _LABELS = (
    [[_pattern(style, letters, before, style.within if before == _BEFORE else "") for style in _STYLES]
     for letters in ("[A-Z]", "[a-z]")]
    for before in (rf"^{_SPACE}*{_BULLET}", _BEFORE, rf"\s*{_BULLET}")
)  # fmt: skip
"""Patterns by case and style: of marks that begin a line, of those within one, and of one that begins a text."""


@dataclass(frozen=True)
class Mark:
    """The letter before an option, and where it stands in the text."""

    letter: str
    """Upper case."""
    start: int
    end: int
    first: bool
    """It begins a line."""
    bold: bool
    """It begins bold text that goes on behind it."""

    def option(self, text: str) -> str:
        """The option in `text`, which begins behind the mark."""
        text = text.strip()
        return re.sub(r"\*{1,3}\Z", "", text).rstrip() if self.bold else text


def marks(text: str) -> list[Mark]:
    """The marks of the options in `text`, in order; none when it has no options.

    Of the first style that has an A with others after it, those from the last A on: those that begin a line; all, when
    only together their letters are whole (several options a line); else those within one line. Capitals come first.
    Letters may be left out or stand twice: that is the caller's to refuse.
    """
    plain = _in_plain(text)
    for lines_of, inline_of in zip(_LINES, _INLINE, strict=True):
        for style, *patterns in zip(_STYLES, lines_of, inline_of, strict=True):
            if found := _by_lines(plain, style, *patterns):
                return found
        for style, *patterns in zip(_STYLES, lines_of, inline_of, strict=True):
            inline = _from_last_a(_everywhere(plain, *patterns))
            if len(inline) >= style.shortest and inline[1].letter == "B":  # in a line, "A." may end a sentence
                return inline
    return []


def _by_lines(plain: str, style: _Style, line: re.Pattern[str], inline: re.Pattern[str]) -> list[Mark]:
    """The marks of one style from the last A on that begins a line, if others follow it."""
    lines = _from_last_a([_mark(match, first=True) for match in line.finditer(plain)])
    if not lines or (len(lines) > 1 and is_whole(lines)):
        return lines
    several = [mark for mark in _everywhere(plain, line, inline) if mark.start >= lines[0].start]
    return several if len(lines) > 1 or (len(several) >= style.shortest and is_whole(several)) else []


def label(text: str) -> Mark | None:
    """The mark that an option of a list, or an answer, begins with."""
    plain = _in_plain(text)
    found = (pattern.match(plain) for patterns in _LABELS for pattern in patterns)
    return next((_mark(match, first=True) for match in found if match), None)


def is_whole(found: list[Mark]) -> bool:
    """Whether the letters are A, B and so on, none left out, none twice."""
    return "".join(mark.letter for mark in found) == LETTERS[: len(found)]


def lone_letter(answer: str) -> str | None:
    """The upper-case letter that an answer is and no more: `B`, `(B)`, `B.`, `[B]`, `**B**`, `Ｂ`."""
    found = re.fullmatch(r"\**[(\[]?([A-Za-z])[)\]]?[.．):：、]?\**", _in_plain(answer).strip())
    return found[1].upper() if found else None


def _in_plain(text: str) -> str:
    """The text with plain letters and brackets, and one kind of line break; of the same length."""
    return text.replace("\r", "\n") if text.isascii() else text.translate(_PLAIN)


def _everywhere(plain: str, line: re.Pattern[str], inline: re.Pattern[str]) -> list[Mark]:
    """The marks that begin a line and those within one, in order."""
    by_end = {match.end(): _mark(match, first=False) for match in inline.finditer(plain)}
    by_end |= {match.end(): _mark(match, first=True) for match in line.finditer(plain)}
    return [by_end[end] for end in sorted(by_end)]


def _mark(match: re.Match[str], first: bool) -> Mark:
    closed = "*" in match.string[match.end("letter") : match.end()]
    return Mark(match["letter"].upper(), match.start(), match.end(), first, bool(match["bold"]) and not closed)


def _from_last_a(found: list[Mark]) -> list[Mark]:
    starts = [index for index, mark in enumerate(found) if mark.letter == "A"]
    return found[starts[-1] :] if starts else []
