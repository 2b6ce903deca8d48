"""Probes: whether an actor is alive and answers, asked beside its work.

Invariants: an actor answers in a concurrency group of its own, so its work does not hold the answer up; silence is counted in
seconds in which this process ran too, so that a driver that was held up itself condemns nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle

from services import remote
from services.errors import ActorLost

INTERVAL = 1.0
"""Seconds between two probes of an actor, and those after which a probe without an answer counts as missed once more."""
HEALTH = "health"
"""The concurrency group of probes."""
beside_work: Any = ray.method(concurrency_group=HEALTH)
"""Marks a method of that group."""


def patience(silent_after: float) -> int:
    """The probes in a row that may be missed in so many seconds."""
    return math.ceil(silent_after / INTERVAL)


async def probe(
    actor: ActorHandle,
    name: str,
    method: Callable[..., Any],
    silent_after: float,
    missed: Callable[[], None] = lambda: None,
) -> Any:
    """The answer of the actor's `method`, which is one of the group HEALTH. `missed` is told of each second without it.

    Raises ActorLost when the actor is dead, or when it was silent for `silent_after` seconds.
    """
    asked = asyncio.ensure_future(remote.call(actor, name, math.inf, method))
    try:
        for _ in range(patience(silent_after)):
            if (await asyncio.wait({asked}, timeout=INTERVAL))[0]:
                return asked.result()
            missed()
    finally:
        asked.cancel()
    raise ActorLost(f"{name}: no answer in {silent_after:g} s; {remote.log_of(actor)}")
