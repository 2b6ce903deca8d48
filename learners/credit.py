"""What learns from what: from the groups of a step to the samples of both learners; derived in `docs/objectives.md`.

Invariants: a turn or a draw whose advantage is 0 has no gradient and is not computed (unless a KL term or an entropy bonus
pulls on it), but it counts where a mean divides; a query turn that M trajectories share is one sample; groups without signal
are counted, never silently dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from learners.baseline import draw_advantages
from learners.config import PolicyConfig, SamplerConfig
from learners.objectives import difficulty_advantage, group_advantages, token_weights
from services.schema import Group, Question, Selection, Trajectory, Turn, label


@dataclass(frozen=True)
class PolicySample:
    """One turn, and what every one of its tokens counts."""

    name: str
    """Question, trajectory and turn, for error messages."""
    turn: Turn
    advantage: float
    weight: float
    """The weight of each token's loss in the step's: the global normalisation."""


@dataclass(frozen=True)
class SamplerSample:
    """One draw and its advantage."""

    selection: Selection
    advantage: float
    weight: float
    """The weight of its loss in the step's: one over the draws of the step."""


def policy_batch(groups: Sequence[Group], config: PolicyConfig) -> tuple[PolicySample, ...]:
    """The turns with a gradient, each with its advantage within its group and its tokens' weight in the step's loss.

    A query turn is compared by the mean reward of its trajectories with the group's other query turns, an answer turn by its
    own reward with all others of the group. M answers to one query turn count as much as it does, each an Mth. Turns without
    tokens, and with `truncated_replies="mask"` those that hit the limit, count nowhere.
    """
    rewards = [[t.reward.total for t in group.trajectories] for group in groups]
    means = [[_mean(t.reward.total for t in sharing) for sharing in group.by_query_turn] for group in groups]
    of_answers = iter(_advantages(rewards, config))
    of_queries = iter(_advantages(means, config))
    turns = []
    for group in groups:
        name = f"question {group.question.id}, trajectory {{}}, {{}} turn"
        for sharing in group.by_query_turn:
            turns.append((name.format(sharing[0].index, "query"), sharing[0].query_turn, next(of_queries), 1.0))
            count = 1 / len(sharing)
            turns += [(name.format(t.index, "answer"), t.answer_turn, next(of_answers), count) for t in sharing]
    counted = [
        (name, turn, advantage, count)
        for name, turn, advantage, count in turns
        if len(turn.response_ids) and not (turn.truncated and config.truncated_replies == "mask")
    ]
    lengths, counts = [len(turn.response_ids) for _, turn, _, _ in counted], [count for *_, count in counted]
    weights = token_weights(lengths, counts, config.aggregation)
    return tuple(
        PolicySample(name, turn, advantage, weight)
        for (name, turn, advantage, _), weight in zip(counted, weights, strict=True)
        if advantage != 0.0 or config.kl_coef > 0
    )


def _advantages(rewards: Sequence[Sequence[float]], config: PolicyConfig) -> list[float]:
    flat = torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64)
    return group_advantages(flat, [len(group) for group in rewards], config.advantage).tolist()


@dataclass(frozen=True)
class Objective:
    """What the sampler learns from."""

    worth: Callable[[Question, Trajectory, SamplerConfig], float]
    """The worth of a trajectory's draw, before the baseline is subtracted."""
    teaches: Callable[[Question], bool] = lambda question: True
    """Whether the sampler can learn from a question; others are dropped."""


def _reward(question: Question, trajectory: Trajectory, config: SamplerConfig) -> float:
    return trajectory.reward.total if config.reward == "total" else trajectory.reward.terms["accuracy"]


def _difficulty(question: Question, trajectory: Trajectory, config: SamplerConfig) -> float:
    return difficulty_advantage(trajectory.letter == label(question), question.pass_rate, config)


OBJECTIVES = {
    "joint": Objective(_reward),
    "difficulty": Objective(_difficulty, teaches=lambda question: question.pass_rate != 1),
}
"""The values of `sampler.objective`."""


def sampler_batch(groups: Sequence[Group], config: SamplerConfig) -> tuple[SamplerSample, ...]:
    """The draws with a gradient, each with its advantage; none for a selection in which nothing was drawn (T <= K).

    `objective="difficulty"` (stage 1) reads the questions' pass rates and drops those of 1.
    """
    objective = OBJECTIVES[config.objective]
    groups = [group for group in groups if objective.teaches(group.question)]
    trajectories = [(group.question, trajectory) for group in groups for trajectory in group.trajectories]
    advantages = torch.tensor([objective.worth(question, trajectory, config) for question, trajectory in trajectories])
    if config.baseline:
        sizes = [len(group.trajectories) for group in groups]
        draws = [len(sharing) for group in groups for sharing in group.by_query_turn]
        advantages = draw_advantages(advantages, sizes, draws)
    draws_made = [
        (trajectory.selection, advantage)
        for (_, trajectory), advantage in zip(trajectories, advantages.tolist(), strict=True)
        if trajectory.selection.draw
    ]
    return tuple(
        SamplerSample(selection, advantage, 1 / len(draws_made))
        for selection, advantage in draws_made
        if advantage != 0.0 or config.entropy_bonus > 0
    )


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the step: rewards by term, replies that could not be parsed or were cut, lengths, groups, lost signal."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    first_of_turns = [sharing[0] for group in groups for sharing in group.by_query_turn]
    queries = [t.query_turn for t in first_of_turns]
    answers = [t.answer_turn for t in trajectories]
    return {
        "reward/total": _mean(t.reward.total for t in trajectories),
        **{
            f"reward/{term}": _mean(t.reward.terms[term] for t in trajectories) for term in trajectories[0].reward.terms
        },
        "rollout/right_answers": _mean(t.letter == label(g.question) for g in groups for t in g.trajectories),
        "rollout/queries": _mean(0 if t.fallback else len(t.queries) for t in first_of_turns),
        "rollout/queries_unparsed": _mean(t.fallback for t in first_of_turns),
        "rollout/answers_unparsed": _mean(t.letter is None for t in trajectories),
        "rollout/queries_truncated": _mean(turn.truncated for turn in queries),
        "rollout/answers_truncated": _mean(turn.truncated for turn in answers),
        "rollout/query_tokens": _mean(len(turn.response_ids) for turn in queries),
        "rollout/answer_tokens": _mean(len(turn.response_ids) for turn in answers),
        "rollout/groups": float(len(groups)),
        "rollout/group_size": _mean(len(group.trajectories) for group in groups),
        "rollout/groups_without_signal": _mean(not group.has_signal for group in groups),
        "sampler/entropy": _mean(t.selection.entropy for t in trajectories),
    }


def _mean(values: Iterable[float]) -> float:
    """Exactly rounded, so that the order of equal parts makes no difference."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
