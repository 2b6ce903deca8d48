"""A pool of equal actors: each call goes to the least loaded one, has a deadline, and fails with a name.

Invariants: no actor is sent more calls than it works on at once, whoever asks; the others wait here in the order they came, and
their deadlines do not run yet; every call ends, as `services/remote.py` says. A call whose actor was lost is done again by
another one with the same arguments, hence the same seeds, `ATTEMPTS` times in all; what an actor raised itself is its result.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from actors.supervised import Places, Pooled
from services import remote
from services.errors import ActorLost, TrainingError
from services.probes import HEALTH
from services.remote import AsyncMethod, Method, Parameters, Result

BROADCASTS = 8
"""Calls that an async actor serves beside those it works on: new weights, questions about its state."""
ATTEMPTS = 3
"""How often a call is sent that loses its actors."""
SHORT = reprlib.Repr()
"""What an error shows of the arguments of a call."""
SHORT.maxstring = 200

Actor = TypeVar("Actor", bound=Pooled)


class Pool(Generic[Actor]):
    """Actors of one class that can stand in for each other."""

    def __init__(self, places: Places, deadline: float) -> None:
        self.name, self._places, self._deadline = places.name, places, deadline
        self._tickets = itertools.count()

    @classmethod
    async def start(
        cls,
        actor_class: type[Actor],
        arguments: tuple[Any, ...],
        config: ActorConfig,
        env: Mapping[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        report: Callable[[str], None],
        at_once: int = 1,
    ) -> Pool[Actor]:
        """One actor per bundle, each ready, of version 0. `at_once`: calls that one works on together, more than 1 of async
        actors only. `report` is told of each actor that is lost, or is back."""
        remote_class: Any = ray.remote
        start = remote_class(concurrency_groups={HEALTH: 1})(actor_class)
        options = {} if at_once == 1 else {"max_concurrency": at_once + BROADCASTS}

        def make(place: int) -> ActorHandle:
            return start.options(
                num_cpus=config.num_cpus,
                num_gpus=config.actor_gpus,
                scheduling_strategy=bundles[place],
                runtime_env={"env_vars": dict(env)},
                **options,
            ).remote(*arguments)

        name = actor_class.__name__.removesuffix("Actor").lower()
        pool = cls(Places(name, make, len(bundles), config, at_once, report), config.deadline)
        try:
            await pool._places.started()
        except BaseException:
            pool.close()
            raise
        return pool

    def close(self) -> None:
        """Lost actors are noticed, and replaced, no longer."""
        self._places.close()

    @property
    def actors(self) -> list[ActorHandle]:
        """The actors that are at the pool's places now."""
        return [member.actor for member in self._places.members]

    def supervision(self) -> dict[str, float]:
        """What was lost so far: actors restarted, calls done again, seconds in which a place had no healthy actor."""
        places = self._places
        return {
            "restarts": float(places.restarts),
            "redispatched": float(places.redispatched),
            "lost_seconds": places.lost_seconds,
        }

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
        """`method` on the actor with the fewest calls in flight, once one is free; then its deadline begins.

        Raises TrainingError when it was lost with `ATTEMPTS` actors, one after the other.
        """
        places, ticket = self._places, next(self._tickets)
        for attempt in range(ATTEMPTS):
            places.redispatched += attempt > 0
            member = await places.take(ticket)
            try:
                result = await places.ask(
                    member, self._deadline, lambda *where: remote.call(*where, method, *arguments, **named)
                )
            except ActorLost as error:
                lost = error
            else:
                places.finished(member)
                return result
            finally:
                places.give_back(member)
        what = f"{method.__name__}({', '.join(map(SHORT.repr, (*arguments, *named.values())))})"
        raise TrainingError(
            f"{ATTEMPTS} {self.name} actors were lost, one after the other, at {what}. The last: {lost}"
        )

    async def pull(self, version: int) -> None:
        """From now on only actors work that reported to hold `version` of the weights. All that live are told to take it in;
        returns once they have, those that are lost meanwhile aside, and at least one is there.

        Raises what an actor raises that cannot: then the pool does no work before the next `pull`.
        """
        await self._places.want(version)

    @overload
    async def broadcast(
        self, method: AsyncMethod[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]: ...

    @overload
    async def broadcast(
        self, method: Method[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]: ...

    async def broadcast(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`method` on every living actor at once; results in the pool's order, without those of actors that are lost."""
        return await self._on_each(lambda *where: remote.call(*where, method, *arguments, **named))

    async def run(
        self, function: Method[Actor, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> list[Result]:
        """`function(actor, *arguments)` in the process of every living actor at once; results as those of `broadcast`."""
        return await self._on_each(lambda *where: remote.run(*where, function, *arguments, **named))

    async def _on_each(self, call: remote.Call) -> list[Any]:
        async def one(member: Any) -> list[Any]:
            try:
                return [await self._places.tell(member, self._deadline, call)]
            except ActorLost:
                return []

        return list(itertools.chain(*await asyncio.gather(*map(one, self._places.living))))
