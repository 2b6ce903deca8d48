"""Turns to learn from, and what transformers alone makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.config import Config
from cluster.questions.stream import load_questions
from cluster.training.connection import COMMON_ENV
from learners.credit import PolicySample
from services.frames import FrameCache
from services.positions import mrope_positions, seconds_per_grid
from services.schema import Turn, VisualInput
from services.vision import FrameProcessor
from services.visual import read_visual, visual_input

ENV = COMMON_ENV | {"OMP_NUM_THREADS": "1"}


def policy_samples(config: Config) -> tuple[PolicySample, ...]:
    """Eight turns: three that share a prompt and its frames, four uneven ones over other frames, and a long one without any:
    whatever could set ranks apart. Their log-probs are the MLLM's own, with an engine's error."""
    cache = FrameCache(config.data.cache, config.frames.tokens_per_frame, 60)
    video = cache.add(load_questions(config)[0].video)
    cache.close()
    rng = np.random.default_rng(0)
    samples: list[PolicySample] = []

    def add(prompt: np.ndarray, response: int, visual: VisualInput | None) -> None:
        turn = Turn(
            prompt.astype(np.int32),
            rng.integers(20, 300, response).astype(np.int32),
            rng.normal(0, 0.6, response).astype(np.float32),
            text="",
            truncated=False,
            version=0,
            visual=visual,
        )
        weight = 1 / (20 + 4 * len(samples))
        samples.append(PolicySample(f"turn {len(samples)}", turn, float(rng.normal()), weight))

    for frames, responses in ((5, (4, 9, 2)), (1, (3,)), (2, (7,)), (8, (13,)), (3, (5,))):
        visual = visual_input(video, np.linspace(1, 20, frames).astype(int).tolist(), config.frames.tokens_per_frame)
        num_visual = (frames + 1) // 2 * (visual.height // 28) * (visual.width // 28)
        prompt = np.concatenate([rng.integers(20, 300, 5), np.full(num_visual, video_token(config)), [21, 22]])
        for response in responses:
            add(prompt, response, visual)
    add(rng.integers(20, 300, 9), 391, None)
    mllm = load_plain(config.policy.model)
    with torch.no_grad():
        for sample in samples:
            sample.turn.log_probs[:] += reference_log_probs(mllm, config, sample).numpy()
    return tuple(samples)


def video_token(config: Config) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(config.policy.model).video_token_id


def load_plain(folder: str | Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def reference_log_probs(mllm: Any, config: Config, sample: PolicySample) -> torch.Tensor:
    """Log-probs [R] of a turn's response by transformers alone, all its logits at once."""
    cache = FrameCache(config.data.cache, config.frames.tokens_per_frame, 60)
    turn, grids, steps, inputs = sample.turn, [], [], {}
    ids = np.concatenate([turn.prompt_ids, turn.response_ids]).astype(np.int64)
    if turn.visual is not None:
        rows, ((t, h, w),) = FrameProcessor(config.policy.model).patches(read_visual(cache, turn.visual), "video")
        inputs = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([[t, h, w]])}
        grids, seconds = [(t, h // 2, w // 2)], seconds_per_grid(len(turn.visual.frames), turn.visual.num_frames, 2)
        steps = [seconds * mllm.config.vision_config.tokens_per_second]
    positions = mrope_positions(ids == mllm.config.video_token_id, grids, steps)
    position_ids = torch.from_numpy(positions)[:, None]
    logits = mllm(input_ids=torch.from_numpy(ids)[None], position_ids=position_ids, **inputs).logits[0]
    first = len(turn.prompt_ids) - 1
    return logits[first:-1].log_softmax(-1).gather(1, torch.from_numpy(ids)[first + 1 :, None])[:, 0]
