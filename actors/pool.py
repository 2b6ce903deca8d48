"""A pool of equal actors: each call goes to the least loaded one, has a deadline, and fails with a name.

Invariants: no actor is sent more calls than it works on at once, whoever asks; the others wait here in the order they came, and
their deadlines do not run yet; every call ends, as `services/remote.py` says.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from services import remote
from services.remote import AsyncMethod, Method, Parameters, Result

BROADCASTS = 8
"""Calls that an async actor serves beside those it works on: new weights, questions about its state."""


class Loadable(Protocol):
    """An actor that loads its model in a call, plain or async."""

    def ready(self) -> Any: ...


Actor = TypeVar("Actor", bound=Loadable)


class Pool(Generic[Actor]):
    """Actors of one class that can stand in for each other. `at_once`: calls that one of them works on together."""

    def __init__(self, name: str, actors: Sequence[ActorHandle], deadline: float, at_once: int = 1) -> None:
        self.name, self.actors, self._deadline = name, list(actors), deadline
        self._free = asyncio.Semaphore(at_once * len(self.actors))
        self._in_flight = [0] * len(self.actors)

    @classmethod
    async def start(
        cls,
        actor_class: type[Actor],
        arguments: tuple[Any, ...],
        config: ActorConfig,
        env: Mapping[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        at_once: int = 1,
    ) -> Pool[Actor]:
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
        await pool.within(config.start_deadline).broadcast(actor_class.ready)
        return pool

    def within(self, deadline: float) -> Pool[Actor]:
        """The same actors, whose calls have `deadline` seconds each."""
        pool = copy.copy(self)
        pool._deadline = deadline
        return pool

    @overload
    async def call(
        self, method: AsyncMethod[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result: ...

    @overload
    async def call(
        self, method: Method[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result: ...

    async def call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`method` on the actor with the fewest calls in flight, once one is free; then its deadline begins."""
        async with self._free:
            index = self._in_flight.index(min(self._in_flight))
            return await self._on(index, lambda *where: remote.call(*where, method, *arguments, **named))

    @overload
    async def broadcast(
        self, method: AsyncMethod[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]: ...

    @overload
    async def broadcast(
        self, method: Method[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]: ...

    async def broadcast(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`method` on every actor at once; results in the pool's order."""
        return await self._on_each(lambda *where: remote.call(*where, method, *arguments, **named))

    async def run(
        self, function: Method[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]:
        """`function(actor, *arguments)` in the process of every actor at once; results in the pool's order."""
        return await self._on_each(lambda *where: remote.run(*where, function, *arguments, **named))

    async def _on_each(self, call: remote.Call) -> list[Any]:
        return await asyncio.gather(*[self._on(index, call) for index in range(len(self.actors))])

    async def _on(self, index: int, call: remote.Call) -> Any:
        """A call of one actor, counted while it is in flight."""
        self._in_flight[index] += 1
        try:
            return await call(self.actors[index], f"{self.name} actor {index}", self._deadline)
        finally:
            self._in_flight[index] -= 1
