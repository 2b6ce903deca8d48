"""Weights are data: versions of both networks, kept on Ray's object store by one small actor.

Invariants: a version appears only whole (`commit` after its last bucket); the store owns the objects, so a learner may die
without taking them along; every bucket carries a checksum that each reader verifies; the newest `KEEP` versions stay, so a
reader that was told of version n still finds it while n+1 is being written. Any actor may come back and pull the newest.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.errors import TrainingError

KEEP = 2
BUCKET_BYTES = 256 * 2**20
"""A bucket is closed at the first layer boundary past this size."""

POLICY = "policy"
SAMPLER = "sampler"


@dataclass(frozen=True)
class Bucket:
    """Some whole layers of one version."""

    tensors: ray.ObjectRef
    """dict of name -> contiguous CPU tensor."""
    checksum: int


@dataclass(frozen=True)
class Manifest:
    """One complete version of one network."""

    network: str
    version: int
    buckets: tuple[Bucket, ...]


def checksum(tensors: dict[str, torch.Tensor]) -> int:
    """CRC-32 over names and bytes."""
    crc = 0
    for name, tensor in tensors.items():
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def plan_buckets(sizes: dict[str, int], limit: int = BUCKET_BYTES) -> list[list[str]]:
    """Names of consecutive parameters in buckets of about `limit` bytes that never split a layer.

    A layer is the name up to and including its first index (`model.layers.3.`); names without an index are layers of
    their own. `sizes`: bytes by name, in model order.
    """
    buckets: list[list[str]] = []
    filled, last_layer = limit, None
    for name, size in sizes.items():
        layer = match.group(0) if (match := re.match(r".*?\.\d+\.", name)) else name
        if filled >= limit and layer != last_layer:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled, last_layer = filled + size, layer
    return buckets


class WeightStore:
    """The actor behind `create_store`. Buckets are written one by one, then committed as a version."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], list[Bucket]] = {}
        self._versions: dict[str, dict[int, Manifest]] = {}

    def put(self, network: str, version: int, index: int, tensors: dict[str, torch.Tensor], crc: int) -> None:
        """Take bucket `index` in; bucket 0 starts the version anew. The copy made here is the store's own."""
        if index == 0:
            self._pending[network, version] = []
        self._pending[network, version].append(Bucket(ray.put(tensors), crc))

    def commit(self, network: str, version: int) -> None:
        """Make the version visible and drop those older than the newest `KEEP`."""
        versions = self._versions.setdefault(network, {})
        versions[version] = Manifest(network, version, tuple(self._pending.pop((network, version))))
        for old in sorted(versions)[:-KEEP]:
            del versions[old]
        for stale in [key for key in self._pending if key[0] == network and key[1] <= version]:
            del self._pending[stale]

    def manifest(self, network: str, version: int | None = None) -> Manifest | None:
        """The given version, or the newest one; None when there is none."""
        versions = self._versions.get(network, {})
        return versions.get(max(versions, default=-1) if version is None else version)


def create_store(name: str, bundle: PlacementGroupSchedulingStrategy | None = None) -> ActorHandle:
    """Start the store under `name`, so that engines' worker processes find it with `ray.get_actor`.

    `bundle`: the room whose node it shares, of which it takes nothing.
    """
    actor: Any = ray.remote(WeightStore)
    return actor.options(name=name, num_cpus=0, max_concurrency=8, scheduling_strategy=bundle).remote()


def write_bucket(
    store: ActorHandle,
    network: str,
    version: int,
    index: int,
    tensors: Iterable[tuple[str, torch.Tensor]],
    deadline: float,
) -> int:
    """Copy named tensors to the store as bucket `index` of a version; returns its bytes."""
    bucket = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors}
    ray.get(store.put.remote(network, version, index, bucket, checksum(bucket)), timeout=deadline)
    return sum(tensor.nbytes for tensor in bucket.values())


def read_version(
    store: ActorHandle, network: str, version: int | None = None, deadline: float = 600.0
) -> tuple[int, Iterator[tuple[str, torch.Tensor]]]:
    """The version's number and its named tensors (read-only views of shared memory), verified bucket by bucket.

    Raises TrainingError when the version is not in the store or a bucket arrives damaged.
    """
    manifest: Any = ray.get(store.manifest.remote(network, version), timeout=deadline)
    if manifest is None:
        raise TrainingError(f"{network} weights of version {version} are not in the store; it keeps the newest {KEEP}")

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for index, bucket in enumerate(manifest.buckets):
            values: dict[str, torch.Tensor] = ray.get(bucket.tensors, timeout=deadline)
            if checksum(values) != bucket.checksum:
                raise TrainingError(f"{network} weights of version {manifest.version}: bucket {index} arrived damaged")
            yield from values.items()

    return manifest.version, tensors()
