"""The frozen CLIP, loaded through open_clip from a folder or by name.

Invariant: `key` covers everything that features depend on: weights, architecture, preprocessing, number type.
"""

from __future__ import annotations

import difflib
import html
import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from services.errors import UserError

TEXTS_AT_ONCE = 256
"""Texts of one forward pass."""


class ClipEncoder:
    """A frozen open_clip model.

    `model` is a folder with `open_clip_config.json` and weights (`local-dir:` in front is allowed), or an open_clip name
    whose weights `pretrained` names (tag or file). `resize`: a frame becomes square by being squashed whole, or by its
    centre being cropped. Raises UserError when nothing can be loaded from them, naming what is missing and what would do.
    """

    def __init__(
        self,
        model: str,
        pretrained: str,
        dtype: Literal["float32", "bfloat16"],
        resize: Literal["squash", "crop"],
        device: str,
        batch_size: int = 64,
    ) -> None:
        name = _model_name(model, pretrained)
        precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
        try:
            self._model = open_clip.create_model(
                name, pretrained or None, precision=precision, device=device, require_pretrained=True
            )
            self._tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            raise UserError(f"CLIP model {model!r} cannot be loaded: {error}") from error
        control = "|".join(map(re.escape, control_tokens(self._tokenizer))) or "(?!)"
        self._control = re.compile(rf"(?={control})(.)", re.IGNORECASE | re.DOTALL)
        self._model.eval().requires_grad_(False)
        self._device = torch.device(device)
        self._dtype = open_clip.get_input_dtype(precision) or torch.float32
        self._resize = resize
        self._batch_size = batch_size
        self._preprocess = open_clip.get_model_preprocess_cfg(self._model)
        self.logit_scale = float(self._model.logit_scale.exp())
        """What the model multiplies cosines by (100 for OpenAI's)."""
        self.key = _content_key(self._model, [open_clip.get_model_config(name), self._preprocess, resize, dtype])
        """Hash of all that frame features depend on."""

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Normalised embeddings [N, D] float16 of `frames` uint8 [N, H, W, 3], N >= 1."""
        embeddings = []
        for start in range(0, len(frames), self._batch_size):
            pixels = torch.from_numpy(np.ascontiguousarray(frames[start : start + self._batch_size])).to(self._device)
            features = self._model.encode_image(self._preprocessed(pixels.permute(0, 3, 1, 2)), normalize=True)
            embeddings.append(features.half().cpu())
        return torch.cat(embeddings).numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings [N, D] float32 of N >= 1 `texts`, each cut at the model's context length.

        A control token spelled out in a text (`<end_of_text>`) is cut behind its first character, so that it ends nothing.
        """
        embeddings = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = [self._control.sub(r"\1 ", _cleaned(text)) for text in texts[start : start + TEXTS_AT_ONCE]]
            tokens = self._tokenizer(some).to(self._device)
            embeddings.append(self._model.encode_text(tokens, normalize=True).float().cpu())
        return torch.cat(embeddings).numpy()

    def _preprocessed(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, H, W] as the model's input [N, 3, side, side]; resized as uint8, as open_clip resizes images."""
        size = self._preprocess["size"]
        target = [size, size] if isinstance(size, int) else list(size)
        height, width = pixels.shape[2:]
        scale = max(target[0] / height, target[1] / width)
        cover = [max(target[0], int(height * scale)), max(target[1], int(width * scale))]
        interpolation = InterpolationMode(self._preprocess["interpolation"])
        resized = vision.resize(pixels, target if self._resize == "squash" else cover, interpolation, antialias=True)
        scaled = vision.center_crop(resized, target).float() / 255
        return vision.normalize(scaled, self._preprocess["mean"], self._preprocess["std"]).to(self._dtype)


def _model_name(model: str, pretrained: str) -> str:
    """The name open_clip loads `model` by. Raises UserError for a folder or name that cannot work."""
    folder = Path(model.removeprefix("local-dir:"))
    if model.startswith("local-dir:") or folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"CLIP model {folder}: no such folder, or no open_clip_config.json in it")
        if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
            raise UserError(f"CLIP model {folder}: no weights beside its config (open_clip_model.safetensors)")
        return f"local-dir:{folder}"
    if model not in open_clip.list_models():
        close = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.5)
        near = f"; close to it: {', '.join(close)}" if close else ""
        raise UserError(f"CLIP model {model!r} is neither a folder nor a name open_clip knows{near}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(
            f"CLIP weights {pretrained!r}: neither a file nor a tag of {model} ({', '.join(tags) or 'none'})"
        )
    return model


def control_tokens(tokenizer: Any) -> list[str]:
    """What open_clip's tokenizer, or the Hugging Face one within it, does not read as text."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    return list(tokenizer.tokenizer.all_special_tokens)


def _cleaned(text: str) -> str:
    """The text once no HTML entity in it stands for another: tokenizers read `&lt;` as `<`, twice over."""
    while (plain := html.unescape(text)) != text:
        text = plain
    return text


def _content_key(model: torch.nn.Module, parameters: list[object]) -> str:
    digest = blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
