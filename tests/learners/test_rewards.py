"""The three parts of a reward."""

from __future__ import annotations

import numpy as np
import pytest

from learners.config import RewardConfig
from learners.rewards import informative, score

FLAT, PEAKED, EXTREME = np.full(20, 0.2), np.full(20, 0.2), np.full(20, -1.0)
PEAKED[7] += 0.024
EXTREME[3] = 1.0
EDGE = np.log(10) / 100


def test_informative_rows() -> None:
    rows = np.stack([FLAT, PEAKED, EXTREME]).astype(np.float32)
    assert informative(rows, RewardConfig()).tolist() == [False, True, True]


@pytest.mark.parametrize(("spread", "expected"), [(EDGE - 1e-6, False), (EDGE + 1e-6, True)])
def test_threshold_is_the_ratio_of_the_softmax(spread: float, expected: bool) -> None:
    row = np.array([[0.0, spread, spread / 2]])
    s = np.exp(100 * row) / np.exp(100 * row).sum()
    assert (s.max() > 10 * s.min()) == expected
    assert informative(row, RewardConfig())[0] == expected


def test_underflow_counts_and_one_frame_does_not() -> None:
    config = RewardConfig(logit_scale=1e4)
    assert np.exp(1e4 * (EXTREME.min() - EXTREME.max())) == 0
    assert informative(EXTREME[None], config).tolist() == [True]
    assert informative(np.array([[0.3], [-0.9]]), config).tolist() == [False, False]


def test_ratio_and_scale_come_from_the_config() -> None:
    assert not informative(PEAKED[None], RewardConfig(info_ratio=12.0))[0]
    assert not informative(PEAKED[None], RewardConfig(logit_scale=50.0))[0]


@pytest.mark.parametrize(
    ("letter", "formatted", "rows", "expected"),
    [
        ("B", True, [PEAKED, PEAKED], (0.8, 0.1, 0.1)),
        ("B", False, [FLAT, PEAKED], (0.8, 0.0, 0.05)),
        ("A", True, [PEAKED, FLAT, FLAT, FLAT], (0.0, 0.1, 0.025)),
        (None, False, [FLAT], (0.0, 0.0, 0.0)),
    ],
)
def test_score(letter: str | None, formatted: bool, rows: list[np.ndarray], expected: tuple[float, ...]) -> None:
    reward = score(letter, "B", formatted, np.stack(rows), RewardConfig())
    assert (reward.accuracy, reward.format, reward.info) == pytest.approx(expected)
    assert reward.total == pytest.approx(sum(expected))


def test_score_uses_the_configured_weights() -> None:
    reward = score("C", "C", True, PEAKED[None], RewardConfig(accuracy=1.0, format=0.2, info=0.3))
    assert (reward.accuracy, reward.format, reward.info) == (1.0, 0.2, 0.3)
