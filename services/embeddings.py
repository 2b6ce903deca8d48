"""The cache of CLIP's frame features, and the similarity of queries with them.

A feature file is `<root>/features/v2/<model key>/<video key[:2]>/<video key>.arrow`: Arrow IPC, one record batch, one
column `feature` (fixed-size list of D float16), row i the normalised embedding of candidate frame i; the schema's metadata hold
the CRC-32 of all of them.

Invariants: a file appears whole or not at all; the model key covers everything that features depend on: weights,
architecture, preprocessing, number type. `Q` queries, `T` candidate frames, `D` dimensions of an embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from services.storage import UNREADABLE, Storage, folder_stamp, remember


class FeatureCache:
    """Frame features [T, D] float16 under `root`, of the model that `model_key` names."""

    def __init__(self, root: Path, model_key: str, bucket: str = "") -> None:
        self.model_key = model_key
        self._storage = Storage(root, bucket)

    def get(self, video_key: str) -> np.ndarray | None:
        """The features as a read-only view of the memory-mapped file; None when there are none yet."""
        return found[0] if (found := self._open(video_key)) else None

    def put(self, video_key: str, features: np.ndarray) -> None:
        """Keep `features` [T, D], as float16. Raises UserError when the cache cannot be written."""
        half = np.ascontiguousarray(features, np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])
        table = pa.table({"feature": column}).replace_schema_metadata({"checksum": str(crc32(half.data))})
        with (
            self._storage.write(self._name(video_key)) as temporary,
            pa.OSFile(os.fsencode(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def damage(self, video_key: str) -> str | None:
        """What is wrong with the cached features of a video; None when they are as written, or there are none."""
        found = self._open(video_key)
        return "the features are not as they were written" if found and crc32(found[0].data) != found[1] else None

    def remove(self, video_key: str) -> None:
        """Forget the features of a video."""
        self._storage.remove(self._name(video_key))

    def _open(self, video_key: str) -> tuple[np.ndarray, int] | None:
        """The mapped features and their checksum; None when there are none, or only something damaged."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(os.fsencode(self._storage.find(self._name(video_key)))))
            table = reader.read_all()
            table.validate(full=True)  # or what it says of its buffers may lead beyond them
            column = table.column("feature").chunk(0)
            # From the buffer: to_numpy would import pandas, which takes seconds.
            features = np.frombuffer(column.values.buffers()[1], np.float16, len(column.values))
            return features.reshape(len(column), -1), int(reader.schema.metadata[b"checksum"])
        except UNREADABLE:
            return None

    def _name(self, video_key: str) -> str:
        return f"features/v2/{self.model_key}/{video_key[:2]}/{video_key}.arrow"


def known_key(root: Path, model: str, parameters: Sequence[str]) -> str | None:
    """The key of a CLIP that was loaded before, without loading it; None when it was not, or its files changed since.

    `model` is a folder or an open_clip name, `parameters` whatever else its key depends on.
    """
    try:
        return _key_file(root, model, parameters).read_text()
    except FileNotFoundError:
        return None


def remember_key(root: Path, model: str, parameters: Sequence[str], key: str) -> None:
    """What `known_key` is to answer from now on."""
    remember(_key_file(root, model, parameters), key)


def _key_file(root: Path, model: str, parameters: Sequence[str]) -> Path:
    """Named by all that can change the key without a change of the config: the folder's files, and open_clip's version."""
    files = folder_stamp(Path(model.removeprefix("local-dir:")))
    identity = [model, *parameters, version("open_clip_torch"), files]
    name = blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
    return root / "hashes" / "v1" / "clip" / name


def similarity(text_features: np.ndarray, frame_features: np.ndarray) -> np.ndarray:
    """Cosines [Q, T] float32 of texts [Q, D] and frames [T, D], whatever their norms and number types."""
    return _normalised(text_features) @ _normalised(frame_features).T


def _normalised(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
