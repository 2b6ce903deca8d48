"""The collector: views of a question and their rewards, in groups; many questions at once.

Invariants: a trajectory's randomness comes from (seed, step, question, index) alone; without a seed there is none; a question
that cannot be asked costs no other.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from actors.viewing import Viewing, stream, together
from learners.config import RewardConfig
from learners.rewards import Attempt, score
from services.errors import QuestionError
from services.schema import Group, LeftOut, Question, Trajectory


class Collector:
    """Rewards what `viewing` sees. `budget`: K. `seed`: None takes the most probable tokens and frames, as at test time."""

    def __init__(self, viewing: Viewing, budget: int, rewards: RewardConfig, seed: int | None) -> None:
        self._viewing, self._budget, self._rewards, self._seed = viewing, budget, rewards, seed

    async def collect(
        self, questions: Sequence[Question], group_size: int, draws: int, step: int
    ) -> tuple[list[Group], list[LeftOut]]:
        """Groups of the questions, all in flight together: `group_size` query turns, `draws` draws and answers of each. Second,
        the questions that could not be asked, which have no group."""
        outcomes = await asyncio.gather(*[self.group(question, group_size, draws, step) for question in questions])
        groups = [outcome for outcome in outcomes if isinstance(outcome, Group)]
        return groups, [outcome for outcome in outcomes if isinstance(outcome, LeftOut)]

    async def group(self, question: Question, size: int, draws: int, step: int) -> Group | LeftOut:
        """All trajectories of one question, or why it cannot be asked."""
        try:
            by_query_turn = await together(self.query_turn(question, index, draws, step) for index in range(size))
        except QuestionError as error:
            return LeftOut(question, str(error))
        return Group(question, tuple(itertools.chain(*by_query_turn)))

    async def query_turn(self, question: Question, query_index: int, draws: int, step: int) -> list[Trajectory]:
        """One query turn, and `draws` views that follow from it, each with its reward.

        Raises QuestionError when the question cannot be asked.
        """
        search = await self._viewing.search(question, self._stream(step, question.id, query_index, "query"))

        async def trajectory(index: int) -> Trajectory:
            seeds = [self._stream(step, question.id, index, what) for what in ("select", "answer")]
            view = await self._viewing.choose_and_answer(question, search, self._budget, *seeds)
            queries, answer = view.queries, view.answer
            attempt = Attempt(queries.turn, queries.texts, view.selection, answer.turn, answer.letter, view.formatted)
            return Trajectory(
                question_id=question.id,
                index=index,
                query_index=query_index,
                query_turn=queries.turn,
                queries=queries.texts,
                fallback=queries.fallback,
                selection=view.selection,
                answer_turn=answer.turn,
                letter=answer.letter,
                reward=score(question, attempt, self._rewards),
            )

        return await together(trajectory(query_index * draws + draw) for draw in range(draws))

    def _stream(self, *identity: object) -> int | None:
        return None if self._seed is None else stream(self._seed, *identity)
