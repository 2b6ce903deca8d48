"""The sampler's advantages: what the answer to a draw was worth, less a baseline that the other draws give.

`docs/objectives.md` ("Credit inside a trajectory") derives the baseline, and its symbols are used here: r is the worth of a
draw, b its baseline, V_f the variance of r between draws of the same queries, V_q the variance between the queries of a
question. Query turns may have different numbers of draws, m, because trajectories can be lost.

Invariant: a draw's own r has no part in its b, neither in the two means nor in their weights.

Shape letters: `N` draws of the step, `B` its questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.runs import Runs


def draw_advantages(r_N: Tensor, sizes: Sequence[int], draws: Sequence[int]) -> Tensor:
    """r - b of each draw, [N] in the dtype of `r_N`.

    `sizes` are the numbers of draws of each question, `draws` those of each query turn; the draws stand in that order.
    b is 0 for a draw that is alone in its question. ValueError when `sizes` or `draws` does not sum to N.
    """
    if not sum(sizes) == sum(draws) == len(r_N):
        raise ValueError(f"sizes {list(sizes)} and draws {list(draws)} must both sum to the {len(r_N)} values")
    return r_N - _baselines(r_N.double(), Runs(draws), Runs(sizes)).to(r_N.dtype)


def _baselines(r_N: Tensor, queries: Runs, questions: Runs) -> Tensor:
    """b [N]: the mean of the other draws of the same queries and the mean of the draws of the question's other queries, each
    weighted by the inverse of its error."""
    m_N, n_N = queries.spread(queries.counts_R), questions.spread(questions.counts_R)
    num_same_N, num_other_N = (m_N - 1).clamp(min=1), (n_N - m_N).clamp(min=1)
    sum_query_N, sum_question_N = queries.spread(queries.sums(r_N)), questions.spread(questions.sums(r_N))
    sum_same_N, sum_other_N = sum_query_N - r_N, sum_question_N - sum_query_N

    v_f_N, v_q_N = (questions.spread(v_B) for v_B in _variances_elsewhere(r_N, queries, questions))
    squares_N = questions.spread(questions.sums(m_N)) - m_N**2  # the sum of m^2 over the question's other queries
    error_same_N = v_f_N / num_same_N
    error_other_N = v_q_N * (1 + squares_N / num_other_N**2) + v_f_N / num_other_N
    weight_N = error_other_N / (error_same_N + error_other_N)
    weight_N = weight_N.masked_fill(n_N == m_N, 1.0).masked_fill(m_N == 1, 0.0)
    return weight_N * sum_same_N / num_same_N + (1 - weight_N) * sum_other_N / num_other_N


def _variances_elsewhere(r_N: Tensor, queries: Runs, questions: Runs) -> tuple[Tensor, Tensor]:
    """V_f and V_q [B] for each question, estimated from all *other* questions of the step; 1 and 0 where nothing varies there.

    The unbiased estimates of a one-way analysis of variance whose classes are the query turns of a question.
    """
    m_N, n_B = queries.spread(queries.counts_R), questions.counts_R
    num_queries_B = questions.sums(queries.firsts())
    mean_query_N, mean_question_B = queries.spread(queries.sums(r_N) / queries.counts_R), questions.sums(r_N) / n_B
    squares_within_B = questions.sums((r_N - mean_query_N).square())
    squares_between_B = questions.sums((mean_query_N - questions.spread(mean_question_B)).square())
    sum_of_squared_m_B = questions.sums(m_N)

    v_f_B = _sums_elsewhere(squares_within_B) / _sums_elsewhere(n_B - num_queries_B).clamp(min=1)
    excess_B = _sums_elsewhere(squares_between_B) - _sums_elsewhere(num_queries_B - 1) * v_f_B
    v_q_B = excess_B.clamp(min=0) / _sums_elsewhere(n_B - sum_of_squared_m_B / n_B).clamp(min=1)
    return torch.where(v_f_B + v_q_B == 0, 1.0, v_f_B), v_q_B


def _sums_elsewhere(x_B: Tensor) -> Tensor:
    """For each element [B] the sum of all others: of those before and those after it, so that no rounding lets it in."""
    before_B, after_B = x_B.cumsum(0), x_B.flip(0).cumsum(0)
    return F.pad(before_B[:-1], (1, 0)) + F.pad(after_B[:-1], (1, 0)).flip(0)
