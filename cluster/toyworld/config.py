"""The config section of the toy world. Composed by `cluster/config.py`."""

from __future__ import annotations

from pydantic import Field, model_validator

from services.config import Section, Seed


class ToyWorldConfig(Section):
    """The miniature world made by `msjoe toyworld`: videos and questions about them (`docs/toyworld.md`)."""

    seed: Seed = 0
    """Decides everything in the world; another seed is another world."""
    videos: int = Field(default=48, ge=1)
    """How many videos to train on."""
    held_out_videos: int = Field(default=12, ge=0)
    """How many further videos each of the validation and the test split have."""
    questions_per_video: int = Field(default=4, ge=1, le=8)
    """How many questions each; of 8, nearly all that is shown is asked about."""
    min_seconds: int = Field(default=120, ge=30)
    """Length of the shortest video, seconds."""
    max_seconds: int = Field(default=600, ge=30)
    """Length of the longest video, seconds. `msjoe toyworld --hours H` makes four of H hours."""
    needle_seconds: int = Field(default=4, ge=1, le=8)
    """What a question asks about is visible for 1 to that many seconds."""
    unequal: int = Field(default=20, ge=1)
    """One of a question's two moments is that many times as long as the other (at most a quarter of the video)."""
    aliases: float = Field(default=1.0, ge=0, le=1)
    """Share of names in questions that CLIP never saw: other words, categories, descriptions."""
    look_alikes: int = Field(default=2, ge=0, le=4)
    """Moments that share the shape or the colour with a thing that is asked for by both."""
    temporal: float = Field(default=0.15, ge=0, le=1)
    """Share of questions about what comes right after something."""
    two_moments: float = Field(default=0.15, ge=0, le=1)
    """Share of questions that need two moments of unequal length."""
    easy: float = Field(default=0.15, ge=0, le=1)
    """Share of questions about what most of the video shows: any few frames answer them."""

    @model_validator(mode="after")
    def _possible(self) -> ToyWorldConfig:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} is above max_seconds {self.max_seconds}")
        if self.temporal + self.two_moments + self.easy > 1:
            raise ValueError("temporal, two_moments and easy are shares: together at most 1")
        return self
