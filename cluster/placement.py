"""Which actor sits where: the plan of a config, and its placement group.

Invariants: the plan is a pure function of the config, so `--dry-run` shows exactly what a run asks for; waiting for room has
a deadline, and its error names the bundles that no node can hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import ActorConfig
from cluster.config import Config
from learners.config import LearnerConfig
from services.errors import TrainingError


@dataclass(frozen=True)
class Bundle:
    """Room for one actor."""

    role: str
    num_cpus: float
    num_gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})


def plan(config: Config) -> list[Bundle]:
    """One bundle an actor, in the order they are started."""
    roles: list[tuple[str, ActorConfig | LearnerConfig, int]] = [
        ("rollout", config.rollout, config.rollout.replicas),
        ("embedder", config.embedder, config.embedder.replicas),
        ("selector", config.selector, config.selector.replicas),
        ("policy", config.policy, config.policy.world_size if config.policy.train else 0),
        ("sampler", config.sampler, config.sampler.world_size if config.selector.kind == "unet" else 0),
    ]
    return [Bundle(role, part.num_cpus, part.num_gpus) for role, part, count in roles for _ in range(count)]


def misfits(bundles: Iterable[Bundle], nodes: Iterable[Mapping[str, float]]) -> list[Bundle]:
    """Bundles that not one of the nodes could hold even when empty. `nodes`: total resources of each."""
    totals = list(nodes)
    return [
        bundle
        for bundle in dict.fromkeys(bundles)
        if not any(all(node.get(name, 0) >= amount for name, amount in bundle.resources.items()) for node in totals)
    ]


class Placement:
    """A placement group with one bundle an actor."""

    def __init__(self, bundles: list[Bundle], group: PlacementGroup) -> None:
        self._bundles, self.group = bundles, group

    @classmethod
    async def create(cls, bundles: list[Bundle], deadline: float, report: Callable[[str], None]) -> Placement:
        """Wait for room, telling `report` meanwhile. Raises TrainingError past the deadline."""
        group = placement_group([bundle.resources for bundle in bundles], strategy="PACK")
        waited = 0.0
        while waited < deadline:
            interval = min(10.0, deadline - waited)
            if await asyncio.to_thread(group.wait, interval):
                return cls(bundles, group)
            waited += interval
            report(f"waiting for room in the cluster, {waited:.0f} of {deadline:.0f} s: {_shortage(bundles)}")
        ray.util.remove_placement_group(group)
        raise TrainingError(f"the cluster had no room for this run within {deadline:.0f} s: {_shortage(bundles)}")

    def of(self, role: str) -> list[PlacementGroupSchedulingStrategy]:
        """Where the actors of a role go."""
        return [
            PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
            for index, bundle in enumerate(self._bundles)
            if bundle.role == role
        ]


def _shortage(bundles: list[Bundle]) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if too_big := misfits(bundles, nodes):
        return "no node can hold " + ", ".join(f"{bundle.role} {bundle.resources}" for bundle in too_big)
    need: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.resources.items():
            need[name] = need.get(name, 0) + amount
    have = ray.cluster_resources()
    return ", ".join(f"{name}: {amount:g} needed, {have.get(name, 0):g} in all" for name, amount in need.items())
