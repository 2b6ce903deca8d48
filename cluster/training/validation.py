"""How well the networks answer held-out questions before, during and after training, and the run's summary of it.

Invariants: nothing is sampled, so only the weights decide what is answered; nothing learns from it; every accuracy is over the
same questions: one that cannot be asked, although the start found nothing wrong with it, is named and counts as wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from actors.prompts import parse_answer
from cluster.config import Config
from cluster.questions.left_out import Losses
from cluster.training.fleet import Fleet, collector
from services.errors import QuestionError
from services.questions.evidence import share_asked, share_seen
from services.schema import Group, LeftOut, Question, Video
from services.selection.uniform import uniform_frames
from services.trajectories import VALIDATION, write_trajectories
from services.writing import writing

SUMMARY = "summary.json"


class Validation:
    """The held-out questions of a run. `videos`: by the path that questions name them with."""

    def __init__(
        self,
        config: Config,
        videos: Mapping[str, Video],
        questions: Sequence[Question],
        run_dir: Path,
        losses: Losses,
    ) -> None:
        self._config, self._videos, self._questions, self._run_dir = config, videos, questions, run_dir
        self._losses = losses
        self._accuracy: dict[str, float] = {}

    async def measure(self, actors: Fleet, step: int) -> dict[str, float]:
        """`validation/…` of the networks as they are after `step`; their trajectories are written to the run's folder."""
        groups = await self._ask(actors, self._config, step)
        write_trajectories(self._run_dir, step, groups, file=VALIDATION)
        metrics = describe(groups, len(self._questions))
        if "before" not in self._accuracy:
            self._accuracy["uniform"] = await self._with_uniform_frames(actors)
            self._accuracy["before"] = metrics["validation/accuracy"]
        self._accuracy["after"] = metrics["validation/accuracy"]
        return metrics

    async def measure_budgets(self, actors: Fleet, step: int) -> None:
        """Accuracy at each of `train.validate_budgets`, for the summary."""
        frames = self._config.frames
        for budget in self._config.train.validate_budgets:
            config = self._config.model_copy(update={"frames": frames.model_copy(update={"budget": budget})})
            groups = await self._ask(actors, config, step)
            self._accuracy[f"after/{budget}"] = describe(groups, len(self._questions))["validation/accuracy"]

    async def _ask(self, actors: Fleet, config: Config, step: int) -> list[Group]:
        """A trajectory of each question; a question that cannot be asked is named and has none."""
        collect = collector(actors, config, self._videos, seed=None).collect
        groups, left_out = await collect(self._questions, 1, 1, step)
        self._losses.add(left_out)
        return groups

    async def _with_uniform_frames(self, actors: Fleet) -> float:
        """Accuracy of the MLLM alone: K frames evenly spread, no queries, no sampler."""
        turns, budget = actors.turns(self._config, self._videos), self._config.frames.budget

        async def is_right(question: Question) -> bool:
            frames = uniform_frames(self._videos[question.video].num_frames, budget)
            try:
                turn = await turns.answer(question, frames, None)
            except QuestionError as error:
                self._losses.add([LeftOut(question, str(error))])
                return False
            return parse_answer(turn.text, len(question.options))[0] == question.answer

        return float(np.mean(await asyncio.gather(*map(is_right, self._questions))))

    def summarise(self, steps: int, seconds: float) -> dict[str, float]:
        """Write `summary.json`: accuracies before and after training, with uniform frames, and (`accuracy/after/<K>`) at
        other budgets; steps, minutes.
        """
        accuracy = {f"accuracy/{when}": value for when, value in sorted(self._accuracy.items())}
        summary = accuracy | {"questions": len(self._questions), "steps": steps, "minutes": round(seconds / 60, 2)}
        with writing(self._run_dir / SUMMARY):
            (self._run_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        return summary


def describe(groups: Sequence[Group], num_questions: int) -> dict[str, float]:
    """Accuracy over all `num_questions`, so that one without a group counts as wrong, and how many those are.

    Of the questions whose evidence is known also the share of wanted queries asked, and of moments that a frame shows.
    """
    asked = [(trajectory, group.question) for group in groups for trajectory in group.trajectories]
    metrics = {
        "validation/accuracy": sum(its.letter == question.answer for its, question in asked) / num_questions,
        "validation/not_asked": float(num_questions - len(groups)),
    }
    if right := [share_asked(question, its.queries) for its, question in asked if question.wanted_queries]:
        metrics["validation/queries_right"] = float(np.mean(right))
    if seen := [share_seen(question, its.selection.frames) for its, question in asked if question.moments]:
        metrics["validation/moments_seen"] = float(np.mean(seen))
    return metrics
