"""The questions a run goes without: named, counted, and written with their reasons to `left_out.jsonl`.

Invariant: what is wrong with one question (its video, its subtitles, the length of its prompt) costs that question alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from actors.config import PromptConfig
from actors.turns import Turns
from services import jsonl
from services.errors import QuestionError, UserError
from services.questions.subtitles import read_subtitles
from services.schema import LeftOut, Question

FILE = "left_out.jsonl"
SHOWN = 20
"""Losses named on the console; the file names all."""


class Losses:
    """Each question that is left out, and each that is asked without its subtitles, told once."""

    def __init__(self, run_dir: Path, console: Console) -> None:
        self._path, self._console = run_dir / FILE, console
        self._told = {(row["lost"], row["question_id"], row["reason"]) for row in jsonl.read(self._path)}

    @property
    def questions(self) -> int:
        """Questions left out so far."""
        return sum(what == "question" for what, *_ in self._told)

    def add(self, losses: Iterable[LeftOut], step: int, what: Literal["question", "subtitles"] = "question") -> None:
        """Name losses of a step, 0 before the first, on the console and in the file. `what`: the whole question, or only its
        subtitles."""
        new = [loss for loss in losses if (what, loss.question.id, loss.reason) not in self._told]
        if not new:
            return
        rows = [{"step": step, "question_id": loss.question.id, "lost": what, "reason": loss.reason} for loss in new]
        jsonl.append(self._path, rows)
        for loss in new[: max(0, SHOWN - len(self._told))]:
            named = (
                f"left out question {loss.question.id}" if what == "question" else f"{loss.question.id}: no subtitles"
            )
            self._console.print(f"{named}: {loss.reason}", soft_wrap=True, markup=False)
        self._told |= {(what, loss.question.id, loss.reason) for loss in new}

    async def sift(
        self,
        questions: Sequence[Question],
        unreadable: Mapping[str, str],
        turns: Turns,
        prompts: PromptConfig,
    ) -> list[Question]:
        """The questions that can be asked as far as can be known now; the others are named.

        `unreadable`: reasons of videos by path.
        Raises UserError when none is left of some.
        """
        lost = [LeftOut(question, unreadable[question.video]) for question in questions if question.video in unreadable]
        kept = [question for question in questions if question.video not in unreadable]
        kept, unheard = settle_subtitles(kept, prompts)
        if prompts.unreadable_subtitles == "drop":
            self.add(unheard, 0, "subtitles")
        else:
            lost += unheard
        refused = await asyncio.gather(*[_refusal(turns, question) for question in kept])
        lost += [loss for loss in refused if loss]
        self.add(lost, 0)
        if lost:
            self._console.print(f"{len(lost)} of {len(questions)} questions left out; all reasons in {self._path}")
        if len(lost) == len(questions) > 0:
            raise UserError(f"no question is left: none can be asked; {self._path} has the reasons")
        return [question for question, loss in zip(kept, refused, strict=True) if loss is None]


def settle_subtitles(questions: Sequence[Question], prompts: PromptConfig) -> tuple[list[Question], list[LeftOut]]:
    """The questions to ask, where `prompts` shows subtitles and a file of them cannot be read: without them, or not at all.
    Second, the questions with such a file."""
    reasons: dict[str | None, str] = {}
    for path in {question.subtitles for question in questions if question.subtitles and prompts.subtitles}:
        try:
            read_subtitles(path)
        except QuestionError as error:
            reasons[path] = str(error)
    lost = [LeftOut(question, reasons[question.subtitles]) for question in questions if question.subtitles in reasons]
    if prompts.unreadable_subtitles == "drop":
        return [replace(each, subtitles=None) if each.subtitles in reasons else each for each in questions], lost
    return [question for question in questions if question.subtitles not in reasons], lost


async def _refusal(turns: Turns, question: Question) -> LeftOut | None:
    try:
        await turns.check(question)
    except QuestionError as error:
        return LeftOut(question, str(error))
    return None
