"""Config sections of the services: data, frames. Composed by `cluster/config.py`.

A section is a frozen pydantic model that forbids unknown fields; the docstring under a field is its reference entry.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from services.schema import ShownAs


def _possible_seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise ValueError(f"the random streams of numpy, torch and vLLM take seeds from 0 to 2^63 - 1, {2**63 - 1}")
    return seed


Seed = Annotated[int, AfterValidator(_possible_seed)]
"""What every random stream can start from."""


def default_cache() -> Path:
    """`$MSJOE_CACHE`, else `~/.cache/msjoe`."""
    return Path(os.environ.get("MSJOE_CACHE", Path.home() / ".cache" / "msjoe"))


class Section(BaseModel):
    """Base of every config section."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        """`~` and `~user` at the start of a path, or of a text that may name a folder, become the home folder."""
        if isinstance(value, tuple):
            return tuple(map(cls._at_home, value))
        return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value


class ProcessConfig(Section):
    """Fields of every pool of actors and of every learner: what each of its processes is given, and how it is watched."""

    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each process."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each process: 1 at most. A share, as 0.5, lets several processes use one GPU."""
    threads: int = Field(default=1, ge=1)
    """torch / OpenMP threads of each process."""
    start_deadline: float = Field(default=600.0, gt=0)
    """Seconds that a process may take to start, or an actor to load its model."""
    silent_after: float = Field(default=12.0, ge=2)
    """Seconds without an answer to a probe after which a process is taken for dead: it is ended and replaced. Probes run
    beside its work and are answered in milliseconds; a machine with far too much to do may need more patience."""
    restarts: int = Field(default=3, ge=0)
    """How often an actor is replaced without that one of its replacements finishes a call, or the ranks of a learner without
    that they finish an update. The second time in a row comes 1 s after the death, each further one after twice as long. A run
    ends when a pool has no actor left, or a learner no ranks."""

    @property
    def device(self) -> str:
        """The device that the tensors are on: a GPU only if `num_gpus` asks for one, whatever the machine has."""
        return "cuda" if self.num_gpus else "cpu"


class DataConfig(Section):
    """Questions, videos and where decoded frames and features are kept."""

    questions: Path | None = None
    """Training questions, in any form that `msjoe questions` recognises (`docs/data.md`). Empty: those of the toy world."""
    validation: Path | None = None
    """Held-out questions, answered without sampling before, during and after training. Empty: those of the toy world, where
    `questions` are the toy world's too."""
    video_root: Path | None = None
    """Folder that relative video paths start from. Empty: the folder of the questions file."""
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    """Questions of a lower pass rate are left out of training."""
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)
    """Questions of a higher pass rate are left out of training."""
    cache: Path = Field(default_factory=default_cache)
    """Folder of the frame and feature caches; on a cluster, one that every node sees.
    Default `$MSJOE_CACHE`, else `~/.cache/msjoe`."""
    bucket: str = ""
    """Address that the caches of many machines are shared through (`s3://…`, `gs://…`): what `cache` lacks is fetched from
    there once, what is made is put there. Empty: none."""
    decoders: int = Field(default=4, ge=1)
    """Decoders of `msjoe prepare`, at most; it starts with one and adds more while they pay."""
    decoder_cpus: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for a decoder."""
    decode_deadline: float = Field(default=600.0, gt=0)
    """Seconds one video may take to decode before its decoder is killed and the video left out."""

    @model_validator(mode="after")
    def _ordered(self) -> DataConfig:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(f"min_pass_rate {self.min_pass_rate:g} is above max_pass_rate {self.max_pass_rate:g}")
        return self


class FramesConfig(Section):
    """How large frames are, in visual tokens of the MLLM (28 x 28 pixels each)."""

    budget: int = Field(default=32, ge=1)
    """K: key frames shown in the answer turn (paper: 32 or 64)."""
    tokens_per_frame: int = Field(default=256, ge=1)
    """Largest number of visual tokens of a key frame; also the size frames are cached at (ours)."""
    encoding: Literal["raw", "jpeg"] = "raw"
    """How cached frames are kept: as they were decoded, or as JPEGs of a sixth of the bytes, which cost time to read and are
    not exactly the same pixels."""
    shown_as: ShownAs = "video"
    """The answer turn's key frames: one `video`, evenly spread as far as the MLLM can tell (ours; two frames share a visual
    token), `doubled`, the same video with each frame twice and the seconds in words (twice the tokens, none shared), or
    `images`, each behind its second."""
    preview_tokens_per_frame: int = Field(default=32, ge=1)
    """Largest number of visual tokens of a preview frame in the query turn (paper: 32)."""
    previews: bool = True
    """Show the query turn K // 2 uniform preview frames (paper); without, it sees the text alone (the paper's ablation)."""

    @property
    def num_previews(self) -> int:
        """Uniform preview frames of the query turn."""
        return self.budget // 2 if self.previews else 0
