"""The learners of a run, started beside the fleet that acts; what they published is in the store as long as they live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ray.actor import ActorHandle

from cluster.config import Config
from cluster.training.fleet import Fleet, Report, check_cache, environment, room, start
from cluster.training.placement import Placement
from learners.config import LearnerConfig
from learners.group import LearnerGroup
from learners.policy import PolicyLearner
from learners.rank import LearnerRank
from learners.sampler import SamplerLearner
from services import remote
from services.errors import TrainingError
from services.probes import INTERVAL
from services.weights import WeightStore

LOSSES = ("restarts", "lost_seconds", "steps_again")
"""Restarts of learners and weight store, seconds without learners, steps done again."""
ANSWER = 5.0
"""Seconds that the store may take to say what it holds."""


@dataclass(frozen=True)
class Learners:
    """Handles on both learners; None for one that has nothing to learn."""

    policy: LearnerGroup[PolicyLearner] | None
    sampler: LearnerGroup[SamplerLearner] | None
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))
    """What was lost so far, by the names of LOSSES."""

    @property
    def present(self) -> list[LearnerGroup]:
        """The learners that have something to learn."""
        return [learner for learner in (self.policy, self.sampler) if learner is not None]

    @property
    def versions(self) -> dict[str, int]:
        """Newest published version by network."""
        return {learner.network: learner.version for learner in self.present}

    async def lost(self) -> NoReturn:
        """Raises ActorLost once a rank is lost."""
        for_ever = asyncio.Event().wait()
        await asyncio.gather(*[learner.lost() for learner in self.present], for_ever)
        raise AssertionError

    async def rebuild(self) -> None:
        """Both with new ranks, and networks as they were loaded."""
        self.losses["restarts"] += sum(learner.is_lost for learner in self.present)
        rebuilding = [asyncio.ensure_future(learner.rebuild()) for learner in self.present]
        try:
            await asyncio.gather(*rebuilding)
        finally:
            for one in rebuilding:
                one.cancel()
            await asyncio.gather(*rebuilding, return_exceptions=True)

    def supervision(self) -> dict[str, float]:
        """Metrics of what was lost so far."""
        return {f"supervision/{name}": value for name, value in self.losses.items()}

    def close(self) -> None:
        """Watch the ranks no longer."""
        for learner in self.present:
            learner.close()


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


async def keep_published(learners: Learners, store: ActorHandle, report: Report) -> None:
    """Publish again what a store that died has lost, as soon as it is there again; for ever."""

    async def keep(learner: LearnerGroup) -> None:
        version = learner.version
        held = await remote.call(store, "weight store", ANSWER, WeightStore.newest, learner.network)
        if held < version == learner.version and not learner.is_ahead:
            report(f"the weight store has lost version {version} of the {learner.network}, which is published again")
            learners.losses["restarts"] += 1
            await learner.publish_again(store)

    while True:
        await asyncio.sleep(INTERVAL)
        for learner in learners.present:
            with suppress(TrainingError):  # a store that is not there yet; of a lost learner hears who trains it
                await keep(learner)


@asynccontextmanager
async def training_fleet(config: Config, report: Report) -> AsyncIterator[tuple[Fleet, Learners]]:
    """Start everything, and stop it at the end."""
    async with room(config, report) as placement:
        report("starting actors")
        starting = start(config, placement, report), start_learners(config, placement, report)
        actors, learners = await asyncio.gather(*starting)
        keeper = asyncio.create_task(keep_published(learners, actors.store, report))
        try:
            reading = [learners.policy, learners.sampler if config.selector.sees_frames else None]
            await check_cache(config, actors, *[learner.run for learner in reading if learner])
            yield actors, learners
        finally:
            keeper.cancel()
            learners.close()
            actors.close()


async def start_learners(config: Config, placement: Placement, report: Report) -> Learners:
    """The learners that the config asks for, both at once; returns when all ranks are connected. `report` is told of ranks that
    are lost."""

    async def learner(rank_class: type[LearnerRank], part: LearnerConfig, *arguments: Any) -> LearnerGroup | None:
        bundles = placement.of(rank_class.network)
        if not bundles:
            return None
        return await LearnerGroup.start(
            rank_class, (part, *arguments), part, environment(part.threads), bundles, config.train.steps, report
        )

    model, temperature = config.policy.model, config.rollout.temperature
    return Learners(
        *await asyncio.gather(
            learner(PolicyLearner, config.policy, model, temperature, config.data, config.frames),
            learner(
                SamplerLearner, config.sampler, config.selector.kind, config.train.seed, config.data, config.train.steps
            ),
        )
    )
