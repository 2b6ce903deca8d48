"""The joint training loop: collect, reward, update both networks, publish, repeat.

Invariants: on-policy (`staleness 0`): every engine and selector holds the newest version before the next step begins; a step
is logged only when it is whole; the run's folder tells the whole story without the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.pool import Pool
from cluster.config import Config
from cluster.fleet import Fleet, collector, fleet, prepare
from cluster.report import report_run
from learners.credit import policy_batch, rollout_metrics, sampler_batch
from learners.rank import LearnerGroup
from services import jsonl
from services.checkpoints import checkpoint_folder
from services.errors import UserError
from services.metrics import MetricsSink
from services.schema import Group, Question
from services.trajectories import write_trajectories

PREPARING = (TextColumn("preparing videos"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
LEFT_OUT_SHOWN = 20
"""Left-out questions named on the console; the file names all."""


async def train(config: Config, questions: Sequence[Question], run_dir: Path, console: Console) -> None:
    """Run `config` on `questions` and leave the story in `run_dir`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    async with fleet(config, console.print) as actors:
        with Progress(*PREPARING, console=console) as bar:
            deadline = config.data.decode_deadline + config.embedder.deadline
            videos, unreadable = await prepare(actors.embedders, questions, deadline, bar.track)
        questions = leave_out(questions, unreadable, run_dir, console)
        collect = collector(actors, config, videos).collect
        batches = question_batches(questions, config.train.questions_per_step, config.train.seed)

        with MetricsSink(run_dir, config.train.steps) as sink:
            for step in range(1, config.train.steps + 1):
                clock = Clock()
                with clock("rollout"):
                    groups = await collect(next(batches), config.train.group_size, step)
                metrics = await update(actors, config, groups, step, clock)
                with clock("checkpoint"):
                    write_trajectories(run_dir, step, groups)
                    if step % config.train.checkpoint_every == 0 or step == config.train.steps:
                        await checkpoint(actors, run_dir, step)
                sink.log(step, rollout_metrics(groups) | metrics | clock.metrics())

        # A task, so that the frames it shows never pass through this process.
        await ray.remote(num_cpus=0)(report_run).remote(run_dir, config.data, config.frames)


async def update(actors: Fleet, config: Config, groups: Sequence[Group], step: int, clock: Clock) -> dict[str, float]:
    """Both learners at once, then every new version to whoever acts with it. Returns the learners' metrics."""
    policy, sampler = policy_batch(groups), sampler_batch(groups, config.sampler)

    async def learn(learner: LearnerGroup | None, batch: Any, has_signal: bool) -> dict[str, float]:
        if learner is None:
            return {}
        with clock(f"{learner.network}_update"):
            return await learner.update(batch, step) if has_signal else learner.idle()

    parts = await asyncio.gather(
        learn(actors.policy, policy, bool(policy.samples)), learn(actors.sampler, sampler, bool(sampler))
    )
    with clock("publish"):
        await asyncio.gather(
            *[
                publish(learner, readers, actors)
                for learner, readers in ((actors.policy, actors.rollouts), (actors.sampler, actors.selectors))
                if learner is not None and learner.is_ahead
            ]
        )
    return parts[0] | parts[1]


async def publish(learner: LearnerGroup, readers: Pool, actors: Fleet) -> None:
    """The learner's weights to the store, and from there to every reader."""
    await learner.publish(actors.store)
    await readers.broadcast("pull", learner.version)


async def checkpoint(actors: Fleet, run_dir: Path, step: int) -> None:
    """Both networks, in their public formats, in a folder that appears only whole."""
    with checkpoint_folder(run_dir, step) as partial:
        for learner in (actors.policy, actors.sampler):
            if learner is not None:
                await learner.call("save", str(partial / learner.network))
        versions = {part.network: part.version for part in (actors.policy, actors.sampler) if part is not None}
        (partial / "state.json").write_text(json.dumps({"step": step, "versions": versions}))


def question_batches(questions: Sequence[Question], size: int, seed: int) -> Iterator[list[Question]]:
    """Endless batches of `size` different questions, all there are when they are fewer.

    Each epoch is a new order decided by the seed; what no whole batch holds any more is left to later epochs.
    """
    size = min(size, len(questions))
    for epoch in itertools.count():
        order = np.random.default_rng((seed, epoch)).permutation(len(questions))
        for start in range(0, len(questions) - size + 1, size):
            yield [questions[index] for index in order[start : start + size]]


def leave_out(
    questions: Sequence[Question], unreadable: dict[str, str], run_dir: Path, console: Console
) -> list[Question]:
    """The questions whose videos are there; the others go to `left_out.jsonl` with their reasons.

    Raises UserError when none is left.
    """
    lost = [question for question in questions if question.video in unreadable]
    if lost:
        jsonl.append(
            run_dir / "left_out.jsonl",
            [{"question_id": question.id, "reason": unreadable[question.video]} for question in lost],
        )
        for question in lost[:LEFT_OUT_SHOWN]:
            console.print(f"left out question {question.id}: {unreadable[question.video]}", soft_wrap=True)
        console.print(
            f"{len(lost)} of {len(questions)} questions left out; all reasons in {run_dir / 'left_out.jsonl'}"
        )
    if len(lost) == len(questions):
        raise UserError(f"no question is left: none of their videos can be read; see {run_dir / 'left_out.jsonl'}")
    return [question for question in questions if question.video not in unreadable]


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._phases[phase] = time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """`timing/<phase>` and `timing/step`, seconds."""
        return {f"timing/{name}": seconds for name, seconds in self._phases.items()} | {
            "timing/step": time.perf_counter() - self._start
        }
