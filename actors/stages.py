"""The two stages that fill the caches, as Ray Data runs them: decode, then embed. Rows in, rows out, one video each.

Invariants: a row that comes in goes out, `ready` with its frames, `quarantined` with the reason, or `refused` with what the
user can mend (Ray Data would bury it in tracebacks); a stage that is killed and run again finds what was done in the caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EmbedderConfig
from services.config import DataConfig, FramesConfig
from services.errors import DecoderLost, UserError, VideoError
from services.frames import FrameCache
from services.schema import Video
from services.shared import check_seen

Batch = dict[str, np.ndarray]
"""Ray Data's batch: columns `path`, `status`, `reason`, `key`, `frames`, `bytes`, and `notes`, one a line. A path is bytes,
as it need not be text."""


def outcome(path: str, find: Callable[[], Video], cache: FrameCache) -> dict[str, Any]:
    """The row of one video: the one that `find` returns, or why it could not."""
    try:
        video = find()
    except VideoError as error:
        return _row(path, "quarantined", _text(str(error).removeprefix(f"{path}: ")))
    notes = "\n".join(cache.notes(video.key))
    done = {"key": video.key, "frames": video.num_frames, "bytes": cache.nbytes(video.key), "notes": notes}
    return _row(path, "ready") | done


def _row(path: str, status: str, reason: str = "") -> dict[str, Any]:
    return {"path": path, "status": status, "reason": reason, "key": "", "frames": 0, "bytes": 0, "notes": ""}


def _text(reason: str) -> str:
    """As it can be shown and stored, whatever the bytes of the file names in it."""
    return reason.encode(errors="backslashreplace").decode()


def _columns(row: dict[str, Any]) -> Batch:
    return {name: np.array([value]) for name, value in row.items()}


class DecodeStage:
    """Paths to frames in the cache. `retry` tries videos anew that are known to be undecodable; `probe` tells whether this
    node sees the cache."""

    def __init__(self, data: DataConfig, frames: FramesConfig, retry: bool, probe: Path | None) -> None:
        self._frames, self._retry, self._probe = FrameCache.of(data, frames), retry, probe

    def __call__(self, batch: Batch) -> Batch:
        path = os.fsdecode(batch["path"][0])
        try:
            check_seen(self._probe)
            row = outcome(path, lambda: self._decode(path), self._frames)
        except UserError as error:
            row = _row(path, "refused", _text(str(error)))
        return _columns(row | {"path": os.fsencode(path)})

    def _decode(self, path: str) -> Video:
        try:
            return self._frames.add(path, self._retry)
        except DecoderLost:  # killed from outside, perhaps: once more
            return self._frames.add(path, self._retry)


class EmbedStage:
    """Decoded videos to CLIP features in the cache."""

    def __init__(
        self, model: str, config: EmbedderConfig, data: DataConfig, frames: FramesConfig, probe: Path | None
    ) -> None:
        from actors.embedder import EmbedderActor  # torch: seconds that a driver without work is spared

        self._embedder, self._probe = EmbedderActor(model, config, data, frames), probe
        self._is_loaded = False

    def __call__(self, batch: Batch) -> Batch:
        if batch["status"][0] != "ready":
            return batch
        try:
            check_seen(self._probe)
            if not self._is_loaded:
                self._embedder.ready()
                self._is_loaded = True
            self._embedder.embed(str(batch["key"][0]))
        except UserError as error:
            return batch | {"status": np.array(["refused"]), "reason": np.array([_text(str(error))])}
        return batch
