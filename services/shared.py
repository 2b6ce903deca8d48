"""The cache must be one folder for every process of a run: found out by a probe file, before any work.

Invariants: the probe is gone when the command ends, and its name is new, so no file system remembers it as missing. Nothing
is probed with a bucket behind the cache, where each node may have a folder of its own, nor in a cache that is read-only.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from services.config import DataConfig
from services.errors import UserError


@contextmanager
def probe(data: DataConfig) -> Iterator[Path | None]:
    """A file in the cache, as long as the block runs; None when there is nothing to find out."""
    if data.bucket:
        yield None
        return
    file = data.cache / "probes" / "v1" / f".{uuid.uuid4().hex}.tmp"  # where a killed command's is removed in time
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError:  # a prepared cache may be read-only; who must write says so
        yield None
        return
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def check_seen(file: Path | None) -> None:
    """Called where the cache is used. Raises UserError naming the node when the probe is not there."""
    if file is not None and not file.exists():
        raise UserError(
            f"data.cache: {file.parents[2]} on node {ray.util.get_node_ip_address()} is not the folder that the command sees; "
            "name one that all nodes share, or put data.bucket behind it"
        )


def seen_by(actor: Any, file: Path | None) -> None:
    """`check_seen` in the process of any actor, through Ray's `__ray_call__`."""
    check_seen(file)
