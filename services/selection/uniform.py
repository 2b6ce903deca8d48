"""Evenly spread frames, whatever they show."""

from __future__ import annotations

import numpy as np


def uniform(similarity: np.ndarray, budget: int) -> tuple[int, ...]:
    """`uniform_frames` of the T frames of `similarity` [Q, T]."""
    return uniform_frames(similarity.shape[1], budget)


def uniform_frames(num_frames: int, budget: int) -> tuple[int, ...]:
    """`linspace(0, T - 1, K)` truncated to int; all frames when T <= K. The previews of the query turn are chosen so too."""
    if num_frames <= budget:
        return tuple(range(num_frames))
    return tuple(int(index) for index in np.linspace(0, num_frames - 1, budget))
