"""The seat of every actor: the plan of a config, and the placement groups it becomes.

Invariants: the plan is a pure function of the config, so `--dry-run` shows exactly what a run asks for; what works closely
together is one group, packed on a node where one has room: all learners, or an engine and its workers; every other actor is a
group of its own, so that none waits for another's room; waiting for room has a deadline, and its error names the bundles that
no node can hold.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from cluster.config import Config
from services.errors import TrainingError

INTERVAL = 10.0
"""Seconds between two words about what is waited for."""


@dataclass(frozen=True)
class Bundle:
    """Room for one process."""

    role: str
    num_cpus: float
    num_gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})


Group = tuple[Bundle, ...]
"""Bundles that are placed together."""


Part = Literal["learners", "rollouts", "embedders", "selectors"]


def plan(config: Config, parts: Collection[Part] | None = None) -> list[Group]:
    """Every group of `parts`; None: of all that training needs, which is every part."""
    return [group for part, groups in PARTS.items() if parts is None or part in parts for group in groups(config)]


def _learners(config: Config) -> list[Group]:
    """One group of all ranks that have something to learn, none when there are none."""
    policy, sampler = config.policy, config.sampler
    ranks = (Bundle("policy", policy.num_cpus, policy.num_gpus),) * (policy.world_size if policy.train else 0)
    if config.selector.learns:
        ranks += (Bundle("sampler", sampler.num_cpus, sampler.num_gpus),) * sampler.world_size
    return [ranks] if ranks else []


def _engines(config: Config) -> list[Group]:
    """A group for each engine: its actor, and with tensor parallelism a bundle for each of its workers."""
    rollout = config.rollout
    worker = Bundle("rollout worker", rollout.num_cpus, rollout.num_gpus)
    workers = (worker,) * rollout.tensor_parallel if rollout.tensor_parallel > 1 else ()
    return [(Bundle("rollout", rollout.num_cpus, rollout.actor_gpus), *workers)] * rollout.replicas


def _alone(role: str, config: ActorConfig) -> list[Group]:
    """A group of its own for each replica."""
    return [(Bundle(role, config.num_cpus, config.num_gpus),)] * config.replicas


PARTS: dict[Part, Callable[[Config], list[Group]]] = {
    "learners": _learners,
    "rollouts": _engines,
    "embedders": lambda config: _alone("embedder", config.embedder),
    "selectors": lambda config: _alone("selector", config.selector),
}
"""The groups of each part; the learners come first, who need the most room in one place."""


def misfits(bundles: Iterable[Bundle], nodes: Iterable[Mapping[str, float]]) -> list[Bundle]:
    """Bundles that not one of the nodes could hold even when empty. `nodes`: total resources of each."""
    totals = list(nodes)
    return [
        bundle
        for bundle in dict.fromkeys(bundles)
        if not any(all(node.get(name, 0) >= amount for name, amount in bundle.resources.items()) for node in totals)
    ]


class Placement:
    """The placement groups of a plan. Each of its bundles is room for the actor of that role, in the plan's order."""

    def __init__(self, plan: Sequence[Group]) -> None:
        self._plan = plan
        self._groups = [placement_group([bundle.resources for bundle in group], strategy="PACK") for group in plan]

    @classmethod
    async def create(cls, plan: Sequence[Group], deadline: float, report: Callable[[str], None]) -> Placement:
        """Wait for room, telling `report` meanwhile. Raises TrainingError past the deadline."""
        placement, start = cls(plan), time.monotonic()
        bundles = list(itertools.chain(*plan))
        for group in placement._groups:
            while not await asyncio.to_thread(group.wait, min(INTERVAL, deadline)):
                if (waited := time.monotonic() - start) >= deadline:
                    placement.remove()
                    raise TrainingError(
                        f"the cluster had no room for this run within {deadline:.0f} s: {_shortage(bundles)}"
                    )
                report(f"waiting for room in the cluster, {waited:.0f} of {deadline:.0f} s: {_shortage(bundles)}")
        return placement

    def of(self, role: str) -> list[PlacementGroupSchedulingStrategy]:
        """The places of the actors of a role."""
        return [
            PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            for group, bundles in zip(self._groups, self._plan, strict=True)
            for index, bundle in enumerate(bundles)
            if bundle.role == role
        ]

    def remove(self) -> None:
        """Give all room back."""
        for group in self._groups:
            ray.util.remove_placement_group(group)


def _shortage(bundles: Sequence[Bundle]) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if too_big := misfits(bundles, nodes):
        return "no node can hold " + ", ".join(f"{bundle.role} {bundle.resources}" for bundle in too_big)
    need: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.resources.items():
            need[name] = need.get(name, 0) + amount
    have = ray.cluster_resources()
    return ", ".join(f"{name}: {amount:g} needed, {have.get(name, 0):g} in all" for name, amount in need.items())
