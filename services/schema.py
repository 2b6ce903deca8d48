"""The vocabulary of a run: what travels between actors, learners and the driver.

Invariants: everything here is small (token ids, frame *indices*, similarities; never a pixel), immutable once made, and
picklable. Every turn says which policy weights made it, every selection which sampler weights.

Shape letters: `Q` queries (at most 4), `T` candidate frames (1 per second), `K` chosen frames, `P` prompt tokens,
`R` response tokens, `G` query turns of a question, `M` draws of each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.errors import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

ShownAs = Literal["video", "doubled", "images"]
"""How a turn shows its frames: as one video, two to a temporal patch; as one video in which each frame stands twice, so that no
two share a patch; or each as an image."""


def num_layers(num_frames: int, shown_as: ShownAs) -> int:
    """Temporal patches of so many frames: in a `video` two share one."""
    return -(-num_frames // 2) if shown_as == "video" else num_frames


Span = tuple[float, float]
"""Start and end in seconds of the video, both included."""


@dataclass(frozen=True)
class Question:
    """One question about one video, multiple-choice unless it has no options."""

    id: str
    """Unique within its file."""
    video: str
    """Path of the video file, absolute once read."""
    question: str
    options: tuple[str, ...]
    """Texts of the options without their letters; option 0 is letter A. Empty: it is answered freely."""
    answer: str | None = None
    """The right option's letter; None when it is not known, so that the question can only be asked (`label`)."""
    pass_rate: float | None = None
    """c: share of right answers of the base MLLM with uniform frames, 0…1; None when never measured."""
    data_source: str = ""
    group: tuple[str, ...] = ()
    """Groups its benchmark reports by, such as a duration or tasks; a question may count in several."""
    subtitles: str | None = None
    """Path of the video's subtitle file, absolute once read; None when there is none."""
    subtitle_offset: float = 0.0
    """Seconds on the subtitles' clock at which the video starts."""
    pass_rate_samples: int | None = None
    """Answers that `pass_rate` was measured over; None when that is not known."""
    pass_rate_model: str = ""
    """The MLLM that `pass_rate` was measured with."""
    moments: tuple[tuple[Span, ...], ...] = ()
    """Everything that must be seen to answer, each as the spans in which it is seen; empty when that is not known."""
    wanted_queries: tuple[str, ...] = ()
    """Queries that find the moments; empty when they are not known."""
    moment_frames: tuple[int, ...] = ()
    """Frames of the video file, by number from 0, each of which must be seen: moments whose seconds depend on the file's frame
    rate (`services/questions/evidence.py`). Empty when `moments` says it, or nothing does."""


def label(question: Question) -> str:
    """The right option's letter, for what learns or measures accuracy.

    Raises UserError naming a question whose answer is not known.
    """
    if question.answer is None:
        raise UserError(
            f"question {question.id}: its answer is not known; training, pass rates and accuracy need questions with answers"
        )
    return question.answer


@dataclass(frozen=True)
class LeftOut:
    """A question that could not be asked."""

    question: Question
    reason: str


@dataclass(frozen=True)
class Video:
    """One decoded video, as the caches know it."""

    path: str
    key: str
    """Content address of its cached frames: file content and decode rule."""
    num_frames: int
    """T: candidate frames, one per second."""
    height: int
    """Pixels of a cached frame; a multiple of 28, as is `width`."""
    width: int


@dataclass(frozen=True)
class VisualInput:
    """The frames one turn shows the MLLM, by reference: whoever needs the pixels reads them from the frame cache."""

    video: str
    """`Video.key`."""
    frames: tuple[int, ...]
    """Indices in 0…T-1, ascending."""
    num_frames: int
    """T of the whole video: with `frames` it fixes the seconds between two temporal patches."""
    height: int
    """Pixels of a frame as shown; a multiple of 28, as is `width`."""
    width: int
    shown_as: ShownAs = "video"

    @property
    def num_items(self) -> int:
        """Placeholders in the chat template: one of a video, K of images."""
        return len(self.frames) if self.shown_as == "images" else 1

    @property
    def in_video(self) -> tuple[int, ...]:
        """The indices of the frames that the video is made of, each as often as it stands there; empty of images."""
        return tuple(np.repeat(self.frames, {"video": 1, "doubled": 2, "images": 0}[self.shown_as]).tolist())

    @property
    def num_tokens(self) -> int:
        """Visual tokens in the prompt: one for 28 x 28 pixels of a temporal patch."""
        return num_layers(len(self.frames), self.shown_as) * (self.height // 28) * (self.width // 28)


@dataclass(frozen=True)
class Turn:
    """One generation of the MLLM: tokens in, tokens out, exactly as the engine saw and sampled them."""

    prompt_ids: np.ndarray
    """[P] int32, visual placeholders already expanded."""
    response_ids: np.ndarray
    """[R] int32, the end token included when it was sampled."""
    log_probs: np.ndarray
    """[R] float32: log-probability of each response token under the distribution it was sampled from."""
    text: str
    """The response, decoded."""
    truncated: bool
    """The reply hit the token limit."""
    version: int
    """Policy weights that made it."""
    visual: VisualInput | None
    """None when the turn shows no frames."""


@dataclass(frozen=True)
class Embedded:
    """What similarities were computed from, for a sampler that sees more than these: the frames' embeddings go by reference."""

    clip: str
    """Key of the CLIP, and with `video` of the frames' embeddings [T, D] in the feature cache."""
    video: str
    """`Video.key`."""
    queries: np.ndarray
    """[Q, D] float32: the queries' embeddings."""


@dataclass(frozen=True)
class Selection:
    """K of T frames, and what the sampler saw when it drew them."""

    frames: tuple[int, ...]
    """Chosen indices in time order."""
    draw: tuple[int, ...]
    """The same indices in the order they were drawn; empty when nothing was drawn (T <= K)."""
    log_prob: float | None
    """Log-probability of the ordered draw; None when nothing was drawn."""
    entropy: float
    """Entropy in nats of softmax(logits) over the T frames."""
    similarity: np.ndarray
    """[Q, T] float32 cosines of queries and candidate frames."""
    version: int
    """Sampler weights that made it."""
    embedded: Embedded | None = None
    """What `similarity` was computed from; None when that is not known."""


@dataclass(frozen=True)
class Reward:
    """What one trajectory earned."""

    terms: Mapping[str, float]
    """By name (`learners/rewards.py`), each already weighted."""

    @property
    def total(self) -> float:
        return math.fsum(self.terms.values())


@dataclass(frozen=True)
class Trajectory:
    """One question answered once, from the query turn to the reward."""

    question_id: str
    index: int
    """Place in its group, 0…G*M-1."""
    query_index: int
    """Its query turn's place among those of the group, 0…G-1; M trajectories share one."""
    query_turn: Turn
    queries: tuple[str, ...]
    """Queries that CLIP was asked: the parsed ones, or the question itself when none parsed."""
    fallback: bool
    """No query parsed."""
    selection: Selection
    answer_turn: Turn
    letter: str | None
    """The letter answered; None when the reply could not be parsed."""
    reward: Reward


@dataclass(frozen=True)
class Group:
    """All trajectories of one question in one step: G query turns, each with M draws and answers (M = 1: the paper)."""

    question: Question
    trajectories: tuple[Trajectory, ...]
    """In the order of `index`, so those of one query turn stand together; at least one."""

    @property
    def by_query_turn(self) -> tuple[tuple[Trajectory, ...], ...]:
        """The trajectories of each query turn, in the turns' order."""
        return tuple(tuple(part) for _, part in itertools.groupby(self.trajectories, key=lambda t: t.query_index))

    @property
    def has_signal(self) -> bool:
        """Not all rewards are equal."""
        return len({trajectory.reward.total for trajectory in self.trajectories}) > 1
