"""What learns from what: from the groups of a step to the samples of both learners.

Invariants: a trajectory whose advantage is 0 has no gradient and is not computed, but its tokens count where a mean divides;
both turns of a trajectory share its advantage; groups without signal are counted, never silently dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learners.config import SamplerConfig
from learners.objectives import difficulty_advantage, group_advantages, sampler_advantages
from services.schema import Group, Selection, Turn


@dataclass(frozen=True)
class PolicySample:
    """One turn and the advantage of every one of its tokens."""

    name: str
    """Question, trajectory and turn, for error messages."""
    turn: Turn
    advantage: float


@dataclass(frozen=True)
class PolicyBatch:
    """What one GRPO update learns from."""

    samples: tuple[PolicySample, ...]
    """Turns with a gradient."""
    num_tokens: int
    """Response tokens of the whole step: the global count that the token mean divides by."""


@dataclass(frozen=True)
class SamplerSample:
    """One draw and its advantage."""

    selection: Selection
    advantage: float


def policy_batch(groups: Sequence[Group]) -> PolicyBatch:
    """Both turns of every trajectory, with GRPO's advantage within its group."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = torch.tensor([trajectory.reward.total for trajectory in trajectories])
    advantages = group_advantages(rewards, [len(group.trajectories) for group in groups]).tolist()
    turns = [
        PolicySample(f"question {t.question_id}, trajectory {t.index}, {name} turn", turn, advantage)
        for t, advantage in zip(trajectories, advantages, strict=True)
        for name, turn in (("query", t.query_turn), ("answer", t.answer_turn))
    ]
    return PolicyBatch(
        tuple(turn for turn in turns if turn.advantage != 0.0), sum(len(turn.turn.response_ids) for turn in turns)
    )


def sampler_batch(groups: Sequence[Group], config: SamplerConfig) -> tuple[SamplerSample, ...]:
    """Every draw of the step with its advantage; nothing for a selection in which nothing was drawn (T <= K).

    `objective="difficulty"` (stage 1) reads the questions' pass rates, which must be below 1.
    """
    trajectories = [(group.question, trajectory) for group in groups for trajectory in group.trajectories]
    if config.objective == "difficulty":
        advantages = [
            difficulty_advantage(trajectory.letter == question.answer, question.pass_rate, config)
            for question, trajectory in trajectories
        ]
    else:
        rewards = [trajectory.reward for _, trajectory in trajectories]
        advantages = sampler_advantages(rewards, [len(group.trajectories) for group in groups], config).tolist()
    return tuple(
        SamplerSample(trajectory.selection, advantage)
        for (_, trajectory), advantage in zip(trajectories, advantages, strict=True)
        if advantage is not None and trajectory.selection.draw
    )


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the step's trajectories: rewards by part, replies that could not be parsed, lengths, lost signal."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return {
        "reward/total": mean([t.reward.total for t in trajectories]),
        "reward/accuracy": mean([t.reward.accuracy for t in trajectories]),
        "reward/format": mean([t.reward.format for t in trajectories]),
        "reward/info": mean([t.reward.info for t in trajectories]),
        "rollout/right_answers": mean(
            [t.letter == group.question.answer for group in groups for t in group.trajectories]
        ),
        "rollout/answers_unparsed": mean([t.letter is None for t in trajectories]),
        "rollout/queries": mean([len(t.queries) for t in trajectories]),
        "rollout/truncated": mean([t.query_turn.truncated or t.answer_turn.truncated for t in trajectories]),
        "rollout/query_tokens": mean([len(t.query_turn.response_ids) for t in trajectories]),
        "rollout/answer_tokens": mean([len(t.answer_turn.response_ids) for t in trajectories]),
        "rollout/groups_without_signal": mean(
            [len({t.reward.total for t in group.trajectories}) == 1 for group in groups]
        ),
        "sampler/entropy": mean([t.selection.entropy for t in trajectories]),
    }
