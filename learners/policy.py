"""The policy learner: GRPO on the MLLM, over the tokens of both turns.

Invariants: it trains on the token ids the engine sampled, never on re-tokenised text (`learners/collate.py`); turns are packed
without padding (`learners/packing.py`). In one round all ranks run the same modules equally often (vision tower, logit chunks),
whatever their samples hold: under ZeRO-3 they would hang otherwise.

Shape letters: `N` response tokens of the micro-batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.collate import Collator, MicroBatch
from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.lora import LoraLinear, without_adapters
from learners.micro_batches import plan_micro_batches
from learners.mllm import PolicyNetwork, count_chunks, load_mllm
from learners.objectives import find_loss, importance_weights, kl_estimate
from learners.packing import plan_families
from learners.rank import LearnerRank, Published
from services.config import DataConfig, FramesConfig
from services.errors import TrainingError
from services.frames import FrameCache
from services.vision import FrameProcessor
from services.weights import POLICY


@dataclass(frozen=True)
class Tally:
    """What the metrics need of one micro-batch."""

    sums: dict[str, torch.Tensor]
    """By metric, the sum over the micro-batch's tokens of what is averaged over all tokens of the step."""
    max_mismatch: torch.Tensor
    """Largest log-ratio of learner to engine, nats."""

    def times(self, weight: float) -> Tally:
        """The tally of a rank that counts (1) or only keeps the others company (0)."""
        return Tally({name: weight * value for name, value in self.sums.items()}, weight * self.max_mismatch)


class PolicyLearner(LearnerRank):
    """One rank of the policy learner."""

    network = POLICY

    def __init__(
        self, config: PolicyConfig, model: str, temperature: float, data: DataConfig, frames: FramesConfig, rank: int
    ) -> None:
        super().__init__(config, rank, config.dtype)
        self.config: PolicyConfig = config
        self._model, self._temperature = model, temperature
        self._frames = FrameCache.of(data, frames)

    def build(self) -> torch.nn.Module:
        return PolicyNetwork(load_mllm(self._model, self.config.dtype, self.config), self._temperature)

    def connect(self, address: str, port: int) -> None:
        super().connect(address, port)
        mllm = self.engine.module.mllm.config
        self._collate = Collator(FrameProcessor(self._model), self._frames, mllm, self.engine.device)
        if self.config.kl_coef > 0 and not self.config.lora_rank:
            frozen = PolicyConfig(gradient_checkpointing=False)
            network = PolicyNetwork(load_mllm(self._model, self.config.dtype, frozen), self._temperature)
            self._reference: Any = self.shard(network.requires_grad_(False))

    def part_of(self, name: str) -> str:
        return next((part for part in ("visual", "lm_head", "embed_tokens") if part in name), "language_model")

    def publishable(self) -> list[Published]:
        mllm = self.engine.module.mllm
        adapted = {f"{name}.weight": layer for name, layer in mllm.named_modules() if isinstance(layer, LoraLinear)}
        named = [(name, weight) for name, weight in mllm.named_parameters() if ".lora_" not in name]
        return [Published(name, weight, adapted.get(name)) for name, weight in named]

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration
        from transformers.utils import cached_file

        with torch.device("meta"):
            plain = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(self._model))
        # The config takes its dtype from the weights of `plain`.
        plain.to(getattr(torch, self.dtype)).save_pretrained(folder, state_dict=state)
        AutoProcessor.from_pretrained(self._model).save_pretrained(folder)
        # `save_pretrained` makes this file from the config, with one end token where the model has several.
        generation = cached_file(self._model, "generation_config.json", _raise_exceptions_for_missing_entries=False)
        if generation is not None:
            shutil.copyfile(generation, folder / "generation_config.json")

    def update(self, samples: Sequence[PolicySample], step: int) -> dict[str, float]:
        """Take one optimizer step on the whole batch. Returns `policy/…` metrics; their means are over the tokens in `samples`.

        Raises TrainingError when engine and learner disagree beyond `mismatch_limit` and `mismatch_action` is `stop`.
        """
        families = plan_families(samples, self.config.micro_batch_tokens, self.config.share_prompts)
        lengths = [family.tokens for family in families]
        plan = plan_micro_batches(lengths, self.config.micro_batch_tokens, self.config.world_size, padded=False)
        tallies: list[Tally] = []

        def loss_of(in_round: tuple[list[int], ...]) -> torch.Tensor:
            # An idle rank computes a family with weight 0: under ZeRO-3 every rank must run every layer.
            shares = [[families[index] for index in indices or [0]] for indices in in_round]
            with_vision = any(samples[family.members[0]].turn.visual for share in shares for family in share)
            part = self._collate(samples, shares[self.rank], with_vision)
            loss, tally = self._loss(part, max(map(count_chunks, shares)))
            weight = 1.0 if in_round[self.rank] else 0.0
            tallies.append(tally.times(weight))
            return weight * loss

        loss = self.accumulate([partial(loss_of, in_round) for in_round in zip(*plan, strict=True)], step)
        metrics = self._metrics(tallies, sum(len(sample.turn.response_ids) for sample in samples))
        if metrics["policy/mismatch_kl"] > self.config.mismatch_limit and self.config.mismatch_action == "stop":
            raise TrainingError(
                f"step {step}: {mismatch_alarm(metrics, self.config)}; the weights were left as they were"
            )
        computed = {"policy/computed_tokens": float(sum(lengths))}
        return {"policy/loss": loss} | metrics | computed | self.take_step(step)

    def _loss(self, part: MicroBatch, num_chunks: int) -> tuple[torch.Tensor, Tally]:
        """The micro-batch's share of the step's loss, and its tally."""
        config, forward = self.config, (part.inputs, part.predicts, part.targets, num_chunks)
        reference = self._reference_log_probs(forward) if config.kl_coef > 0 else None
        log_probs, entropies = self.engine(*forward)
        now = log_probs.detach()
        mismatch = now - part.engine_log_probs
        is_corrected = config.old_log_probs == "learner"
        # A batch has one optimizer step, so the learner's log-probs at its start are those of now.
        old = now if is_corrected else part.engine_log_probs
        importance, above_cap = importance_weights(
            mismatch,
            part.lengths,
            config.importance if is_corrected else "none",
            config.importance_cap,
            config.importance_beyond,
        )
        loss, clipped = find_loss(config.loss)(log_probs - old, part.advantages, part.lengths, config)
        loss = importance * loss
        averaged = {
            "policy/mismatch_kl": kl_estimate(part.engine_log_probs, now, "k3"),
            "policy/entropy": entropies,
            "policy/clip_share": clipped.float(),
        }
        if is_corrected:
            averaged["policy/truncated_share"] = above_cap.float()
        if reference is not None:
            kl = kl_estimate(log_probs, reference, config.kl)
            loss = loss + config.kl_coef * kl
            averaged["policy/kl"] = kl.detach()
        sums = {name: values.sum() for name, values in averaged.items()}
        return (part.weights * loss).sum(), Tally(sums, mismatch.max())

    def _metrics(self, tallies: Sequence[Tally], num_tokens: int) -> dict[str, float]:
        """The metrics of the step from the tallies of all ranks."""
        names = list(tallies[0].sums)
        sums = torch.stack([torch.stack([tally.sums[name] for name in names]) for tally in tallies]).sum(0)
        max_mismatch = torch.stack([tally.max_mismatch for tally in tallies]).max()
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(max_mismatch, torch.distributed.ReduceOp.MAX)
        return dict(zip(names, (sums / num_tokens).tolist(), strict=True)) | {
            "policy/mismatch_max_ratio": float(max_mismatch.exp()),
            "policy/tokens": float(num_tokens),
        }

    @torch.no_grad()
    def _reference_log_probs(self, forward: tuple[Any, ...]) -> torch.Tensor:
        """Log-probs [N] under the model as it was loaded: with LoRA the trained model without its adapters, else a second
        copy."""
        if not self.config.lora_rank:
            return self._reference(*forward)[0]
        with without_adapters(self.engine.module):
            return self.engine(*forward)[0]

    @torch.no_grad()
    def log_probs(self, samples: Sequence[PolicySample]) -> list[np.ndarray]:
        """The learner's own log-probs [R] of each sample's response tokens."""
        results = []
        for sample in samples:
            families = plan_families([sample], 1, share=False)
            part = self._collate([sample], families, with_vision=sample.turn.visual is not None)
            log_probs, _ = self.engine(part.inputs, part.predicts, part.targets, count_chunks(families))
            results.append(log_probs.cpu().numpy())
        return results


def mismatch_alarm(metrics: Mapping[str, float], config: PolicyConfig) -> str | None:
    """The message when engine and learner disagree by more than `policy.mismatch_limit`; None when they do not."""
    found = metrics.get("policy/mismatch_kl", 0.0)
    if found <= config.mismatch_limit:
        return None
    return (
        f"policy/mismatch_kl is {found:.3g} nats per token, above policy.mismatch_limit = {config.mismatch_limit:g}: engine "
        "and learner disagree on the tokens' log-probs (largest ratio "
        f"{metrics['policy/mismatch_max_ratio']:.3g}); policy.old_log_probs=learner corrects for it"
    )
