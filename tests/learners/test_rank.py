"""A rank: the plan of micro-batches, and what DeepSpeed makes of a bfloat16 network's gradients."""

from __future__ import annotations

import asyncio
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from learners.config import LearnerConfig
from learners.group import LearnerGroup
from learners.micro_batches import plan_micro_batches
from learners.rank import LearnerRank, Published
from tests.learners.turns import ENV

PASSES, RANKS, RATE = 64, 2, 1e-3


class LinearRank(LearnerRank):
    """One linear layer, in bfloat16."""

    network = "linear"

    def __init__(self, config: LearnerConfig, rank: int) -> None:
        super().__init__(config, rank, "bfloat16")

    def build(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(32, 16, bias=False).bfloat16()

    def publishable(self) -> list[Published]:
        return [Published(name, parameter) for name, parameter in self.engine.module.named_parameters()]

    def part_of(self, name: str) -> str:
        return name

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        save_file(state, folder / "model.safetensors")

    def update(self, samples: Any, step: int) -> dict[str, float]:
        raise NotImplementedError

    def first_step(self, stage: int) -> tuple[float, float]:
        """At a ZeRO stage: the relative error of the gradient of many passes against their exact sum, and the median size of
        the first update over the learning rate."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

        self.config = self.config.model_copy(update={"zero_stage": stage})
        self.connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        inputs = torch.randn(PASSES * RANKS, 4, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
        alone = self.build()
        start = next(alone.parameters()).detach().float()
        exact = torch.zeros(start.shape, dtype=torch.float64)

        def loss(network: torch.nn.Module, index: int) -> torch.Tensor:
            return network(inputs[index]).float().square().mean() / (PASSES * RANKS)

        for index in range(len(inputs)):
            exact += torch.autograd.grad(loss(alone, index), next(alone.parameters()))[0].double()
        self.accumulate([partial(loss, self.engine, index) for index in range(self.rank, len(inputs), RANKS)], 1)
        (weight,) = self.engine.module.parameters()
        error = float((safe_get_full_grad(weight).double() - exact).norm() / exact.norm())
        self.take_step(1)
        return error, float((safe_get_full_fp32_param(weight) - start).abs().median()) / RATE

    def second_step(self) -> torch.Tensor:
        """The float32 weight after one more step."""
        from deepspeed.utils import safe_get_full_fp32_param

        (weight,) = self.engine.module.parameters()
        loss = self.engine(torch.ones(2, 32, dtype=torch.bfloat16) * (1 + self.rank)).float().square().mean() / RANKS
        self.accumulate([lambda: loss], 2)
        self.take_step(2)
        return safe_get_full_fp32_param(weight).clone()


def test_bfloat16_gradients_are_added_up_in_float32_and_masters_go_from_stage_to_stage(
    ray_cluster: None, tmp_path: Path
) -> None:
    """The first update is as long as the rate, and the second is the same from what ZeRO 1 saved."""
    config = LearnerConfig(learning_rate=RATE, world_size=RANKS, zero_stage=1, num_cpus=0.5, max_grad_norm=1e6)

    async def story() -> None:
        learner = await LearnerGroup.start(LinearRank, (config,), config, ENV, ["SPREAD"] * RANKS)
        expected = None
        for stage in (1, 2, 3):
            error, update = await learner.call(LinearRank.first_step, stage)
            assert error < 1e-5, f"ZeRO {stage}"
            assert update == pytest.approx(1, abs=1e-3), f"ZeRO {stage}"
            if expected is None:
                await learner.snapshot()
                await learner.write(str(tmp_path))
                expected = await learner.call(LinearRank.second_step)
            await learner.restore(str(tmp_path), 1)
            found = await learner.call(LinearRank.second_step)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=f"ZeRO {stage}")

    asyncio.run(story())


def test_every_sample_once_and_equal_counts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        lengths = [rng.randrange(1, 100) for _ in range(rng.randrange(1, 40))]
        world_size, budget = rng.randrange(1, 6), rng.randrange(1, 400)
        padded = rng.random() < 0.5
        plan = plan_micro_batches(lengths, budget, world_size, padded)
        assert len(plan) == world_size
        assert len({len(rank) for rank in plan}) == 1
        batches = [batch for rank in plan for batch in rank]
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            tokens = [lengths[index] for index in batch]
            assert len(batch) <= 1 or (len(batch) * max(tokens) if padded else sum(tokens)) <= budget


def test_no_rank_idles_while_another_has_two_samples() -> None:
    plan = plan_micro_batches([5, 5, 5], budget=1000, world_size=3)
    assert [len(rank) for rank in plan] == [1, 1, 1]
    assert all(batch for rank in plan for batch in rank)


def test_too_few_samples_leave_empty_batches() -> None:
    assert sorted(plan_micro_batches([5], budget=10, world_size=2)) == [[[]], [[0]]]
