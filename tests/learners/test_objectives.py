"""Advantages, losses and KL estimators against the golden vectors of a widely used library, and by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from learners.config import SamplerConfig
from learners.objectives import (
    clipped_policy_loss,
    difficulty_advantage,
    group_advantages,
    kl_estimate,
    leave_one_out_baseline,
    sampler_advantages,
)
from services.schema import Reward

GOLDEN = Path(os.environ.get("MSJOE_GOLDEN", Path(__file__).parents[1] / "golden")) / "grpo.json"
CASES = json.loads(GOLDEN.read_text())
LOSSES = [
    (case, loss)
    for case in CASES
    for loss in case["loss"]
    if loss["kind"] == "grpo" and loss["aggregation"] == "token-mean"
]


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sizes(case: dict) -> list[int]:
    return [case["group_size"]] * (len(case["rewards"]) // case["group_size"])


@pytest.mark.parametrize("case", CASES)
def test_golden_grpo_advantages(case: dict) -> None:
    found = group_advantages(tensor(case["rewards"]), sizes(case))
    torch.testing.assert_close(found, tensor(case["advantage"]["grpo"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_golden_leave_one_out(case: dict) -> None:
    rewards = tensor(case["rewards"])
    found = rewards - leave_one_out_baseline(rewards, sizes(case))
    torch.testing.assert_close(found, tensor(case["advantage"]["rloo"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("case", "golden"), LOSSES)
def test_golden_clipped_loss(case: dict, golden: dict) -> None:
    log_prob, old, mask = (tensor(case[name]) for name in ("log_prob", "old_log_prob", "mask"))
    advantage = tensor(case["advantage"]["grpo"])[:, None]
    dual_clip = (advantage < 0) & ((log_prob - old).exp() > golden["dual_clip"]) & (mask > 0)
    assert not dual_clip.any(), "this vector uses dual clip, which the loss here does not have"
    loss, _ = clipped_policy_loss(log_prob.requires_grad_(), old, advantage, golden["clip_low"], golden["clip_high"])
    mean = (loss * mask).sum() / mask.sum()
    mean.backward()
    assert mean.item() == pytest.approx(golden["loss"], abs=1e-5)
    torch.testing.assert_close(log_prob.grad, tensor(golden["grad"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("case", CASES)
def test_golden_kl(case: dict, kind: str) -> None:
    found = kl_estimate(tensor(case["log_prob"]), tensor(case["ref_log_prob"]), kind) * tensor(case["mask"])
    torch.testing.assert_close(found, tensor(case["kl"][kind]), atol=1e-5, rtol=0)


def test_equal_rewards_and_lone_trajectories_give_exact_zeros() -> None:
    rewards = torch.tensor([0.9] * 7 + [0.3] + [0.0, 1.0])
    found = group_advantages(rewards, [7, 1, 2])
    assert found.dtype == torch.float32
    assert (found[:8] == 0).all()
    assert (group_advantages(torch.full((7,), 0.9, dtype=torch.float64), [7]) == 0).all()
    torch.testing.assert_close(found[8:], torch.tensor([-0.5, 0.5]) / 0.5**0.5, atol=1e-5, rtol=0)
    assert leave_one_out_baseline(rewards, [7, 1, 2])[7:].tolist() == [0, 1, 0]


def test_bad_groups_and_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"sizes \[2, 2\]"):
        group_advantages(torch.zeros(3), [2, 2])
    with pytest.raises(ValueError, match="one of grpo"):
        group_advantages(torch.zeros(3), [3], kind="gae")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_clipping_is_asymmetric_pessimistic_and_reported() -> None:
    log_ratio = torch.tensor([0.5, 1.5, 0.5, 1.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = clipped_policy_loss(log_ratio, torch.zeros(4), advantage, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(loss.detach(), torch.tensor([-0.5, -1.3, 0.8, 1.5]))
    assert clipped.tolist() == [False, True, True, False]
    loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.5, 0.0, 0.0, 1.5]))


def test_far_log_ratios_stay_finite() -> None:
    log_prob = torch.tensor([0.0, -500.0]).requires_grad_()
    loss, _ = clipped_policy_loss(log_prob, torch.tensor([-500.0, 0.0]), torch.tensor(-1.0), 0.2, 0.2)
    kl = kl_estimate(log_prob, torch.tensor([-500.0, 0.0]), "k3")
    (loss.sum() + kl.sum()).backward()
    assert loss.isfinite().all()
    assert kl.isfinite().all()
    assert (log_prob.grad == 0).all()


@pytest.mark.parametrize(
    ("correct", "pass_rate", "expected"),
    [
        (True, 0.5, 2),
        (False, 0.5, -2),
        (True, 0.25, 4),
        (False, 0.25, -4 / 3),
        (True, 0.0, 10),
        (False, 0.0, 0),
        (True, 0.05, 10),
        (False, 0.95, -10),
        (True, 1.0, None),
        (False, 1.0, None),
    ],
)
def test_difficulty_advantage(correct: bool, pass_rate: float, expected: float | None) -> None:
    assert difficulty_advantage(correct, pass_rate, SamplerConfig()) == pytest.approx(expected)


def test_difficulty_advantage_follows_the_config_and_is_fair_at_the_base_rate() -> None:
    config = SamplerConfig(wrong_at_zero=-1.0, max_advantage=5.0)
    assert [difficulty_advantage(correct, 0.0, config) for correct in (True, False)] == [5, -1]
    for c in (0.2, 0.5, 0.8):
        right, wrong = (difficulty_advantage(correct, c, config) for correct in (True, False))
        assert c * right + (1 - c) * wrong == pytest.approx(0)
    assert difficulty_advantage(True, 0.1, config) == 5


@pytest.mark.parametrize("pass_rate", [None, -0.1, 1.1, float("nan")])
def test_difficulty_needs_a_pass_rate(pass_rate: float | None) -> None:
    with pytest.raises(ValueError, match="pass_rate"):
        difficulty_advantage(True, pass_rate, SamplerConfig())


@pytest.mark.parametrize(
    ("reward", "baseline", "expected"),
    [
        ("total", True, [0.8, -0.4, -0.4, -0.1, 0.1]),
        ("accuracy", True, [0.8, -0.4, -0.4, 0.0, 0.0]),
        ("total", False, [0.9, 0.1, 0.1, 0.1, 0.2]),
        ("accuracy", False, [0.8, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_sampler_advantages(reward: str, baseline: bool, expected: list[float]) -> None:
    rewards = [Reward(0.8, 0.1, 0), Reward(0, 0.1, 0), Reward(0, 0, 0.1), Reward(0, 0.1, 0), Reward(0, 0.1, 0.1)]
    found = sampler_advantages(rewards, [3, 2], SamplerConfig(reward=reward, baseline=baseline))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
