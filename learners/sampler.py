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
from learners.plackett_luce import entropy, independent_log_prob, log_prob
from learners.rank import LearnerRank, plan_micro_batches
from services.weights import SAMPLER


class SamplerLearner(LearnerRank):
    """One rank of the sampler learner."""

    network = SAMPLER

    def __init__(self, config: SamplerConfig, seed: int, rank: int) -> None:
        super().__init__(config, rank)
        self.config: SamplerConfig = config
        self._seed = seed

    def build(self) -> torch.nn.Module:
        from learners.unet import make_sampler  # RLlib: seconds and memory that the driver is spared

        return make_sampler(self.config.channels, self._seed)

    def publishable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.engine.module.named_parameters())

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from learners.unet import make_sampler

        module = make_sampler(self.config.channels, self._seed)
        module.load_state_dict(state)
        module.save_to_path(folder)

    def update(self, samples: Sequence[SamplerSample], step: int) -> dict[str, float]:
        """One optimizer step on all samples. Returns `sampler/…` metrics."""
        lengths = [sample.selection.similarity.shape[1] for sample in samples]
        plan = plan_micro_batches(lengths, self.config.micro_batch_frames, self.config.world_size)[self.rank]

        def loss_of(indices: list[int]) -> torch.Tensor:
            # An idle rank computes a sample with weight 0: under ZeRO-3 every rank must run every layer.
            chosen = [samples[index] for index in indices or [0]]
            log_probs, entropies = self._evaluate(chosen)
            advantages = torch.tensor([sample.advantage for sample in chosen], device=self.engine.device)
            bonus = (
                self.config.entropy_bonus
                * entropies
                / torch.tensor(
                    [max(math.log(sample.selection.similarity.shape[1]), 1e-6) for sample in chosen],
                    device=self.engine.device,
                )
            )
            weight = 1.0 if indices else 0.0
            return -weight * (advantages * log_probs + bonus).sum() / len(samples)

        result = self.optimize([partial(loss_of, indices) for indices in plan], step)
        return {
            "sampler/loss": result["loss"],
            "sampler/grad_norm": result["grad_norm"],
            "sampler/draws": float(len(samples)),
        }

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
        score = log_prob if self.config.log_prob == "plackett_luce" else independent_log_prob
        return score(logits_BT, draws_BK), entropy(logits_BT)
