"""`--dry-run`: the resolved config, the placement plan and a memory estimate; nothing is started.

The estimate counts weights, gradients, optimizer state and published versions exactly; activations and the KV cache depend
on lengths and are named, not guessed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from cluster.config import Config
from cluster.placement import plan
from learners.config import LearnerConfig
from services.weights import KEEP

GIB = 2**30
PIXELS_PER_TOKEN = 28 * 28


def describe(config: Config, console: Console) -> None:
    """Print the three tables."""
    console.print(
        Syntax(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "yaml", background_color="default")
    )
    bundles = Table("actor", "count", "CPUs each", "GPUs each", title="Placement plan", title_justify="left")
    for bundle, count in Counter(plan(config)).items():
        bundles.add_row(bundle.role, str(count), f"{bundle.num_cpus:g}", f"{bundle.num_gpus:g}")
    cpus, gpus = sum(b.num_cpus for b in plan(config)), sum(b.num_gpus for b in plan(config))
    bundles.add_section()
    bundles.add_row("all", str(len(plan(config))), f"{cpus:g}", f"{gpus:g}")
    console.print(bundles)
    memory = Table("what", "GiB", "how", title="Memory estimate", title_justify="left")
    for what, size, how in estimate(config):
        memory.add_row(what, f"{size / GIB:.2f}" if size is not None else "?", how)
    console.print(memory)


def estimate(config: Config) -> list[tuple[str, float | None, str]]:
    """Rows of (what, bytes or None when the model's size is unknown, how it was computed)."""
    policy, number = config.policy, {"float32": 4, "bfloat16": 2}[config.policy.dtype]
    parameters, source = count_parameters(config)
    rows: list[tuple[str, float | None, str]] = []
    if policy.train:
        rows.append(
            (
                f"policy rank, each of {policy.world_size}",
                parameters and training_bytes(parameters, number, policy),
                f"{source}; {policy.dtype}, AdamW in float32, ZeRO {policy.zero_stage}; without activations",
            )
        )
    rows.append(
        (
            f"rollout engine, each of {config.rollout.replicas}",
            parameters and parameters * number / config.rollout.tensor_parallel,
            "weights of one GPU or process; KV cache on top: "
            + (
                f"up to {config.rollout.gpu_memory_utilization:.0%} of the GPU"
                if config.rollout.num_gpus
                else f"{config.rollout.cpu_kv_cache_gib:g} GiB"
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


def training_bytes(parameters: float, number: int, config: LearnerConfig) -> float:
    """Bytes of one rank: weights and gradients in `number` bytes, AdamW's moments (and master weights when the network is
    not float32) in 4, each divided by the ranks from the ZeRO stage on that shards it."""
    shards = [config.world_size if config.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    optimizer = 8 if number == 4 else 12
    return parameters * (optimizer / shards[0] + number / shards[1] + number / shards[2])


def count_parameters(config: Config) -> tuple[float | None, str]:
    """Parameters of the MLLM, and where the number comes from."""
    folder = Path(config.policy.model) if config.policy.model else None
    if folder is not None and (folder / "config.json").is_file():
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        shape = Qwen2_5_VLConfig(**json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(shape)
        count = float(sum(parameter.numel() for parameter in model.parameters()))
        return count, f"{count / 1e9:.3g}B parameters by the model's config"
    if config.policy.num_parameters is not None:
        return config.policy.num_parameters, f"{config.policy.num_parameters / 1e9:.3g}B parameters by the recipe"
    if not config.policy.model:
        return None, "the toy world's model, a few million parameters"
    return None, f"{config.policy.model} is not on this machine; set policy.num_parameters"
