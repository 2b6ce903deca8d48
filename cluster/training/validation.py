"""How well the networks answer held-out questions before, during and after training, and the run's summary of it.

Invariants: nothing is sampled, so only the weights decide what is answered; nothing learns from it; every accuracy is over the
same questions: one that cannot be asked, although the start found nothing wrong with it, is named and counts as wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actors.collector import Collector
from actors.turns import Answer
from actors.viewing import Viewing
from cluster.config import Config
from cluster.questions.left_out import Losses
from services.errors import QuestionError
from services.questions.evidence import share_asked, share_seen
from services.schema import Group, LeftOut, Question, label
from services.trajectories import VALIDATION, write_trajectories
from services.writing import writing

SUMMARY = "summary.json"


class Validation:
    """The held-out questions of a run, answered through `viewing` and, for the baseline, by its `turns` alone."""

    def __init__(
        self,
        config: Config,
        viewing: Viewing,
        questions: Sequence[Question],
        run_dir: Path,
        losses: Losses,
        accuracies: Mapping[str, float],
    ) -> None:
        """`accuracies`: what was measured before, of a run that goes on."""
        self._config, self._viewing, self._questions = config, viewing, questions
        self._run_dir, self._losses = run_dir, losses
        self._collector = Collector(viewing, config.frames.budget, config.rewards, seed=None)
        self.accuracies = dict(accuracies)
        """So far: `before` and `after` training, with `uniform` frames, at another budget (`after/<K>`)."""

    async def measure_baseline(self) -> None:
        """Accuracy of the MLLM alone, for the summary: K frames evenly spread, no queries, no selector."""
        self.accuracies["uniform"] = await self._accuracy_of(self._viewing.turns.answer_uniformly, 0)

    async def measure(self, step: int) -> dict[str, float]:
        """`validation/…` of the networks as they are after `step`, 0 before training; their trajectories are written to the
        run's folder."""
        groups, left_out = await self._collector.collect(self._questions, 1, 1, step)
        self._losses.add(left_out, step)
        write_trajectories(self._run_dir, step, groups, file=VALIDATION)
        metrics = describe(groups, len(self._questions))
        self.accuracies["after"] = metrics["validation/accuracy"]
        if step == 0:
            self.accuracies["before"] = self.accuracies["after"]
        return metrics

    async def measure_budgets(self) -> None:
        """Accuracy at each of `train.validate_budgets`, for the summary."""
        for budget in self._config.train.validate_budgets:

            async def answer(question: Question, budget: int = budget) -> Answer:
                return (await self._viewing.view(question, budget)).answer

            self.accuracies[f"after/{budget}"] = await self._accuracy_of(answer, self._config.train.steps)

    async def _accuracy_of(self, answer: Callable[[Question], Awaitable[Answer]], step: int) -> float:
        """Share of the questions that `answer` answers right."""

        async def is_right(question: Question) -> bool:
            try:
                return (await answer(question)).letter == label(question)
            except QuestionError as error:
                self._losses.add([LeftOut(question, str(error))], step)
                return False

        return float(np.mean(await asyncio.gather(*map(is_right, self._questions))))

    def summarise(self, steps: int, seconds: float) -> dict[str, float]:
        """Write `summary.json`: accuracies before and after training, with uniform frames, and (`accuracy/after/<K>`) at
        other budgets; steps, minutes.
        """
        accuracy = {f"accuracy/{when}": value for when, value in sorted(self.accuracies.items())}
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
        "validation/accuracy": sum(its.letter == label(question) for its, question in asked) / num_questions,
        "validation/not_asked": float(num_questions - len(groups)),
    }
    if right := [share_asked(question, its.queries) for its, question in asked if question.wanted_queries]:
        metrics["validation/queries_right"] = float(np.mean(right))
    if seen := [share_seen(question, its.selection.frames) for its, question in asked if question.moments]:
        metrics["validation/moments_seen"] = float(np.mean(seen))
    return metrics
