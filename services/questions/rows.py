"""What a file format is, and what the formats' readers share: fields that must be there, files that may be in two places.

Invariant: a row becomes a `Question`, or it is refused with a reason: `NoQuestion` when it is sound and asks no
multiple-choice question about one video, `WrongRow` when it is not as its format says.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from services.questions.integers import Integers
from services.schema import LETTERS, Question

Row = dict[str, Any]

_SHOWN = 120
"""Characters."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL, which no tokenizer, path or terminal takes, and halves of a surrogate pair, which no encoding can write."""
_LARGEST = 2**63 - 1
"""The largest whole number that parquet keeps."""


class NoQuestion(Exception):
    """The row is sound, but asks no multiple-choice question about one video."""


class WrongRow(Exception):
    """The row is not as its format says."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class NotUnicode(WrongRow):
    """Text in the row is not Unicode: no other row of the file is in doubt."""


@dataclass(frozen=True)
class Place:
    """The place of a row in its file."""

    root: Path
    """Folder that relative paths start from."""
    stem: str
    """Name of the file without its suffix."""
    number: int
    """Row, from 1."""
    integers: Integers
    """What the file's integer answers mean."""

    @property
    def id(self) -> str:
        """For rows without an id of their own: unique within the file, and says which row it is."""
        return f"{self.stem}-{self.number}"

    def find(self, name: str, folders: Sequence[str] = ("",)) -> str:
        """Absolute path of `name` in the first of `folders` that holds it, else in the first.

        A `file://` address may have `%` before the bytes of a name that is not UTF-8; `%` may also stand for itself.
        """
        names = [name]
        if name.startswith("file://"):
            plain = name.removeprefix("file://")
            names = list(dict.fromkeys([os.fsdecode(unquote_to_bytes(plain)), plain]))
        paths = [os.path.abspath(self.root / folder / name) for folder in folders for name in names]
        if len(paths) == 1:
            return paths[0]
        return next((path for path in paths if os.path.exists(path)), paths[0])


@dataclass(frozen=True)
class Format:
    """One form of file, known by its columns."""

    name: str
    signature: tuple[str, ...]
    """Columns that every file of this form has."""
    columns: Collection[str]
    """Columns that are read."""
    question: Callable[[Row, Place], Question]
    """Raises NoQuestion or WrongRow."""
    suits: Callable[[Row], bool] = lambda row: True
    """Tells forms of one signature apart by the first row."""
    parts: Callable[[Row], Sequence[Row]] = lambda row: (row,)
    """Rows of one question each, when a row of the file holds several. Raises WrongRow."""
    id: str = "id"
    """The column with the questions' ids."""

    def recognises(self, row: Row) -> bool:
        return all(name in row for name in self.signature) and self.suits(row)


def shown(value: object) -> str:
    """A wrong value, as its error shows it."""
    written = repr(value)
    return written if len(written) <= _SHOWN else written[:_SHOWN] + "…"


def wrong(row: Row, field: str, valid: str) -> WrongRow:
    return WrongRow(f"{shown(row[field]) if field in row else 'missing'}; valid: {valid}", field)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """A ValueError raised inside is a WrongRow in this field."""
    try:
        yield
    except ValueError as error:
        raise WrongRow(str(error), field) from error


def unicode(value: object, field: str) -> None:
    """Raises NotUnicode for text that is not Unicode, and for bytes: those of text that is not UTF-8 among them."""
    if isinstance(value, bytes):
        raise NotUnicode(f"{shown(value)} is bytes, not Unicode text; valid: text in UTF-8", field)
    if isinstance(value, str) and (found := NO_TEXT.search(value)):
        raise NotUnicode(f"{shown(value)} has {found[0]!a}, which is no text; valid: Unicode text", field)


def text(row: Row, field: str) -> str:
    value = row.get(field)
    unicode(value, field)
    if not (isinstance(value, str) and value.strip()):
        raise wrong(row, field, "a non-empty string")
    return value


def optional_text(row: Row, field: str) -> str:
    """A string; empty when there is none."""
    value = row.get(field)
    unicode(value, field)
    if not (value is None or isinstance(value, str)):
        raise wrong(row, field, "a string, or null")
    return value or ""


def whole(value: object) -> int | None:
    """A whole number that parquet can keep, also one that a table with gaps made a float (`8.0`); None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return int(value) if value == int(value) else None


def number(row: Row, field: str, valid: str) -> float:
    """A finite number; 0 when there is none."""
    value = row.get(field)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise wrong(row, field, valid)
    return float(value)


def unanswered(value: object) -> bool:
    """Whether a cell says nothing: null, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def identity(row: Row, field: str) -> str:
    """An id, which benchmarks write as string or as number, even within one file."""
    count = whole(row.get(field))
    return text(row, field) if count is None else str(count)


def names(row: Row, field: str, valid: str) -> tuple[str, ...]:
    """A list of strings, of any length."""
    values = row.get(field)
    if isinstance(values, list):
        for value in values:
            unicode(value, field)
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise wrong(row, field, valid)
    return tuple(values)


def labels(row: Row, fields: Mapping[str, str]) -> tuple[str, ...]:
    """Groups that have a dimension of their own, as `level: 2`: of each column of `fields`, its dimension and what it says.
    A column that is not there, or says nothing, gives none."""
    found = []
    for field, dimension in fields.items():
        value = row.get(field)
        unicode(value, field)
        said = str(value if (count := whole(value)) is None else count).strip()
        if not unanswered(value) and said not in ("", "None"):
            found.append(f"{dimension}: {said}")
    return tuple(found)


def texts(row: Row, field: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    """A list of options; with `may_be_empty`, of which some may say nothing."""
    valid = f"a list of 2 to {len(LETTERS)} {'' if may_be_empty else 'non-empty '}strings"
    values = names(row, field, valid)
    if not 2 <= len(values) <= len(LETTERS) or not all(may_be_empty or value.strip() for value in values):
        raise wrong(row, field, valid)
    return values


def one_video(row: Row, field: str) -> str:
    """Path of the only video of a row's `videos`: a path, or a list of paths or of objects with `video`."""
    videos = row.get(field)
    if videos is None or videos == []:
        raise NoQuestion("no video")
    if isinstance(videos, list):
        if len(videos) > 1:
            raise NoQuestion("several videos")
        videos = videos[0]
    path = videos.get("video") if isinstance(videos, dict) else videos
    if isinstance(path, list):
        raise NoQuestion("pictures instead of a video")
    unicode(path, field)
    if not (isinstance(path, str) and path.strip()):
        raise wrong(row, field, "a path, or a list of one path or of one object with the path as 'video'")
    return path


def written_path(path: str) -> str:
    """How an absolute path is written where all text is Unicode: a `file://` address when its name is not UTF-8."""
    return Path(path).as_uri() if NO_TEXT.search(path) else path
