"""The sampler learner: REINFORCE on the U-Net, `-(A * log_prob(draw))`, averaged over the draws of a step.

Invariants: the log-probability is recomputed from the similarity matrix the draw was made from; a selection in which nothing
was drawn (T <= K) gives no sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from learners.config import SamplerConfig
from learners.credit import SamplerSample
from learners.micro_batches import plan_micro_batches
from learners.plackett_luce import LOG_PROBS, entropy
from learners.rank import LearnerRank, Published
from services.checkpoints import save_sampler
from services.weights import SAMPLER


def num_frames(sample: SamplerSample) -> int:
    """Number of candidate frames T. It is above K, because something was drawn, and so at least 2."""
    return sample.selection.similarity.shape[1]


class SamplerLearner(LearnerRank):
    """One rank of the sampler learner."""

    network = SAMPLER

    def __init__(self, config: SamplerConfig, seed: int, rank: int) -> None:
        super().__init__(config, rank)
        self.config: SamplerConfig = config
        self._seed = seed

    def build(self) -> torch.nn.Module:
        from learners.unet import make_sampler  # RLlib: seconds and memory that the driver is spared

        return make_sampler(self.config.channels, self._seed, self.config.checkpoint)

    def publishable(self) -> list[Published]:
        return [Published(name, parameter) for name, parameter in self.engine.module.named_parameters()]

    def part_of(self, name: str) -> str:
        return name.partition(".")[0]

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from learners.unet import make_sampler

        save_sampler(folder, self.config.channels, state)
        module = make_sampler(self.config.channels, self._seed)
        module.load_state_dict(state)
        module.save_to_path(folder / "rllib")  # for others: it holds pickles, and is never read here

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
        return {"sampler/loss": loss, "sampler/draws": float(len(samples))} | self.take_step(step)

    def _evaluate(self, samples: Sequence[SamplerSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy [B] of each sample's draw under the network as it is."""
        from learners.unet import collate

        device = self.engine.device
        batch = collate([sample.selection.similarity for sample in samples])
        logits_BT = self.engine({name: tensor.to(device) for name, tensor in batch.items()})["logits"]
        longest = max(len(sample.selection.draw) for sample in samples)
        draws_BK = torch.full((len(samples), longest), -1, device=device)
        for row, sample in enumerate(samples):
            draws_BK[row, : len(sample.selection.draw)] = torch.tensor(sample.selection.draw, device=device)
        return LOG_PROBS[self.config.log_prob](logits_BT, draws_BK), entropy(logits_BT)
