"""A question seen through: its visual queries, their similarity with every candidate frame, the key frames, the answer.

Training, validation and whoever else answers questions share this. It needs no label and gives no reward.

Invariants: a seed decides each of the three draws (queries, frames, answer), whichever actors serve them; without one the most
probable is taken, as at test time; only ids, indices, similarities and texts pass through here, never a pixel.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from actors.embedder import EmbedderActor
from actors.pool import Pool
from actors.selector import SelectorActor
from actors.turns import Answer, Queries, Turns
from services.errors import QuestionError
from services.schema import Embedded, Question, Selection

Result = TypeVar("Result")


@dataclass(frozen=True)
class Search:
    """A query turn, and how well every candidate frame fits its queries."""

    queries: Queries
    similarity: np.ndarray
    """[Q, T] float32 cosines."""
    embedded: Embedded
    """What they were computed from."""


@dataclass(frozen=True)
class View:
    """One question answered once, from the query turn to the letter."""

    queries: Queries
    selection: Selection
    answer: Answer

    @property
    def formatted(self) -> bool:
        """Both turns kept the format."""
        return self.queries.formatted and self.answer.formatted


class Viewing:
    """Engines (behind `turns`), CLIP and a selector, one after the other."""

    def __init__(self, turns: Turns, embedders: Pool[EmbedderActor], selectors: Pool[SelectorActor]) -> None:
        self.turns, self._embedders, self._selectors = turns, embedders, selectors

    async def search(self, question: Question, seed: int | None = None) -> Search:
        """The query turn and its similarity with the video; any number of views may follow from it.

        Raises QuestionError when the question cannot be asked.
        """
        queries = await self.turns.query(question, seed)
        key = self.turns.videos[question.video].key
        return Search(queries, *await self._embedders.call(EmbedderActor.match, key, queries.texts))

    async def choose_and_answer(
        self,
        question: Question,
        search: Search,
        budget: int,
        select_seed: int | None = None,
        answer_seed: int | None = None,
    ) -> View:
        """At most `budget` key frames by the similarity, and the answer from them.

        Raises QuestionError when the question cannot be asked.
        """
        selection = await self._selectors.call(
            SelectorActor.select, search.similarity, budget, select_seed, search.embedded
        )
        return View(search.queries, selection, await self.turns.answer(question, selection.frames, answer_seed))

    async def view(self, question: Question, budget: int) -> View:
        """The whole way without sampling, as at test time.

        Raises QuestionError when the question cannot be asked.
        """
        return await self.choose_and_answer(question, await self.search(question), budget)


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
