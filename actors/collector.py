"""The collector: a query turn and what follows of it, as one coroutine that reads like the paper; many at once.

Invariants: a trajectory's randomness comes from (seed, step, question, index) alone, whichever actors serve it; without a seed
there is none; a question that cannot be asked costs no other; only ids, indices, similarities and texts pass through here,
never a pixel.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TypeVar

from actors.config import PromptConfig
from actors.pool import Pool
from actors.prompts import parse_answer, parse_queries
from actors.turns import Turns
from learners.config import RewardConfig
from learners.rewards import Attempt, score
from services.errors import QuestionError
from services.schema import Group, LeftOut, Question, Selection, Trajectory, Video

Result = TypeVar("Result")


def stream(*identity: object) -> int:
    """A 62-bit seed of its own for everything that `identity` names."""
    digest = hashlib.blake2b("/".join(map(str, identity)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


async def together(calls: Iterable[Awaitable[Result]]) -> list[Result]:
    """The results of all calls, in their order.

    A QuestionError is raised when all have ended, so that nothing of a question left out runs on; any other error at once.
    """

    async def ended(call: Awaitable[Result]) -> Result | QuestionError:
        try:
            return await call
        except QuestionError as error:
            return error

    results = []
    for outcome in await asyncio.gather(*map(ended, calls)):
        if isinstance(outcome, QuestionError):
            raise outcome
        results.append(outcome)
    return results


class Collector:
    """Drives the three actor pools; `turns` holds that of the rollouts.

    `budget`: K. `seed`: None takes the most probable tokens and frames, as at test time.
    """

    def __init__(
        self,
        turns: Turns,
        embedders: Pool,
        selectors: Pool,
        budget: int,
        prompts: PromptConfig,
        rewards: RewardConfig,
        videos: Mapping[str, Video],
        seed: int | None,
    ) -> None:
        self._turns, self._embedders, self._selectors = turns, embedders, selectors
        self._budget, self._prompts, self._rewards = budget, prompts, rewards
        self._videos, self._seed = videos, seed

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

    async def query_turn(self, question: Question, index: int, draws: int, step: int) -> list[Trajectory]:
        """One query turn and its similarity; of each of `draws`: key frames, answer, reward.

        Raises QuestionError when the question cannot be asked.
        """
        query_turn = await self._turns.query(question, self._stream(step, question.id, index, "query"))
        parsed, queries_formatted = parse_queries(query_turn.text, self._prompts.max_queries)
        queries = parsed if parsed and self._prompts.ask_clip == "queries" else (question.question,)
        similarity = await self._embedders.call("similarity", self._videos[question.video].key, queries)

        async def trajectory(place: int) -> Trajectory:
            identity = (step, question.id, place)
            selection: Selection = await self._selectors.call(
                "select", similarity, self._budget, self._stream(*identity, "select")
            )
            answer_turn = await self._turns.answer(question, selection.frames, self._stream(*identity, "answer"))
            letter, answer_formatted = parse_answer(answer_turn.text, len(question.options))
            formatted = queries_formatted and answer_formatted
            attempt = Attempt(query_turn, queries, selection, answer_turn, letter, formatted)
            reward = score(question, attempt, self._rewards)
            return Trajectory(
                question.id, place, index, query_turn, queries, not parsed, selection, answer_turn, letter, reward
            )

        return await together(trajectory(index * draws + draw) for draw in range(draws))

    def _stream(self, *identity: object) -> int | None:
        return None if self._seed is None else stream(self._seed, *identity)
