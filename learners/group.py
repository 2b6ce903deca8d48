"""The driver's handle on all ranks of one learner, driven in lockstep.

Invariants: every rank gets the same samples by reference; every call has a deadline, and its error names the rank.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learners.config import LearnerConfig
from learners.rank import WRITING, LearnerRank
from learners.schedule import learning_rates
from services import remote
from services.remote import Method, Parameters, Result

BEHIND_A_FAULT = 5.0
"""Seconds to wait, after one rank failed, for another rank to say why."""


Rank = TypeVar("Rank", bound=LearnerRank)


class LearnerGroup(Generic[Rank]):
    """The driver's handle on all ranks of one learner."""

    def __init__(self, network: str, ranks: Sequence[ActorHandle], config: LearnerConfig, steps: int) -> None:
        self.network, self._ranks, self._deadline = network, list(ranks), config.deadline
        self._learning_rate = learning_rates(config, steps)
        self.version = 0
        """Number of the newest version published. Version 0 is the network as it was loaded."""
        self.is_ahead = False
        """Whether the network has learnt since it was last published."""

    @classmethod
    async def start(
        cls,
        rank_class: type[Rank],
        arguments: tuple[Any, ...],
        config: LearnerConfig,
        env: dict[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        steps: int = 1,
    ) -> LearnerGroup[Rank]:
        """Start one actor of `rank_class` in each bundle and connect them.

        `arguments` are those of `rank_class`, without the rank, which comes last. `steps` is the number of steps of the run,
        which learning rates that fall depend on.
        """
        remote_class: Any = ray.remote
        start = remote_class(concurrency_groups={WRITING: 1})(rank_class)
        env = env | {"DS_ACCELERATOR": config.device}
        ranks = [
            start.options(
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                scheduling_strategy=bundle,
                runtime_env={"env_vars": env},
            ).remote(*arguments, rank)
            for rank, bundle in enumerate(bundles)
        ]
        group = cls(rank_class.network, ranks, config, steps)
        address, port = await group.call(rank_class.address)
        await group.call(rank_class.connect, address, port)
        return group

    async def update(self, batch: Any, step: int) -> dict[str, float]:
        """Take one optimizer step on `batch`, which the ranks read from the object store. Returns the metrics."""
        await self.call(LearnerRank.set_learning_rate, self._learning_rate(step))
        metrics = await self.call(LearnerRank.update, ray.put(batch), step)
        self.is_ahead = True
        return metrics | self._own_metrics(step, skipped=0.0)

    def idle(self, step: int) -> dict[str, float]:
        """The metrics of a step without signal for this network, in which its weights do not move."""
        return self._own_metrics(step, loss=0.0, grad_norm=0.0, skipped=1.0)

    def _own_metrics(self, step: int, **metrics: float) -> dict[str, float]:
        metrics |= {"learning_rate": self._learning_rate(step), "version": float(self.version + self.is_ahead)}
        return {f"{self.network}/{name}": value for name, value in metrics.items()}

    async def publish(self, store: ActorHandle) -> None:
        """Publish the network as it is now as the next version in the store."""
        await self.call(LearnerRank.publish, store, self.version + 1)
        self.version, self.is_ahead = self.version + 1, False

    async def snapshot(self) -> int:
        """Copy network and optimizer as they are now, to be written by `write`; bytes of the copies, of all ranks."""
        return sum(await self._on_each(lambda *where: remote.call(*where, LearnerRank.snapshot)))

    async def write(self, checkpoint: str) -> None:
        """Write the copies into a checkpoint's folder. Further updates may run meanwhile."""
        await self.call(LearnerRank.write, checkpoint)

    async def restore(self, checkpoint: str, version: int) -> None:
        """Network and optimizer become what they were at that checkpoint, when `version` was the newest published. It is the
        one that `publish` gives out next."""
        await self.call(LearnerRank.restore, checkpoint)
        self.version, self.is_ahead = max(version - 1, 0), version > 0

    async def call(
        self, method: Method[Rank, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Run `method` on every rank and return the result of rank 0.

        The first error of any rank is raised at once, without waiting for the other ranks. Only when it may be the
        consequence of another error, as a broken connection to a rank that died is, do the others get a moment to report
        the error behind it, which is raised instead.
        """
        return (await self._on_each(lambda *where: remote.call(*where, method, *arguments, **named)))[0]

    async def run(
        self, function: Method[Rank, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Run `function(rank, *arguments)` in the process of every rank; result and errors are those of `call`."""
        return (await self._on_each(lambda *where: remote.run(*where, function, *arguments, **named)))[0]

    async def _on_each(self, call: remote.Call) -> list[Any]:
        calls = [
            asyncio.ensure_future(call(rank, f"{self.network} learner, rank {index}", self._deadline))
            for index, rank in enumerate(self._ranks)
        ]
        try:
            return await asyncio.gather(*calls)
        except remote.FOR_A_PERSON:
            raise
        except Exception as fault:
            done, _ = await asyncio.wait(calls, timeout=BEHIND_A_FAULT)
            errors = [error for call in done if (error := call.exception())]
            raise next((error for error in errors if isinstance(error, remote.FOR_A_PERSON)), fault) from None
