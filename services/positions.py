"""M-RoPE positions of a prompt with its response, by the rollout engine's rule.

The trainer never lets transformers work positions out: after a visual segment its rule restarts text elsewhere than the
engine's (`max over t, h, w, plus 1`), and the log-probs of the two would differ on sparse frames of a long video.
Source of the rule: Qwen2-VL's original implementation, which vLLM follows (`get_mrope_input_positions`).
"""

from __future__ import annotations

import numpy as np


def seconds_per_grid(num_chosen: int, num_frames: int, temporal_patch: int) -> float:
    """Seconds one temporal patch stands for when `num_chosen` of `num_frames` frames (1 per second) are shown as one video.

    One constant a video, as the engine has it: key frames count as if they were spread evenly. Rounded to float32,
    because the engine keeps it so and truncates positions computed from it.
    """
    return float(np.float32(temporal_patch / (num_chosen / num_frames)))


def mrope_positions(
    is_visual: np.ndarray, grids: list[tuple[int, int, int]], temporal_steps: list[float]
) -> np.ndarray:
    """Positions [3, L] (time, height, width) of a sequence whose visual tokens are where `is_visual` [L] is true.

    `grids`: one (t, h, w) a visual segment, in merged tokens, in order of appearance; each stands for t*h*w consecutive
    visual tokens. `temporal_steps`: position units between two temporal patches, one a segment (seconds a patch times
    the model's `tokens_per_second`; 1 for an image). Raises ValueError when visual tokens and grids do not match.
    """
    if int(is_visual.sum()) != sum(t * h * w for t, h, w in grids):
        raise ValueError(f"{int(is_visual.sum())} visual tokens in the prompt, but grids {grids} make another number")
    parts: list[np.ndarray] = []
    start, next_position = 0, 0

    def text(length: int) -> None:
        nonlocal next_position
        parts.append(np.broadcast_to(np.arange(length), (3, length)) + next_position)
        next_position += length

    for (t, h, w), step in zip(grids, temporal_steps, strict=True):
        offset = start + int(np.argmax(is_visual[start:]))
        text(offset - start)
        grid = np.indices((t, h, w)).reshape(3, -1)
        grid[0] = (grid[0] * step).astype(np.int64)
        parts.append(grid + next_position)
        next_position += int(grid.max()) + 1
        start = offset + t * h * w
    text(len(is_visual) - start)
    return np.concatenate(parts, axis=1)
