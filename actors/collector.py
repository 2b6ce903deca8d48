"""The collector: one trajectory, start to end, as one coroutine that reads like the paper; many at once.

Invariants: a trajectory's randomness comes from (seed, step, question, index) alone, whichever actors serve it; only ids,
indices, similarities and texts pass through here, never a pixel.
"""

from __future__ import annotations

import asyncio
import hashlib
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

    async def collect(self, questions: Sequence[Question], group_size: int, step: int) -> list[Group]:
        """A group of `group_size` trajectories for each question, all in flight together."""
        return list(await asyncio.gather(*[self.group(question, group_size, step) for question in questions]))

    async def group(self, question: Question, size: int, step: int) -> Group:
        """`size` trajectories of one question."""
        indices = range(size)
        return Group(question, tuple(await asyncio.gather(*[self.trajectory(question, i, step) for i in indices])))

    async def trajectory(self, question: Question, index: int, step: int) -> Trajectory:
        """Queries, similarity, key frames, answer, reward."""
        video = self._videos[question.video]
        identity = (self._seed, step, question.id, index)

        query_turn = await self._query_turn(question, video, stream(*identity, "query"))
        parsed, queries_formatted = parse_queries(query_turn.text, self._prompts.max_queries)
        queries = parsed or (question.question,)

        similarity = await self._embedders.call("similarity", video.key, queries)
        selection: Selection = await self._selectors.call(
            "select", similarity, self._frames.budget, stream(*identity, "select")
        )

        answer_turn = await self._answer_turn(question, video, selection, stream(*identity, "answer"))
        letter, answer_formatted = parse_answer(answer_turn.text, len(question.options))

        formatted = queries_formatted and answer_formatted
        reward = score(letter, question.answer, formatted, similarity, self._rewards)
        return Trajectory(question.id, index, query_turn, queries, selection, answer_turn, letter, reward)

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
