"""The frames most similar to the queries."""

from __future__ import annotations

import numpy as np


def topk(similarity: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
    """`topk_frames` of the mean of the query rows of `similarity` [Q, T]."""
    return topk_frames(similarity.mean(0), budget)


def topk_frames(scores: np.ndarray, budget: int) -> tuple[int, ...]:
    """The K largest of `scores` [T], in time order; the earlier frame wins a tie."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:budget].tolist()))
