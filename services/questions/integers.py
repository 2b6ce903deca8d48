"""What an integer answer means: an option's index from 0, or the number that an option says (`3`, `3 cups`, `three`).

Invariants: nothing is guessed. An integer that could mean two options is decided by the file's other integers, where each of
them can only be an index, or only a number; else it is refused. Where one is the number of its options and none is 0, all
may count from 1, and none that would then mean another option is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.schema import LETTERS

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WORDS = {
    word: index
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve",
        "零 一 二 三 四 五 六 七 八 九 十",
    )
    for index, word in enumerate(words.split())
}


@dataclass
class Integers:
    """What the integer answers of one file, as far as seen, can mean."""

    index: bool = False
    """One can only be an index."""
    number: bool = False
    """One can only be the number that an option says."""
    zero: bool = False
    """One that can only be an index is 0."""
    beyond: bool = False
    """One is the number of its options, and no option says so."""
    doubtful: bool = False
    """What one means is for the others to decide."""

    def note(self, answer: int, options: Sequence[str]) -> None:
        """Learn from one answer."""
        index, number = _meanings(answer, options)
        self.index |= bool(index) and not number
        self.number |= bool(number) and not index
        self.zero |= answer == 0 and not number
        self.beyond |= answer == len(options) and not number
        self.doubtful |= self.beyond or len(index | number) > 1

    def letter(self, answer: int, options: Sequence[str]) -> str | None:
        """The letter of the option that the answer means; None when it means none. Raises ValueError when it may mean
        several."""
        index, number = _meanings(answer, options)
        if self.beyond and not self.zero and index | number and 1 <= answer <= len(options):
            raise ValueError(f"{answer} may count from 0 or from 1, as another integer answer of the file seems to")
        meant = index | number
        if len(meant) > 1 and self.index != self.number:
            meant = index if self.index else number
        if len(meant) > 1:
            letters = " or ".join(LETTERS[one] for one in sorted(meant))
            raise ValueError(f"{answer} may mean {letters}: an index from 0, or the number that an option says")
        return LETTERS[meant.pop()] if meant else None


def _meanings(answer: int, options: Sequence[str]) -> tuple[set[int], set[int]]:
    """Indices of the options it means as an index, and as a number."""
    index = {answer} if 0 <= answer < len(options) else set()
    return index, {place for place, option in enumerate(options) if _said(option) == answer}


def _said(option: str) -> float | None:
    """The only number in an option, in digits, or as a word that stands alone."""
    plain = option.strip().rstrip(".").casefold()
    if plain in _WORDS:
        return _WORDS[plain]
    found = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", plain))
    return float(found[0]) if len(found) == 1 else None
