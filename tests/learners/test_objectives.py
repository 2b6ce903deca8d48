"""Advantages, losses and KL estimators against the golden vectors of a widely used library, and by hand."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from learners.baseline import draw_advantages
from learners.config import PolicyConfig, SamplerConfig
from learners.credit import OBJECTIVES
from learners.objectives import (
    check_loss,
    clipped_policy_loss,
    difficulty_advantage,
    find_loss,
    group_advantages,
    importance_weights,
    kl_estimate,
    sequence_log_ratio,
    token_weights,
)
from learners.plackett_luce import LOG_PROBS
from services.errors import TrainingError, UserError

GOLDEN = Path(os.environ.get("MSJOE_GOLDEN", Path(__file__).parents[1] / "golden")) / "grpo.json"
CASES = json.loads(GOLDEN.read_text())
LOSSES = [(case, loss) for case in CASES for loss in case["loss"]]


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sizes(case: dict) -> list[int]:
    return [case["group_size"]] * (len(case["rewards"]) // case["group_size"])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("case", CASES)
def test_golden_advantages(case: dict, kind: str) -> None:
    found = group_advantages(tensor(case["rewards"]), sizes(case), kind)
    torch.testing.assert_close(found, tensor(case["advantage"][kind]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_golden_leave_one_out(case: dict) -> None:
    rewards = tensor(case["rewards"])
    found = draw_advantages(rewards, sizes(case), [1] * len(rewards))
    torch.testing.assert_close(found, tensor(case["advantage"]["rloo"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("case", "golden"), LOSSES)
def test_golden_losses_and_gradients(case: dict, golden: dict) -> None:
    log_prob, old = tensor(case["log_prob"]).requires_grad_(), tensor(case["old_log_prob"])
    valid = tensor(case["mask"]).bool()
    # The valid tokens side by side, as the learner has them; sequences without any count nowhere.
    lengths = [int(row.sum()) for row in valid if row.any()]
    per_token = torch.tensor(lengths)
    advantage = tensor(case["advantage"]["grpo"])[valid.any(1)].repeat_interleave(per_token)
    weights = tensor(token_weights(lengths, [1.0] * len(lengths), golden["aggregation"])).repeat_interleave(per_token)
    log_ratio = (log_prob - old)[valid]
    if golden["kind"] == "gspo":
        log_ratio = sequence_log_ratio(log_ratio, lengths)
    loss, _ = clipped_policy_loss(
        log_ratio, advantage, golden["clip_low"], golden["clip_high"], golden.get("dual_clip", math.inf)
    )
    total = (weights * loss).sum()
    total.backward()
    assert total.item() == pytest.approx(golden["loss"], abs=1e-5)
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
    assert draw_advantages(rewards, [7, 1, 2], [3, 4, 1, 1, 1]).tolist() == [0] * 7 + [rewards[7], -1, 1]
    assert (draw_advantages(rewards[:7], [7], [3, 4]) == 0).all()


def test_bad_groups_and_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"sizes \[2, 2\]"):
        group_advantages(torch.zeros(3), [2, 2])
    with pytest.raises(ValueError, match="one of grpo, dr_grpo, rloo"):
        group_advantages(torch.zeros(3), [3], kind="gae")
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_clipping_is_asymmetric_pessimistic_and_reported() -> None:
    log_ratio = torch.tensor([0.5, 1.5, 0.5, 1.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = clipped_policy_loss(log_ratio, advantage, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(loss.detach(), torch.tensor([-0.5, -1.3, 0.8, 1.5]))
    assert clipped.tolist() == [False, True, True, False]
    loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.5, 0.0, 0.0, 1.5]))


def test_dual_clip_bounds_the_loss_of_negative_advantages_alone() -> None:
    log_ratio = torch.tensor([2.0, 4.0, 4.0]).log().requires_grad_()
    advantage = torch.tensor([-1.0, -1.0, 1.0])
    loss, clipped = clipped_policy_loss(log_ratio, advantage, clip_low=0.2, clip_high=9.0, dual_clip=3.0)
    torch.testing.assert_close(loss.detach(), torch.tensor([2.0, 3.0, -4.0]))
    assert clipped.tolist() == [False, True, False]
    loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([2.0, 0.0, -4.0]))


OWN_LOSSES = """
import torch

def plain(log_ratio_L, advantage_L, lengths, config):
    return -advantage_L * log_ratio_L.exp(), torch.zeros(len(log_ratio_L), dtype=torch.bool)

def summed(log_ratio_L, advantage_L, lengths, config):
    loss_L, clipped_L = plain(log_ratio_L, advantage_L, lengths, config)
    return loss_L.sum(), clipped_L

def detached(log_ratio_L, advantage_L, lengths, config):
    return plain(log_ratio_L.detach(), advantage_L, lengths, config)

def lone(log_ratio_L, advantage_L, lengths, config):
    return -advantage_L * log_ratio_L

def typo(log_ratio_L, advantage_L, lengths, config):
    return plain(log_ratio_L, advantage_L, lengths, config.clip)

def short(log_ratio_L, advantage_L):
    return -advantage_L * log_ratio_L, log_ratio_L > 0
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("summed", "{}:summed must return a loss with a gradient and whether it was clipped for each of the 5 tokens"),
        ("detached", "{}:detached must return a loss with a gradient"),
        ("lone", "{}:lone failed: ValueError: too many values to unpack"),
        ("typo", "{}:typo failed: AttributeError: 'PolicyConfig' object has no attribute 'clip' ({}, line 18)"),
        ("short", "{}:short must take log_ratio_L, advantage_L, lengths, config: too many positional arguments"),
        ("none", "{} has no function none; what it has: plain, summed, detached, lone, typo, short"),
    ],
)
def test_a_loss_of_ones_own_that_cannot_be_used_is_said(function: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "losses.py"
    file.write_text(OWN_LOSSES)
    check_loss(PolicyConfig(loss=f"{file}:plain"))
    with pytest.raises(UserError, match=re.escape("policy.loss: " + message.replace("{}", str(file)))):
        check_loss(PolicyConfig(loss=f"{file}:{function}"))


def test_a_loss_of_ones_own_that_fails_in_the_run_is_said(tmp_path: Path) -> None:
    file = tmp_path / "losses.py"
    file.write_text("def fragile(log_ratio_L, advantage_L, lengths, config):\n    return 1 / 0\n")
    loss = find_loss(f"{file}:fragile")
    with pytest.raises(TrainingError, match=r"policy.loss: .*:fragile failed: ZeroDivisionError: .*, line 2\)"):
        loss(torch.zeros(2), torch.ones(2), (2,), PolicyConfig())


def test_the_samplers_choices_are_rows_of_tables() -> None:
    for field, table in (("log_prob", LOG_PROBS), ("objective", OBJECTIVES)):
        assert get_args(SamplerConfig.model_fields[field].annotation) == tuple(table)


def test_far_log_ratios_stay_finite() -> None:
    log_prob = torch.tensor([0.0, -500.0]).requires_grad_()
    old = torch.tensor([-500.0, 0.0])
    loss, _ = clipped_policy_loss(log_prob - old, torch.tensor(-1.0), 0.2, 0.2)
    kl = kl_estimate(log_prob, old, "k3")
    (loss.sum() + kl.sum()).backward()
    assert loss.isfinite().all()
    assert kl.isfinite().all()
    assert (log_prob.grad == 0).all()
    weights, _ = importance_weights(log_prob.detach() - old, [2], "token", 2.0, "truncate")
    assert weights.isfinite().all()


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_weights_come_from_the_whole_step(aggregation: str) -> None:
    lengths, loss = [3, 1, 4], [1.0, 2.0, 3.0]  # each token of a sequence has its loss

    def total(counts: list[float]) -> float:
        weights = token_weights(lengths, counts, aggregation)
        return sum(length * weight * value for length, weight, value in zip(lengths, weights, loss, strict=True))

    by_hand = {
        "token-mean": (3 * 1 + 1 * 2 + 4 * 3) / 8,
        "seq-mean-token-mean": (1 + 2 + 3) / 3,
        "seq-mean-token-sum": (3 * 1 + 1 * 2 + 4 * 3) / 3,
    }
    assert total([1, 1, 1]) == pytest.approx(by_hand[aggregation])
    halved = {
        "token-mean": (3 * 1 + 1 * 2 + 2 * 3) / 6,
        "seq-mean-token-mean": (1 + 2 + 1.5) / 2.5,
        "seq-mean-token-sum": (3 * 1 + 1 * 2 + 2 * 3) / 2.5,
    }
    assert total([1, 1, 0.5]) == pytest.approx(halved[aggregation])


def test_importance_weights_by_hand() -> None:
    log_ratio = torch.tensor([1.5, 0.5, 4.0, 1.0, 1.0]).log()
    lengths = [2, 3]

    def weights(level: str, beyond: str) -> tuple[list[float], list[bool]]:
        found, above = importance_weights(log_ratio, lengths, level, 3.0, beyond)
        return found.tolist(), above.tolist()

    assert weights("token", "truncate") == (pytest.approx([1.5, 0.5, 3, 1, 1]), [False, False, True, False, False])
    assert weights("token", "mask")[0] == pytest.approx([1.5, 0.5, 0, 1, 1])
    assert weights("sequence", "truncate") == (pytest.approx([0.75] * 2 + [3] * 3), [False] * 2 + [True] * 3)
    assert weights("sequence", "mask")[0] == pytest.approx([0.75] * 2 + [0] * 3)
    assert weights("none", "mask") == ([1] * 5, [False] * 5)


def test_a_corrected_gradient_is_that_of_the_engines_distribution_reweighted() -> None:
    """Sum over all tokens of the engine's probability times the weighted loss gradient = the learner's true gradient."""
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    reward = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    log_prob = logits.log_softmax(-1)
    trust, _ = importance_weights(log_prob - engine.log(), [1, 1, 1], "token", 1e6, "truncate")
    loss, _ = clipped_policy_loss(log_prob - log_prob.detach(), reward, 0.2, 0.2)
    (engine * trust * loss).sum().backward()
    corrected = logits.grad.clone()
    logits.grad = None
    (-(logits.softmax(-1) * reward).sum()).backward()
    torch.testing.assert_close(corrected, logits.grad)


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
    ],
)
def test_difficulty_advantage(correct: bool, pass_rate: float, expected: float) -> None:
    assert difficulty_advantage(correct, pass_rate, SamplerConfig()) == pytest.approx(expected)


def test_difficulty_advantage_follows_the_config_and_is_fair_at_the_base_rate() -> None:
    config = SamplerConfig(wrong_at_zero=-1.0, max_advantage=5.0)
    assert [difficulty_advantage(correct, 0.0, config) for correct in (True, False)] == [5, -1]
    for c in (0.2, 0.5, 0.8):
        right, wrong = (difficulty_advantage(correct, c, config) for correct in (True, False))
        assert c * right + (1 - c) * wrong == pytest.approx(0)
    assert difficulty_advantage(True, 0.1, config) == 5


@pytest.mark.parametrize("pass_rate", [None, -0.1, 1.0, 1.1, float("nan")])
def test_difficulty_needs_a_pass_rate(pass_rate: float | None) -> None:
    with pytest.raises(ValueError, match="pass_rate"):
        difficulty_advantage(True, pass_rate, SamplerConfig())


@pytest.mark.parametrize(
    ("values", "draws", "others", "baseline"),
    [
        # In the other group the variance within queries is 0.02, between them 0.31: the other draw weighs 0.63 / 0.65.
        ([1.0, 0.5, 0.0, 0.1], [2, 2], [1.0, 0.8, 0.0, 0.2], [(63 * 0.5 + 2 * 0.05) / 65, (63 + 2 * 0.05) / 65]),
        # Its queries differ by less than their draws' luck: all others weigh alike. The last lost its companion.
        ([1.0, 0.0, 0.5, 0.5, 0.2], [2, 2, 1], [1.0, 0.0, 0.5, 0.5], [1.2 / 4, 2.2 / 4, 1.7 / 4, 1.7 / 4, 2.0 / 4]),
        # It shows no luck at all, only better and worse queries: the draws of the same queries alone.
        ([1.0, 0.5, 0.0, 0.1], [2, 2], [1.0, 1.0, 0.0, 0.0], [0.5, 1.0, 0.1, 0.0]),
        # Nothing varies there, or there is none: all others weigh alike.
        ([1.0, 0.5, 0.0, 0.1], [2, 2], [0.9, 0.9, 0.9, 0.9], [0.2, 1.1 / 3, 1.6 / 3, 0.5]),
        ([1.0, 0.5, 0.0, 0.1], [2, 2], [], [0.2, 1.1 / 3, 1.6 / 3, 0.5]),
        ([1.0, 0.0, 0.2], [3], [1.0, 0.8, 0.0, 0.2], [0.1, 0.6, 0.5]),
        ([1.0, 0.0, 0.2], [1, 1, 1], [1.0, 0.8, 0.0, 0.2], [0.1, 0.6, 0.5]),
        ([0.7], [1], [1.0, 0.8, 0.0, 0.2], [0.0]),
    ],
)
def test_draws_are_compared_with_all_that_tells_of_their_queries(
    values: list[float], draws: list[int], others: list[float], baseline: list[float]
) -> None:
    sizes, draws = [len(values)] + [4] * bool(others), draws + [2, 2] * bool(others)
    found = tensor(values) - draw_advantages(tensor(values + others), sizes, draws)[: len(values)]
    torch.testing.assert_close(found[: len(baseline)], tensor(baseline), atol=1e-9, rtol=0)


@pytest.mark.parametrize("questions", [1, 4, 16])
def test_the_baseline_leaves_the_gradient_as_it_is(questions: int) -> None:
    """All 16 outcomes of a question's draws (two frames, two queries with two draws each), whatever the other questions
    gave: probability times advantage times the log-probability's gradient sums to the gradient of the mean reward."""
    generator = torch.Generator().manual_seed(questions)
    worth_QT = torch.tensor([[1.0, 0.2], [0.1, 0.4]], dtype=torch.float64)
    outcomes = torch.cartesian_prod(*[torch.arange(2)] * 4)
    values = worth_QT[torch.tensor([0, 0, 1, 1]), outcomes]
    for _ in range(4):
        others = torch.randint(0, 2, (4 * questions - 4,), generator=generator).double()
        advantages = [
            draw_advantages(torch.cat([row, others]), [4] * questions, [2, 2] * questions)[:4] for row in values
        ]
        logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
        log_probs = logits.log_softmax(-1)[outcomes]
        probabilities = log_probs.detach().sum(1, keepdim=True).exp()
        (estimated,) = torch.autograd.grad((probabilities * torch.stack(advantages) * log_probs).sum(), logits)
        (true,) = torch.autograd.grad(2 * (worth_QT * logits.softmax(-1)).sum(), logits)
        torch.testing.assert_close(estimated, true, atol=1e-12, rtol=0)


@pytest.mark.parametrize("between", [0.0, 0.3, 1.0, 10.0])
def test_the_baseline_is_no_noisier_than_either_mean(between: float) -> None:
    """Neither the mean of a query's draws nor that of its group is better, in 2000 groups of 4 queries with 2 draws."""
    generator = torch.Generator().manual_seed(0)
    values = between**0.5 * torch.randn(2000, 4, 1, generator=generator) + torch.randn(2000, 4, 2, generator=generator)
    found = draw_advantages(values.flatten(), [8] * 2000, [2] * 8000)
    of_query = draw_advantages(values.flatten(), [2] * 8000, [2] * 8000)
    of_group = draw_advantages(values.flatten(), [8] * 2000, [1] * 16000)
    assert found.var() <= 1.01 * min(of_query.var(), of_group.var())


def test_groups_and_draws_must_agree() -> None:
    with pytest.raises(ValueError, match=r"sizes \[2\] and draws \[2, 1\]"):
        draw_advantages(torch.zeros(3), [2], [2, 1])
