"""From groups to samples: who gets which advantage, what counts in the mean, what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Literal

import numpy as np
import pytest

from learners.config import PolicyConfig, SamplerConfig
from learners.credit import PolicySample, policy_batch, rollout_metrics, sampler_batch
from services.schema import Group, Question, Reward, Selection, Trajectory, Turn


def turn(length: int, truncated: bool = False) -> Turn:
    ids = np.zeros(length, np.int32)
    return Turn(ids, ids, np.zeros(length, np.float32), text="", truncated=truncated, version=0, visual=None)


def group(
    name: str,
    accuracies: Sequence[float],
    draws: int = 1,
    pass_rate: float | None = None,
    drawn: bool = True,
    answer: Turn | None = None,
    formats: Sequence[float] | None = None,
) -> Group:
    """A group whose right trajectories answer A; query turns of 3 tokens, answer turns of 2; `draws` a query turn."""
    draw = (1, 0) if drawn else ()
    selection = Selection((0, 1), draw, None, 1.5, np.zeros((1, 4), np.float32), version=0)
    return Group(
        Question(name, "/v.mp4", "?", ("x", "y"), "A", pass_rate),
        tuple(
            Trajectory(
                name,
                index,
                index // draws,
                turn(3),
                ("?",),
                accuracy == 0,
                selection,
                answer or turn(2),
                "A" if accuracy else None,
                Reward({"accuracy": accuracy, "format": formatted}),
            )
            for index, (accuracy, formatted) in enumerate(zip(accuracies, formats or repeat(0.1), strict=False))
        ),
    )


def advantages(batch: Sequence[PolicySample], which: str) -> list[float]:
    return [sample.advantage for sample in batch if which in sample.name]


def test_both_turns_share_the_advantage_and_all_tokens_count() -> None:
    batch = policy_batch([group("q", [0.8, 0.0]), group("same", [0.8, 0.8])], PolicyConfig())
    assert [sample.name for sample in batch] == [
        f"question q, trajectory {index}, {name} turn" for index in (0, 1) for name in ("query", "answer")
    ]
    right, also_right, wrong, also_wrong = (sample.advantage for sample in batch)
    assert right == also_right == -wrong == -also_wrong
    assert right == pytest.approx(0.4 / (0.8 / 2**0.5 + 1e-6), rel=1e-5)
    assert {sample.weight for sample in batch} == {1 / (4 * (3 + 2))}


def test_sequences_are_turns() -> None:
    batch = policy_batch([group("q", [0.8, 0.0])], PolicyConfig(aggregation="seq-mean-token-mean"))
    assert [sample.weight for sample in batch] == [1 / 4 / 3, 1 / 4 / 2] * 2


def test_groups_without_signal_give_no_samples() -> None:
    assert policy_batch([group("same", [0.8, 0.8])], PolicyConfig()) == ()
    assert sampler_batch([group("same", [0.8, 0.8])], SamplerConfig()) == ()


def test_what_a_kl_or_an_entropy_bonus_pulls_on_stays() -> None:
    assert len(policy_batch([group("same", [0.8, 0.8])], PolicyConfig(kl_coef=0.1))) == 4
    assert len(sampler_batch([group("same", [0.8, 0.8])], SamplerConfig(entropy_bonus=0.1))) == 2


def test_nested_groups_by_hand() -> None:
    """Two query turns with two draws each: queries by their means, answers and draws among all."""
    groups = [group("q", [0.8, 0.0, 0.0, 0.0], draws=2)]
    batch = policy_batch(groups, PolicyConfig(advantage="dr_grpo"))
    assert advantages(batch, "query") == pytest.approx([0.2, -0.2])
    assert advantages(batch, "answer") == pytest.approx([0.6, -0.2, -0.2, -0.2])
    weights = [sample.weight for sample in batch]
    assert weights == [1 / 10, 1 / 20, 1 / 20] * 2, "2 queries of 3 tokens and, half each, 4 answers of 2"
    drawn = sampler_batch(groups, SamplerConfig())
    assert [sample.advantage for sample in drawn] == pytest.approx([0.8, -0.8 / 3, -0.8 / 3, -0.8 / 3])
    drawn = sampler_batch([group(name, [0.8, 0.8, 0.0, 0.0], draws=2) for name in "qr"], SamplerConfig())
    assert drawn == (), "where queries decide all, nothing is left to the draws"
    drawn = sampler_batch([*groups, group("all alike", [0.8, 0.8])], SamplerConfig())
    assert {sample.weight for sample in drawn} == {1 / 6}, "draws without advantage still divide the mean"


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_one_draw_a_query_turn_is_the_paper(kind: str) -> None:
    batch = policy_batch([group("q", [0.8, 0.0, 0.0])], PolicyConfig(advantage=kind))
    assert advantages(batch, "query") == advantages(batch, "answer")
    assert [s.advantage for s in sampler_batch([group("q", [0.8, 0.0, 0.0])], SamplerConfig())] == pytest.approx(
        [0.8, -0.4, -0.4]
    )


def test_equal_means_of_other_order_are_equal() -> None:
    groups = [group("q", [0.7, 0.1, 0.2, 0.2, 0.7, 0.1], draws=3)]
    assert advantages(policy_batch(groups, PolicyConfig()), "query") == []


def test_a_group_that_lost_members() -> None:
    whole = group("q", [0.8, 0.0, 0.8, 0.0], draws=2)
    rest = Group(whole.question, (whole.trajectories[0], *whole.trajectories[2:]))
    batch = policy_batch([rest], PolicyConfig(advantage="dr_grpo"))
    assert advantages(batch, "query") == pytest.approx([0.2, -0.2])
    assert advantages(batch, "answer") == pytest.approx([0.8 / 3, 0.8 / 3, -1.6 / 3])
    drawn = [sample.advantage for sample in sampler_batch([rest], SamplerConfig())]
    assert drawn == pytest.approx([0.4, 0.4, -0.8])
    alone = Group(whole.question, whole.trajectories[:1])
    assert policy_batch([alone], PolicyConfig()) == ()
    assert rollout_metrics([rest, alone])["rollout/group_size"] == 2


def test_truncated_replies_are_kept_or_masked() -> None:
    groups = [group("q", [0.8, 0.0], answer=turn(2, truncated=True))]
    kept, masked = (policy_batch(groups, PolicyConfig(truncated_replies=how)) for how in ("keep", "mask"))
    assert len(kept) == 4
    assert {sample.weight for sample in kept} == {1 / 10}
    assert advantages(masked, "answer") == []
    assert {sample.weight for sample in masked} == {1 / 6}
    assert rollout_metrics(groups)["rollout/answers_truncated"] == 1
    assert rollout_metrics(groups)["rollout/queries_truncated"] == 0


def test_empty_replies_count_nowhere() -> None:
    batch = policy_batch([group("q", [0.8, 0.0], answer=turn(0))], PolicyConfig(aggregation="seq-mean-token-sum"))
    assert advantages(batch, "answer") == []
    assert {sample.weight for sample in batch} == {1 / 2}
    all_empty = Group(group("q", [0.8, 0.0]).question, ())
    assert policy_batch([], PolicyConfig()) == sampler_batch([], SamplerConfig()) == ()
    assert not all_empty.has_signal


def test_sampler_joint() -> None:
    groups = [group("q", [0.8, 0.0, 0.0]), group("all frames", [0.8, 0.0], drawn=False)]
    batch = sampler_batch(groups, SamplerConfig())
    assert [sample.advantage for sample in batch] == pytest.approx([0.8, -0.4, -0.4])
    assert {sample.weight for sample in batch} == {1 / 3}, "where T <= K nothing was drawn"


@pytest.mark.parametrize(
    ("reward", "baseline", "expected"),
    [
        ("total", True, [0.9, -0.45, -0.45, -0.1, 0.1]),
        ("accuracy", True, [0.8, -0.4, -0.4]),
        ("total", False, [0.9, 0.1, 0.2]),
        ("accuracy", False, [0.8]),
    ],
)
def test_what_a_draw_is_worth(reward: Literal["total", "accuracy"], baseline: bool, expected: list[float]) -> None:
    groups = [group("q", [0.8, 0.0, 0.0], formats=[0.1, 0.0, 0.0]), group("r", [0.0, 0.0], formats=[0.1, 0.2])]
    batch = sampler_batch(groups, SamplerConfig(reward=reward, baseline=baseline))
    assert [sample.advantage for sample in batch] == pytest.approx(expected)


def test_sampler_by_difficulty() -> None:
    config = SamplerConfig(objective="difficulty", baseline=False)
    groups = [
        group("q", [0.8, 0.0], pass_rate=0.25),
        group("hard", [0.8, 0.0], pass_rate=0.0),
        group("always", [0.8, 0.8], pass_rate=1.0),
    ]
    batch = sampler_batch(groups, config)
    assert [sample.advantage for sample in batch] == pytest.approx([4.0, -4 / 3, 10.0])
    assert {sample.weight for sample in batch} == {1 / 4}, "at c = 0 a wrong answer weighs 0; c = 1 is dropped"
    batch = sampler_batch(groups, SamplerConfig(objective="difficulty"))
    assert [sample.advantage for sample in batch] == pytest.approx([16 / 3, -16 / 3, 10.0, -10.0])


def test_metrics() -> None:
    metrics = rollout_metrics([group("q", [0.8, 0.0]), group("same", [0.0, 0.0])])
    assert metrics["reward/total"] == pytest.approx(0.3)
    assert metrics["reward/accuracy"] == pytest.approx(0.2)
    assert metrics["rollout/right_answers"] == 0.25
    assert metrics["rollout/answers_unparsed"] == 0.75
    assert metrics["rollout/queries_unparsed"] == 0.75
    assert metrics["rollout/queries"] == 0.25
    assert metrics["rollout/groups"] == 2
    assert metrics["rollout/group_size"] == 2
    assert metrics["rollout/groups_without_signal"] == 0.5
    assert metrics["rollout/query_tokens"] == 3
    assert metrics["sampler/entropy"] == 1.5


def test_tspo_compares_rewards_within_the_group_by_their_standard_deviation() -> None:
    groups = [group("q", [0.8, 0.0, 0.0]), group("same", [0.8, 0.8]), group("r", [0.0, 0.8])]
    config = SamplerConfig(objective="tspo", reward="accuracy", baseline=False)
    found = [sample.advantage for sample in sampler_batch(groups, config)]
    assert found == pytest.approx([1.1547, -0.57735, -0.57735, -0.70711, 0.70711], abs=1e-4)
    assert {sample.weight for sample in sampler_batch(groups, config)} == {1 / 7}, "the draws without advantage count"
