"""The policy learner: GRPO on the MLLM, over the tokens of both turns.

Invariants: it trains on the token ids the engine sampled, never on re-tokenised text; pixels come from the frame cache
through the same processor call as the engine's and take the places the engine gave them in the prompt (a visual token that
the model itself wrote is a word like any other); positions are passed explicitly (`learners/positions.py`); logits are
computed only where a response token is predicted, a chunk at a time, never [B, L, V]. In one round all ranks run the same
modules equally often (vision tower, logit chunks), whatever their samples hold: under ZeRO-3 they would hang otherwise.

Shape letters: `B` turns of a micro-batch, `L` tokens, `N` response tokens of the micro-batch, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from learners.config import PolicyConfig
from learners.credit import PolicyBatch, PolicySample
from learners.objectives import clipped_policy_loss
from learners.positions import mrope_positions, seconds_per_grid
from learners.rank import LearnerRank, plan_micro_batches
from services.config import DataConfig, FramesConfig
from services.errors import TrainingError
from services.frames import FrameCache, read_visual
from services.vision import load_video_processor, patches
from services.weights import POLICY

LOGIT_CHUNK = 256
"""Response tokens whose logits exist at once."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass, padded on the right."""

    inputs: dict[str, torch.Tensor]
    """`input_ids`, `attention_mask`, `is_visual` [B, L], `position_ids` [3, B, L], and when the vision tower is to run
    `patches` [n, C] and `grids` [videos, 3]."""
    predicts: torch.Tensor
    """[N, 2] (row, column) of the hidden state that predicts each response token."""
    targets: torch.Tensor
    """[N] response tokens."""
    old_log_probs: torch.Tensor
    """[N] the engine's."""
    advantages: torch.Tensor
    """[N]"""


def count_chunks(samples: Sequence[PolicySample]) -> int:
    """Parts in which the logits of these samples' response tokens are computed."""
    return -(-sum(len(sample.turn.response_ids) for sample in samples) // LOGIT_CHUNK)


class PolicyNetwork(torch.nn.Module):
    """The MLLM, from token ids to the log-probs of chosen tokens."""

    def __init__(self, mllm: Any, temperature: float) -> None:
        super().__init__()
        self.mllm, self.temperature = mllm, temperature

    def forward(
        self, inputs: dict[str, torch.Tensor], predicts: torch.Tensor, targets: torch.Tensor, num_chunks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N] and entropies [N] (detached), float32, of `targets`, their logits computed in `num_chunks` parts."""
        hidden = self._hidden(**inputs)[predicts[:, 0], predicts[:, 1]]
        log_probs, entropies = [], []
        for chunk, chosen in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
            chunk_log_probs, chunk_entropies = checkpoint(self._chunk, chunk, chosen, use_reentrant=False)
            log_probs.append(chunk_log_probs)
            entropies.append(chunk_entropies)
        return torch.cat(log_probs), torch.cat(entropies)

    def _hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        is_visual: torch.Tensor,
        patches: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states [B, L, D]."""
        body = self.mllm.model
        embeds = body.get_input_embeddings()(input_ids)
        if patches is not None:
            features = torch.cat(body.get_video_features(patches, grids, return_dict=True).pooler_output)
            # The sum ties the tower into the graph even where none of its features is used.
            embeds = embeds.masked_scatter(is_visual[..., None], features.to(embeds.dtype)) + 0.0 * features.sum()
        return body.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def _chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs_NV = torch.log_softmax(self.mllm.lm_head(hidden).float() / self.temperature, dim=-1)
        entropy = -(log_probs_NV.detach().exp() * log_probs_NV.detach()).sum(-1)
        return log_probs_NV.gather(-1, targets[:, None]).squeeze(-1), entropy


class PolicyLearner(LearnerRank):
    """One rank of the policy learner."""

    network = POLICY

    def __init__(
        self, config: PolicyConfig, model: str, temperature: float, data: DataConfig, frames: FramesConfig, rank: int
    ) -> None:
        super().__init__(config, rank, config.dtype)
        self.config: PolicyConfig = config
        self._model, self._temperature = model, temperature
        self._frames = FrameCache(data.cache, frames.tokens_per_frame, data.decode_deadline)
        self._processor = load_video_processor(model)

    def build(self) -> torch.nn.Module:
        from transformers import Qwen2_5_VLForConditionalGeneration

        mllm = Qwen2_5_VLForConditionalGeneration.from_pretrained(self._model, dtype=getattr(torch, self.config.dtype))
        if self.config.gradient_checkpointing:
            mllm.gradient_checkpointing_enable({"use_reentrant": False})
        mllm.train()
        return PolicyNetwork(mllm, self._temperature)

    def publishable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.engine.module.mllm.named_parameters())

    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from transformers import AutoProcessor

        self.engine.module.mllm.save_pretrained(folder, state_dict=state)
        AutoProcessor.from_pretrained(self._model).save_pretrained(folder)

    def update(self, batch: PolicyBatch, step: int) -> dict[str, float]:
        """One optimizer step on the whole batch. Returns `policy/…` metrics; the means are over the tokens computed."""
        samples = batch.samples
        lengths = [len(s.turn.prompt_ids) + len(s.turn.response_ids) for s in samples]
        plan = plan_micro_batches(lengths, self.config.micro_batch_tokens, self.config.world_size)
        computed = sum(len(s.turn.response_ids) for s in samples)
        sums = torch.zeros(3, device=self.engine.device)

        def loss_of(in_round: tuple[list[int], ...]) -> torch.Tensor:
            # An idle rank computes a sample with weight 0: under ZeRO-3 every rank must run every layer.
            shares = [[samples[index] for index in indices or [0]] for indices in in_round]
            with_vision = any(sample.turn.visual for share in shares for sample in share)
            part = self.collate(shares[self.rank], with_vision)
            num_chunks = max(map(count_chunks, shares))
            log_probs, entropies = self.engine(part.inputs, part.predicts, part.targets, num_chunks)
            loss, clipped = clipped_policy_loss(
                log_probs, part.old_log_probs, part.advantages, self.config.clip_low, self.config.clip_high
            )
            weight = 1.0 if in_round[self.rank] else 0.0
            log_ratio = log_probs.detach() - part.old_log_probs
            kl = log_ratio.exp() - 1 - log_ratio
            sums.add_(weight * torch.stack([kl.sum(), entropies.sum(), clipped.float().sum()]))
            return weight * loss.sum() / batch.num_tokens

        result = self.optimize([partial(loss_of, in_round) for in_round in zip(*plan, strict=True)], step)
        torch.distributed.all_reduce(sums)
        kl, entropy, clipped = (sums / computed).tolist()
        return {
            "policy/loss": result["loss"],
            "policy/grad_norm": result["grad_norm"],
            "policy/mismatch_kl": kl,
            "policy/entropy": entropy,
            "policy/clip_share": clipped,
            "policy/tokens": float(computed),
        }

    @torch.no_grad()
    def log_probs(self, samples: Sequence[PolicySample]) -> list[np.ndarray]:
        """The learner's own log-probs [R] of each sample's response tokens."""
        results = []
        for sample in samples:
            part = self.collate([sample], with_vision=sample.turn.visual is not None)
            log_probs, _ = self.engine(part.inputs, part.predicts, part.targets, count_chunks([sample]))
            results.append(log_probs.cpu().numpy())
        return results

    def collate(self, samples: Sequence[PolicySample], with_vision: bool) -> MicroBatch:
        """One micro-batch of `samples`; `with_vision` runs the vision tower even if none of them has frames.

        Raises TrainingError naming a sample whose visual tokens do not fit its frames.
        """
        rows = [np.concatenate([s.turn.prompt_ids, s.turn.response_ids]) for s in samples]
        length = max(map(len, rows))
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        position_ids = torch.zeros(3, len(rows), length, dtype=torch.long)
        is_visual = torch.zeros(len(rows), length, dtype=torch.bool)
        pixels, grids, predicts = [], [], []
        for row, (sample, ids) in enumerate(zip(samples, rows, strict=True)):
            visual, positions, visual_pixels, visual_grid = self._visual(sample, ids)
            input_ids[row, : len(ids)] = torch.from_numpy(ids)
            attention_mask[row, : len(ids)] = 1
            position_ids[:, row, : len(ids)] = torch.from_numpy(positions)
            is_visual[row, : len(ids)] = torch.from_numpy(visual)
            pixels += visual_pixels
            grids += visual_grid
            first = len(sample.turn.prompt_ids) - 1
            predicts += [(row, column) for column in range(first, len(ids) - 1)]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "is_visual": is_visual,
        }
        if with_vision and not pixels:
            blank, grid = patches(self._processor, np.zeros((2, 28, 28, 3), np.uint8))
            pixels, grids = [blank], [grid]
        if pixels:
            inputs |= {"patches": torch.cat(pixels), "grids": torch.tensor(grids)}
        device = self.engine.device
        return MicroBatch(
            inputs={name: tensor.to(device) for name, tensor in inputs.items()},
            predicts=torch.tensor(predicts, device=device),
            targets=torch.cat([torch.from_numpy(s.turn.response_ids).long() for s in samples]).to(device),
            old_log_probs=torch.cat([torch.from_numpy(s.turn.log_probs) for s in samples]).to(device),
            advantages=torch.cat([torch.full((len(s.turn.response_ids),), s.advantage) for s in samples]).to(device),
        )

    def _visual(
        self, sample: PolicySample, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor], list[tuple[int, int, int]]]:
        """Of one sequence: where its frames stand [L], positions [3, L], patches and grids (none without frames)."""
        config = self.engine.module.mllm.config
        visual = sample.turn.visual
        pixels, grids, merged, steps = [], [], [], []
        if visual is not None:
            patch_rows, (t, h, w) = patches(self._processor, read_visual(self._frames, visual))
            merge = config.vision_config.spatial_merge_size
            seconds = seconds_per_grid(len(visual.frames), visual.num_frames, config.vision_config.temporal_patch_size)
            pixels, grids = [patch_rows], [(t, h, w)]
            merged, steps = [(t, h // merge, w // merge)], [seconds * config.vision_config.tokens_per_second]
        is_visual = (ids == config.video_token_id) & (np.arange(len(ids)) < len(sample.turn.prompt_ids))
        try:
            return is_visual, mrope_positions(is_visual, merged, steps), pixels, grids
        except ValueError as error:
            raise TrainingError(f"{sample.name}: {error}") from None
