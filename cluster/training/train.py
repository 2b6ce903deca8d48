"""The joint training loop: collect, reward, update both networks, publish, repeat.

Invariants: on-policy (`staleness 0`): every engine and selector holds the newest version before the next step begins; a step
is logged only when it is whole; the run's folder tells the whole story without the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.collector import Collector
from actors.embedder import EmbedderActor
from actors.rollout import RolloutActor
from actors.selector import SelectorActor
from cluster.config import Config, TrainConfig
from cluster.questions.left_out import Losses
from cluster.questions.stream import QuestionStream
from cluster.report import report_run
from cluster.training.fleet import Fleet, fill_caches
from cluster.training.learners import Learners, training_fleet
from cluster.training.run_folder import CONFIG
from cluster.training.validation import Validation
from learners.credit import policy_batch, rollout_metrics, sampler_batch
from learners.group import LearnerGroup
from learners.policy import mismatch_alarm
from learners.rank import LearnerRank
from services.checkpoints import checkpoint_folder
from services.errors import UserError
from services.metrics import MetricsSink
from services.schema import Group, LeftOut, Question
from services.trajectories import write_trajectories
from services.writing import writing

PREPARING = (TextColumn("preparing videos"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
Collect = Callable[[Sequence[Question], int, int, int], Awaitable[tuple[list[Group], list[LeftOut]]]]
Pull = Callable[[int], Awaitable[Any]]
"""Every reader of a network takes a version in."""


async def train(
    config: Config, questions: Sequence[Question], held_out: Sequence[Question], run_dir: Path, console: Console
) -> None:
    """Run `config` on `questions`, validate on those `held_out`, and leave the story in `run_dir`."""
    start = time.perf_counter()
    resolved = config.model_dump(mode="json")
    with writing(run_dir / CONFIG):
        (run_dir / CONFIG).write_text(yaml.safe_dump(resolved, sort_keys=False))
    async with training_fleet(config, console.print) as (actors, learners):
        with Progress(*PREPARING, console=console) as bar:
            deadline = config.data.decode_deadline + config.embedder.deadline
            videos, unreadable = await fill_caches(actors.embedders, [*questions, *held_out], deadline, bar.track)
        losses, turns = Losses(run_dir, console), actors.turns(config, videos)
        questions, held_out = [
            await losses.sift(some, unreadable, turns, config.prompts) for some in (questions, held_out)
        ]
        viewing = actors.viewing(turns)
        collect = Collector(viewing, config.frames.budget, config.rewards, config.train.seed).collect
        stream = QuestionStream(questions, config.train.seed)
        validation = Validation(config, viewing, held_out, run_dir, losses) if held_out else None

        with MetricsSink(run_dir, config.train.steps, config.train.trackers, resolved) as sink:
            if validation:
                await validation.measure_baseline()
                sink.log(0, await validation.measure(0))
            for step in range(1, config.train.steps + 1):
                clock = Clock()
                with clock("rollout"):
                    groups = await collect_step(collect, stream, config.train, losses, step)
                used = [group for group in groups if group.has_signal or not config.train.refills]
                metrics = await update(actors, learners, config, used, step, clock)
                if alarm := mismatch_alarm(metrics, config.policy):
                    console.print(f"step {step}: {alarm}", soft_wrap=True)
                with clock("checkpoint"):
                    write_trajectories(run_dir, step, groups)
                    if step % config.train.checkpoint_every == 0 or step == config.train.steps:
                        await checkpoint(learners, run_dir, step)
                if validation and (step % config.train.validate_every == 0 or step == config.train.steps):
                    with clock("validation"):
                        metrics |= await validation.measure(step)
                decodes = {"cache/decodes": float(sum(await actors.embedders.broadcast(EmbedderActor.decodes)))}
                left_out = {"rollout/left_out": float(losses.questions)}
                sink.log(step, rollout_metrics(groups) | left_out | metrics | decodes | clock.metrics())
            if validation:
                await validation.measure_budgets()
                summary = validation.summarise(config.train.steps, time.perf_counter() - start)
                console.print(
                    "validation accuracy {accuracy/before:.2f} before, {accuracy/after:.2f} after; "
                    "{accuracy/uniform:.2f} with uniform frames and the MLLM as it was".format_map(summary)
                )

        try:  # a task, so that the frames it shows never pass through this process
            await ray.remote(num_cpus=0)(report_run).remote(run_dir, config.data, config.frames)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise


async def collect_step(
    collect: Collect, stream: QuestionStream, config: TrainConfig, losses: Losses, step: int
) -> list[Group]:
    """The groups of a step; in place of those without signal, `config.refills` further rounds of other questions.

    The place of a question that cannot be asked is filled within its round, and it is not asked again.
    Raises UserError when there is no other question.
    """
    groups: list[Group] = []
    for _ in range(1 + config.refills):
        missing = config.questions_per_step - sum(group.has_signal for group in groups)
        while questions := stream.take(missing, [group.question for group in groups]):
            found, left_out = await collect(questions, config.group_size, config.draws, step)
            groups += found
            losses.add(left_out)
            stream.leave_out(loss.question for loss in left_out)
            missing = len(left_out)
    if not groups:
        raise UserError("no question is left: none can be asked; left_out.jsonl in the run's folder has the reasons")
    return groups


async def update(
    actors: Fleet, learners: Learners, config: Config, groups: Sequence[Group], step: int, clock: Clock
) -> dict[str, float]:
    """Both learners at once, then every new version to whoever acts with it. Returns the learners' metrics."""
    batches = policy_batch(groups, config.policy), sampler_batch(groups, config.sampler)

    async def learn(learner: LearnerGroup | None, batch: Sequence[Any]) -> dict[str, float]:
        if learner is None:
            return {}
        with clock(f"{learner.network}_update"):
            return await learner.update(batch, step) if batch else learner.idle(step)

    parts = await asyncio.gather(learn(learners.policy, batches[0]), learn(learners.sampler, batches[1]))
    with clock("publish"):
        pulls: list[tuple[LearnerGroup | None, Pull]] = [
            (learners.policy, lambda version: actors.rollouts.broadcast(RolloutActor.pull, version)),
            (learners.sampler, lambda version: actors.selectors.broadcast(SelectorActor.pull, version)),
        ]
        await asyncio.gather(
            *[
                publish(learner, actors.store, pull)
                for learner, pull in pulls
                if learner is not None and learner.is_ahead
            ]
        )
    return parts[0] | parts[1]


async def publish(learner: LearnerGroup, store: ActorHandle, pull: Pull) -> None:
    """The learner's weights to the store, and from there to every reader by `pull`."""
    await learner.publish(store)
    await pull(learner.version)


async def checkpoint(learners: Learners, run_dir: Path, step: int) -> None:
    """Both networks, in their public formats, in a folder that appears only whole."""
    with checkpoint_folder(run_dir, step) as partial:
        for learner in learners.present:
            await learner.call(LearnerRank.save, str(partial / learner.network))
        versions = {learner.network: learner.version for learner in learners.present}
        (partial / "state.json").write_text(json.dumps({"step": step, "versions": versions}))


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
