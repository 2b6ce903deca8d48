"""The two turns, asked of the rollout pool and read: messages and frames there, queries or a letter back.

Invariants: a turn is decided by its question, its frames and its seed, whichever engine serves it; pixels go by reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from actors.config import PromptConfig, RolloutConfig
from actors.pool import Pool
from actors.prompts import answer_messages, parse_answer, parse_queries, query_messages
from actors.rollout import RolloutActor
from services.chat import Message
from services.config import FramesConfig
from services.errors import TrainingError
from services.questions.subtitles import Subtitle, overlapping, read_subtitles
from services.schema import Question, Turn, Video, VisualInput
from services.selection.uniform import uniform_frames
from services.visual import visual_input

SUBTITLE_FILES = 1024
"""Subtitle files kept in memory."""
TEMPLATE_TOKENS = 1024
"""More than a chat template adds to the messages."""


@dataclass(frozen=True)
class Queries:
    """A query turn, and what its reply asks to see."""

    turn: Turn
    texts: tuple[str, ...]
    """What CLIP compares the frames with: the parsed queries, or the question itself when none parsed."""
    fallback: bool
    """No query parsed."""
    formatted: bool
    """The reply kept the format."""


@dataclass(frozen=True)
class Answer:
    """An answer turn, and what its reply says."""

    turn: Turn
    letter: str | None
    """None when the reply could not be parsed."""
    formatted: bool
    """The reply kept the format."""


class Turns:
    """The MLLM alone, which needs neither CLIP nor a selector. `videos`: by the path that questions name them with."""

    def __init__(
        self,
        rollouts: Pool[RolloutActor],
        rollout: RolloutConfig,
        prompts: PromptConfig,
        frames: FramesConfig,
        videos: Mapping[str, Video],
    ) -> None:
        self._rollouts, self._rollout, self._prompts, self._frames = rollouts, rollout, prompts, frames
        self.videos = videos
        self._read_subtitles = lru_cache(SUBTITLE_FILES)(read_subtitles)

    async def query(self, question: Question, seed: int | None) -> Queries:
        """The query turn: uniform previews of the video, and the request for visual queries.

        `seed`: None takes the most probable tokens; so it does in `answer`.
        Raises QuestionError when the prompt does not fit the engine.
        """
        turn = await self._generate(question, *self._query_prompt(question), self._rollout.query_tokens, seed)
        parsed, formatted = parse_queries(turn.text, self._prompts.max_queries)
        texts = parsed if parsed and self._prompts.ask_clip == "queries" else (question.question,)
        return Queries(turn, texts, not parsed, formatted)

    async def answer(
        self, question: Question, frames: Iterable[int], seed: int | None, request: str | None = None
    ) -> Answer:
        """The answer turn: the key `frames` of the video, subtitles if asked for, and the request for a letter (`request` in
        place of ours, if one is given).

        Raises QuestionError when the subtitles cannot be read, or the prompt does not fit the engine.
        """
        video = self.videos[question.video]
        visual = visual_input(video, frames, self._frames.tokens_per_frame, self._frames.shown_as)
        subtitles = self._subtitles(question, video, visual)
        messages = answer_messages(question, visual.frames, subtitles, visual.shown_as, request)
        turn = await self._generate(question, messages, visual, self._rollout.answer_tokens, seed)
        return Answer(turn, *parse_answer(turn.text, len(question.options)))

    async def answer_uniformly(self, question: Question, seed: int | None = None) -> Answer:
        """The answer turn with K frames evenly spread over the video: the MLLM without queries and without a selector.

        Raises QuestionError as `answer` does.
        """
        num_frames = self.videos[question.video].num_frames
        return await self.answer(question, uniform_frames(num_frames, self._frames.budget), seed)

    async def check(self, question: Question) -> None:
        """Raises QuestionError when one of the question's prompts cannot fit the engine, whichever frames are shown; subtitles
        come on top of what is counted here."""
        video = self.videos[question.video]
        first = range(min(self._frames.budget, video.num_frames))  # whose seconds have the fewest digits
        visual = visual_input(video, first, self._frames.tokens_per_frame, self._frames.shown_as)
        answer = answer_messages(question, visual.frames, (), visual.shown_as), visual
        for messages, shown in (self._query_prompt(question), answer):
            most = len(str(messages).encode()) + TEMPLATE_TOKENS + (shown.num_tokens if shown else 0)
            if most >= self._rollout.max_model_len:  # a token is a byte or more: only such prompts need a tokenizer
                await self._rollouts.call(RolloutActor.check, messages, shown)

    def _query_prompt(self, question: Question) -> tuple[list[Message], VisualInput | None]:
        video = self.videos[question.video]
        previews = uniform_frames(video.num_frames, self._frames.num_previews)
        visual = visual_input(video, previews, self._frames.preview_tokens_per_frame) if previews else None
        messages = query_messages(
            question,
            show_options=self._prompts.options_in_query_turn,
            max_queries=self._prompts.max_queries,
            has_video=visual is not None,
        )
        return messages, visual

    def _subtitles(self, question: Question, video: Video, visual: VisualInput) -> tuple[Subtitle, ...]:
        if not self._prompts.subtitles or question.subtitles is None:
            return ()
        known = self._read_subtitles(question.subtitles, question.subtitle_offset, float(video.num_frames))
        return overlapping(known, visual.frames)

    async def _generate(
        self, question: Question, messages: list[Message], visual: VisualInput | None, max_tokens: int, seed: int | None
    ) -> Turn:
        try:
            return await self._rollouts.call(RolloutActor.generate, messages, visual, max_tokens, seed)
        except TrainingError as error:
            raise TrainingError(f"question {question.id}: {error}") from None
