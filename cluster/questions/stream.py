"""The questions of a run: which ones it learns from and is measured on, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

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


@dataclass(frozen=True)
class Ledger:
    """How far a run has come in its stream of questions, so that it can go on without losing one or taking one twice."""

    frontier: int = 0
    """Every place of the stream before this one is settled."""
    settled: tuple[int, ...] = ()
    """Places from the frontier on that are settled as well, ascending."""
    left_out: tuple[str, ...] = ()
    """Ids of the questions that cannot be asked, sorted; all their places count as settled."""


class QuestionStream:
    """All questions, epoch after epoch, each epoch in a new order that the seed decides.

    A question has a place in the stream for each epoch: epoch x number of questions + its place in the order of that epoch.
    A place that was taken is in flight until it is settled; the ledger holds what is settled, so that a run that goes on
    from it takes again what was in flight.
    """

    def __init__(self, questions: Sequence[Question], seed: int, ledger: Ledger | None = None) -> None:
        ledger = ledger or Ledger()
        self._questions, self._seed = questions, seed
        self._frontier, self._settled, self._left_out = ledger.frontier, {*ledger.settled}, {*ledger.left_out}
        self._in_flight: dict[int, str] = {}
        self._order = lru_cache(maxsize=2)(self._order_of)

    def take(self, count: int, taken: Sequence[Question] = ()) -> list[Question]:
        """The next `count` questions that are none of `taken`, all different; fewer where there are no more.

        What is passed over stays at the front for the next call.
        """
        used = {question.id for question in taken} | self._left_out
        count = min(count, len(self._questions) - len(used))
        found: list[Question] = []
        place = self._frontier
        while len(found) < count:
            question = self._at(place)
            if not (question.id in used or place in self._settled or place in self._in_flight):
                self._in_flight[place] = question.id
                found.append(question)
                used.add(question.id)
            place += 1
        return found

    def settle(self, questions: Iterable[Question]) -> None:
        """These are done with, learnt from or not; each was taken."""
        for question in questions:
            place = min(place for place, name in self._in_flight.items() if name == question.id)
            del self._in_flight[place]
            self._settled.add(place)

    def leave_out(self, questions: Iterable[Question]) -> None:
        """Never take these any more."""
        self._left_out |= {question.id for question in questions}
        self._in_flight = {place: name for place, name in self._in_flight.items() if name not in self._left_out}

    def ledger(self) -> Ledger:
        """What is settled now."""
        if len(self._left_out) < len(self._questions):
            while self._frontier in self._settled or self._at(self._frontier).id in self._left_out:
                self._settled.discard(self._frontier)
                self._frontier += 1
        return Ledger(self._frontier, tuple(sorted(self._settled)), tuple(sorted(self._left_out)))

    def _at(self, place: int) -> Question:
        epoch, index = divmod(place, len(self._questions))
        return self._questions[self._order(epoch)[index]]

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._questions))
