"""Weight publication beside its floor: how long a version takes to the store and to a reader, as multiples of one copy.

    python -m benchmarks.weights --mebibytes 1024

The floor is one copy of the same bytes in memory. Publishing copies twice (into the object store by the learner, and into
objects that the store owns) and checksums once; reading maps the shared memory and checksums once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import ray
import torch
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from cluster.training.connection import connect
from services.weights import KEEP, POLICY, checksum, create_store, plan_buckets, read_version, write_bucket

LAYER = 16 * 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.mebibytes * 2**20
    weights = {f"layers.{index}.weight": torch.randn(LAYER // 4) for index in range(size // LAYER)}
    connect(ClusterConfig(object_store_gib=(KEEP + 2) * size / 2**30))
    store = create_store("benchmark")
    versions = iter(range(1, 1000))

    def publish() -> None:
        version = next(versions)
        for index, names in enumerate(plan_buckets(dict.fromkeys(weights, LAYER))):
            write_bucket(store, POLICY, version, index, ((name, weights[name]) for name in names), 600)
        ray.get(store.commit.remote(POLICY, version))

    def read() -> None:
        for _ in read_version(store, POLICY)[1]:
            pass

    parts: dict[str, Callable[[], object]] = {
        "copy (the floor)": lambda: [tensor.clone() for tensor in weights.values()],
        "checksum": lambda: checksum(weights),
        "publish a version": publish,
        "read a version": read,
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - start)
    ray.shutdown()

    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    table = Table(
        "part", "s", "GiB/s", "times the floor", title=f"{options.mebibytes} MiB of float32, {options.rounds} rounds"
    )
    for name, median in medians.items():
        table.add_row(
            name, f"{median:.3f}", f"{size / 2**30 / median:.2f}", f"{median / medians['copy (the floor)']:.1f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
