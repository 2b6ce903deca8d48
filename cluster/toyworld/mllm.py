"""The toy world's MLLM: a Qwen2.5-VL of 2 million parameters in Hugging Face's folder format, and a tokenizer of its own.

The folder loads in transformers and vLLM alike (head_dim is a multiple of 32, as vLLM's CPU attention asks). The prompts' fixed
phrases are one token each: most of a prompt is what differs, so a small model is fast.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

HIDDEN = 128
_VOCABULARY = 700
"""Tokens at most, special ones and phrases left out."""
_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
"""Qwen2.5-VL's in function, without picture numbering and tools."""


def make_processor(texts: Iterable[str], phrases: Sequence[str]) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around a byte-level BPE of the texts; phrases and special tokens have the last ids, as in Qwen."""
    bpe = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=_SPECIAL,
        model_max_length=8192,
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size),
        tokenizer,
        Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Every dimension small, every ratio as in Qwen2.5-VL: 28-pixel visual tokens, two frames a temporal patch."""
    ids = tokenizer.get_vocab()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4]},
        "initializer_range": 0.1,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 3,
        "hidden_size": 128,
        "num_heads": 4,
        "intermediate_size": 256,
        "out_hidden_size": HIDDEN,
        "tokens_per_second": 2,
        "fullatt_block_indexes": [2],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )


def save_mllm(folder: Path, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
    """Write model (in bfloat16), generation config, tokenizer and processor."""
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(bos_token_id=pad, pad_token_id=pad, eos_token_id=[end, pad])
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
