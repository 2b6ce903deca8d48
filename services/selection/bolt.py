"""BOLT (arXiv 2503.21483): inverse transform sampling of the scores, at evenly spaced quantiles.

Invariant: K frames, of which some are the same where the scores are concentrated, as in the published implementation.
"""

from __future__ import annotations

import numpy as np

from services.selection.uniform import uniform_frames

POWER = 3.0
"""Exponent of the scores in the published implementation."""
POWER_LONGVIDEOBENCH = 2.5
"""The exponent that it uses on LongVideoBench."""


def bolt(similarity: np.ndarray, budget: int, seed: int, power: float = POWER) -> tuple[int, ...]:
    """`bolt_frames` of the mean of the query rows of `similarity` [Q, T]."""
    return bolt_frames(similarity.mean(0), budget, power)


def bolt_frames(scores: np.ndarray, budget: int, power: float) -> tuple[int, ...]:
    """The frames at which the cumulated share of `scores` [T], scaled to 0…1 and raised to `power`, first reaches each of
    `linspace(1/K, 1 - 1/K, K)`. Scores that are all equal give uniform frames (ours: the formula divides by zero)."""
    scores = scores.astype(np.float64) - scores.min()
    if not scores.any():
        return uniform_frames(len(scores), budget)
    weights = (scores / scores.max()) ** power
    cumulated = np.cumsum(weights / weights.sum())
    reached = np.searchsorted(cumulated, np.linspace(1 / budget, 1 - 1 / budget, budget))
    last = int(np.flatnonzero(weights)[-1])  # with K = 1 the quantile is 1, which rounding may keep the sum below
    return tuple(np.minimum(reached, last).tolist())
