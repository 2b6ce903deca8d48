"""Weights are data: versions of both networks, kept on Ray's object store by one small actor.

Invariants: a version appears only whole (`commit` after its last bucket); the store owns the objects, so a learner may die
without taking them along; every bucket carries a checksum that each reader verifies; the newest `KEEP` versions stay, so a
reader that was told of version n still finds it while n+1 is being written. Any actor may come back and pull the newest.
A store that dies is started again by Ray, under the same handle and name, and is empty: who finds that a version is gone gets
StoreLost, and the driver publishes it again.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.errors import StoreLost, TrainingError

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
        self._begun(network, version).append(Bucket(ray.put(tensors), crc))

    def commit(self, network: str, version: int) -> None:
        """Make the version visible and drop those older than the newest `KEEP`."""
        versions = self._versions.setdefault(network, {})
        versions[version] = Manifest(network, version, tuple(self._begun(network, version)))
        for old in sorted(versions)[:-KEEP]:
            del versions[old]
        for stale in [key for key in self._pending if key[0] == network and key[1] <= version]:
            del self._pending[stale]

    def newest(self, network: str) -> int:
        """Number of the newest version; 0, the network as it was loaded, when there is none."""
        return max(self._versions.get(network, {}), default=0)

    def _begun(self, network: str, version: int) -> list[Bucket]:
        try:
            return self._pending[network, version]
        except KeyError:
            raise StoreLost(f"the weight store died while {network} weights of version {version} came in") from None

    def manifest(self, network: str, version: int | None = None) -> Manifest | None:
        """The given version, or the newest one; None when there is none."""
        return self._versions.get(network, {}).get(self.newest(network) if version is None else version)


def create_store(name: str, bundle: PlacementGroupSchedulingStrategy | None = None) -> ActorHandle:
    """Start the store under `name`, so that engines' worker processes find it with `ray.get_actor`, and again if it dies.

    `bundle`: the room whose node it shares, of which it takes nothing.
    """
    actor: Any = ray.remote(WeightStore)
    options = {"name": name, "num_cpus": 0, "max_concurrency": 8, "max_restarts": -1}
    return actor.options(scheduling_strategy=bundle, **options).remote()


def _ask(call: Callable[[], ray.ObjectRef], deadline: float) -> Any:
    """The store's answer to a call that may be repeated; once it is there again, when it has just died. Raises StoreLost."""
    until = time.monotonic() + deadline
    while True:
        try:
            return ray.get(call(), timeout=max(0.0, until - time.monotonic()))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            if time.monotonic() >= until:
                raise StoreLost(f"the weight store does not answer: {error}") from None
            time.sleep(1.0)


def newest_version(store: ActorHandle, network: str, deadline: float = 600.0) -> int:
    """Number of the newest version in the store; 0, the network as it was loaded, when it holds none."""
    return _ask(lambda: store.newest.remote(network), deadline)


def commit_version(store: ActorHandle, network: str, version: int, deadline: float) -> None:
    """Make a version visible whose buckets are all written. Raises StoreLost when the store died meanwhile."""
    _tell(store.commit.remote(network, version), deadline)


def _tell(reference: ray.ObjectRef, deadline: float) -> None:
    """Wait for a call that changes what the store holds. Raises StoreLost when the store died before or meanwhile."""
    try:
        ray.get(reference, timeout=deadline)
    except ray.exceptions.RayActorError as error:
        raise StoreLost(f"the weight store died: {error}") from None


def write_bucket(
    store: ActorHandle,
    network: str,
    version: int,
    index: int,
    tensors: Iterable[tuple[str, torch.Tensor]],
    deadline: float,
) -> int:
    """Copy named tensors to the store as bucket `index` of a version; returns its bytes. Raises StoreLost when it died."""
    bucket = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors}
    _tell(store.put.remote(network, version, index, bucket, checksum(bucket)), deadline)
    return sum(tensor.nbytes for tensor in bucket.values())


def read_version(
    store: ActorHandle, network: str, version: int | None = None, deadline: float = 600.0
) -> tuple[int, Iterator[tuple[str, torch.Tensor]]]:
    """The version's number and its named tensors (read-only views of shared memory), verified bucket by bucket.

    Raises StoreLost when the version is not in the store, TrainingError when a bucket arrives damaged.
    """
    manifest = _ask(lambda: store.manifest.remote(network, version), deadline)
    if manifest is None:
        raise StoreLost(f"{network} weights of version {version} are not in the store; it keeps the newest {KEEP}")

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for index, bucket in enumerate(manifest.buckets):
            try:
                values: dict[str, torch.Tensor] = ray.get(bucket.tensors, timeout=deadline)
            except ray.exceptions.ObjectLostError:
                raise StoreLost(f"{network} weights of version {manifest.version} were lost with their store") from None
            if checksum(values) != bucket.checksum:
                raise TrainingError(f"{network} weights of version {manifest.version}: bucket {index} arrived damaged")
            yield from values.items()

    return manifest.version, tensors()
