"""Config sections of what learns. Composed by `cluster/config.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from learners.objectives import ADVANTAGES, AGGREGATIONS, BEYOND, IMPORTANCE, KL_ESTIMATES, LOSSES
from services.config import Section
from services.own_functions import OWN_FUNCTION

if TYPE_CHECKING:
    Advantage = str
    Aggregation = str
    Beyond = str
    Importance = str
    KlEstimate = str
else:  # the names of a table, whatever rows it has
    Advantage = Literal[tuple(ADVANTAGES)]
    Aggregation = Literal[tuple(AGGREGATIONS)]
    Beyond = Literal[tuple(BEYOND)]
    Importance = Literal[tuple(IMPORTANCE)]
    KlEstimate = Literal[tuple(KL_ESTIMATES)]


def _known_loss(name: str) -> str:
    if name not in LOSSES and not re.fullmatch(OWN_FUNCTION, name):
        raise ValueError(f"one of {', '.join(LOSSES)}, or a function of your own: path/to/file.py:function")
    return name


class LearnerConfig(Section):
    """What both learners share: DeepSpeed, optimizer, processes."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """AdamW learning rate: the highest, where `warmup_steps` and `schedule` change it."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: as it is, or falling in a line or in half a cosine towards 0 after `train.steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises evenly to `learning_rate`, a step without signal included."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the means of gradients and of their squares."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    world_size: int = Field(default=1, ge=1)
    """DeepSpeed ranks, one Ray actor each."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for a rank."""
    threads: int = Field(default=1, ge=1)
    """torch / OpenMP threads of a rank."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a rank, 1 at most; of several ranks each must have more than half a card."""
    deadline: float = Field(default=1800.0, gt=0)
    """Seconds one update, publication or checkpoint may take."""

    @property
    def device(self) -> str:
        """The device of its tensors: a GPU only if one was asked for, whatever the machine has."""
        return "cuda" if self.num_gpus else "cpu"


class PolicyConfig(LearnerConfig):
    """The MLLM and GRPO."""

    model: str = ""
    """Hugging Face folder (or hub name) of a Qwen2.5-VL. Empty: the toy world's."""
    num_parameters: float | None = None
    """Parameter count for the memory estimate when the model's config is not on this machine."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numbers of the learner's forward pass and of the engine; gradients are added up, and the optimizer works, in float32."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 replicates (float32 only), 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    train: bool = True
    """False freezes the MLLM: stage 1, sampler pre-training."""
    advantage: Advantage = "grpo"
    """Within a group: over the standard deviation (paper), without it, or minus the mean of the others."""
    loss: Annotated[str, AfterValidator(_known_loss)] = "clipped"
    """`clipped`: the ratio of each token (paper); `gspo`: that of the whole turn, whose clip range is far smaller (3e-4 and
    4e-4); or a function of your own, `path/to/file.py:function` (`docs/objectives.md`)."""
    aggregation: Aggregation = "token-mean"
    """From token losses to the step's loss; a sequence is a turn, and every mean is over the whole step."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped from above at 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1, allow_inf_nan=True)
    """The loss of a token whose advantage A is negative is at most -A * dual_clip; `inf` turns it off."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL to the initial model (paper: none). Above 0 the learner holds that model too, unless by LoRA."""
    kl: KlEstimate = "k3"
    """Estimator of that KL."""
    old_log_probs: Literal["engine", "learner"] = "engine"
    """Denominator of the ratio: what the engine sampled from, or the learner's own log-probs at the start of the update,
    with the engine's mismatch corrected by truncated importance weights."""
    importance: Importance = "token"
    """Importance weight learner / engine of each token or of the whole turn, when `old_log_probs` is `learner`."""
    importance_cap: float = Field(default=2.0, gt=1)
    """Largest importance weight."""
    importance_beyond: Beyond = "truncate"
    """Weights above the cap become the cap, or their tokens are left out."""
    mismatch_limit: float = Field(default=0.1, gt=0)
    """Nats per token of `policy/mismatch_kl` above which the alarm goes off (ours)."""
    mismatch_action: Literal["warn", "stop"] = "warn"
    """What the alarm does: one line a step, or the end of the run before the weights take the step in."""
    truncated_replies: Literal["keep", "mask"] = "keep"
    """Replies cut at the token limit: learn from them, or leave their tokens out of loss and means. Counted either way."""
    freeze_vision: bool = False
    """Leave the vision tower as it is: no backward pass through it."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA adapters on the language model's linear layers; 0 trains all weights. Engines get merged weights."""
    lora_alpha: int = Field(default=32, ge=1)
    """LoRA's scale is lora_alpha / lora_rank."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens packed into one forward pass of a rank; a longer turn goes alone."""
    share_prompts: bool = True
    """Turns with one prompt (a group's query turns) compute it once; the loss and the gradients stay the same."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""

    @model_validator(mode="after")
    def _trainable(self) -> PolicyConfig:
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 0 would add up bfloat16 gradients in bfloat16; zero_stage=1, at one rank too, or dtype=float32"
            )
        return self


class SamplerConfig(LearnerConfig):
    """The 1-D U-Net and REINFORCE."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """AdamW learning rate: the highest, where `warmup_steps` and `schedule` change it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's (ours): with this shorter memory of squared gradients the sampler learnt the toy world's rows sooner."""
    checkpoint: Path | None = None
    """Folder of a sampler to start from, `checkpoints/step-N/sampler` of a run (stage 1's); empty: a fresh one."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of the U-Net's levels, top to bottom; the default has about 2M parameters (paper)."""
    log_prob: Literal["plackett_luce", "independent"] = "plackett_luce"
    """Log-probability of a draw: exact for draws without replacement (ours), or the paper's sum of log p."""
    objective: Literal["joint", "difficulty"] = "joint"
    """What a draw's answer is worth. `joint`: stage 2, its reward. `difficulty`: stage 1, right 1/c, wrong -1/(1-c)."""
    reward: Literal["total", "accuracy"] = "total"
    """Stage 2: which reward the sampler gets (two readings of the paper)."""
    baseline: bool = True
    """Subtract what the group's other draws say of a draw's queries, those of the same queries first, in both stages (ours)."""
    wrong_at_zero: float = Field(default=0.0, le=0)
    """Stage 1: advantage of a wrong answer at pass rate 0 (ours: 0; the formula's value is -1)."""
    max_advantage: float = Field(default=10.0, gt=0)
    """Stage 1: the advantage is capped here in size; also its value for a right answer at pass rate 0 (paper: 10)."""
    micro_batch_frames: int = Field(default=65536, ge=1)
    """Padded candidate frames of one forward pass of a rank."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the entropy of softmax(logits), divided by log T, added to the objective."""


class RewardConfig(Section):
    """r = accuracy + format + info + what the functions of `extra` return."""

    accuracy: float = Field(default=0.8, ge=0)
    """Reward of the right letter (paper: 0.8; one source says 1.0)."""
    format: float = Field(default=0.1, ge=0)
    """Reward when both turns keep the format (paper: 0.1)."""
    info: float = Field(default=0.1, ge=0)
    """Reward when every query's row is informative; a share of it for a share of them (paper: 0.1)."""
    info_ratio: float = Field(default=10.0, gt=1)
    """A row is informative when max_t s > info_ratio * min_t s (paper: 10)."""
    logit_scale: float = Field(default=100.0, gt=0)
    """s is the row's softmax over frames of logit_scale * cosine (ours: CLIP's own scale)."""
    extra: tuple[Annotated[str, Field(pattern=rf"{OWN_FUNCTION}$")], ...] = ()
    """Reward functions of your own, `[path/to/file.py:function]`, whose numbers are added (`docs/method.md`)."""

    @model_validator(mode="after")
    def _some_reward(self) -> RewardConfig:
        if self.accuracy + self.format + self.info == 0 and not self.extra:
            raise ValueError("accuracy, format and info are all 0: nothing can be learned; make one positive")
        return self
