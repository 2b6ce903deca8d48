"""Seconds of one question in its parts, beside uniform frames: queries, similarity, sampler, answer, and decoding its video.

    python -m benchmarks.stages --questions 8
    python -m benchmarks.stages --recipe cluster/recipes/qwen2_5_vl_7b.yaml --checkpoint runs/mine --file q.jsonl --videos /data

The parts are those of the paper's Table 4. Questions are asked one after the other, so nothing waits for another. Each video is
new to the cache at its first question (`decode and embed`); after that its frames and features are read from there. The first
question does not count, because an engine's first turns are slow.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from actors.embedder import EmbedderActor
from actors.selector import SelectorActor
from cluster.checks import check_models
from cluster.config import Config
from cluster.evaluation.setting import loader
from cluster.resolve import resolve
from cluster.toyworld.make import make_world
from cluster.training.fleet import Fleet, fleet
from services.questions import read_questions
from services.schema import Question, Video

Result = TypeVar("Result")
Seconds = dict[str, list[float]]
"""Seconds by part: one number per question, for decoding one per video."""
DECODE, PARTS, UNIFORM = "decode and embed", ("query turn", "similarity", "sampler", "answer"), "uniform frames: answer"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--file", type=Path, help="questions; the toy world's held-out ones")
    parser.add_argument("--videos", type=Path, help="folder of their videos")
    options, overrides = parser.parse_known_args()
    console = Console()
    with tempfile.TemporaryDirectory() as cache:
        config = loader(options.recipe, options.checkpoint, None, overrides)([f"--data.cache={cache}"])
        file = options.file or make_world(config).validation
        config = resolve(config, None)
        check_models(config)
        questions = read_questions(file, options.videos)[: options.questions + 1]
        show(asyncio.run(measure(config, questions, console)), console)


async def measure(config: Config, questions: list[Question], console: Console) -> Seconds:
    """Ask every question on actors of its own."""
    seconds: Seconds = {name: [] for name in (DECODE, *PARTS, UNIFORM)}
    videos: dict[str, Video] = {}
    async with fleet(config, console.print, ["rollouts", "embedders", "selectors"]) as actors:
        for place, question in enumerate(questions):
            if question.video not in videos:
                decoded = actors.embedders.within(config.data.decode_deadline)
                call = decoded.call(EmbedderActor.decode_and_embed, question.video)
                videos[question.video] = await timed(seconds, DECODE, call)
            await ask(config, actors, videos, question, seconds if place else {name: [] for name in seconds})
    return seconds


async def ask(config: Config, actors: Fleet, videos: dict[str, Video], question: Question, seconds: Seconds) -> None:
    """One question, with chosen frames and with uniform ones."""
    turns, budget, key = actors.turns(config, videos), config.frames.budget, videos[question.video].key
    queries = await timed(seconds, PARTS[0], turns.query(question, None))
    match = actors.embedders.call(EmbedderActor.match, key, queries.texts)
    similarity, embedded = await timed(seconds, PARTS[1], match)
    select = actors.selectors.call(SelectorActor.select, similarity, budget, None, embedded)
    selection = await timed(seconds, PARTS[2], select)
    await timed(seconds, PARTS[3], turns.answer(question, selection.frames, None))
    await timed(seconds, UNIFORM, turns.answer_uniformly(question))


async def timed(seconds: Seconds, part: str, call: Awaitable[Result]) -> Result:
    """The result of a call, whose seconds are noted."""
    start = time.perf_counter()
    result = await call
    seconds[part].append(time.perf_counter() - start)
    return result


def show(seconds: Seconds, console: Console) -> None:
    """Print medians and ranges, and the sums of what a question waits for."""
    table = Table("part", "seconds", "times a uniform answer")
    whole = [sum(parts) for parts in zip(*(seconds[part] for part in PARTS), strict=True)]
    floor = statistics.median(seconds[UNIFORM])
    rows = {**seconds, "all four parts, video cached": whole}
    for name in (UNIFORM, *PARTS, "all four parts, video cached", DECODE):
        middle, low, high = (function(rows[name]) for function in FIGURES)
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{middle / floor:.2f}")
    console.print(table)


FIGURES: tuple[Callable[[list[float]], float], ...] = (statistics.median, min, max)

if __name__ == "__main__":
    main()
