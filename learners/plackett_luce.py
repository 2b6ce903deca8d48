"""Ordered draws without replacement from softmax(logits): the Plackett-Luce distribution.

Invariants: everything is computed in float64; a frame whose logit is -inf is never drawn, has no share in any
denominator, and gets gradient 0, never NaN.

Shape letters: `B` batch, `T` candidate frames, `K` chosen frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = -1e300
"""Takes the place of -inf in the computation: exp of its difference to any logit is exactly 0, and where all frames are absent
the gradients stay numbers, while those of -inf would be NaN."""


def sample(logits: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """`k` distinct frames, [..., k] int64 in drawn order, by Gumbel-top-k (arXiv 1903.06059) from `logits` [..., T].

    The same generator state gives the same draw on any device the logits are on. ValueError when fewer than `k` frames
    have a finite logit, or when a logit is NaN or +inf.
    """
    if not (logits < torch.inf).all():
        raise ValueError("logits hold NaN or +inf: no distribution to draw from")
    available = int(logits.isfinite().sum(-1).min())
    if not 0 <= k <= available:
        raise ValueError(f"k = {k}: only 0…{available} frames can be drawn without replacement")
    waits = torch.empty(logits.shape, dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    return (logits.detach().double() - waits.log().to(logits.device)).topk(k, dim=-1).indices


def log_prob(logits_BT: Tensor, draws_BK: Tensor) -> Tensor:
    """Log-probability [B] float64 of ordered draws: `sum_k (l[i_k] - logsumexp(l over frames not yet drawn))`, nats.

    `draws_BK` int64 holds distinct indices in drawn order, -1 where a shorter draw is padded; an empty draw gives 0,
    a draw that holds a frame whose logit is -inf gives about `ABSENT`.
    Step k's denominator adds the frames drawn at k or later to those never drawn: sums only, so nothing cancels, and
    memory is [B, T] + [B, K, K].
    """
    present_BK, logits_BT, chosen_BK = _chosen(logits_BT, draws_BK)
    num_frames, k = logits_BT.shape[-1], draws_BK.shape[-1]
    drawn_BT = torch.zeros(len(logits_BT), num_frames + 1, dtype=torch.bool, device=logits_BT.device)
    drawn_BT = drawn_BT.scatter(1, draws_BK.where(present_BK, num_frames), True)[:, :num_frames]
    rest_B = logits_BT.masked_fill(drawn_BT, ABSENT).logsumexp(-1)
    later_KK = torch.ones(k, k, dtype=torch.bool, device=logits_BT.device).triu()
    pending_BKK = chosen_BK[:, None, :].masked_fill(~(later_KK & present_BK[:, None, :]), ABSENT)
    denominator_BK = torch.cat([pending_BKK, rest_B[:, None, None].expand(-1, k, 1)], dim=-1).logsumexp(-1)
    return (chosen_BK - denominator_BK).masked_fill(~present_BK, 0.0).sum(-1)


def independent_log_prob(logits_BT: Tensor, draws_BK: Tensor) -> Tensor:
    """The paper's sum `sum_k log softmax(l)[i_k]`, [B] float64, in nats. It is not the log-probability of a draw without
    replacement. Draws are given as in `log_prob`."""
    present_BK, logits_BT, chosen_BK = _chosen(logits_BT, draws_BK)
    return (chosen_BK - logits_BT.logsumexp(-1, keepdim=True)).masked_fill(~present_BK, 0.0).sum(-1)


def mean_log_prob(logits_BT: Tensor, draws_BK: Tensor) -> Tensor:
    """The mean of `log softmax(l)[i_k]` over the K frames of each draw, [B] float64, in nats: what TSPO (arXiv 2508.04369)
    raises. Draws are given as in `log_prob`."""
    return independent_log_prob(logits_BT, draws_BK) / (draws_BK >= 0).sum(-1).clamp(min=1)


LOG_PROBS = {"plackett_luce": log_prob, "independent": independent_log_prob, "mean": mean_log_prob}
"""The values of `sampler.log_prob`."""


def entropy(logits: Tensor) -> Tensor:
    """Entropy [...] float64 of softmax(logits) over the last axis of [..., T], in nats, from 0 to log T. It is the entropy of
    drawing one frame, not of drawing K."""
    log_p = _finite(logits).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(logits == -torch.inf, 0.0)).sum(-1)


def _finite(logits: Tensor) -> Tensor:
    return logits.double().masked_fill(logits == -torch.inf, ABSENT)


def _chosen(logits_BT: Tensor, draws_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors: where a draw is not padding [B, K], the logits with ABSENT for -inf [B, T], and the logits of the drawn
    frames [B, K]."""
    logits_BT = _finite(logits_BT)
    return draws_BK >= 0, logits_BT, logits_BT.gather(1, draws_BK.clamp_min(0))
