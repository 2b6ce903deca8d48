"""How sure an accuracy is: intervals by bootstrap over videos, and the exact McNemar test of two selectors.

Questions about one video share what is hard about it, so whole videos are drawn, never single questions. Everything is a pure
function of the outcomes: the same file gives the same intervals. `B` resamples, `V` videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
Interval = tuple[float, float]


@lru_cache(maxsize=4)
def _draws(num_videos: int) -> np.ndarray:
    """How often each video is drawn in each resample: [B, V] counts, each row of sum V."""
    even = np.full(num_videos, 1 / num_videos)
    return np.random.default_rng(num_videos).multinomial(num_videos, even, RESAMPLES)


class Bootstrap:
    """Resamples of the videos of a set of questions; all statistics of the set share them, so that differences are paired."""

    def __init__(self, videos: Sequence[str]) -> None:
        """`videos`: of each question, in the order in which outcomes are given."""
        places = {video: place for place, video in enumerate(dict.fromkeys(videos))}
        self._places = np.array([places[video] for video in videos])
        self.num_videos = len(places)

    def interval(self, outcomes: np.ndarray, chosen: np.ndarray | None = None) -> Interval | None:
        """The 95 % interval of the mean of `outcomes`, a number per question; None with fewer than two videos.

        `chosen`: bool per question, to average over these alone.
        """
        return _percentiles(self._means(outcomes, chosen)) if self.num_videos > 1 else None

    def macro_interval(self, outcomes: np.ndarray, members: Mapping[str, np.ndarray]) -> Interval | None:
        """The 95 % interval of the mean over labels of the mean over the members (bool per question) of each."""
        if self.num_videos < 2 or not members:
            return None
        means = np.stack([self._means(outcomes, chosen) for chosen in members.values()])
        with np.errstate(invalid="ignore"):
            return _percentiles(np.nanmean(means, axis=0))

    def _means(self, outcomes: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
        """The mean of each resample, [B]; NaN where it drew none of the chosen."""
        weight = np.ones(len(outcomes)) if chosen is None else chosen.astype(float)
        totals, counts = (
            np.bincount(self._places, weights=values, minlength=self.num_videos)
            for values in (outcomes * weight, weight)
        )
        draws = _draws(self.num_videos)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (draws @ totals) / (draws @ counts)


def _percentiles(means: np.ndarray) -> Interval | None:
    known = means[np.isfinite(means)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Two selectors on the same questions."""

    only_first: int
    """Questions that the first alone answers right."""
    only_second: int
    difference: float
    """Accuracy of the first minus that of the second."""
    interval: Interval | None
    p: float
    """How likely so uneven a split of the questions that one alone answers right would be, if both were equally good: the exact
    two-sided McNemar test, which takes questions as independent."""


def compare(first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap) -> Comparison:
    """`first` and `second`: 0 or 1 per question, in one order."""
    difference = first - second
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    p = min(1.0, 2 * sum(math.comb(discordant, count) for count in range(fewer + 1)) / 2**discordant)
    return Comparison(only_first, only_second, float(difference.mean()), bootstrap.interval(difference), p)
