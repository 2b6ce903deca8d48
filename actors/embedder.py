"""`EmbedderActor`: the frozen CLIP. It prepares a video once (decode, embed) and then answers similarities from the cache.

Invariants: a video whose frames and features are cached is neither decoded nor embedded again; a training step embeds only
text; `ready` loads the model, so that what is wrong with it arrives as the error that it is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from actors.config import EmbedderConfig
from actors.supervised import Pooled
from services.config import DataConfig, FramesConfig
from services.embeddings import FeatureCache, remember_key, similarity
from services.frames import FrameCache
from services.schema import Embedded, Video

TEXT_CACHE = 65536
"""Text embeddings kept in memory."""


class EmbedderActor(Pooled):
    """One CLIP behind two calls: `decode_and_embed` and `similarity`."""

    def __init__(self, model: str, config: EmbedderConfig, data: DataConfig, frames: FramesConfig) -> None:
        self._model, self._config, self._data = model, config, data
        self._frames = FrameCache.of(data, frames)

    def ready(self) -> None:
        """Load the model. Raises UserError when it cannot be."""
        from services.clip import ClipEncoder  # open_clip: seconds and memory that the driver is spared

        config, cache = self._config, self._data.cache
        if config.dtype == "auto":
            raise ValueError("embedder.dtype: auto is decided before actors start, for all of them alike")
        torch.set_num_threads(config.threads)
        self._clip = ClipEncoder(
            self._model, config.pretrained, config.dtype, config.resize, config.device, config.batch_size
        )
        self._features = FeatureCache(cache, self._clip.key, self._data.bucket)
        remember_key(cache, self._model, config.key_parameters(), self._clip.key)
        self._embed_text = lru_cache(TEXT_CACHE)(lambda text: self._clip.encode_texts([text])[0])

    def decode_and_embed(self, path: str) -> Video:
        """Fill both caches for one video. Raises VideoError with the reason when it cannot be decoded."""
        video = self._frames.add(path)
        self.embed(video.key)
        return video

    def embed(self, key: str) -> None:
        """Features of the cached frames of that key, unless they are there."""
        if self._features.get(key) is None:
            num_frames, batch = self._frames.video(key).num_frames, self._config.batch_size
            batches = [
                self._clip.encode_frames(self._frames.read(key, range(start, min(start + batch, num_frames))))
                for start in range(0, num_frames, batch)
            ]
            self._features.put(key, np.concatenate(batches))

    def decodes(self) -> int:
        """Videos this actor has decoded: those that were not in the cache."""
        return self._frames.decodes

    def similarity(self, video: str, queries: tuple[str, ...]) -> np.ndarray:
        """[Q, T] float32 cosines of `queries` with the candidate frames of the video of that key."""
        return self.match(video, queries)[0]

    def match(self, video: str, queries: tuple[str, ...]) -> tuple[np.ndarray, Embedded]:
        """The same cosines, and the embeddings that they were computed from."""
        frames = self._features.get(video)
        if frames is None:
            raise KeyError(f"video {video} has no features in the cache; prepare it first")
        texts = np.stack([self._embed_text(query) for query in queries])
        return similarity(texts, frames), Embedded(self._features.model_key, video, texts)
