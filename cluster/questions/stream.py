"""The questions of a run: which ones it learns from and is measured on, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cluster.config import Config
from services.errors import UserError
from services.questions import read_questions
from services.schema import Question


def load_questions(config: Config) -> list[Question]:
    """The questions this run can learn from: of the pass rates asked for, and in stage 1 not of pass rate 1."""
    data = config.data
    assert data.questions is not None, "resolve() first"
    questions = read_questions(data.questions, data.video_root)
    stage_1 = config.sampler.objective == "difficulty"
    if not stage_1 and (data.min_pass_rate, data.max_pass_rate) == (0, 1):
        return questions
    known = [(question, question.pass_rate) for question in questions if question.pass_rate is not None]
    if missing := [question.id for question in questions if question.pass_rate is None]:
        asked = "sampler.objective=difficulty" if stage_1 else "data.min_pass_rate and data.max_pass_rate"
        raise UserError(
            f"{data.questions}: {asked} needs every question's pass_rate; missing for {len(missing)}, such as "
            f"{', '.join(missing[:3])}. `msjoe prepare --pass-rate` measures them"
        )
    low, high = data.min_pass_rate, data.max_pass_rate
    kept = [question for question, rate in known if low <= rate <= high and not (stage_1 and rate == 1)]
    if not kept:
        rates = [rate for _, rate in known]
        wanted = f"{low:g}…{high:g}" + (", nor below the 1 that leaves stage 1 nothing to learn" if stage_1 else "")
        raise UserError(
            f"{data.questions}: no question has a pass_rate in {wanted}; theirs are {min(rates):g}…{max(rates):g}"
        )
    return kept


def read_held_out(config: Config) -> list[Question]:
    """The questions of `data.validation`; none when there is none."""
    return read_questions(config.data.validation, config.data.video_root) if config.data.validation else []


class QuestionStream:
    """All questions, epoch after epoch, each epoch in a new order that the seed decides."""

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        self._questions, self._seed, self._epoch = questions, seed, 0
        self._ahead: list[Question] = []
        self._left_out: set[str] = set()

    def leave_out(self, questions: Iterable[Question]) -> None:
        """Never take these any more."""
        self._left_out |= {question.id for question in questions}
        self._ahead = [question for question in self._ahead if question.id not in self._left_out]

    def take(self, count: int, taken: Sequence[Question] = ()) -> list[Question]:
        """The next `count` questions that are none of `taken`, all different; fewer where there are no more.

        What is passed over stays at the front for the next call.
        """
        used = {question.id for question in taken}
        found: list[Question] = []
        place = 0
        while len(found) < min(count, len(self._questions) - len(self._left_out) - len(taken)):
            if place == len(self._ahead):
                self._next_epoch()
            if self._ahead[place].id in used:
                place += 1
                continue
            found.append(self._ahead.pop(place))
            used.add(found[-1].id)
        return found

    def _next_epoch(self) -> None:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._questions))
        epoch = [self._questions[index] for index in order]
        self._ahead += [question for question in epoch if question.id not in self._left_out]
        self._epoch += 1
