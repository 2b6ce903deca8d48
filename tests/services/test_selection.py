"""Rules of selection: the published implementations' frames exactly, and by hand what these leave open."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from services.errors import TrainingError
from services.selection import RULES, choose
from services.selection.aks import aks_frames
from services.selection.bin_max import bin_max_frames
from services.selection.bolt import bolt_frames
from services.selection.topk import topk_frames
from services.selection.uniform import spread, uniform_frames

GOLDEN = Path(os.environ.get("MSJOE_GOLDEN", Path(__file__).parents[1] / "golden")) / "selectors.json"
FORMULAS = {
    "uniform": lambda case: spread(case["num_frames"], case["budget"]),
    "gumbel_free_topk": lambda case: topk_frames(np.array(case["scores"]), case["budget"]),
    "tspo_binmax": lambda case: bin_max_frames(np.array(case["scores"]), case["budget"]),
    "bolt": lambda case: bolt_frames(np.array(case["scores"]), case["budget"], case["power"]),
    "aks": lambda case: aks_frames(np.array(case["scores"]), case["budget"], case["t1"], case["max_depth"]),
}
CASES = [(name, case) for name in FORMULAS for case in json.loads(GOLDEN.read_text())[name]]

SIMILARITY = np.random.default_rng(0).normal(0.2, 0.05, (3, 50)).astype(np.float32)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_golden_frames(name: str, case: dict) -> None:
    assert FORMULAS[name](case) == tuple(case["frames"])


def test_uniform_and_topk() -> None:
    assert uniform_frames(100, 4) == (0, 33, 66, 99)
    assert uniform_frames(3, 4) == (0, 1, 2)
    assert uniform_frames(10, 1) == (0,)
    assert topk_frames(np.array([0.1, 0.9, 0.3, 0.9]), 2) == (1, 3)
    assert topk_frames(np.array([0.5, 0.5, 0.5]), 2) == (0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_frames_in_time_order_as_many_as_asked_for(rule: str) -> None:
    for budget in (1, 2, 7, 31, 49):
        frames = choose(rule, SIMILARITY, budget, 3)
        assert len(frames) == budget or (rule.startswith("aks") and budget / 2 < len(frames) < budget)
        assert list(frames) == sorted(frames) and frames[0] >= 0 and frames[-1] < 50
        assert rule.startswith("bolt") or len(set(frames)) == len(frames)
        assert all(type(frame) is int for frame in frames)


@pytest.mark.parametrize("rule", RULES)
def test_all_frames_when_there_are_no_more_than_k(rule: str) -> None:
    for num_frames in (1, 7, 8):
        assert choose(rule, SIMILARITY[:, :num_frames], 8) == tuple(range(num_frames))


@pytest.mark.parametrize("rule", RULES)
def test_a_cosine_that_is_no_number_is_named(rule: str) -> None:
    broken = SIMILARITY.copy()
    for value in (np.nan, np.inf):
        broken[1, 17] = value
        with pytest.raises(TrainingError, match=f"similarity of query 2 with frame 17 is {value}"):
            choose(rule, broken, 8)


@pytest.mark.parametrize(
    ("rule", "frames"),
    [
        ("uniform", uniform_frames(50, 4)),
        ("topk", (0, 1, 2, 3)),
        ("bin-max", (0, 9, 25, 42)),
        ("bolt", uniform_frames(50, 4)),
        ("aks", (0, 12, 25, 37)),
        ("tcs", uniform_frames(50, 4)),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.1, 0.21, -0.3])
def test_constant_similarity(rule: str, frames: tuple[int, ...], value: float) -> None:
    assert choose(rule, np.full((2, 50), value, np.float32), 4) == frames


def test_one_frame() -> None:
    similarity = np.array([[0.1, 0.1, 0.1, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]], np.float32)
    found = {rule: choose(rule, similarity, 1, 0) for rule in ("uniform", "topk", "bin-max", "bolt", "aks", "tcs")}
    assert found == {"uniform": (0,), "topk": (4,), "bin-max": (4,), "bolt": (4,), "aks": (4,), "tcs": (3,)}
    steep = np.random.default_rng(1).random((1, 3000)).astype(np.float32) ** 8
    assert choose("bolt", steep, 1)[0] < 3000, "rounding never leads beyond the last frame"


def test_several_queries_count_by_their_mean() -> None:
    similarity = np.array([[0.9, 0.1, 0.5, 0.1], [0.1, 0.1, 0.6, 0.1]], np.float32)
    assert choose("topk", similarity, 1) == (2,)


def test_aks_by_hand() -> None:
    scores = np.array([0, 0, 0, 0, 0, 0, 0, 1.0])
    assert aks_frames(scores, 4, 0.1, 2) == (0, 1, 2, 7), (
        "the 4 best have a mean of 0.25, all a mean of 0.125: not halved"
    )
    assert aks_frames(scores, 4, 0.8, 1) == (0, 1, 4, 7), "halved once, 2 frames of each half"
    assert choose("aks", scores[None], 4) == (0, 2, 4, 7), "halved as often as leaves each part a frame"


def test_bolt_by_hand() -> None:
    scores = np.array([0.0, 1.0, 0.0, 1.0, 0.5, 0.0])
    assert bolt_frames(scores, 2, 1.0) == (3, 3), "shares 0.4, 0.4, 0.2: both quantiles are 0.5"
    assert bolt_frames(scores, 5, 1.0) == (1, 1, 3, 3, 3), "quantiles 0.2, 0.35, 0.5, 0.65, 0.8"


def test_tcs_by_hand() -> None:
    similarity = np.zeros((2, 40))
    similarity[0, 10:14] = 2.0
    assert choose("tcs", similarity, 8) == (0, 9, 10, 11, 12, 13, 14, 39), "smoothed, 9 and 14 are in the clip, too"
    assert choose("tcs", similarity, 4) == (0, 9, 11, 14), "3 inside, 1 outside"
    assert len(set(choose("tcs", similarity, 16)) - set(range(9, 15))) == 10, (
        "the clip has 6; the rest comes from outside"
    )


def test_qframe_draws_by_the_softmax() -> None:
    similarity = np.array([[0.20, 0.21, 0.19]], np.float32)
    drawn = Counter(choose("qframe", similarity, 1, seed)[0] for seed in range(4000))
    expected = np.exp(125 * similarity[0].astype(float))
    np.testing.assert_allclose([drawn[i] / 4000 for i in range(3)], expected / expected.sum(), atol=0.03)


def test_qframe_has_128_candidates_and_repeats_itself() -> None:
    similarity = np.random.default_rng(2).normal(0.2, 0.01, (1, 1000)).astype(np.float32)
    one, again, other = (choose("qframe", similarity, 16, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert set(one) <= set(uniform_frames(1000, 128))
    assert choose("qframe", similarity, 16) == choose("qframe", similarity.copy(), 16)
    assert choose("qframe", similarity, 16) != choose("qframe", similarity[:, ::-1], 16)
