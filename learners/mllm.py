"""The MLLM as the policy learner trains it: loaded, adapted, and from packed token ids to the log-probs of response tokens.

Invariants: logits are computed only where a response token is predicted, one chunk at a time; whenever the vision tower is
called it is part of the graph, even if none of its features is used.

Shape letters: `L` tokens of the row, `D` hidden size, `N` response tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from learners.config import PolicyConfig
from learners.lora import adapt
from learners.packing import ATTENTION, Family, Span, packed_attention
from services.errors import UserError

LOGIT_CHUNK = 256
"""Number of response tokens whose logits exist at the same time."""


def count_chunks(families: Sequence[Family]) -> int:
    """The number of parts in which the logits of these families' response tokens are computed."""
    return -(-sum(sum(family.responses) for family in families) // LOGIT_CHUNK)


def load_mllm(model: str, dtype: str, config: PolicyConfig) -> Any:
    """Load the MLLM of a folder or hub name, with packed attention in its language model, frozen and adapted as `config` says.

    Raises UserError when the config ties the head to the embedding but the weights hold another head: an engine would use the
    embedding.
    """
    from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

    AttentionInterface.register(ATTENTION, packed_attention)
    mllm = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"}
    )
    if mllm.config.tie_word_embeddings and mllm.lm_head.weight is not mllm.get_input_embeddings().weight:
        raise UserError(
            f"policy.model: the config of {model} says that the head is the embedding (tie_word_embeddings), but its weights "
            "hold another lm_head; remove that, or set tie_word_embeddings to false"
        )
    return prepare_mllm(mllm, config)


def prepare_mllm(mllm: Any, config: PolicyConfig) -> Any:
    """Group the attention of the vision tower; freeze, adapt and checkpoint the parts that `config` names."""
    from learners.vision_attention import GroupedVisionAttention

    for block in mllm.model.visual.blocks:
        block.attn.__class__ = GroupedVisionAttention
    if config.lora_rank:
        adapt(mllm, config.lora_rank, config.lora_alpha)
    if config.freeze_vision:
        mllm.model.visual.requires_grad_(False)
    if config.gradient_checkpointing:
        mllm.gradient_checkpointing_enable({"use_reentrant": False})
    return mllm.train()


class PolicyNetwork(torch.nn.Module):
    """The MLLM as a module from token ids to the log-probs of response tokens."""

    def __init__(self, mllm: Any, temperature: float) -> None:
        super().__init__()
        self.mllm, self.temperature = mllm, temperature

    def forward(
        self, inputs: dict[str, Any], predicts: torch.Tensor, targets: torch.Tensor, num_chunks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N] and entropies [N] (detached), float32, of `targets`, their logits computed in `num_chunks` parts."""
        hidden = self._hidden(**inputs)[predicts]
        log_probs, entropies = [], []
        for chunk, chosen in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
            chunk_log_probs, chunk_entropies = checkpoint(self._chunk, chunk, chosen, use_reentrant=False)
            log_probs.append(chunk_log_probs)
            entropies.append(chunk_entropies)
        return torch.cat(log_probs), torch.cat(entropies)

    def _hidden(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        is_visual: torch.Tensor,
        spans: Sequence[Span],
        patches: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states [L, D]."""
        body = self.mllm.model
        embeds = body.get_input_embeddings()(input_ids)
        if patches is not None:
            learns = torch.is_grad_enabled() and any(p.requires_grad for p in body.visual.parameters())
            with torch.set_grad_enabled(learns):
                features = torch.cat(body.get_video_features(patches, grids, return_dict=True).pooler_output)
            # The sum ties the tower into the graph even where none of its features is used.
            embeds = embeds.masked_scatter(is_visual[:, None], features.to(embeds.dtype)) + 0.0 * features.sum()
        return body.language_model(
            inputs_embeds=embeds[None],
            attention_mask={"full_attention": None},
            position_ids=position_ids[:, None],
            use_cache=False,
            spans=spans,
        ).last_hidden_state[0]

    def _chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs_NV = torch.log_softmax(self.mllm.lm_head(hidden).float() / self.temperature, dim=-1)
        entropy = -(log_probs_NV.detach().exp() * log_probs_NV.detach()).sum(-1)
        return log_probs_NV.gather(-1, targets[:, None]).squeeze(-1), entropy
