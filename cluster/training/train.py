"""The joint training loop: collect, reward, update both networks, publish, repeat.

    go(state): [ collect ─▶ update ─▶ publish ─▶ validate ─▶ checkpoint ] per step ─▶ state at the end
        ▲          └────────── a rank of a learner is lost ──────────┘
        └── go_back: both learners anew, as they were at the newest checkpoint, whose state the run goes on from

Invariants: on-policy (`staleness 0`): every engine and selector holds the newest version before the next step begins; a step
is logged only when it is whole; the run's folder tells the whole story without the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.collector import Collector
from actors.embedder import EmbedderActor
from cluster.config import Config, TrainConfig
from cluster.questions.left_out import Losses
from cluster.questions.stream import Ledger, QuestionStream
from cluster.report import report_run
from cluster.training.checkpointing import Checkpoints, restore
from cluster.training.fleet import Fleet, fill_caches
from cluster.training.learners import Learners, publish, training_fleet
from cluster.training.run_folder import CONFIG, forget_after
from cluster.training.run_state import RunState, changes, read_state
from cluster.training.stopping import Stop
from cluster.training.validation import Validation
from learners.credit import policy_batch, rollout_metrics, sampler_batch
from learners.group import LearnerGroup
from learners.policy import mismatch_alarm
from services.checkpoints import newest_whole_checkpoint
from services.errors import ActorLost, TrainingError, UserError
from services.metrics import MetricsSink, read_metrics
from services.schema import Group, LeftOut, Question
from services.trajectories import write_trajectories
from services.writing import writing

PREPARING = (TextColumn("preparing videos"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
Collect = Callable[[Sequence[Question], int, int, int], Awaitable[tuple[list[Group], list[LeftOut]]]]


@dataclass(frozen=True)
class Run:
    """What the steps of one run share."""

    config: Config
    run_dir: Path
    console: Console
    actors: Fleet
    learners: Learners
    stream: QuestionStream
    collect: Collect
    losses: Losses
    validation: Validation | None
    checkpoints: Checkpoints
    start: float
    """When the run began, on the clock of `time.perf_counter`; of one that goes on, as if it had never stopped."""

    async def go(self, state: RunState, sink: MetricsSink, stop: Stop) -> RunState:
        """All steps after that of `state`; the state at the end of the last one that was done before a stop, which is saved.

        Raises ActorLost when a learner has lost a rank.
        """
        train = self.config.train
        if self.validation and state.step == 0 and not self.validation.accuracies:
            await self.validation.measure_baseline()
            sink.log(0, await self.validation.measure(0))
        for step in range(state.step + 1, train.steps + 1):
            clock, is_last = Clock(), step == train.steps
            try:
                with clock("rollout"):
                    collecting = collect_step(self.collect, self.stream, train, self.losses, step)
                    groups = await stop.unless_asked(collecting, self.learners.lost())
            except ActorLost:
                raise
            except TrainingError:  # the learners are as the last step left them
                await self.save(state)
                await self.checkpoints.finish()
                raise
            if groups is None:
                break
            metrics = await self.learn(groups, step, clock)
            if self.validation and (step % train.validate_every == 0 or is_last):
                with clock("validation"):
                    metrics |= await self.validation.measure(step)
            state = replace(
                state,
                step=step,
                versions=self.learners.versions,
                ledger=self.stream.ledger(),
                accuracies=dict(self.validation.accuracies) if self.validation else {},
                accuracy=metrics.get("validation/accuracy"),
                seconds=time.perf_counter() - self.start,
            )
            with clock("checkpoint_hold"):
                if step % train.checkpoint_every == 0 or is_last:
                    await self.checkpoints.begin(state)
            sink.log(step, metrics | clock.metrics())
            if stop.is_asked:
                break
        if stop.is_asked:
            await self.save(state)
        await self.checkpoints.finish()
        return state

    async def save(self, state: RunState) -> None:
        """A checkpoint of `state`, which the networks are in, unless there is one."""
        if state.step > self.checkpoints.newest:
            await self.checkpoints.begin(state)

    async def learn(self, groups: Sequence[Group], step: int, clock: Clock) -> dict[str, float]:
        """Update both networks on the groups of a step and publish them; the metrics of the step."""
        used = [group for group in groups if group.has_signal or not self.config.train.refills]
        metrics = await update(self.learners, self.config, used, step, clock)
        with clock("publish"):
            await publish(self.learners, self.actors)
        if alarm := mismatch_alarm(metrics, self.config.policy):
            self.console.print(f"step {step}: {alarm}", soft_wrap=True)
        write_trajectories(self.run_dir, step, groups)
        decodes = sum(await self.actors.embedders.broadcast(EmbedderActor.decodes))
        counts = {"cache/decodes": float(decodes), "rollout/left_out": float(self.losses.questions)}
        lost, also = self.actors.supervision(), self.learners.supervision()
        lost = {name: lost.get(name, 0.0) + also.get(name, 0.0) for name in lost | also}
        return rollout_metrics(groups) | metrics | counts | lost


async def train(
    config: Config,
    questions: Sequence[Question],
    held_out: Sequence[Question],
    run_dir: Path,
    console: Console,
    checkpoint: Path | None = None,
) -> None:
    """Run `config` on `questions`, validate on those `held_out`, and leave the story in `run_dir`.

    `checkpoint`: the one that the run goes on from (`run_folder.go_on_from`). Raises Stopped when it was told to stop.
    """
    given = {"data.questions": questions, "data.validation": held_out}
    state = RunState.start(config, given)
    if checkpoint:
        state = read_state(checkpoint)
        for change in changes(state.config, config):
            console.print(f"changed: {change}", soft_wrap=True, markup=False)
    start = time.perf_counter() - state.seconds
    resolved = config.model_dump(mode="json")
    with writing(run_dir / CONFIG):
        (run_dir / CONFIG).write_text(yaml.safe_dump(resolved, sort_keys=False))
    report = partial(console.print, soft_wrap=True, markup=False)
    async with training_fleet(config, report) as (actors, learners):
        with Progress(*PREPARING, console=console) as bar:
            deadline = config.data.decode_deadline + config.embedder.deadline
            videos, unreadable = await fill_caches(actors.embedders, [*questions, *held_out], deadline, bar.track)
        turns = actors.turns(config, videos)
        sift = partial(Losses(run_dir, console).sift, unreadable=unreadable, turns=turns, prompts=config.prompts)
        able, held_out = [await sift(some) for some in given.values()]
        viewing = actors.viewing(turns)

        def run_from(state: RunState) -> Run:
            losses = Losses(run_dir, console)
            return Run(
                config, run_dir, console, actors, learners,
                stream=stream_of(questions, able, config.train.seed, state.ledger),
                collect=Collector(viewing, config.frames.budget, config.rewards, config.train.seed).collect,
                losses=losses,
                validation=Validation(config, viewing, held_out, run_dir, losses, state.accuracies) if held_out else None,
                checkpoints=Checkpoints(learners, config.train, run_dir, console, state.step),
                start=start,
            )  # fmt: skip

        with (
            MetricsSink(run_dir, config.train.steps, config.train.trackers, resolved) as sink,
            Stop(config.train.grace) as stop,
        ):
            run, state = await go_through(run_from, state, checkpoint, sink, stop)
            stop.end(state.step)
            if run.validation:
                await conclude(run.validation, state, console)
        await show(run_dir, config)


async def go_through(
    run_from: Callable[[RunState], Run], state: RunState, checkpoint: Path | None, sink: MetricsSink, stop: Stop
) -> tuple[Run, RunState]:
    """All steps after that of `state`, which is that of `checkpoint` if there is one; those since the newest checkpoint are
    done again when a learner was lost. The run that came to the end, and its state."""
    while True:
        run = run_from(state)
        try:
            await restore(run.actors, run.learners, checkpoint, state)
            if checkpoint:
                run.console.print(f"going on after step {state.step}, from {checkpoint}", soft_wrap=True)
            return run, await run.go(state, sink, stop)
        except ActorLost:
            state, checkpoint = await go_back(run, state, checkpoint)


async def go_back(run: Run, state: RunState, checkpoint: Path | None) -> tuple[RunState, Path | None]:
    """Learners with new ranks, and the state and checkpoint that the run goes on from: the newest whole one of its folder, or
    else those it began with. What the folder holds of later steps is forgotten."""
    lost = time.monotonic()
    await run.learners.rebuild()
    await run.checkpoints.abandon()
    report = partial(run.console.print, soft_wrap=True, markup=False)
    checkpoint = newest_whole_checkpoint(run.run_dir, report) or checkpoint
    accuracies = run.validation.accuracies if run.validation else {}
    state = read_state(checkpoint) if checkpoint else replace(state, accuracies=dict(accuracies))
    done = max((row["step"] for row in read_metrics(run.run_dir)), default=0)
    forget_after(run.run_dir, state.step)
    seconds, again = time.monotonic() - lost, max(0, done - state.step)
    run.learners.losses["lost_seconds"] += seconds
    run.learners.losses["steps_again"] += again
    report(f"the learners are back after {seconds:.1f} s; whole steps to do again: {again}")
    return state, checkpoint


async def conclude(validation: Validation, state: RunState, console: Console) -> None:
    """The run's summary, in its folder and in a line of the console."""
    await validation.measure_budgets()
    summary = validation.summarise(state.step, state.seconds)
    console.print(
        "validation accuracy {accuracy/before:.2f} before, {accuracy/after:.2f} after; "
        "{accuracy/uniform:.2f} with uniform frames and the MLLM as it was".format_map(summary)
    )


async def show(run_dir: Path, config: Config) -> None:
    """Make the report, in a task, so that the frames it shows never pass through this process."""
    try:
        await ray.remote(num_cpus=0)(report_run).remote(run_dir, config.data, config.frames)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def stream_of(questions: Sequence[Question], able: Sequence[Question], seed: int, ledger: Ledger) -> QuestionStream:
    """The stream of all `questions`, of which only those `able` to be asked come; so no place in it depends on the others."""
    by_id = {question.id: question for question in able}
    stream = QuestionStream([by_id.get(question.id, question) for question in questions], seed, ledger)
    stream.leave_out(question for question in questions if question.id not in by_id)
    return stream


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
            losses.add(left_out, step)
            stream.leave_out(loss.question for loss in left_out)
            missing = len(left_out)
    stream.settle(group.question for group in groups)
    if not groups:
        raise UserError("no question is left: none can be asked; left_out.jsonl in the run's folder has the reasons")
    return groups


async def update(
    learners: Learners, config: Config, groups: Sequence[Group], step: int, clock: Clock
) -> dict[str, float]:
    """One step of both learners at once; their metrics."""
    batches = policy_batch(groups, config.policy), sampler_batch(groups, config.sampler)

    async def learn(learner: LearnerGroup | None, batch: Sequence[Any]) -> dict[str, float]:
        if learner is None:
            return {}
        with clock(f"{learner.network}_update"):
            return await learner.update(batch, step) if batch else learner.idle(step)

    parts = await asyncio.gather(learn(learners.policy, batches[0]), learn(learners.sampler, batches[1]))
    return parts[0] | parts[1]


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
