"""The cache of CLIP's frame features, and the similarity of queries with them.

A feature file is `<root>/features/v1/<model key>/<video key[:2]>/<video key>.arrow`: Arrow IPC, one record batch, one
column `feature` (fixed-size list of D float16), row i the normalised embedding of candidate frame i.

Invariants: a file appears whole or not at all; the model key covers everything that features depend on: weights,
architecture, preprocessing, number type. `Q` queries, `T` candidate frames, `D` dimensions of an embedding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from services.frames import written_whole


class FeatureCache:
    """Frame features [T, D] float16 under `root`, of the model that `model_key` names."""

    def __init__(self, root: Path, model_key: str) -> None:
        self.folder = root / "features" / "v1" / model_key

    def get(self, video_key: str) -> np.ndarray | None:
        """The features as a read-only view of the memory-mapped file; None when there are none yet."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self._file(video_key)))).read_all()
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        column = table.column("feature").chunk(0)
        return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)

    def put(self, video_key: str, features: np.ndarray) -> None:
        """Keep `features` [T, D], as float16. Raises UserError when the cache cannot be written."""
        flat = pa.array(np.ascontiguousarray(features, np.float16).reshape(-1))
        table = pa.table({"feature": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])})
        with (
            written_whole(self._file(video_key)) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def _file(self, video_key: str) -> Path:
        return self.folder / video_key[:2] / f"{video_key}.arrow"


def similarity(text_features: np.ndarray, frame_features: np.ndarray) -> np.ndarray:
    """Cosines [Q, T] float32 of texts [Q, D] and frames [T, D], whatever their norms and number types."""
    return _normalised(text_features) @ _normalised(frame_features).T


def _normalised(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
