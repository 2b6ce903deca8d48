"""`msjoe evaluate`: every question answered from the frames of every selector at every budget, on the actors.

Invariants: what is known is never asked again, and nothing starts when all is known; a bounded number of questions is in
flight, however many there are, and of each only similarities and texts are held here, never a pixel; nothing is sampled. Two
selectors that take the same frames of a question share one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.turns import Turns
from cluster.config import Config
from cluster.evaluation.choosing import Seen, check_listed, look, take
from cluster.evaluation.samples import Keys, Sample, Samples, settled
from cluster.evaluation.setting import Cell, Setting
from cluster.preparing.prepare import prepare
from cluster.questions.left_out import settle_subtitles
from cluster.training.fleet import BATCHES, Fleet, fleet
from cluster.training.placement import Part
from services.errors import QuestionError
from services.frames import FrameCache
from services.schema import Question, Video
from services.scoring import Prediction, request

PROGRESS = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
Item = TypeVar("Item")
Work = tuple[Question, Sequence[Cell]]
"""A question and the cells that it is still to be answered in."""


def evaluate(
    setting: Setting, keys: Keys, questions: Sequence[Question], samples: Samples, console: Console
) -> list[Prediction]:
    """The predictions of `questions` in every cell, in a fixed order; those that are not among `samples` are made now."""
    videos, unreadable = ready_videos(setting.config, questions, console)
    asked, unheard = settle_subtitles(questions, setting.config.prompts)
    for loss in unheard:
        console.print(f"{loss.question.id}: no subtitles: {loss.reason}", soft_wrap=True, markup=False)
    reasons = {loss.question.id: loss.reason for loss in unheard if loss.question.id not in {one.id for one in asked}}
    able = {question.id: question for question in asked if question.video in videos}
    reasons |= {one.id: unreadable[one.video] for one in questions if one.video in unreadable}
    missing = [work for question in able.values() if (work := _missing(setting, keys, question, videos, samples))[1]]
    count, total = sum(len(cells) for _, cells in missing), len(able) * len(setting.cells)
    console.print(f"{total - count} of {total} samples are known; asking {count}")
    for question, cells in missing:
        check_listed(cells, [question], videos)
    if missing:
        asyncio.run(_ask(setting, keys, missing, videos, samples, console))
    return settled(setting, keys, [able.get(one.id, one) for one in questions], videos, reasons, samples)


def ready_videos(
    config: Config, questions: Sequence[Question], console: Console
) -> tuple[dict[str, Video], dict[str, str]]:
    """The questions' videos by path, in the caches from now on, and the reason for each that cannot be read."""
    paths = list(dict.fromkeys(question.video for question in questions))
    prepared = prepare(config, paths, console, verify=False, retry=False)
    unreadable = {one.path: one.reason for one in prepared if one.status == "quarantined"}
    cache = FrameCache.of(config.data, config.frames)
    found = {path: cache.find(path) for path in paths if path not in unreadable}
    return {path: video for path, video in found.items() if video}, unreadable


def _missing(setting: Setting, keys: Keys, question: Question, videos: Mapping[str, Video], samples: Samples) -> Work:
    def is_known(cell: Cell) -> bool:
        key = keys.of(question, cell, videos[question.video])
        return samples.find(key, keys.refused(key)) is not None

    return question, [cell for cell in setting.cells if not is_known(cell)]


async def _ask(
    setting: Setting,
    keys: Keys,
    missing: Sequence[Work],
    videos: Mapping[str, Video],
    samples: Samples,
    console: Console,
) -> None:
    """Make the missing samples, each kept as soon as it is there."""
    config = setting.config
    parts: list[Part] = ["rollouts"]
    if any(cell.selector.file is None for cell in setting.cells):
        parts.append("embedders")
    if any(cell.selector.learns for cell in setting.cells):
        parts.append("selectors")

    def report(said: str) -> None:
        console.print(said, soft_wrap=True, markup=False)

    async with fleet(config, report, parts) as actors:
        with Progress(*PROGRESS, console=console) as bar:
            task = bar.add_task("answering", total=sum(len(cells) for _, cells in missing))
            answering = Answering(setting, keys, videos, actors)

            async def work(queue: Iterator[Work]) -> None:
                for question, cells in queue:
                    async for sample in answering.samples(question, cells):
                        samples.add(sample)
                        bar.advance(task)
                        if sample.reply is None:
                            report(f"{question.id} cannot be asked: {sample.reason}")

            await in_flight(work, iter(missing), BATCHES * config.rollout.max_num_seqs * config.rollout.replicas)


async def in_flight(work: Callable[[Iterator[Item]], Awaitable[None]], queue: Iterator[Item], workers: int) -> None:
    """`work` on one queue by so many workers, so that no more of its items are in work; the first error ends all."""
    tasks = [asyncio.ensure_future(work(queue)) for _ in range(workers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Answering:
    """Engines, CLIP and selectors, asked for samples."""

    def __init__(self, setting: Setting, keys: Keys, videos: Mapping[str, Video], actors: Fleet) -> None:
        self._setting, self._keys, self._videos, self._actors = setting, keys, videos, actors
        self._turns = {cell.budget: actors.turns(cell.config, videos) for cell in setting.cells}

    async def samples(self, question: Question, cells: Iterable[Cell]) -> AsyncIterator[Sample]:
        """The question's sample in each of `cells`, one after the other; what two of them share is asked once."""
        seen: dict[tuple[str, int], Seen] = {}
        answers: dict[tuple[int, tuple[int, ...]], Sample] = {}
        for cell in cells:
            key = self._keys.of(question, cell, self._videos[question.video])
            turns = self._turns[cell.budget]
            try:
                texts, frames = await self._choose(question, cell, turns, seen)
                if (cell.budget, frames) not in answers:
                    answers[cell.budget, frames] = await self._answer(question, frames, turns)
                yield replace(answers[cell.budget, frames], key=key, queries=texts)
            except QuestionError as error:
                yield Sample(self._keys.refused(key), reason=str(error))

    async def _choose(
        self, question: Question, cell: Cell, turns: Turns, seen: dict[tuple[str, int], Seen]
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """What CLIP was asked, and the frames that the cell's selector takes."""
        if cell.selector.file:
            return (), cell.selector.file.choose(question, self._videos[question.video], cell.budget)
        asks = cell.selector.asks, cell.budget
        if asks not in seen:
            seen[asks] = await self._look(question, cell, turns)
        return seen[asks][0], await take(self._actors, cell, seen[asks])

    async def _look(self, question: Question, cell: Cell, turns: Turns) -> Seen:
        texts: tuple[str, ...] = (question.question,)
        if cell.selector.asks == "queries":
            texts = (await turns.query(question, None)).texts
        return await look(self._actors, self._videos[question.video], texts)

    async def _answer(self, question: Question, frames: tuple[int, ...], turns: Turns) -> Sample:
        asked = request(self._setting.benchmark, self._setting.prompt, question)
        turn = (await turns.answer(question, frames, None, asked)).turn
        assert turn.visual is not None
        return Sample("", frames, turn.visual.num_tokens, (), turn.text)
