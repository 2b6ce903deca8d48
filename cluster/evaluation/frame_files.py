"""Files of chosen frames, in the forms that selectors publish them in, read as selectors: `--selector file:PATH`.

A form is known by the file's content. `frames` are seconds of the video or, in AKS's form, numbers of the video's own frames:

- jsonl: an object a line with `question_id` and `seconds`. A line with a `budget` counts for that one alone; a `question_hash`,
  if it stands there, must be the question's; `seconds: null` with a `reason` says that the question could not be asked.
- aks (AKS, arXiv 2502.21271; TSPO, arXiv 2508.04369): the benchmark's own rows as a JSON list, with `frame_idx` in each.
- bolt (BOLT, arXiv 2503.21483): an object with a list for each video by its name without suffix, of objects with `question_id`,
  `question` and `frames`, in seconds.

Invariant: what a file lists for a question is what is shown, or the evaluation does not start. Nothing takes the place of a
list that is missing, shorter or longer than the budget, or beyond the video.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from services.errors import QuestionError, UserError, VideoError
from services.questions import read_rows
from services.schema import Question, Video
from services.scoring import question_hash
from services.video import frame_numbers

NAMED, SHOWN = 3, 120
"""Questions that an error names, and characters that it shows of a list."""


@dataclass(frozen=True)
class Listed:
    """What a file lists for one question."""

    place: str
    """`line 3`, `row 3`, …"""
    id: str
    frames: tuple[float, ...]
    """Ascending; empty when the question could not be asked."""
    budget: int | None = None
    """K, where the file says which it is for."""
    question_hash: str | None = None
    reason: str = ""
    """Why it could not be asked."""


Keyed = tuple[str, Listed]
"""What says which question it is about, by the file's form, and what is listed for it."""


@dataclass(frozen=True)
class Form:
    """How a file of one form is read."""

    read: Callable[[Path, Any], Iterable[Keyed]]
    key: Callable[[Question], str]
    """What the file's `Keyed` has for a question."""
    in_seconds: bool


class FrameFile:
    """The frames that a file lists, for questions by whatever its form says of them."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that is not there, of no known form, or with something else in place of frames."""
        if not path.is_file():
            raise UserError(f"--selector=file:{path}: no such file; `msjoe frames` writes one")
        content = path.read_bytes()
        form, value = _parsed(path, content)
        self.path, self.form = path, FORMS[form]
        self.hash = content_hash(content)
        self._listed: dict[str, list[Listed]] = {}
        self._numbers: dict[str, tuple[np.ndarray, int]] = {}
        for key, listed in self.form.read(path, value):
            self._listed.setdefault(key, []).append(listed)

    def check(self, questions: Iterable[Question], budgets: Sequence[int]) -> None:
        """Raises UserError naming the questions that have no list, or one that no video makes right."""
        missing = []
        for question in questions:
            for budget in budgets:
                listed = self._find(question, budget)
                if listed is None:
                    missing.append(f"{question.id} ({budget} frames)")
                elif len(listed.frames) > budget:
                    raise self._wrong(
                        listed,
                        question,
                        f"{len(listed.frames)} frames, more than --frames={budget}, and no order of them",
                    )
        if missing:
            raise UserError(
                f"{self.path}: lists no frames for {some(missing)}; add them, or name the annotations and the --frames that it "
                "was made for"
            )

    def choose(self, question: Question, video: Video, budget: int) -> tuple[int, ...]:
        """The candidate frames nearest to those listed, ascending; two may be one and the same, which is then shown twice.

        Raises UserError when they are fewer than the budget (and the video has more), or beyond the video; QuestionError with
        the file's reason when it says that the question could not be asked.
        """
        listed = self._find(question, budget)
        assert listed is not None, f"{question.id} was not checked"
        if listed.reason:
            raise QuestionError(listed.reason)
        fewest = min(budget, max(1, video.num_frames - 1))  # others do not count a last second that is not whole
        if len(listed.frames) < fewest:
            raise self._wrong(
                listed,
                question,
                f"{len(listed.frames)} frames, fewer than {fewest} (a video of {video.num_frames} seconds)",
            )
        numbers, end = self._scale(video)
        if listed.frames[-1] >= end:
            raise self._wrong(listed, question, f"frame {listed.frames[-1]:g}, beyond the end of {video.path} ({end})")
        return tuple(int(np.abs(numbers - frame).argmin()) for frame in listed.frames)

    def _find(self, question: Question, budget: int) -> Listed | None:
        """What is listed for the question at a budget; None when nothing is."""
        found = [one for one in self._listed.get(self.form.key(question), ()) if one.budget in (None, budget)]
        if len({one.frames for one in found}) > 1:
            same_id = [one for one in found if one.id == question.id]
            if len(same_id) != 1:
                raise self._wrong(found[-1], question, f"other frames than in {found[0].place}")
            found = same_id
        if found and found[0].question_hash not in (None, question_hash(question)):
            raise self._wrong(found[0], question, "a question_hash that is not that of the annotations' question")
        return found[0] if found else None

    def _scale(self, video: Video) -> tuple[np.ndarray, int]:
        """Each candidate frame [T] on the scale of the file's frames, and the end of the video."""
        if self.form.in_seconds:
            return np.arange(video.num_frames), video.num_frames
        if video.path not in self._numbers:
            try:
                numbers, count = frame_numbers(video.path)
            except VideoError as error:
                raise UserError(f"{self.path}: {error}; give the frames in seconds") from None
            self._numbers[video.path] = np.array(numbers), count
        return self._numbers[video.path]

    def _wrong(self, listed: Listed, question: Question, what: str) -> UserError:
        return UserError(f"{self.path}, {listed.place}: question {question.id} has {what}; mend that, or the command")


def content_hash(content: bytes) -> str:
    """What a file's choice of frames is known by: 16 hexadecimal digits."""
    return blake2b(content, digest_size=8).hexdigest()


def some(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _parsed(path: Path, content: bytes) -> tuple[str, Any]:
    """The name of the file's form, and its content: the value of a JSON file, or the rows of a file of lines."""
    try:
        value = json.loads(content)
    except ValueError:
        value = [
            (number, _line(path, number, line)) for number, line in enumerate(content.splitlines(), 1) if line.strip()
        ]
        return "jsonl", value
    if isinstance(value, dict) and "question_id" in value:
        return "jsonl", [(1, value)]
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        return "bolt", value
    if isinstance(value, list) and any(isinstance(row, dict) and "frame_idx" in row for row in value):
        return "aks", value
    raise UserError(
        f"{path}: no known form of chosen frames; valid: lines with question_id and seconds, AKS's list of annotations with "
        "frame_idx, BOLT's object of videos"
    )


def _line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("question_id"), str | int):
        raise UserError(f"{path}, line {number}: valid: an object with question_id and seconds")
    return row


def _frames(path: Path, place: str, field: str, value: object, whole: bool = False) -> tuple[float, ...]:
    """A list of (`whole`) numbers from 0, sorted. Raises UserError."""
    listed: list[Any] = value if isinstance(value, list) else [value]
    found = [float(frame) for frame in listed if type(frame) in (int, float) and 0 <= frame < math.inf]
    if found != value or (whole and not all(map(float.is_integer, found))):
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        raise UserError(f"{path}, {place}: {field}: {shown}; valid: a list of {'whole ' * whole}numbers from 0")
    return tuple(sorted(found))


def _lines(path: Path, rows: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[Keyed]:
    for number, row in rows:
        place, name, seconds, budget = f"line {number}", str(row["question_id"]), row.get("seconds"), row.get("budget")
        if not (budget is None or type(budget) is int):
            raise UserError(f"{path}, {place}: budget: {json.dumps(budget)}; valid: a whole number, or none")
        reason = str(row.get("reason") or "") if seconds is None else ""
        frames = () if reason else _frames(path, place, "seconds", seconds)
        yield name, Listed(place, name, frames, budget, row.get("question_hash"), reason)


def _annotations(path: Path, _: object) -> Iterator[Keyed]:
    for number, row, questions in read_rows(path):
        if "frame_idx" in row and len(questions) == 1:
            place, question = f"row {number}", questions[0]
            frames = _frames(path, place, "frame_idx", row["frame_idx"], whole=True)
            yield _row_key(question), Listed(place, question.id, frames)


def _videos(path: Path, videos: dict[str, list[Any]]) -> Iterator[Keyed]:
    for name, entries in videos.items():
        for number, entry in enumerate(entries, 1):
            place = f"video {name}, entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
                raise UserError(f"{path}, {place}: valid: an object with question_id, question and frames")
            frames = _frames(path, place, "frames", entry.get("frames"))
            yield _video_key(name, entry["question"]), Listed(place, str(entry.get("question_id")), frames)


def _row_key(question: Question) -> str:
    """The video's name and what is asked: in some annotations a question has no id, in others it has one of their own."""
    return f"{Path(question.video).name}\n{question_hash(question)}"


def _video_key(video: str, question: str) -> str:
    """The video's name without suffix, and the first line of the question, as BOLT keeps it of MLVU's."""
    return f"{video}\n{question.strip().splitlines()[0].strip() if question.strip() else ''}"


FORMS = {
    "jsonl": Form(_lines, lambda question: question.id, in_seconds=True),
    "aks": Form(_annotations, _row_key, in_seconds=False),
    "bolt": Form(_videos, lambda one: _video_key(Path(one.video).stem, one.question), in_seconds=True),
}
"""Forms by the names that `msjoe frames --form` takes."""
