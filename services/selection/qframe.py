"""Q-Frame (arXiv 2506.22139): frames drawn without replacement by their similarity, by Gumbel-top-k.

Its three resolutions are no part of it here: all frames are shown at one size.
"""

from __future__ import annotations

import numpy as np

from services.selection.topk import topk_frames
from services.selection.uniform import uniform_frames

CANDIDATES = 128
"""Uniform frames that are drawn from, at most: `max_num_frames` of the published experiments."""
TEMPERATURE = 0.8
"""`tau` of the published implementation."""
LOGIT_SCALE = 100.0
"""The scale that CLIP was trained with: cosines times this are its logits."""


def qframe(similarity: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
    """The K largest of log-softmax(100 s / 0.8) plus Gumbel noise over 128 uniform frames, s the mean of the query rows of
    `similarity` [Q, T]. `seed` alone decides the noise (ours). A budget above 128 gives 128 frames."""
    candidates = np.array(uniform_frames(similarity.shape[1], CANDIDATES))
    logits = similarity.mean(0)[candidates].astype(np.float64) * (
        LOGIT_SCALE / TEMPERATURE
    )  # log-softmax but for a constant
    noise = np.random.default_rng(seed).gumbel(size=len(candidates))
    return tuple(candidates[list(topk_frames(logits + noise, budget))].tolist())
