"""A pool of equal actors: each call goes to the least loaded one, has a deadline, and fails with a name.

Invariant: every remote call ends, in its result, in the callee's own error, or in a TrainingError that names the pool, the
actor and the call; the actor is told of a call that nobody waits for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from services.errors import TrainingError, UserError, VideoError


class Pool:
    """Actors of one class that can stand in for each other."""

    def __init__(self, name: str, actors: Sequence[ActorHandle], deadline: float) -> None:
        self.name, self.actors, self._deadline = name, list(actors), deadline
        self._in_flight = [0] * len(self.actors)

    @classmethod
    async def start(
        cls,
        actor_class: type,
        arguments: tuple[Any, ...],
        config: ActorConfig,
        env: Mapping[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        concurrency: int | None = None,
    ) -> Pool:
        """One actor a bundle, each ready. `concurrency`: calls one actor works on at once (async actors: thousands)."""
        remote: Any = ray.remote(actor_class)
        options = {} if concurrency is None else {"max_concurrency": concurrency}
        actors = [
            remote.options(
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                scheduling_strategy=bundle,
                runtime_env={"env_vars": dict(env)},
                **options,
            ).remote(*arguments)
            for bundle in bundles
        ]
        pool = cls(actor_class.__name__.removesuffix("Actor").lower(), actors, config.deadline)
        await pool.broadcast("ready", deadline=config.start_deadline)
        return pool

    async def call(self, method: str, *arguments: Any, deadline: float | None = None) -> Any:
        """`method` on the actor with the fewest calls in flight, within `deadline` seconds (default: the pool's)."""
        index = self._in_flight.index(min(self._in_flight))
        return await self._call(index, method, arguments, self._deadline if deadline is None else deadline)

    async def broadcast(self, method: str, *arguments: Any, deadline: float | None = None) -> list[Any]:
        """`method` on every actor at once; results in the pool's order."""
        wait = self._deadline if deadline is None else deadline
        return await asyncio.gather(*[self._call(i, method, arguments, wait) for i in range(len(self.actors))])

    async def _call(self, index: int, method: str, arguments: tuple[Any, ...], deadline: float) -> Any:
        where = f"{self.name} actor {index}: {method}"
        self._in_flight[index] += 1
        reference = getattr(self.actors[index], method).remote(*arguments)
        try:
            return await asyncio.wait_for(reference, deadline)
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except TimeoutError:
            ray.cancel(reference)
            raise TrainingError(f"{where} was not done within {deadline:g} s") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError | VideoError | TrainingError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise TrainingError(f"{where}: the actor died: {error}") from None
        finally:
            self._in_flight[index] -= 1
