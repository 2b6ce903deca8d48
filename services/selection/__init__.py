"""Rules that choose key frames without learning: from a similarity matrix to K frames.

A rule is a function in a file of this folder and a row in `RULES`; its name is then a value of `selector.kind`. docs/method.md
has a table of them with formulas and sources.

Invariant: `choose` answers for every rule alike what no rule needs to ask itself: are the cosines numbers, is there a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from zlib import crc32

import numpy as np

from services.errors import TrainingError
from services.selection.aks import MAX_DEPTH_LONGVIDEOBENCH, THRESHOLD_LONGVIDEOBENCH, aks
from services.selection.bin_max import bin_max
from services.selection.bolt import POWER_LONGVIDEOBENCH, bolt
from services.selection.qframe import qframe
from services.selection.tcs import tcs
from services.selection.topk import topk
from services.selection.uniform import uniform

Rule = Callable[[np.ndarray, int, int], tuple[int, ...]]
"""`rule(similarity, budget, seed)`: finite cosines [Q, T], K < T, and what decides a draw, to at most K frame indices in time
order."""

RULES: dict[str, Rule] = {
    "uniform": uniform,
    "topk": topk,
    "bin-max": bin_max,
    "bolt": bolt,
    "bolt-longvideobench": partial(bolt, power=POWER_LONGVIDEOBENCH),
    "aks": aks,
    "aks-longvideobench": partial(aks, threshold=THRESHOLD_LONGVIDEOBENCH, max_depth=MAX_DEPTH_LONGVIDEOBENCH),
    "qframe": qframe,
    "tcs": tcs,
}


def choose(rule: str, similarity: np.ndarray, budget: int, seed: int | None = None) -> tuple[int, ...]:
    """The frames that the rule of that name takes by `similarity` [Q, T]: all of them when T <= K.

    Without a seed, as at test time, the matrix itself decides what a rule draws: equal cosines give equal frames.
    Raises TrainingError for a cosine that is not a number.
    """
    check_finite(similarity)
    if similarity.shape[1] <= budget:
        return tuple(range(similarity.shape[1]))
    return RULES[rule](similarity, budget, crc32(np.ascontiguousarray(similarity).data) if seed is None else seed)


def check_finite(similarity: np.ndarray) -> None:
    """Raises TrainingError for the first entry of `similarity` [Q, T] that is not finite."""
    if not np.isfinite(similarity).all():
        query, frame = np.argwhere(~np.isfinite(similarity))[0]
        raise TrainingError(
            f"the similarity of query {query + 1} with frame {frame} is {similarity[query, frame]}: CLIP's features hold it; "
            "`msjoe prepare --verify` finds damaged ones, embedder.dtype=float32 avoids overflow"
        )
