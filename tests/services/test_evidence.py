"""How much of the evidence a choice of frames met, counted by hand."""

from __future__ import annotations

import math

import pytest

from services.questions.evidence import coverage, gap, num_unreachable, share_seen, with_moments
from services.schema import Question

MOMENTS = (((1.2, 2.5),), ((7.0, 7.0), (9.1, 9.2), (12.0, 20.0)))
QUESTION = Question("a", "/v.mp4", "?", ("x", "y"), "A", moments=MOMENTS)


@pytest.mark.parametrize(
    ("frames", "share"), [([], 0.0), ([0, 5], 0.0), ([1], 0.5), ([3], 0.5), ([9], 0.5), ([2, 9], 1.0), ([7, 12], 0.5)]
)
def test_a_frame_shows_the_second_around_it(frames: list[int], share: float) -> None:
    assert share_seen(QUESTION, frames) == share


@pytest.mark.parametrize(
    ("frames", "seconds"),
    [
        ([1, 7], 0.0),
        ([0], (0.7 + 6.5) / 2),  # frame 0 stands for seconds until 0.5; the moments begin at 1.2 and at 7.0
        ([5], (2.0 + 1.5) / 2),  # for 4.5 to 5.5; the first moment ends at 2.5, the second begins at 7.0
        ([2, 30], (0.0 + 4.5) / 2),  # 7.0 is 4.5 seconds after 2.5, 20.0 is 9.5 before 29.5
        ([3, 3, 11], (0.0 + 0.5) / 2),  # 12.0 is half a second after 11.5
        ([], math.inf),
    ],
)
def test_gap(frames: list[int], seconds: float) -> None:
    assert gap(QUESTION, frames) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("frames", "share"),
    [
        ([], 0.0),
        ([0, 4, 21], 0.0),
        ([1], 1 / 14),  # shown by 1, 2, 3 · 7 · 9 · 12 to 20: 14 frames
        ([1, 1, 7, 15, 40], 3 / 14),
        (list(range(30)), 1.0),
    ],
)
def test_coverage(frames: list[int], share: float) -> None:
    assert coverage(QUESTION, frames, 30) == pytest.approx(share)


def test_moments_beyond_the_video() -> None:
    assert [num_unreachable(QUESTION, frames) for frames in (30, 8, 7, 1)] == [0, 0, 1, 2]
    assert coverage(QUESTION, [0], 1) == 0.0


def test_frame_numbers_become_moments_by_the_frame_rate() -> None:
    question = Question("a", "/v.mp4", "?", ("x", "y"), "A", moment_frames=(50, 75))
    assert with_moments(question, 25.0).moments == (((2.0, 2.0),), ((3.0, 3.0),))
    assert with_moments(QUESTION, 25.0) == QUESTION
    assert share_seen(with_moments(question, 12.5), [4]) == 0.5
