"""The selection of TCS, Think-Clip-Sample (arXiv 2601.11359): most frames from the clips about the queries, some from outside.

Its four queries are the rows of the similarity matrix.
"""

from __future__ import annotations

import numpy as np

from services.selection.uniform import spread

RADIUS, SIGMA = 4, 1.0
"""Half the width of the Gaussian that smooths the scores, and its standard deviation, in frames (paper)."""
THRESHOLD = 0.5
"""A clip is what lies above the mean by this many standard deviations (paper)."""
OUTSIDE = 4
"""One frame in so many is taken from outside the clips (paper)."""


def tcs(similarity: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
    """3K/4 frames evenly spread over the clips and K/4, rounded down, over the rest, in time order.

    The scores are the mean of the query rows of `similarity` [Q, T], smoothed. A clip is a peak above the threshold with the
    frames on both its sides that are above it, too. Where one side has too few frames, the other gives more (ours).
    """
    smooth_T = smoothed(similarity.mean(0).astype(np.float64))
    inside_T = smooth_T > smooth_T.mean() + THRESHOLD * smooth_T.std()
    inside, outside = np.flatnonzero(inside_T), np.flatnonzero(~inside_T)
    count = min(budget - budget // OUTSIDE, len(inside))
    count = max(count, budget - len(outside))
    frames = [*inside[list(spread(len(inside), count))], *outside[list(spread(len(outside), budget - count))]]
    return tuple(sorted(int(frame) for frame in frames))


def smoothed(scores: np.ndarray) -> np.ndarray:
    """`scores` [T] after a Gaussian filter; at the ends the video is continued by its mirror image."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    kernel = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    return np.convolve(np.pad(scores, RADIUS, "symmetric"), kernel / kernel.sum(), "valid")
