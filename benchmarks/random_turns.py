"""What the learner's benchmark computes on: a Qwen2.5-VL's folder of a given shape, and random turns over random frames."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from learners.credit import PolicySample
from services.config import FramesConfig
from services.schema import Turn, Video
from services.visual import frame_size, visual_input

TEXT = 128
"""Tokens of a prompt that are no frames."""

# hidden, layers, heads, key-value heads, MLP, vocabulary; tied embeddings; hidden, depth, heads, MLP of the vision tower
SHAPES = {
    "small": ((256, 8, 4, 2, 1024, 32768), True, (256, 8, 4, 688)),
    "3b": ((2048, 36, 16, 2, 11008, 151936), True, (1280, 32, 16, 3420)),
    "7b": ((3584, 28, 28, 4, 18944, 152064), False, (1280, 32, 16, 3420)),
}


class RandomFrames:
    """Stands in for the frame cache: a video of 4 K frames."""

    def __init__(self, options: argparse.Namespace) -> None:
        height, width = frame_size(720, 1280, options.tokens_per_frame)
        self.video = Video("", "", 4 * options.frames, height, width)

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        shape = (len(indices), self.video.height, self.video.width, 3)
        return np.random.default_rng(indices).integers(0, 256, shape, np.uint8)


def make_folder(folder: str, shape: str) -> None:
    """A model folder without weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLVideoProcessor

    (hidden, layers, heads, kv_heads, mlp, vocabulary), tied, vision = SHAPES[shape]
    part = hidden // heads // 8
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [part, part * 3 // 2, part * 3 // 2]}
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    tower = dict(zip(("hidden_size", "depth", "num_heads", "intermediate_size"), vision, strict=True))
    full = list(range(7, tower["depth"], 8))
    Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=tower | {"out_hidden_size": hidden, "fullatt_block_indexes": full, "tokens_per_second": 2},
        tie_word_embeddings=tied,
        image_token_id=min(vocabulary, 151657) - 2,
        video_token_id=min(vocabulary, 151657) - 1,
    ).save_pretrained(folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}
    Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False).save_pretrained(folder)


def make_samples(options: argparse.Namespace, video: Video, config: Any) -> list[PolicySample]:
    """The same turns in every process; text is any tokens before the video token."""
    rng, previews = np.random.default_rng(0), FramesConfig(budget=options.frames).previews

    def replies(frames: Sequence[int], max_tokens: int, around: int) -> Iterator[Turn]:
        """Endlessly, to one prompt."""
        visual = visual_input(video, frames, max_tokens)
        pads = (len(frames) + 1) // 2 * (visual.height // 28) * (visual.width // 28)
        prompt = rng.integers(0, config.video_token_id, TEXT + pads).astype(np.int32)
        prompt[TEXT // 2 : TEXT // 2 + pads] = config.video_token_id
        while True:
            length = int(rng.integers(max(1, around // 2), around * 3 // 2 + 1))
            response = rng.integers(0, config.video_token_id, length).astype(np.int32)
            log_probs = rng.normal(-np.log(config.text_config.vocab_size), 0.3, length).astype(np.float32)
            yield Turn(prompt, response, log_probs, "", False, 0, visual)

    turns = []
    for _ in range(options.questions):
        shown = np.linspace(0, video.num_frames - 1, previews).astype(int).tolist()
        queries = replies(shown, options.preview_tokens, options.query_tokens)
        for _ in range(options.group):
            chosen = rng.choice(video.num_frames, options.frames, replace=False).tolist()
            turns += [next(queries), next(replies(chosen, options.tokens_per_frame, options.answer_tokens))]
    weight = 1 / sum(len(turn.response_ids) for turn in turns)
    return [PolicySample(f"turn {index}", turn, float(rng.normal()), weight) for index, turn in enumerate(turns)]
