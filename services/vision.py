"""From frames to the MLLM's visual inputs: the one processor call that both the learner and the engine make.

Frames arrive at their final size (a multiple of 28), so no processor ever resizes; rescaling, normalising and cutting into
patches are the model folder's own processors.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from services.schema import ShownAs, VisualInput

PROCESSOR_KWARGS = {"do_resize": False, "do_sample_frames": False}
"""What both sides pass to the processors."""


class FrameProcessor:
    """The video and image processors of a Qwen2.5-VL folder or hub name."""

    def __init__(self, model: str) -> None:
        self._model = model

    def patches(self, frames: np.ndarray, shown_as: ShownAs) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
        """Patches [n, C] float32 of `frames` [K, H, W, 3] uint8, and the grid (t, h, w) in patches of each thing shown: one of
        a video, K of images."""
        pixels = torch.from_numpy(np.ascontiguousarray(_stacked(frames, shown_as))).permute(0, 3, 1, 2)
        if shown_as == "images":
            output = self._images(images=list(pixels), return_tensors="pt", do_resize=False)
            return output["pixel_values"], [tuple(grid) for grid in output["image_grid_thw"].tolist()]
        output = self._videos(videos=[pixels], return_tensors="pt", **PROCESSOR_KWARGS)
        return output["pixel_values_videos"], [tuple(grid) for grid in output["video_grid_thw"].tolist()]

    @cached_property
    def _videos(self) -> Any:
        from transformers import AutoVideoProcessor

        return AutoVideoProcessor.from_pretrained(self._model)

    @cached_property
    def _images(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self._model)


def _stacked(frames: np.ndarray, shown_as: ShownAs) -> np.ndarray:
    """The pictures that a processor gets of `frames` [K, H, W, 3]."""
    return frames.repeat(2, axis=0) if shown_as == "doubled" else frames


def engine_items(frames: np.ndarray, visual: VisualInput) -> dict[str, list[Any]]:
    """vLLM's multimodal data for the same frames; of a video, pixels and the metadata that fixes the seconds between
    patches."""
    if visual.shown_as == "images":
        return {"image": list(frames)}
    metadata = {
        "fps": 1.0,
        "duration": float(visual.num_frames),
        "total_num_frames": visual.num_frames,
        "frames_indices": list(visual.in_video),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return {"video": [(_stacked(frames, visual.shown_as), metadata)]}


def engine_names(visual: VisualInput) -> dict[str, list[str]]:
    """What vLLM's caches know these items by: a name for the exact set of frames of a video, or for each image."""
    if visual.shown_as != "images":
        return {"video": [repr(visual)]}
    size = f"{visual.height}x{visual.width}"
    return {"image": [f"{visual.video}-{frame}-{size}" for frame in visual.frames]}
