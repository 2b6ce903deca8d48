"""Options and answers as the formats write them: options inside the question, letters before options, answers in words.

Pure text. What cannot be read in one way only is a ValueError whose message is the reason; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.questions.integers import Integers
from services.questions.marks import is_whole, label, lone_letter, marks
from services.questions.rows import shown, whole
from services.schema import LETTERS

_WRAPPED = re.compile(r"<answer>(.*)</answer>|\\boxed\{(.*)\}", re.DOTALL)
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>[ \t]*\n?")
_BEFORE = re.compile(r"\A\s*question\s*:\s*", re.IGNORECASE)
_HEADER = re.compile(r"(?:\A|(?<=\s))\**(?:options|choices|选项)\**\s*[:：]\**\s*\Z", re.IGNORECASE)
_SEPARATORS = ",;/|，；、"
"""Between options of one line."""


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """The question and its options, out of one text; no options when the text has none.

    Options stand one or several a line, each behind its letter (`marks.marks`). An option may run over several lines, save
    the last: what follows its line is an instruction to some model, and is left out, as are placeholders such as
    `<video>`, a leading `Question:` and an `Options:` before the options.
    Raises ValueError when letters are left out or stand twice.
    """
    text = _PLACEHOLDER.sub("", text)
    found = marks(text)
    if not found:
        return _BEFORE.sub("", text).strip(), ()
    if not is_whole(found):
        raise ValueError(
            f"its options are lettered {', '.join(mark.letter for mark in found)}; valid: A, B, C and so on"
        )
    ends = [mark.start for mark in found[1:]] + [len(text)]
    said = [text[mark.end : end].strip() for mark, end in zip(found, ends, strict=True)]
    said[-1] = said[-1].split("\n", 1)[0]
    options = [mark.option(option) for mark, option in zip(found, said, strict=True)]
    between = {option[-1:] for option in options[:-1]}
    if len(between) == 1 and between <= set(_SEPARATORS) and not all(mark.first for mark in found):
        options = [option.rstrip(_SEPARATORS).rstrip() for option in options]
    question = _HEADER.sub("", _BEFORE.sub("", text[: found[0].start]).rstrip()).strip()
    if not question:
        raise ValueError("has options, but no text before them")
    return question, tuple(options)


def unlabelled(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the letters before them. Raises ValueError when these are letters of options, but not A, B, C and
    so on; what begins as a name does (`J. Adams`) is text."""
    found = [label(option) for option in options]
    letters = [mark.letter if mark else "" for mark in found]
    if letters == list(LETTERS[: len(options)]):
        return tuple(mark.option(option[mark.end :]) for mark, option in zip(found, options, strict=True) if mark)
    if letters[:2] == ["A", "B"] or all(letter and letter in LETTERS[: len(options) + 2] for letter in letters):
        raise ValueError(
            f"its options are lettered {', '.join(x or 'none' for x in letters)}; valid: A, B, C and so on"
        )
    return tuple(options)


def is_letter(answer: str) -> bool:
    """Whether the answer is a letter and no more, as one among options is."""
    return lone_letter(_unwrapped(answer)) is not None


def letter(answer: object, count: int) -> str:
    """The letter that `answer` is (`B`, `(B)`, `B.`, `<answer>B</answer>`) among `count` options, else ValueError."""
    found = lone_letter(_unwrapped(answer)) if isinstance(answer, str) else None
    if found is None or found not in LETTERS[:count]:
        raise ValueError(f"{shown(answer)}; valid: one letter of {', '.join(LETTERS[:count])}")
    return found


def letter_of(answer: object, options: Sequence[str], integers: Integers | None = None) -> str:
    """The letter of the option that `answer` means: by its letter, its index from 0, its text, or letter and text. What an
    integer means is for `integers` to say, which learns from it.

    Raises ValueError when it means none, or could mean several.
    """
    count = whole(answer)
    if count is not None:
        integers = integers or Integers()
        integers.note(count, options)
        if found := integers.letter(count, options):
            return found
    valid = f"one letter of {', '.join(LETTERS[: len(options)])}, an index from 0, or an option's text"
    if not isinstance(answer, str):
        raise ValueError(f"{shown(answer)}; valid: {valid}")
    said = _unwrapped(answer)
    meant = {LETTERS[index] for index in _same(said, options)}
    if (alone := lone_letter(said)) and alone in LETTERS[: len(options)]:
        meant.add(alone)
    if labelled := label(said):
        same = _same(labelled.option(said[labelled.end :]), options)
        meant |= {LETTERS[index] for index in same if LETTERS[index] == labelled.letter}
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
