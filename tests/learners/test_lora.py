"""LoRA: an adapted layer multiplies by the weight that engines get, forwards and backwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cluster.config import Config
from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.group import LearnerGroup
from learners.lora import adapt, without_adapters
from learners.mllm import PolicyNetwork, load_mllm
from learners.policy import PolicyLearner
from tests.learners.turns import ENV, policy_samples


def adapted_layer(dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    """A network with one adapted layer whose adapter is no longer zero, and that layer."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"language_model": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(24, 16)})}).to(
        dtype
    )
    adapt(network, 4, 8)
    layer: Any = network["language_model"]["q_proj"]  # type: ignore[index]
    torch.nn.init.normal_(layer.lora_B)
    return network, layer


def test_gradients_are_those_of_the_merged_weight() -> None:
    _, layer = adapted_layer(torch.float64)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.lora_A, layer.lora_B)
    found = torch.autograd.grad(layer(x).square().sum(), inputs)
    weight = layer.weight + 2 * layer.lora_B @ layer.lora_A
    expected = torch.autograd.grad(torch.nn.functional.linear(x, weight, layer.bias).square().sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=1e-5)  # merged in float32
    assert {name for name, parameter in layer.named_parameters() if parameter.requires_grad} == {"lora_A", "lora_B"}


def test_in_bfloat16_the_layer_is_a_plain_one_with_the_merged_weight() -> None:
    network, layer = adapted_layer(torch.bfloat16)
    x = torch.randn(5, 24).bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.merged(), layer.bias))
    with without_adapters(network):
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert not torch.equal(layer.merged(), layer.weight)


class ComparedPolicy(PolicyLearner):
    """A rank that also computes with a saved policy, whose layers are plain."""

    def plain_log_probs(self, folder: str, samples: Sequence[PolicySample]) -> list[np.ndarray]:
        network = PolicyNetwork(load_mllm(folder, self.config.dtype, PolicyConfig()), self._temperature)
        trained, self.engine = self.engine, Forward(network)
        found = self.log_probs(samples)
        self.engine = trained
        return found


class Forward(SimpleNamespace):
    """A network, called as DeepSpeed's engine is."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(module=network, device=torch.device("cpu"))

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def test_in_bfloat16_adapters_add_nothing_to_what_learner_and_engine_differ_by(
    ray_cluster: None, toy_config: Config, tmp_path: Path
) -> None:
    """After 1, 10 and 100 steps; also, a saved policy says the dtype of its weights."""
    config = toy_config.policy.model_copy(
        update={"num_cpus": 0.5, "dtype": "bfloat16", "zero_stage": 3, "lora_rank": 4, "learning_rate": 1e-5,
                "kl_coef": 0.01, "mismatch_limit": 100.0}
    )  # fmt: skip
    samples = policy_samples(toy_config)[:3]

    async def story() -> tuple[list[float], list[list[list[np.ndarray]]]]:
        arguments = (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames)
        learner = await LearnerGroup.start(ComparedPolicy, arguments, config, ENV, ["DEFAULT"])
        divergences, pairs = [], []
        for step in range(1, 101):
            divergences.append((await learner.update(samples[:1], step))["policy/kl"])
            if step in (1, 10, 100):
                await learner.snapshot()
                await learner.write(str(tmp_path / str(step)))
                saved = str(tmp_path / str(step) / "policy")
                both = [
                    learner.call(ComparedPolicy.log_probs, samples),
                    learner.call(ComparedPolicy.plain_log_probs, saved, samples),
                ]
                pairs.append([await log_probs for log_probs in both])
        return divergences, pairs

    divergences, pairs = asyncio.run(story())
    assert divergences[0] == 0
    assert divergences[-1] > 1e-6
    for adapted, plain in pairs:
        for one, other in zip(adapted, plain, strict=True):
            np.testing.assert_array_equal(one, other)
    assert json.loads((tmp_path / "100" / "policy" / "config.json").read_text())["dtype"] == "bfloat16"
