"""What selectors' choices show of the evidence, scored without any reply: recall@K, coverage and gap with their intervals.

Invariants: a choice is of a question whose moments are known; the result is plain JSON, and a function of the choices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.questions.evidence import coverage, gap, num_unreachable, share_seen
from services.schema import Question
from services.scoring.statistics import RESAMPLES, Bootstrap


@dataclass(frozen=True)
class Choice:
    """The frames that one selector took for one question within one budget."""

    question: Question
    """One with `moments`."""
    num_frames: int
    """T of its video."""
    selector: str
    selector_hash: str
    budget: int
    frames: tuple[int, ...]
    """At least one."""

    @property
    def measures(self) -> dict[str, float]:
        """Each of `MEASURES`."""
        return {name: measure(self) for name, measure in MEASURES.items()}


MEASURES: Mapping[str, Callable[[Choice], float]] = {
    "recall": lambda choice: share_seen(choice.question, choice.frames),
    "coverage": lambda choice: coverage(choice.question, choice.frames, choice.num_frames),
    "gap": lambda choice: gap(choice.question, choice.frames),
}
"""Recall@K and coverage (shares, 0…1) and the gap (seconds) of a choice; `services/questions/evidence.py` defines them."""


def score_evidence(choices: Sequence[Choice]) -> dict[str, Any]:
    """The means over the questions of each selector and budget, in the choices' order, each with its 95 % interval by bootstrap
    over videos.

    `unreachable` counts the moments, of `moments`, that no candidate frame shows: no selector can reach a recall of 1 there.
    """
    cells: dict[tuple[str, int], list[Choice]] = {}
    for choice in choices:
        cells.setdefault((choice.selector, choice.budget), []).append(choice)
    asked = {choice.question.id: choice for choice in choices}.values()
    return {
        "questions": len(asked),
        "videos": len({choice.question.video for choice in asked}),
        "moments": sum(len(choice.question.moments) for choice in asked),
        "unreachable": sum(num_unreachable(choice.question, choice.num_frames) for choice in asked),
        "resamples": RESAMPLES,
        "results": [_result(cell) for cell in cells.values()],
    }


def _result(choices: Sequence[Choice]) -> dict[str, Any]:
    bootstrap = Bootstrap([choice.question.video for choice in choices])
    found = [choice.measures for choice in choices]
    result: dict[str, Any] = {
        "selector": choices[0].selector,
        "selector_hash": choices[0].selector_hash,
        "budget": choices[0].budget,
        "questions": len(choices),
        "frames": float(np.mean([len(choice.frames) for choice in choices])),
    }
    for name in MEASURES:
        values = np.array([measures[name] for measures in found])
        interval = bootstrap.interval(values)
        result[name] = {"mean": float(values.mean()), "interval": list(interval) if interval else None}
    return result
