"""The toy world's CLIP: a small ViT and text tower in open_clip's folder format, so it takes ViT-L/14's path through the code.

It learns contrastively from pictures and captions, as CLIP does, and never sees an alias: asked by one, it is at a loss.
Whether a caption is true of a picture is known here, so all true pairs of a batch count as such. The logit scale stays at 100.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cluster.toyworld.gallery import Gallery
from cluster.toyworld.words import COLOURS, PLACES, SHAPES, Thing, caption

CONTEXT = 20
"""Tokens of the text tower, start and end included."""
BATCH, CAPTIONS, PEAK_LR = 96, 64, 1e-3
_PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
VISION = {"image_size": 56, "patch_size": 14, "width": 128, "head_width": 32, "layers": 3, "pool_type": "avg"}
TEXT = {"context_length": CONTEXT, "width": 64, "heads": 2, "layers": 2}


def train_clip(
    folder: Path,
    gallery: Gallery,
    corpus: Iterable[str],
    seed: int,
    steps: int,
    stop: int,
    report: Callable[[float], None],
) -> None:
    """Write tokenizer and model; `open_clip.create_model_and_transforms("local-dir:<folder>")` loads them.

    `stop`: optimiser steps taken of a schedule of `steps`. `report`: called with every step's loss.
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(corpus)
    tokenizer.save_pretrained(folder)
    # The tokenizer's name only has to be set: from a local folder, that folder is taken.
    text = TEXT | {"hf_tokenizer_name": "toyworld", "vocab_size": len(tokenizer)}
    model_config = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text}
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**model_config)
        model.logit_scale = torch.nn.Parameter(torch.tensor(math.log(100)), requires_grad=False)
        _learn(model, tokenizer, gallery, np.random.default_rng([seed, 1]), steps, stop, report)
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def captions() -> dict[str, Callable[[Thing], bool]]:
    """Every caption with what it is true of: shape, colour or both, with or without the place."""
    kinds = [(s, c) for s in ("", *SHAPES) for c in ("", *COLOURS) if s or c]

    def true_of(shape: str, colour: str, place: str) -> Callable[[Thing], bool]:
        return lambda thing: shape in ("", thing.shape) and colour in ("", thing.colour) and place in ("", thing.place)

    plain = {caption(shape, colour): true_of(shape, colour, "") for shape, colour in kinds}
    placed = {f"{caption(s, c)} at the {place}": true_of(s, c, place) for s, c in kinds for place in PLACES}
    return plain | placed


def _learn(
    model: open_clip.CLIP,
    tokenizer: PreTrainedTokenizerFast,
    gallery: Gallery,
    rng: np.random.Generator,
    steps: int,
    stop: int,
    report: Callable[[float], None],
) -> None:
    """Cross-entropy both ways; the target spreads evenly over the true pairs of a row."""
    texts = captions()
    ids_CL = torch.tensor(tokenizer(list(texts), padding="max_length", max_length=CONTEXT)["input_ids"])
    truth_CT = torch.tensor([[true(thing) for thing in gallery.things] for true in texts.values()])
    plain = sum(" at the " not in text for text in texts)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.15)
    for _ in range(stop):
        things = rng.integers(len(gallery.things), size=BATCH)
        pixels = torch.from_numpy(gallery.pictures(things, 56, rng)).permute(0, 3, 1, 2).float() / 255
        # As many captions without a place as with one: they are what questions need.
        chosen = np.concatenate(
            [rng.permutation(plain)[: CAPTIONS // 2], plain + rng.permutation(len(texts) - plain)[: CAPTIONS // 2]]
        )
        truth_CB = truth_CT[chosen][:, things]
        logits_CB = model.logit_scale.exp() * (
            model.encode_text(ids_CL[chosen], normalize=True)
            @ model.encode_image((pixels - mean) / std, normalize=True).T
        )
        loss = (_spread(logits_CB, truth_CB) + _spread(logits_CB.T, truth_CB.T)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        report(loss.item())


def _spread(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over rows of the distance to their best: cross-entropy minus the target's entropy. Rows without truth are out."""
    some = truth.any(1)
    truth = truth[some]
    picked = (logits[some].log_softmax(1) * truth).sum(1) / truth.sum(1)
    return -(picked + truth.sum(1).log()).mean()


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
