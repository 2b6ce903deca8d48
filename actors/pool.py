"""A pool of equal actors: each call goes to the least loaded one, has a deadline, and fails with a name.

Invariants: no actor is sent more calls than it works on at once, whoever asks; the others wait here in the order they came, and
their deadlines do not run yet; every call ends, as `services/remote.py` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from services import remote

BROADCASTS = 8
"""Calls that an async actor serves beside those it works on: new weights, questions about its state."""


class Pool:
    """Actors of one class that can stand in for each other. `at_once`: calls that one of them works on together."""

    def __init__(self, name: str, actors: Sequence[ActorHandle], deadline: float, at_once: int = 1) -> None:
        self.name, self.actors, self._deadline = name, list(actors), deadline
        self._free = asyncio.Semaphore(at_once * len(self.actors))
        self._in_flight = [0] * len(self.actors)

    @classmethod
    async def start(
        cls,
        actor_class: type,
        arguments: tuple[Any, ...],
        config: ActorConfig,
        env: Mapping[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        at_once: int = 1,
    ) -> Pool:
        """One actor a bundle, each ready. `at_once`: calls that one works on together, more than 1 of async actors only."""
        start: Any = ray.remote(actor_class)
        options = {} if at_once == 1 else {"max_concurrency": at_once + BROADCASTS}
        actors = [
            start.options(
                num_cpus=config.num_cpus,
                num_gpus=config.actor_gpus,
                scheduling_strategy=bundle,
                runtime_env={"env_vars": dict(env)},
                **options,
            ).remote(*arguments)
            for bundle in bundles
        ]
        pool = cls(actor_class.__name__.removesuffix("Actor").lower(), actors, config.deadline, at_once)
        await pool.broadcast("ready", deadline=config.start_deadline)
        return pool

    async def call(self, method: str, *arguments: Any, deadline: float | None = None) -> Any:
        """`method` on the actor with the fewest calls in flight, once one is free; from then on it has `deadline` seconds
        (default: the pool's)."""
        async with self._free:
            index = self._in_flight.index(min(self._in_flight))
            return await self._call(index, method, arguments, self._deadline if deadline is None else deadline)

    async def broadcast(self, method: str, *arguments: Any, deadline: float | None = None) -> list[Any]:
        """`method` on every actor at once; results in the pool's order."""
        wait = self._deadline if deadline is None else deadline
        return await asyncio.gather(*[self._call(i, method, arguments, wait) for i in range(len(self.actors))])

    async def _call(self, index: int, method: str, arguments: tuple[Any, ...], deadline: float) -> Any:
        self._in_flight[index] += 1
        try:
            return await remote.call(self.actors[index], f"{self.name} actor {index}", method, arguments, deadline)
        finally:
            self._in_flight[index] -= 1
