"""AKS, adaptive keyframe sampling (arXiv 2502.21271): the video is halved until the best frames of a part stand out from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.selection.topk import topk_frames

THRESHOLD, MAX_DEPTH = 0.8, 5
"""t1 and L of the published implementation."""
THRESHOLD_LONGVIDEOBENCH, MAX_DEPTH_LONGVIDEOBENCH = 0.2, 3
"""The values that it uses on LongVideoBench."""


def aks(
    similarity: np.ndarray, budget: int, seed: int, threshold: float = THRESHOLD, max_depth: int = MAX_DEPTH
) -> tuple[int, ...]:
    """`aks_frames` of the mean of the query rows of `similarity` [Q, T].

    Halving ends at depth log2 K (ours): below that a part has no frame left of a small budget, and the published implementation
    returns none at all.
    """
    return aks_frames(similarity.mean(0), budget, threshold, min(max_depth, budget.bit_length() - 1))


def aks_frames(scores: np.ndarray, budget: int, threshold: float, max_depth: int) -> tuple[int, ...]:
    """The best `int(K / 2^d)` frames of each part that was halved d times and is halved no further, in time order.

    `scores` [T] are scaled to 0…1. A part is halved unless the mean of its K best scores is above its mean by more than
    `threshold`, or d is `max_depth`. T < K gives all frames.
    """
    if len(scores) < budget:
        return tuple(range(len(scores)))
    scores = scores.astype(np.float64) - scores.min()
    parts = _parts(scores / (scores.max() or 1.0), 0, 0, budget, threshold, max_depth)
    return tuple(sorted(start + frame for start, part, count in parts for frame in topk_frames(part, count)))


def _parts(
    scores: np.ndarray, start: int, depth: int, budget: int, threshold: float, max_depth: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """First frame, scores and number of frames of each part that is halved no further."""
    best = np.sort(scores)[::-1][:budget]
    if depth == max_depth or (len(scores) and best.mean() - scores.mean() > threshold):
        yield start, scores, budget // 2**depth
        return
    middle = len(scores) // 2
    for first, half in ((0, scores[:middle]), (middle, scores[middle:])):
        yield from _parts(half, start + first, depth + 1, budget, threshold, max_depth)
