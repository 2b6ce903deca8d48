"""Evenly spread frames, whatever they show."""

from __future__ import annotations

import numpy as np


def uniform(similarity: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
    """`uniform_frames` of the T frames of `similarity` [Q, T]."""
    return uniform_frames(similarity.shape[1], budget)


def uniform_frames(num_frames: int, budget: int) -> tuple[int, ...]:
    """`spread` over the video; all frames once when T <= K. The previews of the query turn are chosen so too."""
    return tuple(range(num_frames)) if num_frames <= budget else spread(num_frames, budget)


def spread(num_frames: int, count: int) -> tuple[int, ...]:
    """`linspace(0, num_frames - 1, count)` truncated to int: above `num_frames` of them, some stand there twice."""
    return tuple(np.linspace(0, num_frames - 1, count).astype(int).tolist())
