"""The config sections of the learners and of the reward. `cluster/config.py` composes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from learners.objectives import ADVANTAGES, AGGREGATIONS, BEYOND, IMPORTANCE, KL_ESTIMATES, LOSSES
from services.config import ProcessConfig, Section
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


class LearnerConfig(ProcessConfig):
    """Fields of both learners: optimizer, DeepSpeed, processes."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """Learning rate of AdamW. Where `warmup_steps` and `schedule` change it, this is the highest one."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: it stays, or it falls in a straight line or in half a cosine and reaches 0 one step
    after the last of `train.steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Number of first steps over which the learning rate rises evenly to `learning_rate`. Steps without signal count too."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running means of the gradients and of their squares."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    world_size: int = Field(default=1, ge=1)
    """Number of DeepSpeed ranks. Each is one Ray actor."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each rank: 1 at most, and more than 0.5 where there are several ranks."""
    deadline: float = Field(default=1800.0, gt=0)
    """Seconds that one update, publication or checkpoint may take."""


class PolicyConfig(LearnerConfig):
    """The policy learner: the MLLM, and how GRPO trains it."""

    model: str = ""
    """Hugging Face folder (or hub name) of a Qwen2.5-VL. Empty: the MLLM of the toy world."""
    num_parameters: float | None = None
    """Parameter count for the memory estimate when the model's config is not on this machine."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number type of the learner's forward pass and of the engine. Gradients are summed, and the optimizer works, in
    float32."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 replicates (float32 only), 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    train: bool = True
    """False freezes the MLLM: stage 1, sampler pre-training."""
    advantage: Advantage = "grpo"
    """How the rewards of a group become advantages: minus their mean and divided by their standard deviation (`grpo`, the
    paper), minus their mean (`dr_grpo`), or minus the mean of the others (`rloo`)."""
    loss: Annotated[str, AfterValidator(_known_loss)] = "clipped"
    """`clipped`: the ratio of each token (paper); `gspo`: that of the whole turn, whose clip range is far smaller (3e-4 and
    4e-4); or a function of your own, `path/to/file.py:function` (`docs/objectives.md`)."""
    aggregation: Aggregation = "token-mean"
    """How the losses of the tokens become the loss of the step. A sequence is a turn, and every mean is over the whole step."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped from above at 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1, allow_inf_nan=True)
    """The loss of a token whose advantage A is negative is at most -A * dual_clip; `inf` turns it off."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the initial model (paper: none). Above 0 each rank holds that model too, except with
    LoRA."""
    kl: KlEstimate = "k3"
    """Estimator of that KL divergence."""
    old_log_probs: Literal["engine", "learner"] = "engine"
    """The log-probs in the denominator of the ratio: those of the engine that sampled, or the learner's own at the start of the
    update. With the learner's, truncated importance weights correct for the difference between the two."""
    importance: Importance = "token"
    """The importance weight, learner over engine, is that of each token, that of the whole turn, or 1 (`none`). It is used when
    `old_log_probs` is `learner`."""
    importance_cap: float = Field(default=2.0, gt=1)
    """Largest importance weight."""
    importance_beyond: Beyond = "truncate"
    """An importance weight above the cap becomes the cap, or its token is left out of the loss."""
    mismatch_limit: float = Field(default=0.1, gt=0)
    """The alarm goes off when `policy/mismatch_kl` is above this number of nats per token (ours)."""
    mismatch_action: Literal["warn", "stop"] = "warn"
    """What the alarm does: it prints one line per step, or it ends the run before the weights take that step."""
    truncated_replies: Literal["keep", "mask"] = "keep"
    """Replies that were cut at the token limit: learn from them, or leave their tokens out of the loss and the means. They are
    counted in the metrics either way."""
    freeze_vision: bool = False
    """Do not train the vision tower; the backward pass does not go through it."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters on the linear layers of the language model. 0 trains all weights instead. Engines get merged
    weights."""
    lora_alpha: int = Field(default=32, ge=1)
    """The scale of the LoRA adapters is lora_alpha / lora_rank."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Largest number of tokens that one forward pass of a rank packs. A longer turn has a forward pass of its own."""
    share_prompts: bool = True
    """Compute a prompt once for all turns that share it, as the query turns of a group do. Loss and gradients stay the same."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them."""

    @model_validator(mode="after")
    def _trainable(self) -> PolicyConfig:
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 0 would add up bfloat16 gradients in bfloat16; zero_stage=1, at one rank too, or dtype=float32"
            )
        return self


class SamplerConfig(LearnerConfig):
    """The sampler learner: the network that `selector.kind` names, and how REINFORCE trains it."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Learning rate of AdamW. Where `warmup_steps` and `schedule` change it, this is the highest one."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's running means (ours): with this shorter memory of squared gradients the sampler learnt the toy
    world sooner."""
    checkpoint: Path | None = None
    """Folder of a sampler to start from: `checkpoints/step-N/sampler` of a run of stage 1. Empty: fresh weights."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of the levels of the U-Net, top to bottom. The default has about 2M parameters (paper)."""
    width: int = Field(default=768, ge=1)
    """Dimensions of the CLIP's embeddings, which `selector.kind=tspo` sees: 768 for ViT-L/14."""
    log_prob: Literal["plackett_luce", "independent", "mean"] = "plackett_luce"
    """Log-probability of a draw: the exact one of draws without replacement (ours), the sum of log p over its frames (paper),
    or their mean (TSPO)."""
    objective: Literal["joint", "difficulty", "tspo"] = "joint"
    """What a draw is worth. `joint` (stage 2): the reward of its answer. `difficulty` (stage 1): 1/c for a right answer and
    -1/(1-c) for a wrong one, where c is the pass rate of the question. `tspo`: the reward, less the mean of the question's
    group and divided by its standard deviation."""
    reward: Literal["total", "accuracy"] = "total"
    """The reward that `joint` and `tspo` take: the total, or the term `accuracy` alone (two readings of the paper; TSPO's is
    `accuracy`)."""
    baseline: bool = True
    """Subtract from a draw's worth, in both stages, what the other draws of its group say its queries are worth; draws of the
    same queries say most (ours). The objective `tspo` has a baseline of its own."""
    wrong_at_zero: float = Field(default=0.0, le=0)
    """Stage 1: the advantage of a wrong answer to a question of pass rate 0 (ours: 0; the formula gives -1)."""
    max_advantage: float = Field(default=10.0, gt=0)
    """Stage 1: the largest size of an advantage, and the advantage of a right answer to a question of pass rate 0 (paper:
    10)."""
    micro_batch_frames: int = Field(default=65536, ge=1)
    """Largest number of candidate frames, padding included, in one forward pass of a rank."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus: the entropy of softmax(logits) divided by log T, for T candidate frames."""


class RewardConfig(Section):
    """The reward r = accuracy + format + info + what the functions of `extra` return."""

    accuracy: float = Field(default=0.8, ge=0)
    """Reward of the right letter (paper: 0.8; one source says 1.0)."""
    format: float = Field(default=0.1, ge=0)
    """Reward when both turns keep the format (paper: 0.1)."""
    info: float = Field(default=0.1, ge=0)
    """Reward when the row of every query is informative; when some rows are, that share of it (paper: 0.1)."""
    info_ratio: float = Field(default=10.0, gt=1)
    """A row s of similarities is informative when max_t s > info_ratio * min_t s (paper: 10)."""
    logit_scale: float = Field(default=100.0, gt=0)
    """In `info_ratio`, s is the softmax over frames of logit_scale * cosine (ours: the scale that CLIP was trained with)."""
    extra: tuple[Annotated[str, Field(pattern=rf"{OWN_FUNCTION}$")], ...] = ()
    """Reward functions of your own, `[path/to/file.py:function]`. What they return is added to the reward
    (`docs/method.md`)."""

    @model_validator(mode="after")
    def _some_reward(self) -> RewardConfig:
        if self.accuracy + self.format + self.info == 0 and not self.extra:
            raise ValueError("accuracy, format and info are all 0: nothing can be learned; make one positive")
        return self
