"""The actors of a run, started by parts: rollouts, embedders and selectors, and the videos made ready for them.

Training starts all parts and its learners beside them (`cluster/training/learners.py`); who only answers questions names the
parts it needs, and loads nothing of what learns.

Invariants: everything that can be wrong with paths and models is said before the first actor starts; what was started is
stopped on the way out, whatever happened.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from actors.embedder import EmbedderActor
from actors.pool import Pool
from actors.rollout import RolloutActor, engine_env
from actors.selector import SelectorActor
from actors.turns import Turns
from actors.viewing import Viewing
from cluster.config import Config
from cluster.training.connection import COMMON_ENV, connect
from cluster.training.placement import Part, Placement, plan
from services.errors import VideoError
from services.schema import Question, Video
from services.shared import probe, seen_by
from services.weights import create_store

Report = Callable[[str], None]
Track = Callable[..., Iterable[Any]]
"""`track(iterable, total=n)`, as rich's."""

BATCHES = 2
"""Requests that a rollout actor holds, in batches of its engine: one runs while the next one's frames are read."""


class Store(NamedTuple):
    """The weight store of one run, and the name that engines find it by."""

    actor: ActorHandle
    name: str


@dataclass(frozen=True)
class Fleet:
    """Handles on the pools that were started; asking for another is a KeyError that names it."""

    pools: Mapping[Part, Pool]
    store: ActorHandle

    def close(self) -> None:
        """Lost actors are noticed, and replaced, no longer."""
        for pool in self.pools.values():
            pool.close()

    def supervision(self) -> dict[str, float]:
        """Metrics of what all pools have lost so far."""
        losses = [pool.supervision() for pool in self.pools.values()]
        return {f"supervision/{name}": sum(loss[name] for loss in losses) for name in losses[0]}

    @property
    def rollouts(self) -> Pool[RolloutActor]:
        return self.pools["rollouts"]

    @property
    def embedders(self) -> Pool[EmbedderActor]:
        return self.pools["embedders"]

    @property
    def selectors(self) -> Pool[SelectorActor]:
        return self.pools["selectors"]

    def turns(self, config: Config, videos: Mapping[str, Video]) -> Turns:
        """The two turns, answered by this fleet's engines."""
        return Turns(self.rollouts, config.rollout, config.prompts, config.frames, videos)

    def viewing(self, turns: Turns) -> Viewing:
        """The whole way from a question to its answer."""
        return Viewing(turns, self.embedders, self.selectors)


@asynccontextmanager
async def fleet(config: Config, report: Report, parts: Collection[Part]) -> AsyncIterator[Fleet]:
    """Start the pools of `parts`, with the networks as they were loaded, and stop them at the end."""
    async with room(config, report, parts) as placement:
        actors = await start(config, placement, report)
        try:
            await check_cache(config, actors)
            yield actors
        finally:
            actors.close()


@asynccontextmanager
async def room(config: Config, report: Report, parts: Collection[Part] | None = None) -> AsyncIterator[Placement]:
    """Ray, with room for `parts` (None: for training); shut down at the end."""
    connect(config.cluster)
    try:
        report("placing actors")
        yield await Placement.create(plan(config, parts), config.cluster.placement_deadline, report)
    finally:
        ray.shutdown()


async def start(config: Config, placement: Placement, report: Report) -> Fleet:
    """Every pool that the placement has room for, all at once; returns when all are ready. `report` is told of each actor that
    is lost, or is back."""
    # Beside the rank that writes to it: a version crosses the network only on its way to an engine.
    writers = placement.of("policy") or placement.of("sampler")
    name = f"weights-{uuid.uuid4().hex[:8]}"
    store = Store(create_store(name, writers[0] if writers else None), name)
    parts = [part for part, (role, _) in POOLS.items() if placement.of(role)]
    pools = await asyncio.gather(*[POOLS[part][1](config, placement, store, report) for part in parts])
    return Fleet(dict(zip(parts, pools, strict=True)), store.actor)


def environment(threads: int) -> dict[str, str]:
    """Environment of an actor's process that computes on so many threads."""
    return COMMON_ENV | {"OMP_NUM_THREADS": str(threads)}


async def _rollouts(config: Config, placement: Placement, store: Store, report: Report) -> Pool[RolloutActor]:
    return await Pool.start(
        RolloutActor,
        (config.policy.model, config.policy.dtype, config.rollout, config.data, config.frames, *store),
        config.rollout,
        COMMON_ENV | engine_env(config.rollout),
        placement.of("rollout"),
        report,
        BATCHES * config.rollout.max_num_seqs,
    )


async def _embedders(config: Config, placement: Placement, store: Store, report: Report) -> Pool[EmbedderActor]:
    return await Pool.start(
        EmbedderActor,
        (config.embedder.model, config.embedder, config.data, config.frames),
        config.embedder,
        environment(config.embedder.threads),
        placement.of("embedder"),
        report,
    )


async def _selectors(config: Config, placement: Placement, store: Store, report: Report) -> Pool[SelectorActor]:
    return await Pool.start(
        SelectorActor,
        (config.selector, config.sampler, config.train.seed, store.actor, config.data),
        config.selector,
        environment(config.selector.threads),
        placement.of("selector"),
        report,
    )


POOLS: dict[Part, tuple[str, Callable[[Config, Placement, Store, Report], Awaitable[Pool]]]] = {
    "rollouts": ("rollout", _rollouts),
    "embedders": ("embedder", _embedders),
    "selectors": ("selector", _selectors),
}
"""The role of each pool's bundles in a placement, and how it starts."""


async def check_cache(config: Config, actors: Fleet, *others: Callable[..., Awaitable[Any]]) -> None:
    """Raises UserError naming a node on which those who read frames do not see the cache. `others`: the `run` of those who
    do so besides the fleet's pools."""
    pools = [pool.run for part, pool in actors.pools.items() if part != "selectors" or config.selector.sees_frames]
    with probe(config.data) as file:
        await asyncio.gather(*[run(seen_by, file) for run in (*pools, *others)])


async def fill_caches(
    embedders: Pool[EmbedderActor], questions: Sequence[Question], deadline: float, track: Track
) -> tuple[dict[str, Video], dict[str, str]]:
    """Every video decoded and embedded: the videos by path, and the reason for each that could not be.

    `deadline`: seconds for one video. `track` wraps the loop over what gets ready, to show progress.
    """
    paths = list(dict.fromkeys(question.video for question in questions))
    videos: dict[str, Video] = {}
    unreadable: dict[str, str] = {}

    async def one(path: str) -> None:
        try:
            videos[path] = await embedders.within(deadline).call(EmbedderActor.decode_and_embed, path)
        except VideoError as error:
            unreadable[path] = str(error)

    for ready in track(asyncio.as_completed(map(one, paths)), total=len(paths)):
        await ready
    return videos, unreadable
