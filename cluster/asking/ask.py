"""`msjoe ask`: one question about one video on the actors, each stage timed.

Invariants: whatever can be wrong with the video, the question, the selector and the models is said before an actor starts;
nothing is sampled; pixels are read here for the page alone, from the frame cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from actors.embedder import EmbedderActor
from actors.turns import Answer, Queries
from cluster.checks import check_models
from cluster.config import Config
from cluster.evaluation.choosing import look, take
from cluster.evaluation.setting import Cell, budgets, for_asking, selectors
from cluster.training.fleet import Report, fleet
from cluster.training.placement import Part
from services.embeddings import FeatureCache, known_key
from services.errors import UserError, VideoError
from services.frames import FrameCache
from services.schema import LETTERS, Question, Video


@dataclass(frozen=True)
class Asked:
    """What is asked, and of whom."""

    question: Question
    cell: Cell


@dataclass(frozen=True)
class Stage:
    """One stage on the way to the answer."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Answered:
    """The answer, and what led to it."""

    video: Video
    stages: Sequence[Stage]
    queries: Queries | None
    """The query turn; None when CLIP was asked the question itself."""
    texts: tuple[str, ...]
    """What CLIP was asked, Q texts."""
    similarity: np.ndarray
    """[Q, T] cosines with every candidate frame, one per second."""
    frames: tuple[int, ...]
    """The key frames in time order."""
    answer: Answer


def settle(
    video: Path,
    text: str,
    options: Sequence[str],
    selector: str | None,
    frames: str | None,
    load: Callable[[Sequence[str]], Config],
) -> Asked:
    """What the options ask for. `load`: the config with overrides, as `loader` makes it; selector and number of frames are its
    own unless they are given.

    Raises UserError for a video that is not there, one option alone or too many, an unknown selector, a number of frames that
    is none or beyond the context, and models that are not there or are of another architecture.
    """
    if not video.is_file():
        raise UserError(f"{video}: no such video")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise UserError(f"--option: {len(options)} given; valid: 2 to {len(LETTERS)}, or none for a free answer")
    overrides = ["--train.validate_budgets=[]"]
    if frames is not None:
        if len(found := budgets(frames)) > 1:
            raise UserError(f"--frames={frames}: name one number; msjoe evaluate takes several")
        overrides.append(f"--frames.budget={found[0]}")
    chosen = selectors(selector or load(overrides).selector.kind)
    if len(chosen) > 1 or chosen[0].file:
        raise UserError(
            f"--selector={selector}: name one value of selector.kind; msjoe evaluate takes several, and files"
        )
    config = for_asking(load([*overrides, f"--selector.kind={chosen[0].kind}"]), None, None)
    check_models(config)
    question = Question("asked", str(video.absolute()), text, tuple(options))
    return Asked(question, Cell(chosen[0], config.frames.budget, config))


def ask(asked: Asked, console: Console) -> Answered:
    """Decode the video if the cache lacks it, start the actors, and ask them.

    Raises UserError for a video that cannot be read, before an actor starts, and for a prompt that does not fit the engine.
    """
    config = asked.cell.config
    laps, cache = Laps(), FrameCache.of(config.data, config.frames)
    try:
        video = cache.add(asked.question.video)
    except VideoError as error:
        raise UserError(str(error)) from None
    finally:
        cache.close()
    laps.end("video decoded" if cache.decodes else "video found in the cache")

    def report(said: str) -> None:
        console.print(said, soft_wrap=True, markup=False)

    return asyncio.run(_ask(asked, video, laps, report))


async def _ask(asked: Asked, video: Video, laps: Laps, report: Report) -> Answered:
    question, cell, config = asked.question, asked.cell, asked.cell.config
    parts: list[Part] = ["rollouts", "embedders"]
    if cell.selector.learns:
        parts.append("selectors")
    is_embedded = _is_embedded(config, video)
    async with fleet(config, report, parts) as actors:
        laps.end("actors started")
        await actors.embedders.within(config.data.decode_deadline).call(EmbedderActor.embed, video.key)
        laps.end("features found in the cache" if is_embedded else "frames embedded")
        turns = actors.turns(config, {question.video: video})
        queries = await turns.query(question, None) if cell.selector.asks == "queries" else None
        if queries:
            laps.end("queries written")
        texts = queries.texts if queries else (question.question,)
        seen = await look(actors, video, texts)
        laps.end("frames compared")
        frames = await take(actors, cell, seen)
        laps.end("frames chosen")
        answer = await turns.answer(question, frames, None)
        laps.end("answer written")
    return Answered(video, laps.stages, queries, texts, seen[1], frames, answer)


def _is_embedded(config: Config, video: Video) -> bool:
    """Whether the video's features are in the cache, by a CLIP that was loaded before."""
    key = known_key(config.data.cache, config.embedder.model, config.embedder.key_parameters())
    return bool(key and FeatureCache(config.data.cache, key, config.data.bucket).get(video.key) is not None)


class Laps:
    """Stages one after the other, from now on."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        """The stage of that name ends now, and the next one begins."""
        now = time.perf_counter()
        self.stages.append(Stage(name, now - self._since))
        self._since = now
