"""Attention of the vision tower: all windows of one length in one call.

Transformers calls its attention once per window; for a video that is thousands of small calls per layer.

Shape letters: `L` patches, `H` heads, `D` width of a head, `W` windows of one length, `N` patches of one of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention, apply_rotary_pos_emb_vision


class GroupedVisionAttention(Qwen2_5_VLVisionAttention):
    """Attention with the weights and the results of transformers' class. A module of that class becomes one of this class when
    its `__class__` is set."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """The attended patches [L, H * D]. Each patch sees those of its window; window i is from `cu_seqlens[i]` to
        `cu_seqlens[i + 1]`."""
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
    """For each window length the patches [W, N] of its windows, and the place of each patch in all of these joined.

    The result is kept as an attribute of `bounds`, which all layers of one pass share: to compute it the CPU must wait for the
    GPU.
    """
    if not hasattr(bounds, "grouped"):
        starts, lengths = bounds[:-1], bounds.diff()
        groups = [
            starts[lengths == length][:, None] + torch.arange(length, device=bounds.device)
            for length in lengths.unique().tolist()
        ]
        bounds.grouped = groups, torch.cat([rows.flatten() for rows in groups]).argsort()  # type: ignore[attr-defined]
    return bounds.grouped  # type: ignore[attr-defined]
