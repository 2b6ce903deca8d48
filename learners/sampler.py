"""The sampler learner: REINFORCE on a network of `learners/networks.py`, `-(A * log_prob(draw))`, averaged over a step's draws.

Invariants: the log-probability is recomputed from what the draw was made from; a selection in which nothing was drawn (T <= K)
gives no sample; a network's temperature changes after an update alone, and is part of a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from learners.config import SamplerConfig
from learners.credit import SamplerSample
from learners.micro_batches import plan_micro_batches
from learners.networks import NETWORKS, TEMPERATURE, architecture, look, make_network
from learners.plackett_luce import LOG_PROBS, entropy
from learners.rank import LearnerRank, Published
from services.checkpoints import WEIGHTS, save_sampler
from services.config import DataConfig
from services.weights import SAMPLER


def num_frames(sample: SamplerSample) -> int:
    """Number of candidate frames T. It is above K, because something was drawn, and so at least 2."""
    return sample.selection.similarity.shape[1]


class SamplerLearner(LearnerRank):
    """One rank of the sampler learner."""

    network = SAMPLER

    def __init__(self, config: SamplerConfig, kind: str, seed: int, data: DataConfig, steps: int, rank: int) -> None:
        super().__init__(config, rank)
        self.config: SamplerConfig = config
        self._kind, self._seed, self._data, self._steps = kind, seed, data, steps

    def build(self) -> torch.nn.Module:
        return make_network(self._kind, self.config, self._seed, self.config.checkpoint)

    def publishable(self) -> list[Published]:
        return [Published(name, parameter) for name, parameter in self.engine.module.named_parameters()]

    def part_of(self, name: str) -> str:
        return name.partition(".")[0]

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from learners.rl_module import rl_module

        save_sampler(folder, architecture(self._kind, self.config), state)
        # For others: it holds pickles, and is never read here.
        rl_module(architecture(self._kind, self.config), state).save_to_path(folder / "rllib")

    def update(self, samples: Sequence[SamplerSample], step: int) -> dict[str, float]:
        """Take one optimizer step on all samples. Returns `sampler/…` metrics."""
        plan = plan_micro_batches(
            [num_frames(sample) for sample in samples], self.config.micro_batch_frames, self.config.world_size
        )[self.rank]

        def loss_of(indices: list[int]) -> torch.Tensor:
            # An idle rank computes a sample with weight 0: under ZeRO-3 every rank must run every layer.
            chosen = [samples[index] for index in indices or [0]]
            log_probs, entropies = self._evaluate(chosen)
            numbers = [
                (s.weight if indices else 0.0, s.advantage, self.config.entropy_bonus / math.log(num_frames(s)))
                for s in chosen
            ]
            weights, advantages, bonuses = torch.tensor(numbers, device=self.engine.device).T
            return -(weights * (advantages * log_probs + bonuses * entropies)).sum()

        loss = self.accumulate([partial(loss_of, indices) for indices in plan], step)
        metrics = {"sampler/loss": loss, "sampler/draws": float(len(samples))} | self.take_step(step)
        if anneal := NETWORKS[self._kind].anneal:
            self._set_temperature(anneal(min(step / self._steps, 1.0)))
        return metrics

    def restore(self, checkpoint: str) -> None:
        super().restore(checkpoint)
        if NETWORKS[self._kind].anneal:
            self._set_temperature(float(load_file(Path(checkpoint) / self.network / WEIGHTS)[TEMPERATURE]))

    def _evaluate(self, samples: Sequence[SamplerSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy [B] of each sample's draw under the network as it is."""
        device = self.engine.device
        batch = NETWORKS[self._kind].collate(
            [
                look(self._kind, self.config, self._data, sample.selection.similarity, sample.selection.embedded)
                for sample in samples
            ]
        )
        logits_BT = self.engine({name: tensor.to(device) for name, tensor in batch.items()})
        longest = max(len(sample.selection.draw) for sample in samples)
        draws_BK = torch.full((len(samples), longest), -1, device=device)
        for row, sample in enumerate(samples):
            draws_BK[row, : len(sample.selection.draw)] = torch.tensor(sample.selection.draw, device=device)
        return LOG_PROBS[self.config.log_prob](logits_BT, draws_BK), entropy(logits_BT)

    def _set_temperature(self, value: float) -> None:
        import deepspeed

        temperature = self.engine.module.get_parameter(TEMPERATURE)
        whole = deepspeed.zero.GatheredParameters([temperature], modifier_rank=0, enabled=self.config.zero_stage == 3)
        with torch.no_grad(), whole:
            temperature.fill_(value)
