"""The collector: a query turn and what follows of it, as one coroutine that reads like the paper; many at once.

Invariants: a trajectory's randomness comes from (seed, step, question, index) alone, whichever actors serve it; only ids,
indices, similarities and texts pass through here, never a pixel.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Mapping, Sequence

from actors.config import PromptConfig, RolloutConfig
from actors.pool import Pool
from actors.prompts import Message, answer_messages, parse_answer, parse_queries, query_messages
from actors.selectors import uniform_frames
from learners.config import RewardConfig
from learners.rewards import score
from services.config import FramesConfig
from services.errors import UserError
from services.frames import visual_input
from services.schema import Group, Question, Selection, Trajectory, Turn, Video, VisualInput


def stream(*identity: object) -> int:
    """A 62-bit seed of its own for everything that `identity` names."""
    digest = hashlib.blake2b("/".join(map(str, identity)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


class Collector:
    """Drives the three actor pools."""

    def __init__(
        self,
        rollouts: Pool,
        embedders: Pool,
        selectors: Pool,
        rollout: RolloutConfig,
        prompts: PromptConfig,
        frames: FramesConfig,
        rewards: RewardConfig,
        videos: Mapping[str, Video],
        seed: int,
    ) -> None:
        self._rollouts, self._embedders, self._selectors = rollouts, embedders, selectors
        self._rollout, self._prompts, self._frames, self._rewards = rollout, prompts, frames, rewards
        self._videos, self._seed = videos, seed

    async def collect(self, questions: Sequence[Question], group_size: int, draws: int, step: int) -> list[Group]:
        """A group for each question, all in flight together: `group_size` query turns, `draws` draws and answers of each."""
        return list(await asyncio.gather(*[self.group(question, group_size, draws, step) for question in questions]))

    async def group(self, question: Question, size: int, draws: int, step: int) -> Group:
        """All trajectories of one question."""
        samples = await asyncio.gather(*[self.sample(question, index, draws, step) for index in range(size)])
        return Group(question, tuple(itertools.chain(*samples)))

    async def sample(self, question: Question, index: int, draws: int, step: int) -> list[Trajectory]:
        """One query turn and its similarity; of each of `draws`: key frames, answer, reward."""
        video = self._videos[question.video]
        seed = stream(self._seed, step, question.id, index, "query")
        query_turn = await self._query_turn(question, video, seed)
        parsed, queries_formatted = parse_queries(query_turn.text, self._prompts.max_queries)
        queries = parsed or (question.question,)
        similarity = await self._embedders.call("similarity", video.key, queries)

        async def trajectory(place: int) -> Trajectory:
            identity = (self._seed, step, question.id, place)
            selection: Selection = await self._selectors.call(
                "select", similarity, self._frames.budget, stream(*identity, "select")
            )
            answer_turn = await self._answer_turn(question, video, selection, stream(*identity, "answer"))
            letter, answer_formatted = parse_answer(answer_turn.text, len(question.options))
            formatted = queries_formatted and answer_formatted
            reward = score(letter, question.answer, formatted, similarity, self._rewards)
            return Trajectory(
                question.id, place, index, query_turn, queries, not parsed, selection, answer_turn, letter, reward
            )

        return list(await asyncio.gather(*[trajectory(index * draws + draw) for draw in range(draws)]))

    async def _query_turn(self, question: Question, video: Video, seed: int) -> Turn:
        previews = uniform_frames(video.num_frames, self._frames.previews)
        visual = visual_input(video, previews, self._frames.preview_tokens_per_frame) if previews else None
        messages = query_messages(
            question,
            show_options=self._prompts.options_in_query_turn,
            max_queries=self._prompts.max_queries,
            has_video=visual is not None,
        )
        return await self._generate(question, messages, visual, self._rollout.query_tokens, seed)

    async def _answer_turn(self, question: Question, video: Video, selection: Selection, seed: int) -> Turn:
        visual = visual_input(video, selection.frames, self._frames.tokens_per_frame)
        return await self._generate(question, answer_messages(question), visual, self._rollout.answer_tokens, seed)

    async def _generate(
        self, question: Question, messages: list[Message], visual: VisualInput | None, max_tokens: int, seed: int
    ) -> Turn:
        try:
            return await self._rollouts.call("generate", messages, visual, max_tokens, seed)
        except UserError as error:
            raise UserError(f"question {question.id}: {error}") from None
