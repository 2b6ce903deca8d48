"""`msjoe questions`: what a file of questions was recognised as, what it holds, and which rows gave no question, and why."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.questions import Recognised, Refused
from services.questions.evidence import has_moments
from services.schema import LETTERS, Question, label

FIRST = 3
"""Questions shown."""
REASONS = 30
"""Reasons that the page names; `--json` has every one."""
SPANS = 12
"""Spans of row numbers shown for a reason."""


def as_json(path: Path, found: Recognised) -> str:
    """Everything about the file as one JSON object; `refused` has every row that gave no question."""
    questions = found.questions
    videos = {question.video for question in questions}
    whole: dict[str, Any] = {
        "file": str(path),
        "format": found.format,
        "questions": len(questions),
        "videos": len(videos),
        "videos_found": sum(map(os.path.exists, videos)),
        "with_subtitles": sum(question.subtitles is not None for question in questions),
        "with_evidence": sum(map(has_moments, questions)),
        "groups": {name: len(members) for name, members in _groups(questions).items()},
        "answers": _letters(questions),
        "refused": [asdict(refused) for refused in found.refused],
        "first": [asdict(question) for question in questions[:FIRST]],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2)


def show(path: Path, found: Recognised, console: Console) -> None:
    """Print the page."""
    console.print(_summary(path, found), "")
    if found.questions:
        console.print(_table(found.questions), "")
        console.print(Text(f"First {len(found.questions[:FIRST])}", style="bold"))
        for question in found.questions[:FIRST]:
            console.print(Padding(_question(question), (0, 0, 0, 2), expand=False), "")
    if found.refused:
        console.print(_refused(found.refused), "")


def _summary(path: Path, found: Recognised) -> Table:
    questions = found.questions
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("file", Text(str(path)))
    grid.add_row("recognised as", Text(found.format, style="bold"))
    grid.add_row("questions", f"{len(questions):,}")
    if questions:
        grid.add_row("videos", Text(_there({question.video for question in questions})))
    if subtitles := [question.subtitles for question in questions if question.subtitles]:
        grid.add_row("subtitles", Text(f"of {_count(len(subtitles), 'question')}: " + _there(set(subtitles))))
    if evidence := sum(map(has_moments, questions)):
        grid.add_row("evidence", f"of {_count(evidence, 'question')}: where the answer lies")
    if found.refused:
        malformed = sum(refused.malformed for refused in found.refused)
        others = len(found.refused) - malformed
        parts = ([f"{malformed:,} malformed"] if malformed else []) + (
            [f"{others:,} without a question"] if others else []
        )
        grid.add_row("not taken", f"{_count(len(found.refused), 'row')}: " + ", ".join(parts))
    return grid


def _there(paths: set[str]) -> str:
    missing = sorted(path for path in paths if not os.path.exists(path))
    found = f"{len(paths) - len(missing):,} of {len(paths):,} files found"
    return found + (f"; missing: {missing[0]}" + ", …" * (len(missing) > 1) if missing else "")


def _table(questions: Sequence[Question]) -> Table:
    """Questions and right letters by group."""
    groups = _groups(questions)
    letters = LETTERS[: max(len(question.options) for question in questions)]
    table = Table("group", "questions", *letters, title="Questions and their answers", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, members in groups.items():
        table.add_row(Text(name), f"{len(members):,}", *_row(members, letters))
    table.add_section()
    table.add_row("all", f"{len(questions):,}", *_row(questions, letters))
    if sum(map(len, groups.values())) > len(questions):
        table.caption, table.caption_justify = "a question may count in several groups", "left"
    return table


def _row(questions: Iterable[Question], letters: str) -> list[str]:
    counts = _letters(questions)
    return [f"{counts[letter]:,}" if letter in counts else "–" for letter in letters]


def _question(question: Question) -> Group:
    named = [question.id, " · ".join(question.group), os.path.basename(question.video)]
    options = Table.grid(padding=(0, 1))
    for letter, option in zip(LETTERS, question.options, strict=False):
        right = letter == question.answer
        options.add_row("→" if right else " ", f"{letter}.", Text(option), style="green" if right else "")
    return Group(Text("  ".join(filter(None, named)), style="dim"), Text(question.question), options)


def _refused(refused: Sequence[Refused]) -> Table:
    """Reasons, the malformed first, and the rows of each."""
    rows: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for one in refused:
        reason = f"{one.field}: {one.reason}" if one.field else one.reason
        rows[(not one.malformed, reason)].append(one.row.removeprefix("row "))
    table = Table("reason", "count", "rows", title="Rows that gave no question", title_justify="left")
    table.columns[1].justify = "right"
    for (sound, reason), places in sorted(rows.items())[:REASONS]:
        table.add_row(Text(reason, style="" if sound else "red"), str(len(places)), _spans(places))
    if len(rows) > REASONS:
        table.caption = f"… and {len(rows) - REASONS} more reasons; --json has every row"
    return table


def _spans(places: Sequence[str]) -> str:
    """Row numbers in short: `2, 5–9`."""
    spans: list[list[str]] = []
    for place in places:
        if spans and place.isdigit() and spans[-1][1].isdigit() and int(place) == int(spans[-1][1]) + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    names = [first if first == last else f"{first}–{last}" for first, last in spans]
    return ", ".join(names[:SPANS]) + (f" and {len(names) - SPANS} more" if len(names) > SPANS else "")


def _groups(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Questions by group, in order of appearance; one without groups counts by its data source, if it has one."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        for name in question.group or filter(None, [question.data_source]):
            groups[name].append(question)
    return groups


def _letters(questions: Iterable[Question]) -> dict[str, int]:
    return dict(sorted(Counter(label(question) for question in questions).items()))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
