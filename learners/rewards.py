"""What a trajectory earns in the joint stage: accuracy + format + info. Pure functions on arrays."""

from __future__ import annotations

import math

import numpy as np

from learners.config import RewardConfig
from services.schema import Reward


def informative(similarity: np.ndarray, config: RewardConfig) -> np.ndarray:
    """Which queries tell frames apart: bool [Q], from cosines [Q, T].

    A row counts when `max_t s > info_ratio * min_t s` for `s = softmax_t(logit_scale * cosine)`, computed as
    `logit_scale * (max_t - min_t) > log(info_ratio)`: an `s` that would underflow to 0 counts, a single frame never.
    """
    spread_Q = np.ptp(similarity.astype(np.float64), axis=1)
    return config.logit_scale * spread_Q > math.log(config.info_ratio)


def score(letter: str | None, answer: str, formatted: bool, similarity: np.ndarray, config: RewardConfig) -> Reward:
    """Reward of answering `letter` (None: unparsable) where `answer` is right; `similarity` is cosines [Q, T], Q >= 1.

    `formatted` says that both turns kept the format. The info part is weighted by the share of informative rows.
    """
    return Reward(
        accuracy=config.accuracy if letter == answer else 0.0,
        format=config.format if formatted else 0.0,
        info=config.info * float(informative(similarity, config).mean()),
    )
