"""The actors at the places of one pool: watched, and replaced when they died or were given up.

    _keep(place):  make an actor ─▶ ready ─▶ probes, one per second ─▶ lost ─▶ wait ─▶ make the next one ...
    take():        the next caller in line ◀── an actor that is healthy and has room

`services/supervision.py` decides who may work and who is restarted; what happens to real actors is here.

Invariants: an actor is sent no more calls than it works on at once; callers are served in the order they came, those whose
actor was lost first; a replacement starts in the place of the lost one, and loads the newest weights by itself; a caller never
waits for a pool that has no actor left.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.config import ActorConfig
from services import remote
from services.errors import ActorLost, Overdue, StoreLost, TrainingError
from services.probes import INTERVAL, beside_work, patience, probe
from services.supervision import ALIVE, LOADING, State, Supervisor


class Pooled:
    """What a pool asks of its actors, besides their work."""

    def ready(self) -> Any:
        """Load the model, with the newest weights if there are any; the version of these, or None. Plain or async."""
        raise NotImplementedError

    def pull(self, version: int) -> Any:
        """Take that version of the weights in; returns it. Plain or async."""
        raise NotImplementedError

    @beside_work
    def progress(self) -> int | None:
        """A number that changes while work goes on; None where only a call's deadline tells that it does not."""
        return None


@dataclass(eq=False)
class Member:
    """One actor, at one place of the pool."""

    actor: ActorHandle
    place: int
    name: str
    """What it is called in errors: `<pool> actor <place>`."""
    in_flight: int = 0
    progress: int | None = None
    """Its last answer to a probe."""
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Fails when the actor is lost."""


class Places:
    """Keeps an actor at each of `count` places. `make(place)` starts one; `at_once`: calls that one works on together."""

    def __init__(
        self,
        name: str,
        make: Callable[[int], ActorHandle],
        count: int,
        config: ActorConfig,
        at_once: int,
        report: Callable[[str], None],
    ) -> None:
        self.name, self._make, self._config, self._at_once, self._report = name, make, config, at_once, report
        self._lives = Supervisor(count, patience(config.silent_after), config.restarts)
        self.members = [self._member(place) for place in range(count)]
        self._waiting: list[tuple[int, asyncio.Future[Member]]] = []  # a heap, by ticket
        self._changed = asyncio.Event()
        self._fault: Exception | None = None
        self._down: dict[int, float] = {}
        self.restarts = self.redispatched = 0
        self.lost_seconds = 0.0
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(count)]

    async def started(self) -> None:
        """Returns once every actor is ready. Raises what the first one raised that could not load its model."""
        await self._until(lambda: not any(life.state in LOADING or life.will_restart for life in self._lives.lives))

    def close(self) -> None:
        """Watch and replace no longer."""
        for keeper in self._keepers:
            keeper.cancel()

    @property
    def living(self) -> list[Member]:
        """The actors that have loaded their model and are not known to be dead."""
        pairs = zip(self._lives.lives, self.members, strict=True)
        return [member for life, member in pairs if life.state in ALIVE]

    async def want(self, version: int) -> None:
        """Only those who reported to hold `version` work from now on; returns once all the living do, and one does at least."""
        self._lives.want(version)
        await asyncio.gather(*[self._update(member) for member in self.living])
        await self._until(lambda: bool(self._lives.ready()))

    async def take(self, ticket: int) -> Member:
        """The healthy actor with the fewest calls, once one has room: for one call, until `give_back`.

        `ticket`: the call's place in the line. No two calls have the same; a lower one comes first.
        """
        if self._fault:
            raise self._fault
        waiter: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (ticket, waiter))
        self._hand_out()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.give_back(waiter.result())
            raise

    def give_back(self, member: Member) -> None:
        """The call that `take` gave this actor to has ended."""
        member.in_flight -= 1
        self._hand_out()

    def finished(self, member: Member) -> None:
        """The actor returned the result of a call."""
        if self._is_there(member):
            self._lives.finished(member.place)

    async def ask(self, member: Member, deadline: float, call: remote.Call) -> Any:
        """A call of this one actor. Raises ActorLost when it died, or was given up because it hangs."""
        try:
            return await call(member.actor, member.name, deadline)
        except ActorLost as error:
            self._lose(member, error)
            raise
        except Overdue as error:
            if member.progress is not None:  # it would have been given up if it did nothing: there is too much to do
                raise
            self._lose(member, lost := ActorLost(str(error)))
            raise lost from None

    async def tell(self, member: Member, deadline: float, call: remote.Call) -> Any:
        """As `ask`, beside the calls that it works on."""
        member.in_flight += 1
        try:
            return await self.ask(member, deadline, call)
        finally:
            self.give_back(member)

    def _member(self, place: int) -> Member:
        return Member(self._make(place), place, f"{self.name} actor {place}")

    def _is_there(self, member: Member) -> bool:
        return self.members[member.place] is member and not member.lost.done()

    async def _keep(self, place: int) -> None:
        """One actor after the other at this place, as long as it may be restarted."""
        while True:
            member, life = self.members[place], self._lives.lives[place]
            try:
                await self._live(member)
            except Exception as error:
                if life.state == State.CONSTRUCTING and not isinstance(error, ActorLost):
                    return self._fail(error)
                self._lose(member, error)
            life = self._lives.lives[place]
            if not life.will_restart:
                return
            await asyncio.sleep(max(0.0, life.restart_at - time.monotonic()))
            self._lives.restarted(place)
            self.restarts += 1
            self.members[place] = self._member(place)

    async def _live(self, member: Member) -> None:
        """An actor from the loading of its model to its end, which is an error."""
        version = await remote.call(member.actor, member.name, self._config.start_deadline, Pooled.ready)
        self._hear(member, version or 0)
        tasks = [asyncio.ensure_future(task) for task in (self._load(member), self._watch(member))]
        try:
            await asyncio.gather(*tasks, asyncio.shield(member.lost))
        finally:
            for task in tasks:
                task.cancel()

    async def _load(self, member: Member) -> None:
        """Have it load the version wanted, until it reports that one. A version that was lost with the store is waited for."""
        until = time.monotonic() + self._config.deadline
        while self._is_there(member) and self._lives.lives[member.place].version != self._lives.wanted:
            try:
                self._hear(member, await self._pull(member, self._lives.wanted))
            except StoreLost:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(INTERVAL)

    async def _pull(self, member: Member, version: int) -> int:
        return await self.tell(member, self._config.deadline, lambda *where: remote.call(*where, Pooled.pull, version))

    async def _update(self, member: Member) -> None:
        with contextlib.suppress(ActorLost):  # its replacement loads the newest version
            await self._load(member)

    async def _watch(self, member: Member) -> None:
        """Probe it for as long as it lives. Raises ActorLost when it is dead, silent or hung."""
        standing = 0.0
        while True:
            await asyncio.sleep(INTERVAL)
            progress = await self._probe(member)
            stands = member.in_flight > 0 and progress is not None and progress == member.progress
            standing, member.progress = standing + INTERVAL if stands else 0.0, progress
            if standing >= self._config.hang_after:
                raise ActorLost(
                    f"{member.name}: it has work and did none in {self._config.hang_after:g} s; {remote.log_of(member.actor)}"
                )

    async def _probe(self, member: Member) -> int | None:
        """Its progress."""
        progress = await probe(
            member.actor,
            member.name,
            Pooled.progress,
            self._config.silent_after,
            lambda: self._lives.missed(member.place, time.monotonic()),
        )
        self._lives.answered(member.place)
        self._hand_out()
        return progress

    def _hear(self, member: Member, version: int) -> None:
        """The actor reports the version that it holds."""
        place = member.place
        if not self._is_there(member):
            return
        self._lives.reported(place, version)
        if self._lives.lives[place].state == State.HEALTHY and place in self._down:
            seconds = time.monotonic() - self._down.pop(place)
            self.lost_seconds += seconds
            self._report(f"{member.name} is back after {seconds:.1f} s with version {version}")
        self._note()

    def _lose(self, member: Member, cause: Exception) -> None:
        """The actor is dead, or is ended because it is given up."""
        if not self._is_there(member):
            return
        now = time.monotonic()
        self._lives.died(member.place, now)
        self._down.setdefault(member.place, now)
        member.lost.set_exception(cause)
        member.lost.exception()  # also where nobody waits for it, as while it loads its model
        ray.kill(member.actor)
        wait = self._lives.lives[member.place].restart_at - now
        self._report(
            f"{cause}; " + (f"a replacement starts in {wait:.0f} s" if wait < math.inf else "it is not replaced")
        )
        if self._lives.is_lost:
            budget = f"{self.name}.restarts={self._config.restarts}"
            self._fail(TrainingError(f"no {self.name} actor is left, and none is restarted again ({budget}): {cause}"))
        self._note()

    def _fail(self, fault: Exception) -> None:
        """The pool can do nothing more."""
        self._fault = fault
        while self._waiting:
            _, waiter = self._waiting.pop()
            if not waiter.done():
                waiter.set_exception(fault)
        self._note()

    def _hand_out(self) -> None:
        """Give healthy actors with room to those who wait."""
        while self._waiting:
            ready = [self.members[place] for place in self._lives.ready()]
            free = [member for member in ready if member.in_flight < self._at_once]
            if not free:
                return
            _, waiter = heapq.heappop(self._waiting)
            if not waiter.done():
                member = min(free, key=lambda member: member.in_flight)
                member.in_flight += 1
                waiter.set_result(member)

    def _note(self) -> None:
        """Something changed that somebody may wait for."""
        self._hand_out()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self._fault and not condition():
            await self._changed.wait()
        if self._fault:
            raise self._fault
