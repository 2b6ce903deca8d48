"""Advantages and per-token losses of both learners: pure functions on tensors.

Invariants: a group is a run of consecutive trajectories, given by `sizes`; losses are per token and unmasked, since
only the caller knows the global token count that a mean divides by.

Shape letters: `N` trajectories of all groups, `L` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from learners.config import SamplerConfig
from services.schema import Reward

STD_EPSILON = 1e-6
"""Reward. Added to a group's standard deviation (verl's value)."""

LOG_RATIO_LIMIT = 20.0
"""Nats. Log-ratios are clamped to this size before exp; beyond it their gradient is 0 (as verl does)."""


def group_advantages(rewards_N: Tensor, sizes: Sequence[int], kind: Literal["grpo"] = "grpo") -> Tensor:
    """Advantage of each trajectory within its group, [N] in the dtype of `rewards_N`.

    `grpo` (arXiv 2402.03300): (reward - mean) / (unbiased std + 1e-6); exactly 0 in a group of one or of equal
    rewards. ValueError when `sizes` does not sum to N or `kind` is unknown.
    """
    if kind not in _ADVANTAGES:
        raise ValueError(f"kind = {kind!r}: one of {', '.join(_ADVANTAGES)}")
    return _per_group(_ADVANTAGES[kind], rewards_N, sizes)


def leave_one_out_baseline(rewards_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean reward of the other trajectories of the group, [N] in the dtype of `rewards_N`; 0 in a group of one, which
    has no others. ValueError when `sizes` does not sum to N."""
    return _per_group(lambda r_G: (r_G.sum() - r_G) / max(len(r_G) - 1, 1), rewards_N, sizes)


def clipped_policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347) per token: the loss [..., L], and where the clipped branch won, bool.

    `max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))` with `ratio = exp(log_prob - old_log_prob)`.
    `log_prob` and `old_log_prob` are [..., L]; `advantage` broadcasts against them, [..., 1] for one per sequence.
    """
    ratio = (log_prob - old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def kl_estimate(log_prob: Tensor, ref_log_prob: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate per token, in nats, of KL(policy || reference) from tokens the policy sampled; all shapes [..., L].

    With `d = log_prob - ref_log_prob`: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1, whose d is clamped to ±20
    (Schulman, "Approximating KL Divergence", 2020). ValueError when `kind` is unknown.
    """
    difference = log_prob - ref_log_prob
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        negative = (-difference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return torch.expm1(negative) - negative
    raise ValueError(f"kind = {kind!r}: one of k1, k2, k3")


def difficulty_advantage(correct: bool, pass_rate: float | None, config: SamplerConfig) -> float | None:
    """The sampler's advantage in stage 1, from the question's pass rate c: right 1/c, wrong -1/(1-c), size capped.

    At c = 0: `max_advantage` when right, `wrong_at_zero` when wrong. None at c = 1: the question is to be dropped, the
    frozen MLLM answers it from any frames. ValueError when `pass_rate` is None or outside 0…1.
    """
    if pass_rate is None or not 0 <= pass_rate <= 1:
        raise ValueError(f"pass_rate = {pass_rate}: objective 'difficulty' needs the question's measured one, 0…1")
    if pass_rate == 1:
        return None
    if pass_rate == 0:
        advantage = config.max_advantage if correct else config.wrong_at_zero
    else:
        advantage = 1 / pass_rate if correct else -1 / (1 - pass_rate)
    return max(-config.max_advantage, min(config.max_advantage, advantage))


def sampler_advantages(rewards: Sequence[Reward], sizes: Sequence[int], config: SamplerConfig) -> Tensor:
    """The sampler's advantages in stage 2, [N] float32: `config.reward`, less the leave-one-out mean of the group when
    `config.baseline`. ValueError when `sizes` does not sum to N."""
    rewards_N = torch.tensor([r.total if config.reward == "total" else r.accuracy for r in rewards])
    return rewards_N - leave_one_out_baseline(rewards_N, sizes) if config.baseline else rewards_N


def _grpo(r_G: Tensor) -> Tensor:
    if r_G.min() == r_G.max():
        return torch.zeros_like(r_G)
    return (r_G - r_G.mean()) / (r_G.std(correction=1) + STD_EPSILON)


_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {"grpo": _grpo}


def _per_group(function: Callable[[Tensor], Tensor], rewards_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """`function` of each group's rewards in float64, side by side again."""
    if sum(sizes) != len(rewards_N) or min(sizes, default=1) < 1:
        raise ValueError(f"sizes {list(sizes)} must be positive and sum to the {len(rewards_N)} rewards")
    groups = [function(r_G) for r_G in rewards_N.double().split(list(sizes))]
    return torch.cat(groups).to(rewards_N.dtype) if groups else rewards_N.clone()
