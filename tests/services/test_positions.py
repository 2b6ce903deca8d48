"""M-RoPE positions equal those of the engine's own code, for videos, images and text, sparse and odd."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from services.positions import mrope_positions, seconds_per_grid

pytestmark = pytest.mark.usefixtures("vllm")
VISUAL, TOKENS_PER_SECOND = 7, 2


def of_engine(ids: np.ndarray, segments: list[tuple[int, tuple[int, int, int], float | None]]) -> np.ndarray:
    """What vLLM computes: `segments` are (offset, merged grid, seconds per grid or None for an image), grid cells of 2 x 2
    patches."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=TOKENS_PER_SECOND))
    )
    model.iter_mm_grid_thw = lambda features: Model.iter_mm_grid_thw(model, features)
    features = [
        SimpleNamespace(
            modality="image" if seconds is None else "video",
            mm_position=SimpleNamespace(offset=offset),
            data={"image_grid_thw": SimpleNamespace(data=torch.tensor([t, 2 * h, 2 * w]))}
            if seconds is None
            else {
                "video_grid_thw": SimpleNamespace(data=torch.tensor([t, 2 * h, 2 * w])),
                "second_per_grid_ts": SimpleNamespace(data=torch.tensor(seconds)),
            },
        )
        for offset, (t, h, w), seconds in segments
    ]
    return Model.get_mrope_input_positions(model, ids.tolist(), features)[0].numpy()


@pytest.mark.parametrize(
    ("chosen", "num_frames", "grid"),
    [
        (8, 120, (4, 2, 2)),
        (32, 3600, (16, 12, 21)),  # sparse frames of an hour
        (5, 77, (3, 2, 3)),  # odd K: the last patch repeats a frame
        (1, 1, (1, 1, 1)),
        (7, 61, (4, 1, 5)),
    ],
)
def test_as_the_engine(chosen: int, num_frames: int, grid: tuple[int, int, int]) -> None:
    t, h, w = grid
    ids = np.array([1, 2, 3] + [VISUAL] * (t * h * w) + [4] * 9)
    seconds = seconds_per_grid(chosen, num_frames, temporal_patch=2)
    ours = mrope_positions(ids == VISUAL, [grid], [seconds * TOKENS_PER_SECOND])
    np.testing.assert_array_equal(ours, of_engine(ids, [(3, grid, seconds)]))


def test_two_segments_and_none() -> None:
    ids = np.array([1] + [VISUAL] * 4 + [2, 3] + [VISUAL] * 6 + [5])
    grids = [(2, 1, 2), (3, 2, 1)]
    ours = mrope_positions(ids == VISUAL, grids, [3.0, 9.0])
    np.testing.assert_array_equal(ours, of_engine(ids, [(1, grids[0], 1.5), (7, grids[1], 4.5)]))
    text = np.arange(5) + 10
    np.testing.assert_array_equal(mrope_positions(text == VISUAL, [], []), np.tile(np.arange(5), (3, 1)))


def test_images_behind_their_time_stamps_and_beside_a_video() -> None:
    image, video = (1, 3, 4), (3, 2, 2)
    ids = np.array([1, 2] + [VISUAL] * 12 + [3, 4, 5] + [VISUAL] * 12 + [6] + [VISUAL] * 12 + [8])
    ours = mrope_positions(ids == VISUAL, [image, image, video], [1.0, 1.0, 2.5 * TOKENS_PER_SECOND])
    np.testing.assert_array_equal(ours, of_engine(ids, [(2, image, None), (17, image, None), (30, video, 2.5)]))


def test_tokens_that_do_not_match_the_grid() -> None:
    with pytest.raises(ValueError, match="3 visual tokens"):
        mrope_positions(np.array([False, True, True, True]), [(1, 2, 2)], [1.0])
