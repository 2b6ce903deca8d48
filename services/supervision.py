"""The lives of the actors of one pool, as a pure state machine: it knows neither Ray nor the time.

    constructing ─┐  report   ┌▶ healthy ◀──────────┐ report of the version wanted
    restarting  ──┴───────────┤      │ new version  │
        ▲                     └▶ behind ────────────┘
        │ restart          healthy, behind ─ a probe missed ▶ suspect ─ it answers ▶ healthy or behind
       dead ◀── any of them dies, or a suspect misses `patience` probes

Invariants: an actor gets work only while it is healthy, which means that it reported to have loaded the version wanted; there
is no way from restarting to healthy but through its own report, because what it was sent says nothing about what it holds; a
restarted actor has missed no probe yet; an actor that dies more than `restarts` times in a row without having finished a call
is lost for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

BACKOFF, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the second restart in a row, doubled for each further one up to the longest; the first comes at once."""


class State(StrEnum):
    """What an actor is doing, as far as its pool can know."""

    CONSTRUCTING = "constructing"
    """It loads its model for the first time."""
    RESTARTING = "restarting"
    """Its replacement loads its model."""
    BEHIND = "behind"
    """It is alive and holds another version than the one wanted."""
    HEALTHY = "healthy"
    """It is alive and holds the version wanted."""
    SUSPECT = "suspect"
    """It did not answer a probe in time."""
    DEAD = "dead"
    """It is gone, or was given up; it is restarted unless it is lost."""


ALIVE = (State.HEALTHY, State.BEHIND, State.SUSPECT)
LOADING = (State.CONSTRUCTING, State.RESTARTING)


@dataclass
class Life:
    """One place of the pool and the actor that fills it now."""

    state: State = State.CONSTRUCTING
    version: int | None = None
    """The weights that the actor reported to have loaded; None before its first report."""
    missed: int = 0
    """Probes in a row that this actor did not answer in time."""
    deaths: int = 0
    """Deaths in a row at this place without a finished call between them."""
    restart_at: float = math.inf
    """The time from which on the actor may be restarted; infinite when it is alive or lost."""

    @property
    def will_restart(self) -> bool:
        """The actor is dead, and another one is to take its place."""
        return self.state == State.DEAD and not math.isinf(self.restart_at)


class Supervisor:
    """The lives at all places of one pool. Times are seconds of any clock that only runs forward."""

    def __init__(self, count: int, patience: int, restarts: int) -> None:
        """`patience`: probes missed in a row that make an actor dead. `restarts`: of one place, in a row, at most."""
        self.lives = [Life() for _ in range(count)]
        self.wanted = 0
        """The version that work needs."""
        self._patience, self._restarts = patience, restarts

    def want(self, version: int) -> None:
        """Work needs `version` from now on."""
        self.wanted = version
        for life in self.lives:
            if life.state in ALIVE:
                self._settle(life)

    def reported(self, place: int, version: int) -> None:
        """The actor says that it has loaded `version`."""
        life = self.lives[place]
        if life.state != State.DEAD:
            life.version, life.missed = version, 0
            self._settle(life)

    def answered(self, place: int) -> None:
        """The actor answered a probe. One that loads its model is not ready by that."""
        life = self.lives[place]
        if life.state in ALIVE:
            life.missed = 0
            self._settle(life)

    def missed(self, place: int, now: float) -> None:
        """The actor did not answer a probe in time."""
        life = self.lives[place]
        if life.state not in ALIVE:
            return
        life.missed, life.state = life.missed + 1, State.SUSPECT
        if life.missed >= self._patience:
            self.died(place, now)

    def finished(self, place: int) -> None:
        """The actor finished a call, so what killed those before it at this place does not kill at once."""
        self.lives[place].deaths = 0

    def died(self, place: int, now: float) -> None:
        """The actor is gone. Hearing of the same death again changes nothing."""
        life = self.lives[place]
        if life.state == State.DEAD:
            return
        deaths = life.deaths + 1
        wait = 0.0 if deaths == 1 else min(BACKOFF * 2 ** (deaths - 2), LONGEST_BACKOFF)
        restart_at = now + wait if deaths <= self._restarts else math.inf
        self.lives[place] = Life(State.DEAD, deaths=deaths, restart_at=restart_at)

    def restarted(self, place: int) -> None:
        """A new actor is being made for the place."""
        self.lives[place] = Life(State.RESTARTING, deaths=self.lives[place].deaths)

    def ready(self) -> list[int]:
        """The places whose actor may be given work."""
        return [place for place, life in enumerate(self.lives) if life.state == State.HEALTHY]

    @property
    def is_lost(self) -> bool:
        """No actor is alive and none will be restarted."""
        return all(life.state == State.DEAD and not life.will_restart for life in self.lives)

    def _settle(self, life: Life) -> None:
        """An actor that is alive and answers is healthy or behind, by what it reported."""
        if life.missed == 0 and (life.version is not None):
            life.state = State.HEALTHY if life.version == self.wanted else State.BEHIND
