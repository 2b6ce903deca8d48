"""`--dry-run`: the resolved config, the placement plan and a memory estimate; nothing is started.

The estimate counts weights, gradients, optimizer state and published versions exactly; activations and the KV cache depend
on lengths and are named, not guessed.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from cluster.config import Config
from cluster.training.placement import plan
from learners.config import PolicyConfig
from learners.mllm import prepare_mllm
from services.weights import KEEP

GIB = 2**30
PIXELS_PER_TOKEN = 28 * 28


def describe(config: Config, console: Console) -> None:
    """Print the three tables."""
    console.print(
        Syntax(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "yaml", background_color="default")
    )
    bundles = Table("actor", "count", "CPUs each", "GPUs each", "placed", title="Placement plan", title_justify="left")
    for group, count in Counter(plan(config)).items():
        placed = f"{count} x {len(group)} together" if len(group) > 1 else "each alone"
        for bundle, members in Counter(group).items():
            cpus, gpus = f"{bundle.num_cpus:g}", f"{bundle.num_gpus:g}"
            bundles.add_row(bundle.role, str(count * members), cpus, gpus, placed)
    everyone = list(itertools.chain(*plan(config)))
    cpus, gpus = (f"{sum(amounts):g}" for amounts in zip(*[(b.num_cpus, b.num_gpus) for b in everyone], strict=True))
    bundles.add_section()
    bundles.add_row("all", str(len(everyone)), cpus, gpus, "")
    console.print(bundles)
    memory = Table("what", "GiB", "how", title="Memory estimate", title_justify="left")
    for what, size, how in estimate(config):
        memory.add_row(what, f"{size / GIB:.2f}" if size is not None else "?", how)
    console.print(memory)


def estimate(config: Config) -> list[tuple[str, float | None, str]]:
    """Rows of (what, bytes or None when the model's size is unknown, how it was computed)."""
    policy, number = config.policy, {"float32": 4, "bfloat16": 2}[config.policy.dtype]
    parameters, trained, source = count_parameters(config)
    rows: list[tuple[str, float | None, str]] = []
    if policy.train:
        size = training_bytes(parameters, trained or 0.0, number, policy) if parameters else None
        how = f"{source}; {policy.dtype}, gradients and AdamW in float32, ZeRO {policy.zero_stage}; without activations"
        if trained is None:
            how += " and the state of what is trained"
        if policy.kl_coef > 0 and not policy.lora_rank:
            how += "; the initial model besides, for the KL"
        rows.append((f"policy rank, each of {policy.world_size}", size, how))
    rows.append(
        (
            f"rollout engine, each of {config.rollout.replicas}",
            parameters and parameters * number / config.rollout.tensor_parallel,
            "weights of one GPU or process; KV cache on top: "
            + (
                f"up to {config.rollout.gpu_memory_utilization:.0%} of the GPU"
                if config.rollout.num_gpus
                else f"{config.rollout.cpu_kv_cache_gib:g} GiB of each"
            ),
        )
    )
    rows.append(
        (
            "object store, weights",
            parameters and (KEEP + 1) * parameters * number,
            f"{KEEP} versions kept and one being written",
        )
    )
    rows.append(
        (
            "frame cache on disk, an hour of video",
            3600.0 * config.frames.tokens_per_frame * PIXELS_PER_TOKEN * 3,
            f"1 frame a second, {config.frames.tokens_per_frame} tokens each, uint8; at most",
        )
    )
    return rows


def training_bytes(parameters: float, trained: float, number: int, config: PolicyConfig) -> float:
    """Bytes of one rank: weights in `number` bytes; gradients, AdamW's two moments and, from ZeRO 1 on, DeepSpeed's copy of
    the weights for AdamW in 4; each divided by the ranks from the ZeRO stage on that shards it. Gradients and optimizer
    state are those of the `trained` weights alone; a KL needs the initial weights once more, unless LoRA leaves them as they
    were."""
    shards = [config.world_size if config.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    optimizer = 12 if config.zero_stage else 8
    copies = 2 if config.kl_coef > 0 and not config.lora_rank else 1
    return trained * (optimizer / shards[0] + 4 / shards[1]) + copies * parameters * number / shards[2]


def count_parameters(config: Config) -> tuple[float | None, float | None, str]:
    """Parameters of the MLLM, how many of them (or of its adapters) are trained, and where the numbers come from; None where
    that is not known."""
    policy = config.policy
    folder = Path(policy.model) if policy.model else None
    if folder is not None and (folder / "config.json").is_file():
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        shape = Qwen2_5_VLConfig(**json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):
            model = prepare_mllm(Qwen2_5_VLForConditionalGeneration(shape), policy)
        count, trained = (
            float(sum(p.numel() for name, p in model.named_parameters() if take(name, p)))
            for take in (lambda name, p: ".lora_" not in name, lambda name, p: p.requires_grad)
        )
        return count, trained, f"{count / 1e9:.3g}B parameters by the model's config"
    if policy.num_parameters is not None:
        known = not policy.lora_rank and not policy.freeze_vision
        trained_of_recipe = policy.num_parameters if known else None
        return policy.num_parameters, trained_of_recipe, f"{policy.num_parameters / 1e9:.3g}B parameters by the recipe"
    if not policy.model:
        return None, None, "the toy world's model, a few million parameters"
    return None, None, f"{policy.model} is not on this machine; set policy.num_parameters"
