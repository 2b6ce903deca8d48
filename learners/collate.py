"""From turns to one forward pass: families of turns side by side in a row, with their pixels and positions.

Invariants: token ids are those the engine saw and sampled; pixels come from the frame cache through the same processor call as
the engine's, and take the places the engine gave them in the prompt (a visual token that the model itself wrote is a word like
any other); positions are passed explicitly (`services/positions.py`).

Shape letters: `P` tokens of a prompt, `L` tokens of a family or of the whole row, `N` response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learners.credit import PolicySample
from learners.packing import Family, spans
from services.errors import TrainingError
from services.frames import FrameCache
from services.positions import mrope_positions, seconds_per_grid
from services.schema import Turn
from services.vision import FrameProcessor
from services.visual import read_visual

Grids = list[tuple[int, int, int]]
"""Patches of each video or image: along time, height and width."""


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
    """[N] log-probs of the response tokens under the engine that sampled them."""
    advantages: torch.Tensor
    """[N] advantage of each token's turn."""
    weights: torch.Tensor
    """[N] weight of each token's loss in the step's loss."""


@dataclass(frozen=True)
class Row:
    """One family as it stands in the row: its prompt, then the responses."""

    input_ids: np.ndarray
    """[L] int32"""
    positions: np.ndarray
    """[3, L] M-RoPE positions; each response's follow those of the prompt."""
    is_visual: np.ndarray
    """[L] whether a frame's features take the token's place."""
    predicts: np.ndarray
    """[N] place in this family of the token before each response token."""
    patches: list[torch.Tensor]
    """Patches [n, C] of the prompt's frames; none without frames."""
    grids: Grids


class Collator:
    """Makes forward passes for an MLLM of the config `mllm`."""

    def __init__(self, processor: FrameProcessor, frames: FrameCache, mllm: Any, device: torch.device) -> None:
        self._processor, self._frames, self._mllm, self._device = processor, frames, mllm, device

    def __call__(self, samples: Sequence[PolicySample], families: Sequence[Family], with_vision: bool) -> MicroBatch:
        """One row of `families`; `with_vision` runs the vision tower even if none of them has frames.

        Raises TrainingError naming a sample whose visual tokens do not fit its frames.
        """
        rows = [self._row([samples[index] for index in family.members], family) for family in families]
        chosen = [samples[index] for family in families for index in family.members]
        lengths = [len(sample.turn.response_ids) for sample in chosen]
        starts = np.cumsum([0, *[family.tokens for family in families]])[:-1]

        def tensor(parts: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(parts, axis=-1)).to(self._device)

        def per_token(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values).repeat_interleave(torch.tensor(lengths)).to(self._device)

        inputs = {
            "input_ids": tensor([row.input_ids for row in rows]).long(),
            "position_ids": tensor([row.positions for row in rows]),
            "is_visual": tensor([row.is_visual for row in rows]),
            "spans": spans(families, self._device),
        }
        return MicroBatch(
            inputs=inputs | self._vision(rows, with_vision),
            predicts=tensor([start + row.predicts for start, row in zip(starts, rows, strict=True)]),
            targets=tensor([sample.turn.response_ids for sample in chosen]).long(),
            lengths=tuple(lengths),
            engine_log_probs=tensor([sample.turn.log_probs for sample in chosen]),
            advantages=per_token([sample.advantage for sample in chosen]),
            weights=per_token([sample.weight for sample in chosen]),
        )

    def _row(self, members: Sequence[PolicySample], family: Family) -> Row:
        """The row of one family. The positions of its longest turn hold those of all others."""
        longest = max(members, key=lambda member: len(member.turn.response_ids))
        patches, grids = self._patches(longest.turn)
        is_visual, positions = self._positions(longest, grids)
        prompt = slice(0, family.prompt)
        responses = [slice(family.prompt, family.prompt + length) for length in family.responses]
        before_first = family.prompt - 1
        firsts = family.prompt + np.cumsum([0, *family.responses])[:-1]
        return Row(
            input_ids=np.concatenate([longest.turn.prompt_ids, *[member.turn.response_ids for member in members]]),
            positions=np.concatenate([positions[:, part] for part in (prompt, *responses)], axis=1),
            is_visual=np.concatenate([is_visual, np.zeros(sum(family.responses), bool)]),
            predicts=np.concatenate(
                [
                    [before_first, *range(first, first + length - 1)]
                    for first, length in zip(firsts, family.responses, strict=True)
                ]
            ),
            patches=patches,
            grids=grids,
        )

    def _vision(self, rows: Sequence[Row], with_vision: bool) -> dict[str, torch.Tensor]:
        """What the vision tower gets: the frames of all rows, or a blank one where there are none and it must run."""
        patches = [patch for row in rows for patch in row.patches]
        grids = [grid for row in rows for grid in row.grids]
        if with_vision and not patches:
            blank, grids = self._processor.patches(np.zeros((2, 28, 28, 3), np.uint8), "video")
            patches = [blank]
        if not patches:
            return {}
        return {
            "patches": torch.cat(patches).to(self._device),
            "grids": torch.tensor(grids, device=self._device),
        }

    def _patches(self, turn: Turn) -> tuple[list[torch.Tensor], Grids]:
        """The patches and grids of a turn's frames; none for a turn without frames."""
        if turn.visual is None:
            return [], []
        patches, grids = self._processor.patches(read_visual(self._frames, turn.visual), turn.visual.shown_as)
        return [patches], grids

    def _positions(self, sample: PolicySample, grids: Grids) -> tuple[np.ndarray, np.ndarray]:
        """A mask of the visual tokens in a turn's prompt, bool [P], and the M-RoPE positions [3, L] of prompt and response."""
        turn, vision = sample.turn, self._mllm.vision_config
        step = 1.0
        if turn.visual is not None and (in_video := len(turn.visual.in_video)):
            seconds = seconds_per_grid(in_video, turn.visual.num_frames, vision.temporal_patch_size)
            step = seconds * vision.tokens_per_second
        merge = vision.spatial_merge_size
        merged = [(t, h // merge, w // merge) for t, h, w in grids]
        is_visual = np.isin(turn.prompt_ids, (self._mllm.video_token_id, self._mllm.image_token_id))
        in_turn = np.concatenate([is_visual, np.zeros(len(turn.response_ids), bool)])
        try:
            return is_visual, mrope_positions(in_turn, merged, [step] * len(merged))
        except ValueError as error:
            raise TrainingError(f"{sample.name}: {error}") from None
