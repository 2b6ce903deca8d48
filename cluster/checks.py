"""What can be known to fail is said before any actor starts: model folders, CLIP folders, questions."""

from __future__ import annotations

import json
from pathlib import Path

from actors.config import RolloutConfig
from cluster.config import Config
from cluster.resolve import is_folder
from learners.networks import architecture
from learners.objectives import check_loss
from learners.rewards import own_terms
from services.checkpoints import load_sampler
from services.errors import UserError
from services.metrics.trackers import check_trackers

CPU_HEAD_DIM = 32
"""The CPU engine's attention takes head sizes that are multiples of this."""


def check_inputs(config: Config) -> None:
    """Raises UserError for a model, a questions file, a reward function, a loss or a tracker the run could not use.

    Hub names are left to the loaders.
    """
    own_terms(config.rewards.extra)
    check_loss(config.policy)
    check_trackers(config.train.trackers)
    for field in ("questions", "validation"):
        file: Path | None = getattr(config.data, field)
        if file is not None and not file.is_file():
            raise UserError(f"data.{field}: {file}: no such file; name a file of questions (docs/data.md)")
    check_models(config)


def check_models(config: Config) -> None:
    """Raises UserError for a sampler, an MLLM or a CLIP that could not be used."""
    model, clip = config.policy.model, config.embedder.model
    if config.sampler.checkpoint is not None and config.selector.learns:
        load_sampler(config.sampler.checkpoint, architecture(config.selector.kind, config.sampler))
    if is_folder(model):
        check_mllm(Path(model), config.rollout)
    if is_folder(clip):
        check_clip(Path(clip), config)


def check_clip(folder: Path, config: Config) -> None:
    """A CLIP in open_clip's format, whose embeddings are as long as the sampler takes them if it sees them."""
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"embedder.model: {folder} has no open_clip_config.json; name a folder saved by open_clip, or a model it knows"
        )
    width = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    if config.selector.sees_frames and width != config.sampler.width:
        raise UserError(
            f"sampler.width: {config.sampler.width}, but embedder.model embeds in {width} dimensions; set {width}"
        )


def check_mllm(folder: Path, rollout: RolloutConfig) -> None:
    """A Qwen2.5-VL in Hugging Face format, whole enough to roll out and to train."""
    needs = {
        "the model's config": ["config.json"],
        "a tokenizer": ["tokenizer.json", "vocab.json"],
        "a processor": ["preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"],
        "weights": ["model.safetensors", "model.safetensors.index.json"],
    }
    for what, names in needs.items():
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"policy.model: {folder} lacks {what} ({' or '.join(names)}); copy it from the original model"
            )
    if not _has_template(folder):
        raise UserError(
            f"policy.model: {folder} lacks a chat template (chat_template.jinja, chat_template.json, or a field of "
            "tokenizer_config.json); copy it from the original model"
        )
    shape = json.loads((folder / "config.json").read_text())
    if shape.get("model_type") != "qwen2_5_vl":
        raise UserError(f"policy.model: {folder} is a {shape.get('model_type')}; this version trains qwen2_5_vl")
    text = shape.get("text_config", shape)
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if rollout.num_gpus == 0 and head_dim % CPU_HEAD_DIM:
        raise UserError(
            f"policy.model: {folder} has attention heads of {head_dim}; the CPU engine takes multiples of {CPU_HEAD_DIM}. "
            "Use another model, or a GPU (rollout.num_gpus=1)"
        )
    if text["num_attention_heads"] % rollout.tensor_parallel:
        raise UserError(
            f"rollout.tensor_parallel={rollout.tensor_parallel}: must divide the model's {text['num_attention_heads']} "
            "attention heads"
        )


def _has_template(folder: Path) -> bool:
    """Whether transformers finds a chat template for the folder's tokenizer or processor."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    configs = (folder / "tokenizer_config.json", folder / "processor_config.json")
    return any("chat_template" in json.loads(file.read_text()) for file in configs if file.is_file())
