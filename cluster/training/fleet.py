"""The fleet of a run: Ray, every actor pool, both learners, the weight store, and the videos made ready for them.

Invariants: everything that can be wrong with paths and models is said before the first actor starts; what was started is
stopped on the way out, whatever happened.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.embedder import EmbedderActor
from actors.pool import Pool
from actors.rollout import RolloutActor, engine_env
from actors.selectors import SelectorActor
from actors.turns import Turns
from actors.viewing import Viewing
from cluster.config import Config
from cluster.training.connection import COMMON_ENV, connect
from cluster.training.placement import Placement, plan, plan_engines
from learners.config import LearnerConfig
from learners.group import LearnerGroup
from learners.policy import PolicyLearner
from learners.rank import LearnerRank
from learners.sampler import SamplerLearner
from services.errors import VideoError
from services.schema import Question, Video
from services.shared import probe, seen_by
from services.weights import create_store

Report = Callable[[str], None]
Track = Callable[..., Iterable[Any]]
"""`track(iterable, total=n)`, as rich's."""

BATCHES = 2
"""Requests that a rollout actor holds, in batches of its engine: one runs while the next one's frames are read."""


@dataclass(frozen=True)
class Fleet:
    """Handles on all that runs. A learner is None when it has nothing to learn."""

    rollouts: Pool
    embedders: Pool
    selectors: Pool
    policy: LearnerGroup | None
    sampler: LearnerGroup | None
    store: ActorHandle

    def turns(self, config: Config, videos: Mapping[str, Video]) -> Turns:
        """The two turns, answered by this fleet's engines."""
        return Turns(self.rollouts, config.rollout, config.prompts, config.frames, videos)

    def viewing(self, turns: Turns) -> Viewing:
        """The whole way from a question to its answer."""
        return Viewing(turns, self.embedders, self.selectors)


@asynccontextmanager
async def fleet(config: Config, report: Report) -> AsyncIterator[Fleet]:
    """Start everything, and stop it at the end."""
    connect(config.cluster)
    try:
        report("placing actors")
        placement = await Placement.create(plan(config), config.cluster.placement_deadline, report)
        report("starting actors")
        actors = await start(config, placement)
        await check_cache(config, [actors.rollouts, actors.embedders], actors.policy)
        yield actors
    finally:
        ray.shutdown()


@asynccontextmanager
async def rollout_pool(config: Config, report: Report) -> AsyncIterator[Pool]:
    """The rollout actors alone, with the MLLM as it was loaded; stopped at the end."""
    connect(config.cluster)
    try:
        placement = await Placement.create(plan_engines(config.rollout), config.cluster.placement_deadline, report)
        pool = await start_rollouts(config, placement, *new_store())
        await check_cache(config, [pool])
        yield pool
    finally:
        ray.shutdown()


async def check_cache(config: Config, pools: Sequence[Pool], learner: LearnerGroup | None = None) -> None:
    """Raises UserError naming a node on which these actors don't see the cache."""
    with probe(config.data) as file:
        asked = [pool.broadcast("__ray_call__", seen_by, file) for pool in pools]
        await asyncio.gather(*asked, *([learner.call("__ray_call__", seen_by, file)] if learner else []))


def new_store(bundle: PlacementGroupSchedulingStrategy | None = None) -> tuple[ActorHandle, str]:
    """A weight store of this run's own, on the node of `bundle` if one is given, and its name."""
    name = f"weights-{uuid.uuid4().hex[:8]}"
    return create_store(name, bundle), name


async def start_rollouts(config: Config, placement: Placement, store: ActorHandle, store_name: str) -> Pool:
    """The rollout actors, each with its engine, ready."""
    return await Pool.start(
        RolloutActor,
        (config.policy.model, config.policy.dtype, config.rollout, config.data, config.frames, store, store_name),
        config.rollout,
        COMMON_ENV | engine_env(config.rollout),
        placement.of("rollout"),
        BATCHES * config.rollout.max_num_seqs,
    )


async def start(config: Config, placement: Placement) -> Fleet:
    """Every actor at once; returns when all are ready."""
    # Beside the rank that writes to it: a version crosses the network only on its way to an engine.
    writers = placement.of("policy") or placement.of("sampler")
    store, store_name = new_store(writers[0] if writers else None)
    seed, models = config.train.seed, (config.policy.model, config.embedder.model)

    def env(threads: int) -> dict[str, str]:
        return COMMON_ENV | {"OMP_NUM_THREADS": str(threads)}

    async def learner(rank_class: type[LearnerRank], part: LearnerConfig, arguments: tuple[Any, ...]) -> LearnerGroup:
        return await LearnerGroup.start(
            rank_class,
            arguments,
            part,
            env(part.threads),
            placement.of(rank_class.network),
            config.train.steps,
        )

    async def absent() -> None:
        return None

    rollouts, embedders, selectors, policy, sampler = await asyncio.gather(
        start_rollouts(config, placement, store, store_name),
        Pool.start(
            EmbedderActor,
            (models[1], config.embedder, config.data, config.frames),
            config.embedder,
            env(config.embedder.threads),
            placement.of("embedder"),
        ),
        Pool.start(
            SelectorActor,
            (config.selector, config.sampler, seed, store),
            config.selector,
            env(config.selector.threads),
            placement.of("selector"),
        ),
        learner(
            PolicyLearner,
            config.policy,
            (config.policy, models[0], config.rollout.temperature, config.data, config.frames),
        )
        if config.policy.train
        else absent(),
        learner(SamplerLearner, config.sampler, (config.sampler, seed)) if config.selector.learns else absent(),
    )
    return Fleet(rollouts, embedders, selectors, policy, sampler, store)


async def prepare(
    embedders: Pool, questions: Sequence[Question], deadline: float, track: Track
) -> tuple[dict[str, Video], dict[str, str]]:
    """Every video decoded and embedded: the videos by path, and the reason for each that could not be.

    `deadline`: seconds for one video. `track` wraps the loop over what gets ready, to show progress.
    """
    paths = list(dict.fromkeys(question.video for question in questions))
    videos: dict[str, Video] = {}
    unreadable: dict[str, str] = {}

    async def one(path: str) -> None:
        try:
            videos[path] = await embedders.call("prepare", path, deadline=deadline)
        except VideoError as error:
            unreadable[path] = str(error)

    for ready in track(asyncio.as_completed(map(one, paths)), total=len(paths)):
        await ready
    return videos, unreadable
