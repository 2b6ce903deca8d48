"""Attention of the vision tower: all windows of one length in one call.

Transformers calls its attention once a window, which for a video is thousands of small calls a layer.

Shape letters: `L` patches, `H` heads, `D` width of a head, `W` windows of one length, `N` patches of one of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention, apply_rotary_pos_emb_vision


class GroupedVisionAttention(Qwen2_5_VLVisionAttention):
    """The same weights and results as transformers'; a module of its class becomes one of this by its `__class__`."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """[L, H * D]; each patch sees those of its window, which ends at one of `cu_seqlens` and begins at the one before."""
        length = len(hidden_states)
        query, key, value = self.qkv(hidden_states).reshape(length, 3, self.num_heads, self.head_dim).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        groups, places = _grouped(cu_seqlens)
        attended = []
        for rows in groups:
            q_WHND, k_WHND, v_WHND = (x[rows].transpose(1, 2) for x in (query, key, value))
            attended.append(scaled_dot_product_attention(q_WHND, k_WHND, v_WHND, scale=self.scaling))
        by_group = torch.cat([x_WHND.transpose(1, 2).reshape(-1, self.dim) for x_WHND in attended])
        return self.proj(by_group[places])


def _grouped(bounds: Tensor) -> tuple[list[Tensor], Tensor]:
    """Patches [W, N] of the windows of each length, and where each patch is found in all of these, one after the other.

    Kept at the tensor itself, which all layers of one pass share: it costs the GPU's queue running empty.
    """
    if not hasattr(bounds, "grouped"):
        starts, lengths = bounds[:-1], bounds.diff()
        groups = [
            starts[lengths == length][:, None] + torch.arange(length, device=bounds.device)
            for length in lengths.unique().tolist()
        ]
        bounds.grouped = groups, torch.cat([rows.flatten() for rows in groups]).argsort()  # type: ignore[attr-defined]
    return bounds.grouped  # type: ignore[attr-defined]
