"""The best frame of each of K equal bins: how TSPO (arXiv 2508.04369) chooses by its scores on VideoMME."""

from __future__ import annotations

import numpy as np


def bin_max(similarity: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
    """`bin_max_frames` of the mean of the query rows of `similarity` [Q, T]."""
    return bin_max_frames(similarity.mean(0), budget)


def bin_max_frames(scores: np.ndarray, budget: int) -> tuple[int, ...]:
    """The frame with the largest of `scores` [T] in each bin, the earlier one of equals; T <= K: all frames.

    The bins' centres are `i (T - 1) / (K - 1)`, rounded; a frame is in the bin of the nearest centre, the earlier one of two.
    """
    num_bins = min(len(scores), budget)
    centres = np.round(np.arange(num_bins) * ((len(scores) - 1) / max(num_bins - 1, 1)))
    bins_T = np.abs(np.arange(len(scores))[:, None] - centres).argmin(1)
    members = [np.flatnonzero(bins_T == index) for index in range(num_bins)]
    return tuple(int(frames[scores[frames].argmax()]) for frames in members)
