"""Text of files that do not say how it is encoded: UTF-8, UTF-16, GBK, or Windows' western cp1252.

Invariant: an encoding is taken only where the bytes speak for it; what could be another (Cyrillic, Korean, Japanese) is
refused, never read as other letters.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable

_MARKED = (
    (BOM_UTF8, "utf-8-sig"),
    (BOM_UTF32_LE, "utf-32"),
    (BOM_UTF32_BE, "utf-32"),
    (BOM_UTF16_LE, "utf-16"),
    (BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, the longer first where one begins as another."""
_HANGUL_ENDS = 0xC8
"""Last lead byte of Korean syllables in EUC-KR; nearly half of a Chinese text's characters lie behind it in GB 2312."""


def decoded(content: bytes) -> str:
    """The text of a file. Raises ValueError when its encoding is none of those, or cannot be told."""
    for mark, encoding in _MARKED:
        if content.startswith(mark):
            return content.decode(encoding)
    if content.count(0) * 10 > len(content):
        return content.decode("utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be")
    for encoding, plausible in _GUESSES:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if plausible(text):
            return text
    raise ValueError("its encoding is not known: neither UTF-8, UTF-16, GBK nor cp1252; save it as UTF-8")


def _is_chinese(text: str) -> bool:
    """Whether it is in GB 2312, as hardly any other text is in GBK, and not Japanese (kana) or Korean."""
    foreign = "".join(letter for letter in text if letter > "\x7f")
    known = foreign.encode("gb2312", "ignore")
    characters = sum("\u4e00" <= letter <= "\u9fff" for letter in foreign)
    no_hangul = sum(lead > _HANGUL_ENDS for lead in known[::2])
    return len(known) > 1.4 * len(foreign) and 2 * characters > len(foreign) and 10 * no_hangul >= characters - 12


def _is_western(text: str) -> bool:
    """Whether its accented letters and signs stand among plain letters, seldom more than three together."""
    runs = [len(run) for run in re.findall(r"[^\x00-\x7f]+", text)]
    return sum(run for run in runs if run > 3) * 5 <= sum(runs)


_GUESSES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("utf-8", lambda text: True),
    ("gb18030", _is_chinese),
    ("cp1252", _is_western),
)
"""Encodings and what their text looks like, in the order they are tried."""
