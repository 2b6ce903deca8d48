"""The learners of a run, started beside the fleet that acts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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


@asynccontextmanager
async def training_fleet(config: Config, report: Report) -> AsyncIterator[tuple[Fleet, Learners]]:
    """Start everything, and stop it at the end."""
    async with room(config, report) as placement:
        report("starting actors")
        actors, learners = await asyncio.gather(start(config, placement), start_learners(config, placement))
        await check_cache(config, actors, *([learners.policy.run] if learners.policy else []))
        yield actors, learners


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
