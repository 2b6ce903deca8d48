"""From frames to the MLLM's visual inputs: the one processor call that both the learner and the engine make.

Frames arrive at their final size (a multiple of 28), so no processor ever resizes; rescaling, normalising and cutting into
patches are the model folder's own video processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from services.schema import VisualInput

PROCESSOR_KWARGS = {"do_resize": False, "do_sample_frames": False}
"""What both sides pass to the video processor."""


def load_video_processor(model: str) -> Any:
    """The video processor of a Qwen2.5-VL folder or hub name."""
    from transformers import AutoVideoProcessor

    return AutoVideoProcessor.from_pretrained(model)


def patches(processor: Any, frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patches [t*h*w, C] float32 of one video's `frames` [K, H, W, 3] uint8, and its grid (t, h, w) in patches."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    output = processor(videos=[video], return_tensors="pt", **PROCESSOR_KWARGS)
    t, h, w = output["video_grid_thw"][0].tolist()
    return output["pixel_values_videos"], (t, h, w)


def engine_video(frames: np.ndarray, visual: VisualInput) -> tuple[np.ndarray, dict[str, Any]]:
    """vLLM's multimodal item for the same frames: pixels and the metadata that fixes the seconds between patches."""
    metadata = {
        "fps": 1.0,
        "duration": float(visual.num_frames),
        "total_num_frames": visual.num_frames,
        "frames_indices": list(visual.frames),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return frames, metadata
