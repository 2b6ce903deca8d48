"""The policy learner's gradients are those of transformers alone: whatever is optimised, and however the samples are split."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import Config
from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.group import LearnerGroup
from learners.policy import PolicyLearner
from tests.learners.turns import ENV, load_plain, policy_samples, reference_log_probs


class ProbedPolicy(PolicyLearner):
    """A rank that tells its gradients instead of taking the step, under any config it is given."""

    def probe(self, changes: dict[str, Any], samples: Sequence[PolicySample]) -> tuple[dict[str, float], Any]:
        """Metrics and gradients of one update; the weights stay."""
        before, self.config = self.config, self.config.model_copy(update=changes)
        if self.config.gradient_checkpointing:
            self.engine.module.mllm.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.engine.module.mllm.gradient_checkpointing_disable()
        metrics = self.update(samples, 1)
        self.config = before
        return metrics, self.gradients

    def take_step(self, step: int) -> dict[str, float]:
        from deepspeed.utils import safe_get_full_grad

        zeros = self._zero_gradients()
        full = safe_get_full_grad if self.config.zero_stage else (lambda parameter: parameter.grad)
        named = [(name, p) for name, p in self.engine.module.mllm.named_parameters() if p.requires_grad]
        self.gradients = {name: full(parameter).clone() for name, parameter in named}
        self.engine.module.zero_grad()
        return zeros


def reference_gradients(
    config: Config, samples: Sequence[PolicySample], corrected: bool = False
) -> dict[str, torch.Tensor]:
    """By transformers alone: each turn by itself, its own attention, all logits at once, the loss written out.

    `corrected`: the plain policy gradient of the learner's own distribution, weights of at most 2 for the engine's.
    """
    mllm = load_plain(config.policy.model)
    for sample in samples:
        log_probs = reference_log_probs(mllm, config, sample)
        turn = sample.turn
        ratio = (log_probs - torch.from_numpy(turn.log_probs)).exp()
        if corrected:
            loss = -sample.advantage * ratio.detach().clamp(max=2) * log_probs
        else:
            loss = -torch.minimum(sample.advantage * ratio, sample.advantage * ratio.clamp(0.8, 1.2))
            if sample.advantage < 0:
                loss = loss.clamp(max=-3 * sample.advantage)
        (sample.weight * loss.sum()).backward()
    return {name: parameter.grad for name, parameter in mllm.named_parameters()}


async def probed(config: PolicyConfig, toy: Config, changes: Sequence[dict[str, Any]], samples: Any) -> list[Any]:
    """What a fresh learner of `config` tells under each of `changes`."""
    arguments = (config, toy.policy.model, 1.0, toy.data, toy.frames)
    learner = await LearnerGroup.start(ProbedPolicy, arguments, config, ENV, ["SPREAD"] * config.world_size)
    return [await learner.call(ProbedPolicy.probe, change, samples) for change in changes]


def assert_same_gradients(way: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=0, msg=f"{way}: {name}")


OWN_LOSS = """
def own(log_ratio_L, advantage_L, lengths, config):
    ratio_L = log_ratio_L.exp()
    loss_L = -(advantage_L * ratio_L).minimum(advantage_L * ratio_L.clamp(0.8, 1.2))
    return loss_L.where(advantage_L > 0, loss_L.minimum(-3 * advantage_L)), ratio_L > 1.2
"""


def test_no_optimisation_and_no_split_changes_the_gradients(
    ray_cluster: None, toy_config: Config, tmp_path: Path
) -> None:
    (tmp_path / "loss.py").write_text(OWN_LOSS)
    samples = policy_samples(toy_config)
    expected, corrected = (reference_gradients(toy_config, samples, how) for how in (False, True))
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.05, "too small to compare"
    base: PolicyConfig = toy_config.policy.model_copy(update={"num_cpus": 0.5, "micro_batch_tokens": 10**6})
    ways: dict[str, dict[str, Any]] = {
        "packed, prompts shared, one pass of 8": {},
        "prompts not shared": {"share_prompts": False},
        "not packed: every turn alone": {"micro_batch_tokens": 1},
        "several passes": {"micro_batch_tokens": 60},
        "checkpointed": {"gradient_checkpointing": True},
        "a loss of one's own": {"loss": f"{tmp_path}/loss.py:own"},
    }
    others: dict[str, dict[str, Any]] = {
        "corrected": {"old_log_probs": "learner"},
        "corrected, several passes": {"old_log_probs": "learner", "micro_batch_tokens": 60},
        "gspo": {"loss": "gspo"},
        "gspo, several passes": {"loss": "gspo", "micro_batch_tokens": 60},
    }
    changes = [*ways.values(), *others.values()]
    found = dict(zip([*ways, *others], asyncio.run(probed(base, toy_config, changes, samples)), strict=True))
    # The KL to the model itself is 0 and pulls nowhere, so its second network must not show.
    ranks = base.model_copy(update={"world_size": 2, "zero_stage": 3, "kl_coef": 0.5})
    (found["2 ranks of 4"],) = asyncio.run(probed(ranks, toy_config, [{}], samples))

    for way in (*ways, "2 ranks of 4"):
        metrics, gradients = found[way]
        assert metrics["policy/loss"] == pytest.approx(
            found["not packed: every turn alone"][0]["policy/loss"], abs=1e-5
        )
        assert_same_gradients(way, gradients, expected)
        for part in ("visual", "language_model", "embed_tokens"):
            assert metrics[f"policy/zero_gradients/{part}"] == 0.0, f"{way}: {part}"
    assert found["2 ranks of 4"][0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    for way in ("corrected", "corrected, several passes"):
        assert_same_gradients(way, found[way][1], corrected)
        assert found[way][0]["policy/clip_share"] == 0
        assert 0 < found[way][0]["policy/truncated_share"] < 1
    assert_same_gradients("gspo", found["gspo"][1], found["gspo, several passes"][1])

    tokens = {way: metrics["policy/computed_tokens"] for way, (metrics, _) in found.items()}
    assert tokens["packed, prompts shared, one pass of 8"] < tokens["prompts not shared"]
    assert {metrics["policy/tokens"] for metrics, _ in found.values()} == {4 + 9 + 2 + 3 + 7 + 13 + 5 + 391}
    assert found["gspo"][0]["policy/mismatch_max_ratio"] > 1
    assert 0 < found["packed, prompts shared, one pass of 8"][0]["policy/clip_share"] < 1
