"""Advantages and per-token losses of both learners: pure functions on tensors; `docs/objectives.md` derives them.

Invariants: a group is a run of consecutive trajectories, given by `sizes`; a sequence is a run of consecutive tokens, given
by `lengths`; losses are per token, and `token_weights`, from global counts, are all that turns them into a step's loss, so
that no split of a batch changes it.

Shape letters: `N` trajectories of all groups, `L` tokens of all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.config import SamplerConfig

STD_EPSILON = 1e-6
"""Reward. Added to a group's standard deviation (verl's value)."""

LOG_RATIO_LIMIT = 20.0
"""Nats. Log-ratios are clamped to this size before exp; beyond it their gradient is 0 (as verl does)."""

Advantage = Literal["grpo", "dr_grpo", "rloo"]
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]


def group_advantages(rewards_N: Tensor, sizes: Sequence[int], kind: Advantage = "grpo") -> Tensor:
    """Advantage of each trajectory within its group, [N] in the dtype of `rewards_N`.

    `grpo` (arXiv 2402.03300): (reward - mean) / (unbiased std + 1e-6). `dr_grpo` (arXiv 2503.20783): reward - mean.
    `rloo` (arXiv 2402.14740): reward - mean of the others. Exactly 0 in a group of one or of equal rewards.
    ValueError when `sizes` does not sum to N or `kind` is unknown.
    """
    if kind not in _ADVANTAGES:
        raise ValueError(f"kind = {kind!r}: one of {', '.join(_ADVANTAGES)}")
    return _per_group(_ADVANTAGES[kind], rewards_N, sizes)


def token_weights(lengths: Sequence[int], counts: Sequence[float], aggregation: Aggregation) -> list[float]:
    """What each token's loss of each sequence is multiplied by, so that the sum over all tokens is the step's loss.

    `lengths` are those of every sequence of the step, positive; `counts`, as how many sequences each counts in the means:
    `token-mean` is the mean over all tokens; `seq-mean-token-mean` and `seq-mean-token-sum` are means over sequences of their
    tokens' mean or sum.
    """
    tokens = math.fsum(count * length for count, length in zip(counts, lengths, strict=True))
    sequences, weight = math.fsum(counts), _AGGREGATIONS[aggregation]
    return [weight(count, length, tokens, sequences) for count, length in zip(counts, lengths, strict=True)]


_AGGREGATIONS: dict[Aggregation, Callable[[float, int, float, float], float]] = {
    "token-mean": lambda count, length, tokens, sequences: count / tokens,
    "seq-mean-token-mean": lambda count, length, tokens, sequences: count / sequences / length,
    "seq-mean-token-sum": lambda count, length, tokens, sequences: count / sequences,
}
"""A token's weight from its sequence's count and length, and the step's counted tokens and sequences."""


def sequence_log_ratio(log_ratio_L: Tensor, lengths: Sequence[int]) -> Tensor:
    """GSPO's log-ratio [L] (arXiv 2507.18071): the value is the mean of the token's sequence, the gradient the token's own."""
    lengths_tensor = torch.tensor(lengths, device=log_ratio_L.device)
    mean_L = _sequence_sums(log_ratio_L.detach(), lengths) / lengths_tensor.repeat_interleave(lengths_tensor)
    return log_ratio_L - log_ratio_L.detach() + mean_L


def clipped_policy_loss(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float = math.inf
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347) per token: the loss [..., L], and where a clipped branch won, bool.

    `max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))` with `ratio = exp(log_ratio)`, and at most
    `-A * dual_clip` where A is negative (arXiv 1912.09729). `advantage` broadcasts against `log_ratio` [..., L].
    """
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -advantage * ratio
    loss = torch.maximum(unclipped, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))
    if math.isfinite(dual_clip):
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)
    return loss, loss != unclipped


def importance_weights(
    log_ratio_L: Tensor,
    lengths: Sequence[int],
    level: Literal["token", "sequence", "none"],
    cap: float,
    beyond: Literal["truncate", "mask"],
) -> tuple[Tensor, Tensor]:
    """Truncated importance weights [L] of tokens sampled by the engine for a learner's loss, detached, and which were above
    `cap`, bool [L].

    `log_ratio_L` is learner minus engine; `sequence` takes the product over the sequence. `truncate` makes a weight above the
    cap the cap, `mask` makes it 0; `none` gives ones.
    """
    if level == "none":
        return torch.ones_like(log_ratio_L), torch.zeros_like(log_ratio_L, dtype=torch.bool)
    log_ratio_L = log_ratio_L.detach()
    if level == "sequence":
        log_ratio_L = _sequence_sums(log_ratio_L, lengths)
    weight_L = log_ratio_L.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    above_L = weight_L > cap
    return weight_L.masked_fill(above_L, cap if beyond == "truncate" else 0.0), above_L


def kl_estimate(log_prob: Tensor, ref_log_prob: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate per token, in nats, of KL(policy || reference) from tokens the policy sampled; all shapes [..., L].

    With `d = log_prob - ref_log_prob`: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1, whose d is clamped to ±20
    (Schulman, "Approximating KL Divergence", 2020). ValueError when `kind` is unknown.
    """
    if kind not in _KL_ESTIMATES:
        raise ValueError(f"kind = {kind!r}: one of {', '.join(_KL_ESTIMATES)}")
    return _KL_ESTIMATES[kind](log_prob - ref_log_prob)


def _k3(difference: Tensor) -> Tensor:
    negative = (-difference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(negative) - negative


_KL_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {"k1": lambda d: d, "k2": lambda d: d.square() / 2, "k3": _k3}


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


def draw_advantages(values_N: Tensor, sizes: Sequence[int], draws: Sequence[int]) -> Tensor:
    """What the answers to draws were worth [N], less the sampler's baseline, in which no draw has a part of its own.

    The baseline estimates what the draw's queries are worth, from the mean of their other draws, whose numbers are `draws`,
    and that of the group's other queries, whose numbers of draws sum to `sizes`. Each weighs by the inverse of its variance,
    got from the variances between and within queries of the step's *other* groups; where these show none, all other draws of
    the group weigh alike. Without others in the group the baseline is 0. ValueError when `sizes` or `draws` does not sum to N.
    """
    if not sum(sizes) == sum(draws) == len(values_N):
        raise ValueError(f"sizes {list(sizes)} and draws {list(draws)} must both sum to the {len(values_N)} values")
    query_N, group_N = _owners(draws), _owners(sizes)
    v_N, draws_N, sizes_N = values_N.double(), _counts(draws)[query_N], _counts(sizes)[group_N]
    of_query_N, of_group_N = _sums(v_N, draws)[query_N], _sums(v_N, sizes)[group_N]
    within_N, between_N = (x_G[group_N] for x_G in _variances_of_others(v_N, sizes, draws))

    others_N, rest_N = (draws_N - 1).clamp(min=1), (sizes_N - draws_N).clamp(min=1)
    squares_N = _sums(draws_N, sizes)[group_N] - draws_N**2  # of the numbers of draws of the group's other queries
    query_variance_N = within_N / others_N
    rest_variance_N = between_N * (1 + squares_N / rest_N**2) + within_N / rest_N
    weight_N = rest_variance_N / (query_variance_N + rest_variance_N)
    weight_N = weight_N.masked_fill(sizes_N == draws_N, 1.0).masked_fill(draws_N == 1, 0.0)
    baseline_N = weight_N * (of_query_N - v_N) / others_N + (1 - weight_N) * (of_group_N - of_query_N) / rest_N
    return values_N - baseline_N.to(values_N.dtype)


def _variances_of_others(values_N: Tensor, sizes: Sequence[int], draws: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For each group, the variances [G] within and between queries of all *other* groups; 1 and 0 where nothing varies there.

    The unbiased estimates of a one-way analysis of variance, with the queries of a group as its classes.
    """
    query_N, group_N, sizes_G = _owners(draws), _owners(sizes), _counts(sizes)
    queries_G = group_N[_counts(draws).cumsum(0) - 1].bincount()
    query_mean_N, group_mean_N = _sums(values_N, draws) / _counts(draws), _sums(values_N, sizes) / sizes_G
    query_mean_N, group_mean_N = query_mean_N[query_N], group_mean_N[group_N]
    within_G = _sums((values_N - query_mean_N).square(), sizes)
    between_G = _sums((query_mean_N - group_mean_N).square(), sizes)
    squares_G = _sums(_counts(draws)[query_N], sizes)

    within_G = _sums_of_others(within_G) / _sums_of_others(sizes_G - queries_G).clamp(min=1)
    between_G = _sums_of_others(between_G) - _sums_of_others(queries_G - 1) * within_G
    between_G = between_G.clamp(min=0) / _sums_of_others(sizes_G - squares_G / sizes_G).clamp(min=1)
    return torch.where(within_G + between_G == 0, 1.0, within_G), between_G


def _sums_of_others(x_G: Tensor) -> Tensor:
    """The sum of all elements but one, for each [G]: of those before and those after it, so that no rounding lets it in."""
    before_G, after_G = x_G.cumsum(0), x_G.flip(0).cumsum(0)
    return F.pad(before_G[:-1], (1, 0)) + F.pad(after_G[:-1], (1, 0)).flip(0)


def _dr_grpo(r_G: Tensor) -> Tensor:
    # The mean of equal numbers need not be that number to the last bit.
    return torch.zeros_like(r_G) if r_G.min() == r_G.max() else r_G - r_G.mean()


def _grpo(r_G: Tensor) -> Tensor:
    return _dr_grpo(r_G) / (r_G.std(correction=1) + STD_EPSILON) if len(r_G) > 1 else torch.zeros_like(r_G)


def _rloo(r_G: Tensor) -> Tensor:
    return _dr_grpo(r_G) * (len(r_G) / max(len(r_G) - 1, 1))


_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {"grpo": _grpo, "dr_grpo": _dr_grpo, "rloo": _rloo}


def _per_group(function: Callable[[Tensor], Tensor], rewards_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """`function` of each group's rewards in float64, side by side again."""
    if sum(sizes) != len(rewards_N) or min(sizes, default=1) < 1:
        raise ValueError(f"sizes {list(sizes)} must be positive and sum to the {len(rewards_N)} rewards")
    groups = [function(r_G) for r_G in rewards_N.double().split(list(sizes))]
    return torch.cat(groups).to(rewards_N.dtype) if groups else rewards_N.clone()


def _counts(counts: Sequence[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.int64)


def _owners(counts: Sequence[int]) -> Tensor:
    """The index of the run that each element belongs to; run i has `counts[i]` consecutive elements."""
    return torch.arange(len(counts)).repeat_interleave(_counts(counts))


def _sums(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum of each of consecutive runs."""
    return values.new_zeros(len(counts)).index_add(0, _owners(counts).to(values.device), values)


def _sequence_sums(values_L: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each token's sequence's sum, [L]."""
    return _sums(values_L, lengths)[_owners(lengths).to(values_L.device)]
