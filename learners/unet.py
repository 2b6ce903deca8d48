"""The sampler network: a 1-D U-Net from similarities to one logit per candidate frame.

Invariants: a valid frame's logit depends neither on batch padding nor on the other items of the batch; shifting the
content by a multiple of `stride` shifts the logits of frames farther from the ends than the receptive field; before
training all valid frames have the same logit, so nothing is preferred; any T >= 1 is accepted. `msjoe export` copies this file
beside the weights: it imports PyTorch and numpy alone.

Shape letters: `B` batch, `Q` queries (padded to 4), `T` candidate frames, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_QUERIES = 4
"""Rows of the similarity matrix that the network is built for."""

INPUT_CHANNELS = 3 * MAX_QUERIES
"""Three for each query: the z-score, the cosine itself, and whether the query exists."""

STD_FLOOR = 1e-3
"""Smallest standard deviation, in units of cosine, that a row is divided by. Flatter rows are not blown up to unit variance:
rows of CLIP vary by about 0.02, the rounding of float16 by 1e-5."""

KERNEL = 5

LOGIT_SCALE = 100.0
"""The output of the head is multiplied by this. Adam moves a weight by about the learning rate per step; with this scale a few
steps already tell frames apart."""


def features(similarity_BQT: Tensor, query_mask_BQ: Tensor, frame_mask_BT: Tensor) -> Tensor:
    """Network input [B, 3Q, T]: each row z-scored over its valid frames, the cosine itself, and 1 where the row exists.

    Missing rows and padded frames are zero, whatever `similarity_BQT` holds there. Statistics are taken in float64,
    so that padding does not change them through the order of summation.
    """
    valid_BQT = query_mask_BQ[:, :, None] & frame_mask_BT[:, None, :]
    s_BQT = similarity_BQT.double().masked_fill(~valid_BQT, 0.0)
    count_BQ1 = valid_BQT.sum(-1, keepdim=True).clamp_min(1)
    centred_BQT = (s_BQT - s_BQT.sum(-1, keepdim=True) / count_BQ1).masked_fill(~valid_BQT, 0.0)
    std_BQ1 = (centred_BQT.square().sum(-1, keepdim=True) / count_BQ1).sqrt().clamp_min(STD_FLOOR)
    return torch.cat([centred_BQT / std_BQ1, s_BQT, valid_BQT], dim=1).to(similarity_BQT.dtype)


class NormAct(nn.Module):
    """SiLU of a layer norm over the channels of each position alone, zero where masked: [B, C, T] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCT: Tensor, mask_B1T: Tensor) -> Tensor:
        return F.silu(self.norm(x_BCT.transpose(1, 2)).transpose(1, 2)) * mask_B1T


class Block(nn.Module):
    """Pre-norm residual block of two convolutions, both of which see zeros at masked positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = NormAct(channels), NormAct(channels)
        self.conv1, self.conv2 = (nn.Conv1d(channels, channels, KERNEL, padding="same") for _ in range(2))

    def forward(self, x_BCT: Tensor, mask_B1T: Tensor) -> Tensor:
        hidden_BCT = self.conv1(self.norm1(x_BCT, mask_B1T)) * mask_B1T
        return x_BCT + self.conv2(self.norm2(hidden_BCT, mask_B1T)) * mask_B1T


class UNetSampler(nn.Module):
    """One logit per frame from at most 4 rows of cosines.

    `channels` are those of each level, top to bottom; every level but the last halves the time axis. Each level has one block
    on the way down and one on the way up, the bottom has two. (64, 128, 256) has 2.1M parameters.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"channels: {channels} must name at least one level, each with at least one channel")
        self.stride = 2 ** (len(channels) - 1)
        """Frames per position of the lowest level."""
        pairs = list(pairwise(channels))
        self.stem = nn.Conv1d(INPUT_CHANNELS, channels[0], KERNEL, padding="same")
        self.encoder = nn.ModuleList(Block(high) for high, _ in pairs)
        self.down = nn.ModuleList(nn.Conv1d(high, low, 2, stride=2) for high, low in pairs)
        self.bottom = nn.ModuleList(Block(channels[-1]) for _ in range(2))
        self.merge = nn.ModuleList(nn.Conv1d(low + high, high, KERNEL, padding="same") for high, low in pairs)
        self.decoder = nn.ModuleList(Block(high) for high, _ in pairs)
        self.norm = NormAct(channels[0])
        self.head = nn.Conv1d(channels[0], 1, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`similarity` [B, 4, T] float32, `query_mask` [B, 4] bool, `frame_mask` [B, T] bool to logits [B, T].

        Padded frames get -inf: no distribution over the logits can give them any probability.
        """
        frame_mask_BT = batch["frame_mask"]
        num_frames = frame_mask_BT.shape[-1]
        padding = (0, -num_frames % self.stride)
        x_BCT = F.pad(features(batch["similarity"], batch["query_mask"], frame_mask_BT), padding)
        mask_B1T = F.pad(frame_mask_BT, padding)[:, None].to(x_BCT.dtype)

        x_BCT = self.stem(x_BCT) * mask_B1T
        skips: list[tuple[Tensor, Tensor]] = []
        for block, down in zip(self.encoder, self.down, strict=True):
            x_BCT = block(x_BCT, mask_B1T)
            skips.append((x_BCT, mask_B1T))
            mask_B1T = F.max_pool1d(mask_B1T, 2)
            x_BCT = down(x_BCT) * mask_B1T
        for block in self.bottom:
            x_BCT = block(x_BCT, mask_B1T)
        for block, merge in zip(reversed(self.decoder), reversed(self.merge), strict=True):
            skip_BCT, mask_B1T = skips.pop()
            up_BCT = x_BCT.repeat_interleave(2, dim=-1) * mask_B1T
            x_BCT = block(merge(torch.cat([up_BCT, skip_BCT], dim=1)) * mask_B1T, mask_B1T)
        logits_BT = LOGIT_SCALE * self.head(self.norm(x_BCT, mask_B1T))[:, 0, :num_frames]
        return logits_BT.masked_fill(~frame_mask_BT, -torch.inf)


def collate(similarities: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The batch that `UNetSampler` takes, from matrices [Q_i, T_i] of cosines: queries padded to 4, frames to the longest.

    ValueError for no matrix at all, or one without frames or with a number of queries outside 1…4.
    """
    if not similarities:
        raise ValueError("similarities is empty: a batch needs at least one matrix [Q, T]")
    for i, s_QT in enumerate(similarities):
        if s_QT.ndim != 2 or not 1 <= s_QT.shape[0] <= MAX_QUERIES or s_QT.shape[1] < 1:
            raise ValueError(f"similarities[{i}] has shape {s_QT.shape}: [Q, T] with Q in 1…{MAX_QUERIES}, T >= 1")
    size, longest = len(similarities), max(s_QT.shape[1] for s_QT in similarities)
    similarity_BQT = torch.zeros(size, MAX_QUERIES, longest)
    query_mask_BQ = torch.zeros(size, MAX_QUERIES, dtype=torch.bool)
    frame_mask_BT = torch.zeros(size, longest, dtype=torch.bool)
    for i, s_QT in enumerate(similarities):
        queries, frames = s_QT.shape
        similarity_BQT[i, :queries, :frames] = torch.tensor(s_QT)
        query_mask_BQ[i, :queries] = True
        frame_mask_BT[i, :frames] = True
    return {"similarity": similarity_BQT, "query_mask": query_mask_BQ, "frame_mask": frame_mask_BT}
