"""What a file format is, and what the formats' readers share: fields that must be there, files that may be in two places.

Invariant: a row becomes a `Question`, or it is refused with a reason: `NoQuestion` when it is sound and asks no
multiple-choice question about one video, `WrongRow` when it is not as its format says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.schema import LETTERS, Question

Row = dict[str, Any]

_SHOWN = 120
"""Characters."""


class NoQuestion(Exception):
    """The row is sound, but asks no multiple-choice question about one video."""


class WrongRow(Exception):
    """The row is not as its format says."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    root: Path
    """Folder that relative paths start from."""
    stem: str
    """Name of the file without its suffix."""
    number: int
    """Row, from 1."""

    @property
    def id(self) -> str:
        """For rows without an id of their own: unique within the file, and says which row it is."""
        return f"{self.stem}-{self.number}"

    def find(self, name: str, folders: Sequence[str] = ("",)) -> str:
        """Absolute path of `name` in the first of `folders` that holds it, else in the first."""
        paths = [os.path.abspath(self.root / folder / name) for folder in folders]
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


def text(row: Row, field: str) -> str:
    value = row.get(field)
    if not (isinstance(value, str) and value.strip()):
        raise wrong(row, field, "a non-empty string")
    return value


def optional_text(row: Row, field: str) -> str:
    """A string; empty when there is none."""
    value = row.get(field)
    if not (value is None or isinstance(value, str)):
        raise wrong(row, field, "a string, or null")
    return value or ""


def identity(row: Row, field: str) -> str:
    """An id, which benchmarks write as string or as number, even within one file."""
    value = row.get(field)
    return str(value) if type(value) is int else text(row, field)


def texts(row: Row, field: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    """A list of options; with `may_be_empty`, of which some may say nothing."""
    values = row.get(field)
    if not (isinstance(values, list) and 2 <= len(values) <= len(LETTERS)) or not all(
        isinstance(value, str) and (may_be_empty or value.strip()) for value in values
    ):
        raise wrong(row, field, f"a list of 2 to {len(LETTERS)} {'' if may_be_empty else 'non-empty '}strings")
    return tuple(values)


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
    if not (isinstance(path, str) and path.strip()):
        raise wrong(row, field, "a path, or a list of one path or of one object with the path as 'video'")
    return path.removeprefix("file://")
