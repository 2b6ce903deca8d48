"""The two stages that fill the caches, as Ray Data runs them: decode, then embed. Rows in, rows out, one video each.

Invariants: a row that comes in goes out, `ready` with its frames, or `quarantined` with the reason; a stage that is killed and
run again finds what was done in the caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.config import EmbedderConfig
from services.config import DataConfig, FramesConfig
from services.errors import DecoderLost, VideoError
from services.frames import FrameCache
from services.schema import Video

Batch = dict[str, np.ndarray]
"""Ray Data's batch: columns `path`, `status`, `reason`, `key`, `frames`, `bytes`, and `notes`, one a line. A path is bytes,
as it need not be text."""


def outcome(path: str, prepare: Callable[[], Video], cache: FrameCache) -> dict[str, Any]:
    """The row of one video: what `prepare` made of it, or why it could not."""
    try:
        video = prepare()
    except VideoError as error:
        reason = str(error).removeprefix(f"{path}: ").encode(errors="backslashreplace").decode()
        return {
            "path": path,
            "status": "quarantined",
            "reason": reason,
            "key": "",
            "frames": 0,
            "bytes": 0,
            "notes": "",
        }
    return {
        "path": path,
        "status": "ready",
        "reason": "",
        "key": video.key,
        "frames": video.num_frames,
        "bytes": cache.nbytes(video.key),
        "notes": "\n".join(cache.notes(video.key)),
    }


def _columns(row: dict[str, Any]) -> Batch:
    return {name: np.array([value]) for name, value in row.items()}


class DecodeStage:
    """Paths to frames in the cache. `retry` tries videos anew that are known to be undecodable."""

    def __init__(self, data: DataConfig, frames: FramesConfig, retry: bool) -> None:
        self._frames, self._retry = FrameCache.of(data, frames), retry

    def __call__(self, batch: Batch) -> Batch:
        path = os.fsdecode(batch["path"][0])
        row = outcome(path, lambda: self._prepare(path), self._frames)
        return _columns(row | {"path": os.fsencode(path)})

    def _prepare(self, path: str) -> Video:
        try:
            return self._frames.prepare(path, self._retry)
        except DecoderLost:  # killed from outside, perhaps: once more
            return self._frames.prepare(path, self._retry)


class EmbedStage:
    """Decoded videos to CLIP features in the cache."""

    def __init__(self, model: str, config: EmbedderConfig, data: DataConfig, frames: FramesConfig) -> None:
        from actors.embedder import EmbedderActor  # torch: seconds that a driver without work is spared

        self._embedder = EmbedderActor(model, config, data, frames)

    def __call__(self, batch: Batch) -> Batch:
        if batch["status"][0] == "ready":
            self._embedder.embed(str(batch["key"][0]))
        return batch
