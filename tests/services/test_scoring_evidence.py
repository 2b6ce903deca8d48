"""What choices show of the evidence: three questions of the toy world, counted by hand."""

from __future__ import annotations

import pytest

from services.schema import Question
from services.scoring.evidence import Choice, score_evidence

PLANK, RING, CUP = ((6.0, 8.0),), ((24.0, 25.0),), ((75.0, 77.0),)
QUESTIONS = [
    Question("plank", "one.mp4", "?", ("x", "y"), "A", moments=(PLANK,)),
    Question("ring", "one.mp4", "?", ("x", "y"), "A", moments=(RING,)),
    Question(
        "cup", "two.mp4", "?", ("x", "y"), "A", moments=(CUP, ((126.0, 127.0),))
    ),  # the second is beyond the video
]
CHOICES = {
    "bolt": [(6, 25, 59, 63, 67, 69, 71, 87), (5, 8, 40, 61, 67, 71, 86, 91), (14, 26, 40, 56, 73, 91, 102, 114)],
    "aks": [(0, 24, 40, 62, 69, 90, 100, 115), (8, 23, 40, 62, 69, 90, 100, 115), (4, 16, 40, 53, 76, 92, 99, 122)],
}


def test_three_questions_counted_by_hand() -> None:
    num_frames = {"one.mp4": 128, "two.mp4": 126}
    evidence = score_evidence(
        [
            Choice(question, num_frames[question.video], selector, "hash", 8, frames)
            for selector, chosen in CHOICES.items()
            for question, frames in zip(QUESTIONS, chosen, strict=True)
        ]
    )
    counts = [evidence[name] for name in ("questions", "videos", "moments", "unreachable")]
    assert counts == [3, 2, 4, 1]
    bolt, aks = evidence["results"]
    assert (bolt["selector"], bolt["budget"], bolt["frames"]) == ("bolt", 8, 8.0)
    # Seconds 6 to 8 are shown by frames 6, 7 and 8; 24 and 25 by two frames; 75 to 77 by three.
    assert bolt["recall"]["mean"] == pytest.approx((1 + 0 + 0) / 3)
    assert bolt["coverage"]["mean"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert bolt["gap"]["mean"] == pytest.approx((0 + (39.5 - 25) + ((75 - 73.5) + (126 - 114.5)) / 2) / 3)
    assert aks["recall"]["mean"] == pytest.approx((0 + 0 + 1 / 2) / 3)
    assert aks["coverage"]["mean"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert aks["gap"]["mean"] == pytest.approx(((6 - 0.5) + (24 - 23.5) + (0 + (126 - 122.5)) / 2) / 3)
    assert aks["recall"]["interval"] == [0.0, 0.5]  # whole videos are drawn: one has a recall of 0, the other of 1/2
