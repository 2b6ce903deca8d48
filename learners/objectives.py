"""The objective of the policy: advantages, losses, aggregations and KL estimates, each kind a table from a name to a function.

Invariants: the names of a table are the values of the config field that chooses from it (`learners/config.py`), so a new row is
all that a new kind needs; a group is a run of consecutive trajectories, given by `sizes`; a sequence is a run of consecutive
tokens, given by `lengths`; losses are per token, and `token_weights`, from global counts, are all that turns them into a
step's loss, so that no split of a batch changes it. `docs/objectives.md` derives the formulas.

PyTorch is imported where tensors are made, not here: the config, and so every command, reads these tables.

Shape letters: `N` trajectories of all groups, `G` of one group, `L` tokens of all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from services.errors import TrainingError, UserError
from services.own_functions import describe, own_function

if TYPE_CHECKING:
    from torch import Tensor

    from learners.config import PolicyConfig, SamplerConfig

STD_EPSILON = 1e-6
"""Reward. Added to a group's standard deviation (verl's value)."""

LOG_RATIO_LIMIT = 20.0
"""Nats. Log-ratios are clamped to this size before exp; beyond it their gradient is 0 (as verl does)."""


# Advantages


def _dr_grpo(r_G: Tensor) -> Tensor:
    # The mean of equal numbers need not be that number to the last bit.
    return r_G.new_zeros(r_G.shape) if r_G.min() == r_G.max() else r_G - r_G.mean()


def _grpo(r_G: Tensor) -> Tensor:
    return _dr_grpo(r_G) / (r_G.std(correction=1) + STD_EPSILON) if len(r_G) > 1 else r_G.new_zeros(r_G.shape)


def _rloo(r_G: Tensor) -> Tensor:
    return _dr_grpo(r_G) * (len(r_G) / max(len(r_G) - 1, 1))


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {"grpo": _grpo, "dr_grpo": _dr_grpo, "rloo": _rloo}
"""From the rewards of a group [G] float64 to the advantages [G].

`grpo` (arXiv 2402.03300): (reward - mean) / (unbiased std + 1e-6). `dr_grpo` (arXiv 2503.20783): reward - mean.
`rloo` (arXiv 2402.14740): reward - mean of the others. Exactly 0 in a group of one or of equal rewards.
"""


def group_advantages(rewards_N: Tensor, sizes: Sequence[int], kind: str = "grpo") -> Tensor:
    """Advantage of each trajectory within its group, [N] in the dtype of `rewards_N`; `kind` is a row of ADVANTAGES.

    ValueError when `sizes` does not sum to N or `kind` is unknown.
    """
    import torch

    if kind not in ADVANTAGES:
        raise ValueError(f"kind = {kind!r}: one of {', '.join(ADVANTAGES)}")
    if sum(sizes) != len(rewards_N) or min(sizes, default=1) < 1:
        raise ValueError(f"sizes {list(sizes)} must be positive and sum to the {len(rewards_N)} rewards")
    groups = [ADVANTAGES[kind](r_G) for r_G in rewards_N.double().split(list(sizes))]
    return torch.cat(groups).to(rewards_N.dtype) if groups else rewards_N.clone()


# Aggregations

AGGREGATIONS: dict[str, Callable[[float, int, float, float], float]] = {
    "token-mean": lambda count, length, tokens, sequences: count / tokens,
    "seq-mean-token-mean": lambda count, length, tokens, sequences: count / sequences / length,
    "seq-mean-token-sum": lambda count, length, tokens, sequences: count / sequences,
}
"""The weight of a sequence's tokens, from its count and its length, and the step's counted tokens and counted sequences.

`token-mean` is the mean over all tokens; `seq-mean-token-mean` and `seq-mean-token-sum` are means over sequences of their
tokens' mean or sum.
"""


def token_weights(lengths: Sequence[int], counts: Sequence[float], aggregation: str) -> list[float]:
    """The weight of each token's loss for each sequence; the weighted sum over all tokens is the step's loss.

    `lengths` are those of every sequence of the step, positive; `counts` say how many sequences each stands for in the means.
    """
    tokens = math.fsum(count * length for count, length in zip(counts, lengths, strict=True))
    sequences, weight = math.fsum(counts), AGGREGATIONS[aggregation]
    return [weight(count, length, tokens, sequences) for count, length in zip(counts, lengths, strict=True)]


# Losses

Loss = Callable[["Tensor", "Tensor", Sequence[int], "PolicyConfig"], tuple["Tensor", "Tensor"]]
"""`loss(log_ratio_L, advantage_L, lengths, config)`: the loss of each token [L], and where clipping decided it, bool [L].

`log_ratio_L` is log π - log π_old in nats and carries the gradient; `advantage_L` is the advantage of each token's turn;
`lengths` are the tokens of each turn, and sum to L; `config` is the section `policy`.
"""


def clipped_policy_loss(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float = math.inf
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347) per token: the loss [..., L], and where a clipped branch won, bool.

    `max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))` with `ratio = exp(log_ratio)`, and at most
    `-A * dual_clip` where A is negative (arXiv 1912.09729). `advantage` broadcasts against `log_ratio` [..., L].
    """
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -advantage * ratio
    loss = unclipped.maximum(-advantage * ratio.clamp(1 - clip_low, 1 + clip_high))
    if math.isfinite(dual_clip):
        loss = loss.minimum(-advantage * dual_clip).where(advantage < 0, loss)
    return loss, loss != unclipped


def sequence_log_ratio(log_ratio_L: Tensor, lengths: Sequence[int]) -> Tensor:
    """GSPO's log-ratio [L] (arXiv 2507.18071): the value is the mean of the token's sequence, the gradient the token's own."""
    from learners.runs import Runs

    turns, value_L = Runs(lengths, log_ratio_L.device), log_ratio_L.detach()
    return log_ratio_L - value_L + turns.spread(turns.sums(value_L)) / turns.spread(turns.counts_R)


def _clipped(
    log_ratio_L: Tensor, advantage_L: Tensor, lengths: Sequence[int], config: PolicyConfig
) -> tuple[Tensor, Tensor]:
    return clipped_policy_loss(log_ratio_L, advantage_L, config.clip_low, config.clip_high, config.dual_clip)


def _gspo(
    log_ratio_L: Tensor, advantage_L: Tensor, lengths: Sequence[int], config: PolicyConfig
) -> tuple[Tensor, Tensor]:
    return clipped_policy_loss(sequence_log_ratio(log_ratio_L, lengths), advantage_L, config.clip_low, config.clip_high)


LOSSES: dict[str, Loss] = {"clipped": _clipped, "gspo": _gspo}
"""The losses of the policy: the paper's, and GSPO, which has no dual clip."""

ONLY_AGGREGATION = {"gspo": "seq-mean-token-mean"}
"""Losses that are defined with one aggregation alone."""


def find_loss(name: str) -> Loss:
    """The row of LOSSES, or the user's own function `path/to/file.py:function`, wrapped so that what is wrong with it is said.

    Raises UserError when there is no such function; the wrapped one raises TrainingError when it fails or does not return
    what a Loss returns.
    """
    if name in LOSSES:
        return LOSSES[name]
    function = own_function("policy.loss", name, ("log_ratio_L", "advantage_L", "lengths", "config"))

    def checked(
        log_ratio_L: Tensor, advantage_L: Tensor, lengths: Sequence[int], config: PolicyConfig
    ) -> tuple[Tensor, Tensor]:
        try:
            loss_L, clipped_L = function(log_ratio_L, advantage_L, lengths, config)
            fits = loss_L.shape == clipped_L.shape == log_ratio_L.shape and loss_L.requires_grad
        except Exception as error:
            raise TrainingError(f"policy.loss: {name} failed: {describe(error)}") from error
        if not fits:
            raise TrainingError(
                f"policy.loss: {name} must return a loss with a gradient and whether it was clipped for each of the "
                f"{len(log_ratio_L)} tokens"
            )
        return loss_L, clipped_L

    return checked


def check_loss(config: PolicyConfig) -> None:
    """Try a user's own loss on five tokens of two turns. Raises UserError when it cannot be found or used."""
    if config.loss in LOSSES:
        return
    import torch

    log_ratio_L = torch.tensor([0.0, 0.1, -0.5, 0.0, 0.7], requires_grad=True)
    try:
        find_loss(config.loss)(log_ratio_L, torch.tensor([1.0, 1.0, 1.0, -0.5, -0.5]), (3, 2), config)
    except TrainingError as error:
        raise UserError(str(error)) from error


# Corrections


def _sequence_sums(values_L: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum of each token's sequence, [L]."""
    from learners.runs import Runs

    turns = Runs(lengths, values_L.device)
    return turns.spread(turns.sums(values_L))


IMPORTANCE: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "token": lambda log_ratio_L, lengths: log_ratio_L,
    "sequence": _sequence_sums,
    "none": lambda log_ratio_L, lengths: log_ratio_L.new_zeros(log_ratio_L.shape),
}
"""The log [L] of each token's importance weight, from log-ratios [L]: its own, the whole turn's, or 0 for a weight of 1."""

BEYOND: dict[str, Callable[[float], float]] = {"truncate": lambda cap: cap, "mask": lambda cap: 0.0}
"""What an importance weight above the cap becomes."""


def importance_weights(
    log_ratio_L: Tensor, lengths: Sequence[int], level: str, cap: float, beyond: str
) -> tuple[Tensor, Tensor]:
    """Truncated importance weights [L] of tokens sampled by the engine for a learner's loss, detached, and which were above
    `cap`, bool [L].

    `log_ratio_L` is learner minus engine; `level` is a row of IMPORTANCE and `beyond` one of BEYOND.
    """
    log_weight_L = IMPORTANCE[level](log_ratio_L.detach(), lengths)
    weight_L = log_weight_L.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    above_L = weight_L > cap
    return weight_L.masked_fill(above_L, BEYOND[beyond](cap)), above_L


def _k3(difference: Tensor) -> Tensor:
    negative = (-difference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return negative.expm1() - negative


KL_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {"k1": lambda d: d, "k2": lambda d: d.square() / 2, "k3": _k3}
"""From `d = log_prob - ref_log_prob` to the estimate: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1, whose d is clamped to ±20
(Schulman, "Approximating KL Divergence", 2020)."""


def kl_estimate(log_prob: Tensor, ref_log_prob: Tensor, kind: str) -> Tensor:
    """Estimate per token, in nats, of KL(policy || reference) from tokens the policy sampled; all shapes [..., L].

    `kind` is a row of KL_ESTIMATES; ValueError when it is unknown.
    """
    if kind not in KL_ESTIMATES:
        raise ValueError(f"kind = {kind!r}: one of {', '.join(KL_ESTIMATES)}")
    return KL_ESTIMATES[kind](log_prob - ref_log_prob)


def difficulty_advantage(correct: bool, pass_rate: float | None, config: SamplerConfig) -> float:
    """The paper's advantage of a draw in stage 1, from the question's pass rate c: right 1/c, wrong -1/(1-c), size capped.

    At c = 0: `max_advantage` when right, `wrong_at_zero` when wrong. ValueError when `pass_rate` is None, or not in 0…1 or 1
    itself: such a question is to be dropped, for the frozen MLLM answers it from any frames.
    """
    if pass_rate is None or not 0 <= pass_rate < 1:
        raise ValueError(f"pass_rate = {pass_rate}: objective 'difficulty' needs the question's measured one, below 1")
    if pass_rate == 0:
        advantage = config.max_advantage if correct else config.wrong_at_zero
    else:
        advantage = 1 / pass_rate if correct else -1 / (1 - pass_rate)
    return max(-config.max_advantage, min(config.max_advantage, advantage))
