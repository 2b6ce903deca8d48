"""Options and answers as the formats write them: options inside the question, letters before options, answers in words.

Pure text. What cannot be read in one way only is a ValueError whose message is the reason; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.questions.rows import shown
from services.schema import LETTERS

_STYLES = (r"\(([A-Z])\)", r"([A-Z])\.", r"([A-Z])\)", r"([A-Z])[:：、]")
_LINES = [re.compile(rf"^[ \t]*{style}[ \t]*", re.MULTILINE) for style in _STYLES]
_INLINE = [re.compile(rf"(?<!\S){_STYLES[0]}[ \t]*"), re.compile(rf"(?<!\S){_STYLES[1]}[ \t]+")]
_LABELLED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):：、])\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")
_WRAPPED = re.compile(r"<answer>(.*)</answer>|\\boxed\{(.*)\}", re.DOTALL)
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>[ \t]*\n?")
_BEFORE = re.compile(r"\A\s*question\s*:\s*", re.IGNORECASE)
_HEADER = re.compile(r"(?:\A|(?<=\s))(?:options|choices)\s*:\s*\Z", re.IGNORECASE)


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """The question and its options, out of one text; no options when the text has none.

    Options stand one a line (`(A) …`, `A. …`, `A) …`, `A: …`), or else all in one line (`(A) …` or `A. …`). An option may
    run over several lines, save the last: what follows its line is an instruction to some model, and is left out, as are
    placeholders such as `<video>`, a leading `Question:` and an `Options:` before the options.
    Raises ValueError when letters are left out or stand twice.
    """
    text = _PLACEHOLDER.sub("", text)
    marks = _marks(text)
    if not marks:
        return _BEFORE.sub("", text).strip(), ()
    letters = "".join(mark[1] for mark in marks)
    if letters != LETTERS[: len(letters)]:
        raise ValueError(f"its options are lettered {', '.join(letters)}; valid: A, B, C and so on")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    options = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    options[-1] = options[-1].split("\n", 1)[0].rstrip()
    question = _HEADER.sub("", _BEFORE.sub("", text[: marks[0].start()]).rstrip()).strip()
    if not question:
        raise ValueError("has options, but no text before them")
    return question, tuple(options)


def _marks(text: str) -> list[re.Match[str]]:
    """The options' letters: of the first style that has an A with others after it, those from the last A on."""
    for pattern in (*_LINES, *_INLINE):
        found = list(pattern.finditer(text))
        starts = [index for index, mark in enumerate(found) if mark[1] == "A"]
        if not starts:
            continue
        marks = found[starts[-1] :]
        if len(marks) > 1 and (pattern in _LINES or marks[1][1] == "B"):  # in a line, "A." may end a sentence
            return marks
    return []


def unlabelled(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the letters before them. Raises ValueError when the letters are not A, B, C and so on."""
    found = [_LABELLED.fullmatch(option) for option in options]
    letters = [(match[1] or match[2]) if match else "" for match in found]
    if letters == list(LETTERS[: len(options)]):
        return tuple(match[3].strip() for match in found if match)
    if all(letters) or letters[:2] == ["A", "B"]:
        raise ValueError(
            f"its options are lettered {', '.join(x or 'none' for x in letters)}; valid: A, B, C and so on"
        )
    return tuple(options)


def letter(answer: object, count: int) -> str:
    """The letter that `answer` is (`B`, `(B)`, `B.`, `<answer>B</answer>`) among `count` options, else ValueError."""
    found = _LETTER.fullmatch(_unwrapped(answer)) if isinstance(answer, str) else None
    if found is None or found[1].upper() not in LETTERS[:count]:
        raise ValueError(f"{shown(answer)}; valid: one letter of {', '.join(LETTERS[:count])}")
    return found[1].upper()


def letter_of(answer: object, options: Sequence[str]) -> str:
    """The letter of the option that `answer` means: by its letter, its index from 0, its text, or letter and text.

    Raises ValueError when it means none, or could mean several.
    """
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return LETTERS[answer]
    valid = f"one letter of {', '.join(LETTERS[: len(options)])}, an index from 0, or an option's text"
    if not isinstance(answer, str):
        raise ValueError(f"{shown(answer)}; valid: {valid}")
    said = _unwrapped(answer)
    meant = {LETTERS[index] for index in _same(said, options)}
    if (alone := _LETTER.fullmatch(said)) and alone[1].upper() in LETTERS[: len(options)]:
        meant.add(alone[1].upper())
    if labelled := _LABELLED.fullmatch(said):
        named = labelled[1] or labelled[2]
        meant |= {LETTERS[index] for index in _same(labelled[3], options) if LETTERS[index] == named}
    if len(meant) != 1:
        fault = f"may mean {' or '.join(sorted(meant))}" if meant else "is none of the options"
        raise ValueError(f"{shown(answer)} {fault}; valid: {valid}")
    return meant.pop()


def _same(said: str, options: Sequence[str]) -> list[int]:
    """Indices of the options that say this; letter case and a full stop count only when that leaves no other."""
    exact = [index for index, option in enumerate(options) if option.strip() == said.strip()]
    return exact or [index for index, option in enumerate(options) if _plain(option) == _plain(said)]


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _unwrapped(answer: str) -> str:
    wrapped = _WRAPPED.search(answer)
    return (next(filter(None, wrapped.groups()), "") if wrapped else answer).strip()
