"""`msjoe evaluate --evidence`: how much selectors show of the moments in which the answers lie. No MLLM is loaded.

Invariants: features come from the cache, and CLIP reads only the questions; one whose moments are not known takes no
part.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cluster.evaluation.choosing import check_listed, look, take
from cluster.evaluation.evaluate import PROGRESS, in_flight, ready_videos
from cluster.evaluation.samples import selector_hash
from cluster.evaluation.setting import Setting
from cluster.training.fleet import fleet
from cluster.training.placement import Part
from services.errors import UserError, VideoError
from services.frames import FrameCache
from services.questions.evidence import has_moments, with_moments
from services.schema import Question, Video
from services.scoring import Prediction
from services.scoring.evidence import Choice
from services.storage import written_whole
from services.video import frame_rate

AT_ONCE = 4
"""Questions in work per embedder."""


def measure(setting: Setting, questions: Sequence[Question], console: Console) -> list[Choice]:
    """What every selector takes at every budget for the questions whose evidence is known, in the order of cells and questions.

    Raises UserError when none is known.
    """
    asked = known_moments(questions, console)
    if not asked:
        raise UserError(
            "--evidence: none of these questions says where its answer lies; LVBench (time_reference), LongVideoBench "
            "(position) and questions in the training format with `moments` do"
        )
    videos, _ = ready_videos(setting.config, asked, console)
    able = [question for question in asked if question.video in videos]
    reasons = check_listed(setting.cells, able, videos)
    for name, reason in reasons.items():
        console.print(f"{name} is left out: {reason}", soft_wrap=True, markup=False)
    able = [question for question in able if question.id not in reasons]
    return asyncio.run(_choose(setting, able, videos, console)) if able else []


def known_moments(questions: Sequence[Question], console: Console) -> list[Question]:
    """The questions whose moments are known, in seconds. One whose moments depend on its video's frame rate, which the
    video does not say, is named and left out."""
    found = []
    for question in filter(has_moments, questions):
        try:
            found.append(question if question.moments else with_moments(question, frame_rate(question.video)))
        except VideoError as error:
            console.print(f"{question.id}: no evidence: {error}", soft_wrap=True, markup=False)
    return found


def chosen(
    rows: Sequence[Prediction], questions: Sequence[Question], cache: FrameCache, console: Console
) -> list[Choice]:
    """The choices that a whole evaluation made for the questions whose evidence is known, and which were asked."""
    there = {row.question_id for row in rows if row.frames}
    asked = {
        question.id: question for question in known_moments([one for one in questions if one.id in there], console)
    }
    videos = {path: cache.find(path) for path in {question.video for question in asked.values()}}
    found = []
    for row in rows:
        question = asked.get(row.question_id)
        if question and row.frames and (video := videos[question.video]):
            frames = tuple(row.frames)
            found.append(Choice(question, video.num_frames, row.selector, row.selector_hash, row.budget, frames))
    return found


async def _choose(
    setting: Setting, questions: Sequence[Question], videos: Mapping[str, Video], console: Console
) -> list[Choice]:
    hashes = {cell.selector.name: selector_hash(cell.selector, setting.config, "") for cell in setting.cells}
    parts: list[Part] = ["embedders"]
    if any(cell.selector.learns for cell in setting.cells):
        parts.append("selectors")
    found: dict[tuple[str, int, str], Choice] = {}

    def report(said: str) -> None:
        console.print(said, soft_wrap=True, markup=False)

    async with fleet(setting.config, report, parts) as actors:
        with Progress(*PROGRESS, console=console) as bar:
            task = bar.add_task("choosing", total=len(questions))

            async def work(queue: Iterator[Question]) -> None:
                for question in queue:
                    video = videos[question.video]
                    seen = await look(actors, video, (question.question,))
                    for cell in setting.cells:
                        name, budget = cell.selector.name, cell.budget
                        file = cell.selector.file
                        frames = file.choose(question, video, budget) if file else await take(actors, cell, seen)
                        choice = Choice(question, video.num_frames, name, hashes[name], budget, frames)
                        found[name, budget, question.id] = choice
                    bar.advance(task)

            await in_flight(work, iter(questions), AT_ONCE * setting.config.embedder.replicas)
    return [found[cell.selector.name, cell.budget, one.id] for cell in setting.cells for one in questions]


def write_choices(path: Path, choices: Sequence[Choice], setting: Setting) -> None:
    """Write one JSON line per choice, with its measures, whole or not at all."""
    with written_whole(path) as temporary:
        lines = (json.dumps(_row(choice, setting), ensure_ascii=False) + "\n" for choice in choices)
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _row(choice: Choice, setting: Setting) -> dict[str, Any]:
    return {
        "question_id": choice.question.id,
        "video": setting.below_videos(choice.question.video),
        "selector": choice.selector,
        "selector_hash": choice.selector_hash,
        "budget": choice.budget,
        "frames": list(choice.frames),
        "num_frames": choice.num_frames,
        "moments": choice.question.moments,
        **choice.measures,
    }
