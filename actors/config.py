"""The config sections of the actors and of the prompts. `cluster/config.py` composes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from learners.networks import NETWORKS
from services.config import ProcessConfig, Section
from services.selection import RULES

if TYPE_CHECKING:
    Kind = str
else:  # the names of both tables, whatever rows they have
    Kind = Literal[*NETWORKS, *RULES]


class ActorConfig(ProcessConfig):
    """Fields of every pool of actors."""

    replicas: int = Field(default=1, ge=1)
    """Number of actors in the pool."""
    deadline: float = Field(default=600.0, gt=0)
    """Seconds that one call may take."""
    hang_after: float = Field(default=120.0, ge=2)
    """Seconds in which an engine that has work may end no step and no update of its weights; then it is taken for hung, ended
    and replaced. It must be longer than any of these takes. Of other actors only a call past its `deadline` tells."""

    @property
    def actor_gpus(self) -> float:
        """GPUs that the process of the actor itself needs."""
        return self.num_gpus


class RolloutConfig(ActorConfig):
    """The rollout actors; each runs a vLLM engine."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Number of workers that share the model of one engine. Above 1 each worker is a process of its own beside the actor, with
    `num_cpus` CPUs and `num_gpus` GPUs (1, or 0 on CPU), and the actor itself needs no GPU."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Sampling temperature of both turns. The learner divides its logits by it too. vLLM samples at 0.01 or above."""
    query_tokens: int = Field(default=512, ge=1)
    """Longest reply of the query turn, in tokens."""
    answer_tokens: int = Field(default=512, ge=1)
    """Longest reply of the answer turn, in tokens."""
    max_model_len: int = Field(default=16384, ge=16)
    """Longest prompt and reply together, in tokens."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Largest number of sequences that one engine decodes together."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of the memory of a GPU that one engine takes."""
    cpu_kv_cache_gib: float = Field(default=1.0, gt=0)
    """Size of the KV cache of each worker of an engine on CPU, in GiB."""

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
    """The embedder actors; each holds the frozen CLIP."""

    model: str = ""
    """open_clip name (`ViT-L-14-quickgelu`), or a folder with `open_clip_config.json` and weights. Empty: the
    CLIP of the toy world."""
    pretrained: str = ""
    """When `model` is a name: the tag of its weights in open_clip (`openai`), or a file of weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the encoder. `auto` is bfloat16 on GPUs and on CPUs that multiply in it, else float32. Features are kept
    in float16."""
    batch_size: int = Field(default=64, ge=1)
    """Largest number of frames in one forward pass."""
    resize: Literal["squash", "crop"] = "squash"
    """How a frame becomes square: the whole frame is squashed (ours), or its centre is cropped (as CLIP was trained)."""

    def key_parameters(self) -> tuple[str, str, str]:
        """The fields that decide the features, besides the model itself."""
        return self.pretrained, self.dtype, self.resize


class SelectorConfig(ActorConfig):
    """The selector actors, which choose the key frames while training."""

    kind: Kind = "unet"
    """`unet` draws frames by the sampler network, `tspo` by TSPO's agent. The others are rules of `services/selection/`, which
    have nothing to learn; docs/method.md says what each does."""

    @property
    def learns(self) -> bool:
        """Whether the frames are chosen by a network, which the sampler learner trains."""
        return self.kind in NETWORKS

    @property
    def sees_frames(self) -> bool:
        """Whether it chooses by CLIP's embeddings of the frames, which it reads from the cache."""
        return self.learns and NETWORKS[self.kind].sees_frames


class PromptConfig(Section):
    """What the MLLM and CLIP are shown and asked."""

    options_in_query_turn: bool = True
    """Show the answer options in the query turn already (ours)."""
    subtitles: bool = False
    """Show the answer turn the subtitles that are on screen at its key frames, for questions that have a subtitle file."""
    unreadable_subtitles: Literal["drop", "leave_out"] = "drop"
    """A question whose subtitle file cannot be read is asked without subtitles (`drop`) or not at all (`leave_out`). It is
    named in `left_out.jsonl` either way."""
    max_queries: int = Field(default=4, ge=1, le=4)
    """Largest number of queries that are kept of a reply (paper: 4)."""
    ask_clip: Literal["queries", "question"] = "queries"
    """What CLIP compares the frames with: the queries of the reply, or always the question (the paper's ablation)."""
