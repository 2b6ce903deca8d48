"""TSPO's agent (arXiv 2508.04369), a learnt rival: it refines each frame's embedding by those of its neighbours, and compares
it with the query's.

With `x_t` the embedding of frame t, `p_t` the sinusoids of position t/T, and attention over the frames t - 6 … t + 5 (no output
projection, no residual):

    h = attention(x + p),  y = MLP(h) + x,  logit_t = mean over queries of (cos(y_t, query) + S_t) / temperature

Invariants: a valid frame's logit depends neither on batch padding nor on the other items of the batch; memory grows with T, not
with its square. `msjoe export` copies this file beside the weights: it imports PyTorch and numpy alone.

Shape letters: `B` batch, `Q` queries (padded to 4), `T` candidate frames, `D` dimensions of an embedding, `H` heads, `d` of
one head, `W` window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_QUERIES = 4
"""Rows that the queries of a batch are padded to."""
HEADS, WINDOW = 8, 12
"""Attention heads, and frames that each frame attends to: itself, the 6 before and the 5 after it (paper)."""
NORM = 10.0
"""Length of the frames' embeddings as the network sees them (ours). The published agent sees them as long as CLIP makes them;
the cache keeps unit vectors, beside which the sinusoids, of length sqrt(D / 2), would drown the content."""
FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.025, 0.01
"""The temperature at both ends of the training, which it falls through in a straight line (paper)."""
EPSILON = 1e-6
"""Added to the product of two lengths that a cosine divides by (paper)."""


class TspoAgent(nn.Module):
    """One logit per frame, from the embeddings of frames and queries, which have `width` D dimensions. With D = 768 it has 3.0M
    parameters."""

    def __init__(self, width: int, temperature: float = FIRST_TEMPERATURE, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        if width % self.heads:
            raise ValueError(f"width: {width} must be a multiple of the {self.heads} heads")
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.temperature = nn.Parameter(torch.tensor([temperature]), requires_grad=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`similarity` [B, 4, T], `frames` [B, T, D], `queries` [B, 4, D] float32, and the masks `query_mask` [B, 4] and
        `frame_mask` [B, T] bool, to logits [B, T]. Padded frames get -inf."""
        frames_BTD, frame_mask_BT, query_mask_BQ = batch["frames"], batch["frame_mask"], batch["query_mask"]
        seen_BTD = frames_BTD + positions(frame_mask_BT, frames_BTD.shape[-1])
        refined_BTD = self.mlp(self._attend(seen_BTD, frame_mask_BT)) + frames_BTD
        cosine_BTQ = _cosines(refined_BTD, batch["queries"])
        score_BTQ = (cosine_BTQ + batch["similarity"].transpose(1, 2)).masked_fill(~query_mask_BQ[:, None], 0.0)
        score_BT = score_BTQ.sum(-1) / query_mask_BQ.sum(-1, keepdim=True)
        logits_BT = score_BT / self.temperature
        return logits_BT.masked_fill(~frame_mask_BT, -torch.inf)

    def _attend(self, x_BTD: Tensor, frame_mask_BT: Tensor) -> Tensor:
        """Self-attention of each frame over its window, [B, T, D]; one term of the window at a time."""
        batch, num_frames, width = x_BTD.shape
        before, after = WINDOW // 2, WINDOW - 1 - WINDOW // 2
        query_BTHd = self.query(x_BTD).unflatten(-1, (self.heads, -1))
        key_BTHd, value_BTHd = (
            F.pad(layer(x_BTD), (0, 0, before, after)).unflatten(-1, (self.heads, -1))
            for layer in (self.key, self.value)
        )
        valid_BT = F.pad(frame_mask_BT, (before, after))
        shifts = [slice(shift, shift + num_frames) for shift in range(WINDOW)]
        score_BTHW = torch.stack([(query_BTHd * key_BTHd[:, shift]).sum(-1) for shift in shifts], -1)
        valid_BT1W = torch.stack([valid_BT[:, shift] for shift in shifts], -1)[:, :, None]
        # A padded frame may have nothing valid in its window: a finite floor keeps its weights numbers.
        score_BTHW = (score_BTHW / (width // self.heads) ** 0.5).masked_fill(~valid_BT1W, -1e6)
        weight_BTHW = score_BTHW.softmax(-1)
        attended_BTHd = torch.zeros_like(query_BTHd)
        for term, shift in enumerate(shifts):
            attended_BTHd = attended_BTHd + weight_BTHW[..., term, None] * value_BTHd[:, shift]
        return attended_BTHd.reshape(batch, num_frames, width)


def positions(frame_mask_BT: Tensor, width: int) -> Tensor:
    """Sinusoids [B, T, D] of each frame's place t/T in its own video."""
    steps_T = torch.arange(frame_mask_BT.shape[1], device=frame_mask_BT.device)
    place_BT1 = (steps_T / frame_mask_BT.sum(-1, keepdim=True))[..., None]
    exponents = torch.arange(0, width, 2, device=frame_mask_BT.device) / width
    angle_BTd = place_BT1 * 10000.0**-exponents
    return torch.stack([angle_BTd.sin(), angle_BTd.cos()], -1).flatten(-2)[..., :width]


def _cosines(a_BTD: Tensor, b_BQD: Tensor) -> Tensor:
    """Cosines [B, T, Q]; 0 with a vector of zeros."""
    lengths_BTQ = a_BTD.norm(dim=-1)[:, :, None] * b_BQD.norm(dim=-1)[:, None]
    return a_BTD @ b_BQD.transpose(1, 2) / (lengths_BTQ + EPSILON)


def collate(
    similarities: Sequence[np.ndarray], frames: Sequence[np.ndarray], queries: Sequence[np.ndarray]
) -> dict[str, Tensor]:
    """The batch that `TspoAgent` takes, from cosines [Q_i, T_i] and the embeddings [T_i, D] and [Q_i, D] that they are of:
    queries padded to 4, frames to the longest, embeddings of frames NORM times as long.

    ValueError for no item at all, or one whose shapes do not fit.
    """
    size, longest, width = len(frames), max(map(len, frames)), frames[0].shape[1]
    batch = {
        "similarity": torch.zeros(size, MAX_QUERIES, longest),
        "frames": torch.zeros(size, longest, width),
        "queries": torch.zeros(size, MAX_QUERIES, width),
        "query_mask": torch.zeros(size, MAX_QUERIES, dtype=torch.bool),
        "frame_mask": torch.zeros(size, longest, dtype=torch.bool),
    }
    for i, (s_QT, f_TD, q_QD) in enumerate(zip(similarities, frames, queries, strict=True)):
        if s_QT.shape != (len(q_QD), len(f_TD)) or not 1 <= len(q_QD) <= MAX_QUERIES:
            raise ValueError(
                f"similarities[{i}] has shape {s_QT.shape}: [Q, T] with Q in 1…{MAX_QUERIES} of {len(q_QD)} queries and "
                f"{len(f_TD)} frames"
            )
        batch["similarity"][i, : len(q_QD), : len(f_TD)] = torch.tensor(s_QT)
        batch["frames"][i, : len(f_TD)] = NORM * torch.tensor(f_TD).float()
        batch["queries"][i, : len(q_QD)] = torch.tensor(q_QD).float()
        batch["query_mask"][i, : len(q_QD)] = True
        batch["frame_mask"][i, : len(f_TD)] = True
    return batch
