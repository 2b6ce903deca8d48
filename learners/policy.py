"""The policy learner: GRPO on the MLLM, over the tokens of both turns.

Invariants: it trains on the token ids the engine sampled, never on re-tokenised text; pixels come from the frame cache
through the same processor call as the engine's and take the places the engine gave them in the prompt (a visual token that
the model itself wrote is a word like any other); positions are passed explicitly (`services/positions.py`); turns are packed
without padding (`learners/packing.py`). In one round all ranks run the same modules equally often (vision tower, logit chunks),
whatever their samples hold: under ZeRO-3 they would hang otherwise.

Shape letters: `L` tokens of the row, `N` response tokens of the micro-batch.
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

from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.lora import LoraLinear, without_adapters
from learners.micro_batches import plan_micro_batches
from learners.mllm import PolicyNetwork, count_chunks, load_mllm
from learners.objectives import find_loss, importance_weights, kl_estimate
from learners.packing import Family, plan_families, spans
from learners.rank import LearnerRank, Published
from services.config import DataConfig, FramesConfig
from services.errors import TrainingError
from services.frames import FrameCache
from services.positions import mrope_positions, seconds_per_grid
from services.vision import FrameProcessor
from services.visual import read_visual
from services.weights import POLICY


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: families of turns in one row."""

    inputs: dict[str, Any]
    """`input_ids`, `is_visual` [L], `position_ids` [3, L], `spans`, and when the vision tower is to run `patches` [n, C] and
    `grids` [videos, 3]."""
    predicts: torch.Tensor
    """[N] place of the hidden state that predicts each response token."""
    targets: torch.Tensor
    """[N] response tokens."""
    lengths: tuple[int, ...]
    """Response tokens of each turn; they sum to N."""
    engine_log_probs: torch.Tensor
    """[N]"""
    advantages: torch.Tensor
    """[N]"""
    weights: torch.Tensor
    """[N] of each token's loss in the step's."""


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
        self._processor = FrameProcessor(self._model)
        super().connect(address, port)
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
        # Made from the config, it would name one end token where the model has several.
        generation = cached_file(self._model, "generation_config.json", _raise_exceptions_for_missing_entries=False)
        if generation is not None:
            shutil.copyfile(generation, folder / "generation_config.json")

    def update(self, samples: Sequence[PolicySample], step: int) -> dict[str, float]:
        """One optimizer step on the whole batch. Returns `policy/…` metrics; the means are over the tokens computed.

        Raises TrainingError when engine and learner disagree beyond `mismatch_limit` and `mismatch_action` is `stop`.
        """
        families = plan_families(samples, self.config.micro_batch_tokens, self.config.share_prompts)
        lengths = [family.tokens for family in families]
        plan = plan_micro_batches(lengths, self.config.micro_batch_tokens, self.config.world_size, padded=False)
        tallies: list[torch.Tensor] = []

        def loss_of(in_round: tuple[list[int], ...]) -> torch.Tensor:
            # An idle rank computes a family with weight 0: under ZeRO-3 every rank must run every layer.
            shares = [[families[index] for index in indices or [0]] for indices in in_round]
            with_vision = any(samples[family.members[0]].turn.visual for share in shares for family in share)
            part = self.collate(samples, shares[self.rank], with_vision)
            loss, tally = self._loss(part, max(map(count_chunks, shares)))
            weight = 1.0 if in_round[self.rank] else 0.0
            tallies.append(weight * tally)
            return weight * loss

        loss = self.accumulate([partial(loss_of, in_round) for in_round in zip(*plan, strict=True)], step)
        metrics = self._metrics(torch.stack(tallies), sum(len(sample.turn.response_ids) for sample in samples))
        if metrics["policy/mismatch_kl"] > self.config.mismatch_limit and self.config.mismatch_action == "stop":
            raise TrainingError(
                f"step {step}: {mismatch_alarm(metrics, self.config)}; the weights were left as they were"
            )
        computed = {"policy/computed_tokens": float(sum(lengths))}
        return {"policy/loss": loss} | metrics | computed | self.take_step(step)

    def _loss(self, part: MicroBatch, num_chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The micro-batch's share of the step's loss, and what `_metrics` makes its numbers from: sums over tokens, and
        last the largest ratio of learner to engine."""
        config, forward = self.config, (part.inputs, part.predicts, part.targets, num_chunks)
        reference = self._reference_log_probs(forward) if config.kl_coef > 0 else None
        log_probs, entropies = self.engine(*forward)
        mismatch = log_probs.detach() - part.engine_log_probs
        corrected = config.old_log_probs == "learner"
        # One optimizer step a batch: the learner's log-probs at its start are these.
        old = log_probs.detach() if corrected else part.engine_log_probs
        level = config.importance if corrected else "none"
        trust, above = importance_weights(
            mismatch, part.lengths, level, config.importance_cap, config.importance_beyond
        )
        loss, clipped = find_loss(config.loss)(log_probs - old, part.advantages, part.lengths, config)
        loss = trust * loss
        kl = torch.zeros_like(loss) if reference is None else kl_estimate(log_probs, reference, config.kl)
        engine_kl = kl_estimate(part.engine_log_probs, log_probs.detach(), "k3")
        sums = torch.stack([engine_kl, entropies, clipped.float(), above.float(), kl.detach()]).sum(1)
        return (part.weights * (loss + config.kl_coef * kl)).sum(), torch.cat([sums, mismatch.max()[None]])

    def _metrics(self, tallies: torch.Tensor, num_tokens: int) -> dict[str, float]:
        sums, largest = tallies[:, :-1].sum(0), tallies[:, -1].max()
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        mismatch_kl, entropy, clipped, truncated, kl = (sums / num_tokens).tolist()
        return {
            "policy/mismatch_kl": mismatch_kl,
            "policy/mismatch_max_ratio": float(largest.exp()),
            "policy/entropy": entropy,
            "policy/clip_share": clipped,
            "policy/tokens": float(num_tokens),
            **({"policy/truncated_share": truncated} if self.config.old_log_probs == "learner" else {}),
            **({"policy/kl": kl} if self.config.kl_coef > 0 else {}),
        }

    @torch.no_grad()
    def _reference_log_probs(self, forward: tuple[Any, ...]) -> torch.Tensor:
        """Log-probs [N] under the model as it was loaded: with LoRA the trained one without its adapters, else a copy."""
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
            part = self.collate([sample], families, with_vision=sample.turn.visual is not None)
            log_probs, _ = self.engine(part.inputs, part.predicts, part.targets, count_chunks(families))
            results.append(log_probs.cpu().numpy())
        return results

    def collate(self, samples: Sequence[PolicySample], families: Sequence[Family], with_vision: bool) -> MicroBatch:
        """One row of `families`; `with_vision` runs the vision tower even if none of them has frames.

        Raises TrainingError naming a sample whose visual tokens do not fit its frames.
        """
        ids, positions, is_visual, pixels, grids, predicts = [], [], [], [], [], []
        start = 0
        for family in families:
            members = [samples[index] for index in family.members]
            longest = max(members, key=lambda sample: len(sample.turn.response_ids))
            visual, its_positions, its_pixels, its_grids = self._visual(longest)
            prompt, after = slice(0, family.prompt), start + family.prompt
            ids += [members[0].turn.prompt_ids, *[sample.turn.response_ids for sample in members]]
            positions.append(its_positions[:, prompt])
            is_visual += [visual, np.zeros(sum(family.responses), bool)]
            for length in family.responses:
                positions.append(its_positions[:, family.prompt : family.prompt + length])
                predicts += [start + family.prompt - 1, *range(after, after + length - 1)]
                after += length
            pixels += its_pixels
            grids += its_grids
            start = after
        device = self.engine.device
        chosen = [samples[index] for family in families for index in family.members]
        lengths = [len(sample.turn.response_ids) for sample in chosen]
        inputs = {
            "input_ids": torch.from_numpy(np.concatenate(ids)).long().to(device),
            "position_ids": torch.from_numpy(np.concatenate(positions, axis=1)).to(device),
            "is_visual": torch.from_numpy(np.concatenate(is_visual)).to(device),
            "spans": spans(families, device),
        }
        if with_vision and not pixels:
            blank, grids = self._processor.patches(np.zeros((2, 28, 28, 3), np.uint8), "video")
            pixels = [blank]
        if pixels:
            inputs |= {"patches": torch.cat(pixels).to(device), "grids": torch.tensor(grids, device=device)}

        def per_token(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values).repeat_interleave(torch.tensor(lengths)).to(device)

        return MicroBatch(
            inputs=inputs,
            predicts=torch.tensor(predicts, device=device),
            targets=torch.from_numpy(np.concatenate([s.turn.response_ids for s in chosen])).long().to(device),
            lengths=tuple(lengths),
            engine_log_probs=torch.from_numpy(np.concatenate([s.turn.log_probs for s in chosen])).to(device),
            advantages=per_token([sample.advantage for sample in chosen]),
            weights=per_token([sample.weight for sample in chosen]),
        )

    def _visual(
        self, sample: PolicySample
    ) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor], list[tuple[int, int, int]]]:
        """One turn's inputs: where its frames stand in the prompt [P], positions [3, P + R], patches and grids (none without
        frames)."""
        config, turn = self.engine.module.mllm.config, sample.turn
        pixels: list[torch.Tensor] = []
        grids: list[tuple[int, int, int]] = []
        step = 1.0
        if turn.visual is not None:
            patch_rows, grids = self._processor.patches(read_visual(self._frames, turn.visual), turn.visual.shown_as)
            pixels = [patch_rows]
            if turn.visual.shown_as == "video":
                temporal = config.vision_config.temporal_patch_size
                seconds = seconds_per_grid(len(turn.visual.frames), turn.visual.num_frames, temporal)
                step = seconds * config.vision_config.tokens_per_second
        merge = config.vision_config.spatial_merge_size
        merged = [(t, h // merge, w // merge) for t, h, w in grids]
        is_visual = np.isin(turn.prompt_ids, (config.video_token_id, config.image_token_id))
        in_turn = np.concatenate([is_visual, np.zeros(len(turn.response_ids), bool)])
        try:
            return is_visual, mrope_positions(in_turn, merged, [step] * len(merged)), pixels, grids
        except ValueError as error:
            raise TrainingError(f"{sample.name}: {error}") from None


def mismatch_alarm(metrics: Mapping[str, float], config: PolicyConfig) -> str | None:
    """What to say when engine and learner disagree beyond the limit; None when they do not."""
    found = metrics.get("policy/mismatch_kl", 0.0)
    if found <= config.mismatch_limit:
        return None
    return (
        f"policy/mismatch_kl is {found:.3g} nats a token, above policy.mismatch_limit = {config.mismatch_limit:g}: engine "
        "and learner disagree on the tokens' log-probs (largest ratio "
        f"{metrics['policy/mismatch_max_ratio']:.3g}); policy.old_log_probs=learner corrects for it"
    )
