"""The driver's handle on all ranks of one learner, driven in lockstep, and started anew together when one of them is lost.

Invariants: every rank gets the same samples by reference; every call has a deadline, and its error names the rank; a rank that
died, fell silent or overran its deadline takes all ranks along, since none can do without it, and every call fails with the
first cause until `rebuild`; a number is published again only with the same weights, when the store lost them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learners.config import LearnerConfig
from learners.rank import WRITING, LearnerRank
from learners.schedule import learning_rates
from services import remote
from services.errors import ActorLost, Overdue, StoreLost, TrainingError
from services.probes import HEALTH, INTERVAL, probe
from services.remote import Method, Parameters, Result
from services.supervision import Supervisor

BEHIND_A_FAULT = 5.0
"""Seconds to wait, after one rank failed, for another rank to say why."""


Rank = TypeVar("Rank", bound=LearnerRank)


class LearnerGroup(Generic[Rank]):
    """The driver's handle on all ranks of one learner."""

    def __init__(
        self,
        network: str,
        make: Callable[[], Sequence[ActorHandle]],
        config: LearnerConfig,
        steps: int = 1,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`make` starts an actor for every rank; `report` is told of each one that is lost."""
        self.network, self._make, self._config, self._report = network, make, config, report
        self._learning_rate = learning_rates(config, steps)
        self.version = 0
        """Number of the newest version published. Version 0 is the network as it was loaded."""
        self.is_ahead = False
        """Whether the network may have learnt since it was last published."""
        self._ranks = make()
        self._life = Supervisor(1, 1, config.restarts)
        self._watchers: list[asyncio.Task[None]] = []
        self._fault: ActorLost | None = None
        self._loss = asyncio.Event()

    @classmethod
    async def start(
        cls,
        rank_class: type[Rank],
        arguments: tuple[Any, ...],
        config: LearnerConfig,
        env: dict[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        steps: int = 1,
        report: Callable[[str], None] = lambda line: None,
    ) -> LearnerGroup[Rank]:
        """Start one actor of `rank_class` in each bundle and connect them.

        `arguments` are those of `rank_class`, without the rank, which comes last. `steps` is the number of steps of the run,
        which learning rates that fall depend on.
        """
        remote_class: Any = ray.remote
        start = remote_class(concurrency_groups={WRITING: 1, HEALTH: 1})(rank_class)
        env = env | {"DS_ACCELERATOR": config.device}

        def make() -> list[ActorHandle]:
            return [
                start.options(
                    num_cpus=config.num_cpus,
                    num_gpus=config.num_gpus,
                    scheduling_strategy=bundle,
                    runtime_env={"env_vars": env},
                ).remote(*arguments, rank)
                for rank, bundle in enumerate(bundles)
            ]

        group = cls(rank_class.network, make, config, steps, report)
        await group._connect()
        return group

    def close(self) -> None:
        """Watch the ranks no longer."""
        for watcher in self._watchers:
            watcher.cancel()

    @property
    def is_lost(self) -> bool:
        """A rank is lost."""
        return self._fault is not None

    async def lost(self) -> NoReturn:
        """Raises ActorLost once a rank is lost."""
        await self._loss.wait()
        assert self._fault is not None
        raise self._fault

    async def rebuild(self) -> None:
        """End all ranks, and start new ones in their places: the network is as it was loaded.

        It is then ahead of what was published, and one number is left out, of which a part may have been written.
        Raises TrainingError when ranks were lost more than `restarts` times without an update between.
        """
        self.version, self.is_ahead = self.version + 1, True
        await self._replace()
        await self._connect()

    async def update(self, batch: Any, step: int) -> dict[str, float]:
        """Take one optimizer step on `batch`, which the ranks read from the object store. Returns the metrics."""
        self.is_ahead = True
        await self.call(LearnerRank.set_learning_rate, self._learning_rate(step))
        metrics = await self.call(LearnerRank.update, ray.put(batch), step)
        self._life.finished(0)
        return metrics | self._own_metrics(step, skipped=0.0)

    def idle(self, step: int) -> dict[str, float]:
        """The metrics of a step without signal for this network, in which its weights do not move."""
        return self._own_metrics(step, loss=0.0, grad_norm=0.0, skipped=1.0)

    def _own_metrics(self, step: int, **metrics: float) -> dict[str, float]:
        metrics |= {"learning_rate": self._learning_rate(step), "version": float(self.version + self.is_ahead)}
        return {f"{self.network}/{name}": value for name, value in metrics.items()}

    async def publish(self, store: ActorHandle) -> None:
        """Publish the network as it is now as the next version in the store, once more when that dies meanwhile.

        Raises StoreLost when the store is not there again within `deadline`.
        """
        until = time.monotonic() + self._config.deadline
        while True:
            try:
                await self.call(LearnerRank.publish, store, self.version + 1)
                break
            except StoreLost:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(INTERVAL)
        self.version, self.is_ahead = self.version + 1, False

    async def publish_again(self, store: ActorHandle) -> None:
        """Publish the newest version once more, unless the network may have learnt since; its number is followed by the same
        weights. Raises StoreLost when the store died meanwhile."""
        if self.version and not self.is_ahead:
            await self.call(LearnerRank.publish, store, self.version)

    async def snapshot(self) -> int:
        """Copy network and optimizer as they are now, to be written by `write`; bytes of the copies, of all ranks."""
        return sum(await self._on_each(lambda *where: remote.call(*where, LearnerRank.snapshot)))

    async def write(self, checkpoint: str) -> None:
        """Write the copies into a checkpoint's folder. Further updates may run meanwhile."""
        await self.call(LearnerRank.write, checkpoint)

    async def restore(self, checkpoint: str, version: int) -> None:
        """Network and optimizer become what they were at that checkpoint, when `version` was the newest published. `publish`
        gives them out under that number, or under the next one when it was given to others since."""
        await self.call(LearnerRank.restore, checkpoint)
        self.version = max(version - 1, self.version)
        self.is_ahead = version > 0 or self.version > 0

    async def call(
        self, method: Method[Rank, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Run `method` on every rank and return the result of rank 0.

        The first error of any rank is raised at once, without waiting for the other ranks. Only when it may be the
        consequence of another error, as a broken connection to a rank that died is, do the others get a moment to report
        the error behind it, which is raised instead. Raises ActorLost when a rank is lost, by this call or before.
        """
        return (await self._on_each(lambda *where: remote.call(*where, method, *arguments, **named)))[0]

    async def run(
        self, function: Method[Rank, Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Run `function(rank, *arguments)` in the process of every rank; result and errors are those of `call`."""
        return (await self._on_each(lambda *where: remote.run(*where, function, *arguments, **named)))[0]

    async def _on_each(self, call: remote.Call, deadline: float | None = None) -> list[Any]:
        ranks, deadline = self._ranks, deadline or self._config.deadline
        calls = [asyncio.ensure_future(call(rank, self._name(index), deadline)) for index, rank in enumerate(ranks)]
        try:
            return await asyncio.gather(*calls)
        except Exception as error:
            fault = error
        if not isinstance(fault, remote.FOR_A_PERSON):
            done, _ = await asyncio.wait(calls, timeout=BEHIND_A_FAULT)
            said = [call.exception() for call in done]
            fault = next((error for error in said if isinstance(error, remote.FOR_A_PERSON)), fault)
        if isinstance(fault, ActorLost | Overdue):
            fault = ActorLost(str(fault))
            if ranks is self._ranks:
                self._lose(fault)
                fault = self._fault or fault
        raise fault from None

    async def _connect(self) -> None:
        """Connect the ranks, and watch them from then on; further ones in their places when one is lost meanwhile."""
        while True:
            try:
                await self._join()
                break
            except ActorLost:
                await self._replace()
        self._watchers = [asyncio.create_task(self._watch(index)) for index in range(len(self._ranks))]

    async def _join(self) -> None:
        deadline = self._config.start_deadline
        (address, port), *_ = await self._on_each(lambda *rank: remote.call(*rank, LearnerRank.address), deadline)
        await self._on_each(lambda *rank: remote.call(*rank, LearnerRank.connect, address, port), deadline)

    async def _replace(self) -> None:
        """New ranks in the places of the old ones, which are ended."""
        self.close()
        lost = self._fault
        self._fault = lost or ActorLost(f"{self.network} learner: all its ranks start anew")  # for calls that still run
        for rank in self._ranks:
            ray.kill(rank)
        if lost:
            self._life.died(0, time.monotonic())
            (life,) = self._life.lives
            if not life.will_restart:
                budget = f"{self.network}.restarts={self._config.restarts}"
                raise TrainingError(f"the {self.network} learner is not started again ({budget}): {lost}")
            await asyncio.sleep(max(0.0, life.restart_at - time.monotonic()))
            self._life.restarted(0)
        self._fault = None
        self._loss.clear()
        self._ranks = self._make()

    async def _watch(self, index: int) -> None:
        """Probe a rank for as long as it lives."""
        rank, name = self._ranks[index], self._name(index)
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await probe(rank, name, LearnerRank.is_there, self._config.silent_after)
        except ActorLost as fault:
            self._lose(fault)

    def _lose(self, fault: ActorLost) -> None:
        """A rank is lost, so all are ended."""
        if self._fault is None:
            self._fault = fault
            self._loss.set()
            self._report(f"{fault}; all ranks start anew")
            for rank in self._ranks:
                ray.kill(rank)

    def _name(self, index: int) -> str:
        return f"{self.network} learner, rank {index}"
