"""The toy world's CLIP: a ViT of two layers in open_clip's folder format, so it takes ViT-L/14's path through the code.

Invariants: it is never trained; its random weights come from the seed alone, so a query is close to some frames and far
from others without knowing why. Within a video one text's cosines range over more than 0.1. The logit scale is 100.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CONTEXT = 32
"""Tokens of the text tower, start and end included."""
_PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


def make_clip(folder: Path, seed: int, corpus: Iterable[str]) -> None:
    """Write the model and its tokenizer; `open_clip.create_model_and_transforms("local-dir:<folder>")` loads it."""
    folder.mkdir()
    tokenizer = _tokenizer(corpus)
    tokenizer.save_pretrained(folder)
    model_config = {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 56,
            "patch_size": 14,
            "width": 64,
            "head_width": 32,
            "layers": 2,
            "pool_type": "avg",
        },
        "text_cfg": {
            "hf_tokenizer_name": "toyworld",  # only has to be set: from a local folder, that folder is taken
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**model_config)
    with torch.no_grad():
        model.token_embedding.weight.mul_(25)  # otherwise positions, the same for every text, outweigh the words
        model.logit_scale.fill_(math.log(100))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def _tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, lower case. The end token has the largest id: that is where the text tower pools."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[_PAD, _START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([_END])
    marks = [(token, tokenizer.token_to_id(token)) for token in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{_START} $A {_END}", special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_PAD)
