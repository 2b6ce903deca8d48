"""From groups to samples: who gets which advantage, what counts in the mean, what is reported."""

from __future__ import annotations

import numpy as np
import pytest

from learners.config import SamplerConfig
from learners.credit import policy_batch, rollout_metrics, sampler_batch
from services.schema import Group, Question, Reward, Selection, Trajectory, Turn


def turn(length: int) -> Turn:
    ids = np.zeros(length, np.int32)
    return Turn(ids, ids, np.zeros(length, np.float32), text="", truncated=False, version=0, visual=None)


def group(name: str, accuracies: list[float], pass_rate: float | None = None, drawn: bool = True) -> Group:
    """A group whose right trajectories answer A; query turns of 3 tokens, answer turns of 2."""
    draw = (1, 0) if drawn else ()
    selection = Selection((0, 1), draw, None, 1.5, np.zeros((1, 4), np.float32), version=0)
    return Group(
        Question(name, "/v.mp4", "?", ("x", "y"), "A", pass_rate),
        tuple(
            Trajectory(
                name, index, turn(3), ("?",), selection, turn(2), "A" if accuracy else None, Reward(accuracy, 0.1, 0.0)
            )
            for index, accuracy in enumerate(accuracies)
        ),
    )


def test_both_turns_share_the_advantage_and_all_tokens_count() -> None:
    batch = policy_batch([group("q", [0.8, 0.0]), group("same", [0.8, 0.8])])
    assert batch.num_tokens == 4 * (3 + 2)
    assert [sample.name for sample in batch.samples] == [
        f"question q, trajectory {index}, {name} turn" for index in (0, 1) for name in ("query", "answer")
    ]
    right, also_right, wrong, also_wrong = (sample.advantage for sample in batch.samples)
    assert right == also_right == -wrong == -also_wrong
    assert right == pytest.approx(0.4 / (0.8 / 2**0.5 + 1e-6), rel=1e-5)


def test_groups_without_signal_give_no_samples() -> None:
    assert policy_batch([group("same", [0.8, 0.8])]).samples == ()


def test_sampler_joint() -> None:
    groups = [group("q", [0.8, 0.0, 0.0]), group("all frames", [0.8, 0.0], drawn=False)]
    advantages = [sample.advantage for sample in sampler_batch(groups, SamplerConfig())]
    assert advantages == pytest.approx([0.8, -0.4, -0.4])
    plain = [sample.advantage for sample in sampler_batch(groups, SamplerConfig(baseline=False, reward="accuracy"))]
    assert plain == pytest.approx([0.8, 0.0, 0.0])


def test_sampler_by_difficulty() -> None:
    config = SamplerConfig(objective="difficulty")
    advantages = [
        s.advantage for s in sampler_batch([group("q", [0.8, 0.0], 0.25), group("hard", [0.8, 0.0], 0.0)], config)
    ]
    assert advantages == pytest.approx([4.0, -4 / 3, 10.0, 0.0])


def test_metrics() -> None:
    metrics = rollout_metrics([group("q", [0.8, 0.0]), group("same", [0.0, 0.0])])
    assert metrics["reward/total"] == pytest.approx(0.3)
    assert metrics["reward/accuracy"] == pytest.approx(0.2)
    assert metrics["rollout/right_answers"] == 0.25
    assert metrics["rollout/answers_unparsed"] == 0.75
    assert metrics["rollout/groups_without_signal"] == 0.5
    assert metrics["rollout/query_tokens"] == 3
    assert metrics["sampler/entropy"] == 1.5
