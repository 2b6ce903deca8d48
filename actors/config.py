"""Config sections of what acts. Composed by `cluster/config.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from services.config import Section
from services.selection import RULES

if TYPE_CHECKING:
    Kind = str
else:  # the sampler network, or any rule of the table
    Kind = Literal["unet", *RULES]


class ActorConfig(Section):
    """What every actor pool shares."""

    replicas: int = Field(default=1, ge=1)
    """Actors in the pool."""
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for one actor."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of one actor, 1 at most: a share, as 0.5, puts several on one card. Of a rollout actor with `tensor_parallel` above
    1: GPUs of each of its workers."""
    threads: int = Field(default=1, ge=1)
    """torch / OpenMP threads of one actor."""
    deadline: float = Field(default=600.0, gt=0)
    """Seconds one call may take."""
    start_deadline: float = Field(default=600.0, gt=0)
    """Seconds an actor may take to load its model."""

    @property
    def device(self) -> str:
        """The device of its tensors: a GPU only if one was asked for, whatever the machine has."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def actor_gpus(self) -> float:
        """GPUs of the actor's own process."""
        return self.num_gpus


class RolloutConfig(ActorConfig):
    """vLLM engines."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Workers that share one engine's model. Above 1 each is a process of its own with `num_cpus` CPUs and `num_gpus` (1, or 0
    on CPU) GPUs, beside the actor, who needs no GPU then."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Sampling temperature of both turns; the learner divides its logits by it too. The engine samples at no lower one than
    0.01."""
    query_tokens: int = Field(default=512, ge=1)
    """Longest reply of the query turn."""
    answer_tokens: int = Field(default=512, ge=1)
    """Longest reply of the answer turn."""
    max_model_len: int = Field(default=16384, ge=16)
    """Longest prompt plus reply."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that one engine decodes together."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of GPU memory that one engine takes."""
    cpu_kv_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache of each worker of an engine on CPU, GiB."""

    @model_validator(mode="after")
    def _workers_fit_their_bundles(self) -> RolloutConfig:
        if self.tensor_parallel > 1 and not (self.num_gpus == 1 or (self.num_gpus == 0 and self.num_cpus <= 1)):
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel}: a worker has num_gpus=1, or on CPU num_gpus=0 and at most 1 CPU"
            )
        return self

    @property
    def actor_gpus(self) -> float:
        return 0.0 if self.tensor_parallel > 1 else self.num_gpus


class EmbedderConfig(ActorConfig):
    """The frozen CLIP."""

    model: str = ""
    """open_clip name (`ViT-L-14-quickgelu`), or a folder with `open_clip_config.json` and weights. Empty: the toy world's."""
    pretrained: str = ""
    """open_clip weight tag (`openai`) or file when `model` is a name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the encoder. `auto`: bfloat16 on GPUs and on CPUs that multiply in it. Features are kept in float16."""
    batch_size: int = Field(default=64, ge=1)
    """Frames of one forward pass."""
    resize: Literal["squash", "crop"] = "squash"
    """How a 16:9 frame becomes square: squashed whole (ours), or its centre cropped (CLIP's own)."""

    def key_parameters(self) -> tuple[str, str, str]:
        """What features depend on besides the model itself."""
        return self.pretrained, self.dtype, self.resize


class SelectorConfig(ActorConfig):
    """Who chooses the key frames while training."""

    kind: Kind = "unet"
    """`unet` draws from the sampler network; the others are rules of `services/selection/`, which have nothing to learn."""

    @property
    def learns(self) -> bool:
        """Whether a network chooses the frames, which the sampler learner trains."""
        return self.kind not in RULES


class PromptConfig(Section):
    """What the two turns show the MLLM."""

    options_in_query_turn: bool = True
    """Show the answer options already in the query turn (ours)."""
    subtitles: bool = False
    """Show the answer turn the subtitles on screen at its key frames, of questions that have a file of them."""
    unreadable_subtitles: Literal["drop", "leave_out"] = "drop"
    """What becomes of a question whose subtitle file cannot be read: it is asked without subtitles, or left out. It is named in
    `left_out.jsonl` either way."""
    max_queries: int = Field(default=4, ge=1, le=4)
    """Queries kept of a reply (paper: 4)."""
    ask_clip: Literal["queries", "question"] = "queries"
    """What CLIP compares the frames with: the reply's queries, or the question whatever the reply (the paper's ablation)."""
