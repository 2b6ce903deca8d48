"""Credit: from the groups of a step to the samples that both learners learn from (`docs/objectives.md`).

Invariants: a turn or a draw whose advantage is 0 has no gradient and is not computed (unless a KL term or an entropy bonus
pulls on it), but it counts where a mean divides; a query turn that M trajectories share is one sample; groups without signal
are counted, never silently dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from learners.baseline import draw_advantages
from learners.config import PolicyConfig, SamplerConfig
from learners.objectives import difficulty_advantage, group_advantages, token_weights
from services.schema import Group, Question, Selection, Trajectory, Turn, label


@dataclass(frozen=True)
class PolicySample:
    """One turn of the MLLM, as the policy learns from it."""

    name: str
    """Names the question, the trajectory and the turn in error messages."""
    turn: Turn
    advantage: float
    weight: float
    """The weight of each token's loss in the step's loss; the weights are normalised over the whole step."""


@dataclass(frozen=True)
class SamplerSample:
    """One draw of frames, as the sampler learns from it."""

    selection: Selection
    advantage: float
    weight: float
    """The weight of its loss in the step's loss: one over the number of draws of the step."""


@dataclass(frozen=True)
class JudgedTurn:
    """A turn with its advantage, before it is known what its tokens weigh."""

    name: str
    turn: Turn
    advantage: float
    count: float
    """How many sequences it stands for in the means."""


def policy_batch(groups: Sequence[Group], config: PolicyConfig) -> tuple[PolicySample, ...]:
    """The turns with a gradient, each with its advantage within its group and its tokens' weight in the step's loss.

    Turns without tokens, and with `truncated_replies="mask"` those that hit the limit, count nowhere.
    """
    counted = [
        judged
        for group in groups
        for judged in _judged_turns(group, config)
        if len(judged.turn.response_ids) and not (judged.turn.truncated and config.truncated_replies == "mask")
    ]
    lengths, counts = [len(judged.turn.response_ids) for judged in counted], [judged.count for judged in counted]
    weights = token_weights(lengths, counts, config.aggregation)
    return tuple(
        PolicySample(judged.name, judged.turn, judged.advantage, weight)
        for judged, weight in zip(counted, weights, strict=True)
        if judged.advantage != 0.0 or config.kl_coef > 0
    )


def _judged_turns(group: Group, config: PolicyConfig) -> Iterator[JudgedTurn]:
    """The turns of a group, each query turn before its answers.

    A query turn is compared by the mean reward of its trajectories with the group's other query turns, an answer turn by its
    own reward with all other answers of the group. The M answers to one query turn share its weight: each counts 1/M.
    """
    name = f"question {group.question.id}, trajectory"
    of_answers = iter(_advantages([t.reward.total for t in group.trajectories], config))
    mean_rewards = [_mean(t.reward.total for t in sharing) for sharing in group.by_query_turn]
    for advantage, sharing in zip(_advantages(mean_rewards, config), group.by_query_turn, strict=True):
        first = sharing[0]
        yield JudgedTurn(f"{name} {first.index}, query turn", first.query_turn, advantage, 1.0)
        for t in sharing:
            yield JudgedTurn(f"{name} {t.index}, answer turn", t.answer_turn, next(of_answers), 1 / len(sharing))


def _advantages(rewards: Sequence[float], config: PolicyConfig) -> list[float]:
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), [len(rewards)], config.advantage).tolist()


@dataclass(frozen=True)
class Objective:
    """What makes a draw good in the eyes of the sampler: a value of `sampler.objective`."""

    worth: Callable[[Question, Trajectory, SamplerConfig], float]
    """The worth of a trajectory's draw, before the baseline is subtracted."""
    teaches: Callable[[Question], bool] = lambda question: True
    """Whether the sampler can learn from a question; others are dropped."""
    normalised: bool = False
    """Whether worths are compared as GRPO compares rewards, within the question's group, whatever `sampler.baseline` says."""


def _reward(question: Question, trajectory: Trajectory, config: SamplerConfig) -> float:
    return trajectory.reward.total if config.reward == "total" else trajectory.reward.terms["accuracy"]


def _difficulty(question: Question, trajectory: Trajectory, config: SamplerConfig) -> float:
    return difficulty_advantage(trajectory.letter == label(question), question.pass_rate, config)


OBJECTIVES = {
    "joint": Objective(_reward),
    "difficulty": Objective(_difficulty, teaches=lambda question: question.pass_rate != 1),
    "tspo": Objective(_reward, normalised=True),
}
"""The values of `sampler.objective`."""


def sampler_batch(groups: Sequence[Group], config: SamplerConfig) -> tuple[SamplerSample, ...]:
    """The draws with a gradient, each with its advantage. A selection in which nothing was drawn (T <= K) gives none."""
    objective = OBJECTIVES[config.objective]
    groups = [group for group in groups if objective.teaches(group.question)]
    trajectories = [(group.question, trajectory) for group in groups for trajectory in group.trajectories]
    advantages = torch.tensor([objective.worth(question, trajectory, config) for question, trajectory in trajectories])
    sizes = [len(group.trajectories) for group in groups]
    if objective.normalised:
        advantages = group_advantages(advantages, sizes, "grpo")
    elif config.baseline:
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
    """Metrics of the step's rollouts: mean rewards by term, shares of replies that could not be parsed or were cut, lengths,
    and how many groups there are and how many of them have no signal."""
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
    """The mean, exactly rounded, so that the order of the values makes no difference."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
