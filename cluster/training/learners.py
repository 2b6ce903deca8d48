"""The learners of a run, started beside the fleet that acts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cluster.config import Config
from cluster.training.fleet import Fleet, Report, check_cache, environment, room, start
from cluster.training.placement import Placement
from learners.config import LearnerConfig
from learners.group import LearnerGroup
from learners.policy import PolicyLearner
from learners.rank import LearnerRank
from learners.sampler import SamplerLearner


@dataclass(frozen=True)
class Learners:
    """Handles on both learners; None for one that has nothing to learn."""

    policy: LearnerGroup[PolicyLearner] | None
    sampler: LearnerGroup[SamplerLearner] | None

    @property
    def present(self) -> list[LearnerGroup]:
        """The learners that have something to learn."""
        return [learner for learner in (self.policy, self.sampler) if learner is not None]

    @property
    def versions(self) -> dict[str, int]:
        """Newest published version by network."""
        return {learner.network: learner.version for learner in self.present}


async def publish(learners: Learners, actors: Fleet) -> None:
    """The networks that are ahead of what was published, to the store and from there to whoever acts with them."""

    async def one(learner: LearnerGroup, pull: Callable[[int], Awaitable[Any]]) -> None:
        await learner.publish(actors.store)
        await pull(learner.version)

    pulls: list[tuple[LearnerGroup | None, Callable[[int], Awaitable[Any]]]] = [
        (learners.policy, actors.rollouts.pull),
        (learners.sampler, actors.selectors.pull),
    ]
    await asyncio.gather(*[one(learner, pull) for learner, pull in pulls if learner is not None and learner.is_ahead])


@asynccontextmanager
async def training_fleet(config: Config, report: Report) -> AsyncIterator[tuple[Fleet, Learners]]:
    """Start everything, and stop it at the end."""
    async with room(config, report) as placement:
        report("starting actors")
        actors, learners = await asyncio.gather(start(config, placement, report), start_learners(config, placement))
        try:
            await check_cache(config, actors, *([learners.policy.run] if learners.policy else []))
            yield actors, learners
        finally:
            actors.close()


async def start_learners(config: Config, placement: Placement) -> Learners:
    """The learners that the config asks for, both at once; returns when all ranks are connected."""

    async def learner(rank_class: type[LearnerRank], part: LearnerConfig, *arguments: Any) -> LearnerGroup | None:
        bundles = placement.of(rank_class.network)
        if not bundles:
            return None
        return await LearnerGroup.start(
            rank_class, (part, *arguments), part, environment(part.threads), bundles, config.train.steps
        )

    model, temperature = config.policy.model, config.rollout.temperature
    return Learners(
        *await asyncio.gather(
            learner(PolicyLearner, config.policy, model, temperature, config.data, config.frames),
            learner(SamplerLearner, config.sampler, config.train.seed),
        )
    )
