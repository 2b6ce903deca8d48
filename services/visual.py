"""How a frame is shown to the MLLM: its size in visual tokens, and the pixels of a `VisualInput`.

Invariant: whoever shows a frame brings it to its final size here, so that engine and learner see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from services.schema import ShownAs, Video, VisualInput

if TYPE_CHECKING:
    from services.frames import FrameCache

PATCH = 28
"""Pixels of one visual token's side."""


def frame_size(height: int, width: int, max_tokens: int) -> tuple[int, int]:
    """The (height, width) to show a `height` x `width` frame at: multiples of 28 with `h * w / 784 <= max_tokens`.

    As near to the source as the tokens allow, never above it but for rounding to 28. Of the roundings of both sides the
    one that keeps the aspect ratio best wins, then the one nearest in area.
    """
    rows, columns = height / PATCH, width / PATCH
    scale = min(1.0, math.sqrt(max_tokens / (rows * columns)))
    rows, columns = rows * scale, columns * scale

    def cost(size: tuple[int, int]) -> tuple[float, float]:
        r, c = size
        return abs(math.log((r / c) / (rows / columns))), abs(math.log((r * c) / (rows * columns)))

    sizes = [
        (r, min(max(c, 1), max_tokens // r))
        for r in {min(max(n, 1), max_tokens) for n in (math.floor(rows), math.ceil(rows))}
        for c in (math.floor(columns), math.ceil(columns))
    ]
    r, c = min(sorted(sizes), key=cost)
    return r * PATCH, c * PATCH


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """`frames` uint8 [K, H, W, 3] at `height` x `width`, bicubic with antialias; in integers, alike on every machine."""
    if frames.shape[1:3] == (height, width):
        return frames
    from PIL import Image

    resized = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    return np.stack(resized) if resized else np.empty((0, height, width, 3), np.uint8)


def visual_input(video: Video, frames: Iterable[int], max_tokens: int, shown_as: ShownAs = "video") -> VisualInput:
    """`frames` of `video`, put in time order, to be shown at no more than `max_tokens` visual tokens each."""
    height, width = frame_size(video.height, video.width, max_tokens)
    return VisualInput(video.key, tuple(sorted(int(i) for i in frames)), video.num_frames, height, width, shown_as)


def read_visual(cache: FrameCache, visual: VisualInput) -> np.ndarray:
    """The pixels `visual` refers to: uint8 [K, height, width, 3]."""
    return resize(cache.read(visual.video, visual.frames), visual.height, visual.width)
