"""`msjoe prepare --pass-rate`: how hard each question is for the MLLM as it is: the share of right answers over n rollouts
of the answer turn with uniform frames (c of stage 1).

Invariants: an answer is decided by the seed, the question and its number, so a rate does not depend on where or when it is
measured; each rate is on disk as soon as it is known, under a key of all that it depends on, so a killed run goes on where
it stopped and nothing is measured twice; a question whose video cannot be read, or that cannot be asked, keeps no rate, and is
named.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from actors.prompts import answer_messages
from actors.turns import Turns
from actors.viewing import stream, together
from cluster.config import Config
from cluster.questions.left_out import settle_subtitles
from cluster.training.fleet import fleet
from services.errors import QuestionError, VideoError
from services.frames import FrameCache
from services.schema import LeftOut, Question, Video, label
from services.storage import Storage, folder_stamp

PROGRESS = (TextColumn("measuring pass rates"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())


async def measure(config: Config, questions: Sequence[Question], samples: int, console: Console) -> list[Question]:
    """The questions with their pass rates over `samples` answers each; their videos must be in the cache."""
    rates = PassRates(config, samples)
    videos = _videos(config, questions, console)
    asked, unheard = settle_subtitles(questions, config.prompts)
    for loss in unheard:
        what = "asked without subtitles" if config.prompts.unreadable_subtitles == "drop" else "no pass rate"
        console.print(f"{loss.question.id}: {what}: {loss.reason}", soft_wrap=True, markup=False)
    readable = [question for question in asked if question.video in videos]
    missing = [question for question in readable if rates.known(question, videos) is None]
    if missing:
        console.print(
            f"{len(readable) - len(missing)} of {len(readable)} pass rates are known; measuring {len(missing)}"
        )
        async with fleet(config, console.print, ["rollouts"]) as actors:
            turns = actors.turns(config, videos)
            with Progress(*PROGRESS, console=console) as bar:
                calls = [rates.measure(question, videos, turns) for question in missing]
                for ready in bar.track(asyncio.as_completed(calls), total=len(calls)):
                    if refused := await ready:
                        named = f"no pass rate for {refused.question.id}: {refused.reason}"
                        console.print(named, soft_wrap=True, markup=False)
    found = {question.id: rates.known(question, videos) for question in readable}
    model = Path(config.policy.model).name if Path(config.policy.model).is_dir() else config.policy.model
    measured = [
        replace(question, pass_rate=rate, pass_rate_samples=samples, pass_rate_model=model)
        if (rate := found.get(question.id)) is not None
        else replace(question, pass_rate=None, pass_rate_samples=None, pass_rate_model="")
        for question in questions
    ]
    console.print(_table(measured))
    return measured


class PassRates:
    """Rates that were measured, as the files `pass_rates/v1/…` of the cache, and the measuring of others."""

    def __init__(self, config: Config, samples: int) -> None:
        self._config, self._samples = config, samples
        self._storage = Storage(config.data.cache, config.data.bucket)
        rollout, frames = config.rollout, config.frames
        self._decided_by = [
            config.policy.model, folder_stamp(Path(config.policy.model)), config.policy.dtype, rollout.temperature,
            rollout.answer_tokens, frames.budget, frames.tokens_per_frame, frames.shown_as, config.prompts.subtitles,
            config.train.seed, samples,
        ]  # fmt: skip

    def known(self, question: Question, videos: Mapping[str, Video]) -> float | None:
        """The question's rate, None when it was never measured."""
        try:
            return json.loads(self._storage.find(self._name(question, videos)).read_text())["right"] / self._samples
        except FileNotFoundError:
            return None

    async def measure(self, question: Question, videos: Mapping[str, Video], turns: Turns) -> LeftOut | None:
        """Answer the question `samples` times and keep how often it was right; returns why not, when it cannot be asked."""
        seeds = [stream(self._config.train.seed, "pass rate", question.id, index) for index in range(self._samples)]
        try:
            answers = await together(turns.answer_uniformly(question, seed) for seed in seeds)
        except QuestionError as error:
            return LeftOut(question, str(error))
        right = sum(answer.letter == label(question) for answer in answers)
        record = {"question": question.id, "right": right, "samples": self._samples}
        with self._storage.write(self._name(question, videos)) as temporary:
            temporary.write_text(json.dumps(record))
        return None

    def _name(self, question: Question, videos: Mapping[str, Video]) -> str:
        asked = [question.id, answer_messages(question), label(question), question.subtitles, question.subtitle_offset]
        identity = json.dumps([*self._decided_by, *asked, videos[question.video].key])
        key = blake2b(identity.encode(), digest_size=16).hexdigest()
        return f"pass_rates/v1/{key[:2]}/{key}.json"


def _videos(config: Config, questions: Sequence[Question], console: Console) -> dict[str, Video]:
    """The questions' videos as they are cached, by path; those that cannot be read are named."""
    cache = FrameCache.of(config.data, config.frames)
    videos: dict[str, Video] = {}
    for path in dict.fromkeys(question.video for question in questions):
        try:
            video = cache.find(path)
            reason = f"{path}: is not in the cache"
        except VideoError as error:
            video, reason = None, str(error)
        if video is not None:
            videos[path] = video
        else:
            lost = ", ".join(question.id for question in questions if question.video == path)
            console.print(f"no pass rate for {lost}: {reason}", soft_wrap=True)
    return videos


def _table(questions: Sequence[Question]) -> Table:
    """How many questions have which rate."""
    counts = Counter(question.pass_rate for question in questions)
    table = Table("pass rate", "questions", title=f"{len(questions)} questions", title_justify="left", box=None)
    for rate in sorted((rate for rate in counts if rate is not None), reverse=True):
        table.add_row(f"{rate:g}", str(counts[rate]))
    if counts[None]:
        table.add_row("not measured", str(counts[None]))
    return table
