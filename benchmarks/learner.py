"""One GRPO update of the policy learner: what each of its optimisations saves in time and in memory.

    python -m benchmarks.learner --shape small --questions 2 --group 4 --frames 8 --tokens-per-frame 64 \
        --preview-tokens 16 --query-tokens 96 --answer-tokens 64 --micro-batch-tokens 2048

The model is a folder's, or has a shape and random weights; frames are random pixels, tokens and advantages are random. Each
question has G query turns that share a prompt with K // 2 previews, and G answer turns with K frames of their own each. A
row is a process of its own: one update to warm up, then `--rounds` of them. Every row but the first and the last, which show
the noise, changes one thing. `padded batch, all logits` is the plain trainer: transformers' own forward pass over turns
padded on the right, logits of every token, nothing shared; its checkpointing and its optimizer are the default's.

tokens/s: prompts and responses of all turns, whatever a row computes of them, a second. computed: tokens that the language
model runs over, padding included. GiB: peak of the GPU's allocations in one update, or of the resident memory of the whole
process. MFU: model FLOPs of the computed tokens a second, over the rate of a large square matmul measured in the same process
and dtype. Model FLOPs are 3 times those counted in one forward pass, causal attention in full and recomputation not at all;
under LoRA 2 times for the language model, whose weights need no gradient; once for a vision tower without gradients.

Shape letters: `B` turns, `L` tokens of the longest, `N` response tokens, `V` vocabulary.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import learners.policy
from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.packing import ATTENTION, packed_attention, plan_families
from learners.policy import LOGIT_CHUNK, PolicyLearner, PolicyNetwork, prepare_mllm
from learners.rank import plan_micro_batches
from services.config import DataConfig, FramesConfig
from services.frames import FrameCache, visual_input, write_frames
from services.schema import Turn, Video
from services.video import frame_size

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
VIDEO = "benchmark"
"""Key of the one video."""
PROMPT_TEXT = 128
"""Tokens of a prompt that are no frames."""

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "small": (
        {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 1024, "vocab_size": 32768},
        {"hidden_size": 256, "depth": 8, "num_heads": 4, "intermediate_size": 688, "fullatt_block_indexes": [7]},
        True,
    ),
    "3b": (
        {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
         "intermediate_size": 11008, "vocab_size": 151936},
        {"hidden_size": 1280},
        True,
    ),
    "7b": (
        {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
         "intermediate_size": 18944, "vocab_size": 152064},
        {"hidden_size": 1280},
        False,
    ),
}  # fmt: skip
"""Language model, vision tower (what is not Qwen2.5-VL's default) and whether the embeddings are tied."""


class Measured(PolicyLearner):
    """A policy learner that can have random weights, made on the device, and that keeps its forward passes."""

    attention: Any = {"text_config": ATTENTION, "vision_config": "sdpa"}
    network_class = PolicyNetwork
    random_weights: bool

    def build(self) -> torch.nn.Module:
        from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText

        AttentionInterface.register(ATTENTION, packed_attention)
        how = {"dtype": getattr(torch, self.config.dtype), "attn_implementation": self.attention}
        if self.random_weights:
            with torch.device(DEVICE):
                mllm = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(self._model), **how)
        else:
            mllm = AutoModelForImageTextToText.from_pretrained(self._model, **how)
        return self.network_class(prepare_mllm(mllm, self.config), temperature=1.0)

    def accumulate(self, losses: Sequence[Callable[[], torch.Tensor]], step: int) -> float:
        self.passes = losses
        return super().accumulate(losses, step)


class PaddedNetwork(PolicyNetwork):
    """Transformers' own forward pass on a padded batch, and the log-probs of all its tokens."""

    def forward(
        self, inputs: dict[str, Any], predicts: torch.Tensor, targets: torch.Tensor, num_chunks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of the packed network, the entropies left out."""
        lengths = [span.tokens.stop - span.tokens.start for span in inputs["spans"]]

        def padded(values_L: torch.Tensor) -> torch.Tensor:
            return pad_sequence(values_L.split(lengths), batch_first=True)

        ids_BL, is_real_BL = padded(inputs["input_ids"]), padded(torch.ones_like(inputs["input_ids"]))
        logits_BLV = self.mllm(
            input_ids=ids_BL,
            attention_mask=is_real_BL,
            position_ids=padded(inputs["position_ids"].T).permute(2, 0, 1),
            pixel_values_videos=inputs["patches"],
            video_grid_thw=inputs["grids"],
            use_cache=False,
        ).logits.float()
        next_BL = ids_BL.roll(-1, dims=1)
        log_probs = -cross_entropy(logits_BLV.flatten(0, 1), next_BL.flatten(), reduction="none")
        return log_probs[is_real_BL.flatten().nonzero()[predicts, 0]], torch.zeros(len(targets), device=DEVICE)


class PaddedLearner(Measured):
    """The longest turns first, as many as the budget holds with their padding."""

    attention = "sdpa"
    network_class = PaddedNetwork

    def update(self, samples: Sequence[PolicySample], step: int) -> dict[str, float]:
        turns = plan_families(samples, 1, share=False)
        (batches,) = plan_micro_batches([turn.tokens for turn in turns], self.config.micro_batch_tokens, 1)

        def loss_of(batch: list[int]) -> torch.Tensor:
            return self._loss(self.collate(samples, [turns[index] for index in batch], with_vision=True), 1)[0]

        loss = self.accumulate([partial(loss_of, batch) for batch in batches], step)
        computed = sum(len(batch) * turns[batch[0]].tokens for batch in batches)
        return {"policy/loss": loss, "policy/computed_tokens": float(computed)} | self.take_step(step)


@dataclass(frozen=True)
class Row:
    """One way to make the update."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the policy's config."""
    rank_class: type[Measured] = Measured
    logit_chunk: int = LOGIT_CHUNK


def all_rows(dtype: str) -> list[Row]:
    """Every optimisation off and every saving on; the default first and last."""
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    return [
        Row("default"),
        Row("padded batch, all logits", rank_class=PaddedLearner),
        Row("prompts not shared", {"share_prompts": False}),
        Row("one turn a pass", {"micro_batch_tokens": 1}),
        Row("no checkpointing", {"gradient_checkpointing": False}),
        Row("all logits at once", logit_chunk=2**62),
        Row("vision frozen", {"freeze_vision": True}),
        Row("LoRA r=16", {"lora_rank": 16}),
        Row(other, {"dtype": other}),
        Row("default again"),
    ]


@dataclass(frozen=True)
class Result:
    """Of one row."""

    seconds: float
    """Median of the rounds."""
    gib: float
    tokens: int
    """Prompts and responses of all turns."""
    computed: float
    flops: float
    peak: float
    """FLOP/s of the matmul."""
    parameters: int
    machine: str


def make_folder(folder: Path, options: argparse.Namespace) -> None:
    """The model's config and video processor if it has a shape only, and a video in the layout of the frame cache."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLVideoProcessor

    if options.model is None:
        text, vision, tied = SHAPES[options.shape]
        rotated = text["hidden_size"] // text["num_attention_heads"] // 8
        rope = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [rotated, 3 * rotated // 2, 3 * rotated // 2],
        }
        size, special = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}, min(text["vocab_size"], 151657)
        Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000},
            vision_config={"tokens_per_second": 2, "out_hidden_size": text["hidden_size"]} | vision,
            tie_word_embeddings=tied,
            image_token_id=special - 2,
            video_token_id=special - 1,
        ).save_pretrained(folder)
        Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False).save_pretrained(folder)

    rng, (height, width) = np.random.default_rng(0), frame_size(720, 1280, options.tokens_per_frame)
    path = FrameCache(folder, options.tokens_per_frame, 60)._file(VIDEO)
    path.parent.mkdir(parents=True)
    seconds = range(4 * options.frames)
    write_frames(path, VIDEO, ((float(t), rng.integers(0, 256, (height, width, 3), np.uint8)) for t in seconds))


def make_samples(options: argparse.Namespace, video: Video, config: Any) -> list[PolicySample]:
    """The same turns in every process. Text is made of the tokens before the video token."""
    rng, shown = np.random.default_rng(0), FramesConfig(budget=options.frames).previews

    def turn(frames: Sequence[int], max_tokens: int, around: int) -> Iterator[Turn]:
        """Endlessly: one prompt and any response."""
        visual = visual_input(video, frames, max_tokens)
        pads = (len(frames) + 1) // 2 * (visual.height // 28) * (visual.width // 28)
        prompt = rng.integers(0, config.video_token_id, PROMPT_TEXT + pads).astype(np.int32)
        prompt[PROMPT_TEXT // 2 : PROMPT_TEXT // 2 + pads] = config.video_token_id
        while True:
            response = rng.integers(0, config.video_token_id, max(1, rng.integers(around // 2, 3 * around // 2 + 1)))
            log_probs = rng.normal(-np.log(config.text_config.vocab_size), 0.3, len(response)).astype(np.float32)
            yield Turn(prompt, response.astype(np.int32), log_probs, "", False, 0, visual)

    turns = []
    for _ in range(options.questions):
        queries = turn(
            np.linspace(0, video.num_frames - 1, shown).astype(int), options.preview_tokens, options.query_tokens
        )
        for _ in range(options.group):
            chosen = rng.choice(video.num_frames, options.frames, replace=False)
            turns += [next(queries), next(turn(chosen, options.tokens_per_frame, options.answer_tokens))]
    weight = 1 / sum(len(turn.response_ids) for turn in turns)
    return [PolicySample(f"turn {index}", turn, float(rng.normal()), weight) for index, turn in enumerate(turns)]


def measure(row: Row, options: argparse.Namespace, folder: Path) -> Result:
    """Run in a fresh process."""
    from transformers import AutoConfig

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    torch.manual_seed(0)
    learners.policy.LOGIT_CHUNK = row.logit_chunk
    common = {"dtype": options.dtype, "micro_batch_tokens": options.micro_batch_tokens}
    config, frames = PolicyConfig(**common | row.changes), FramesConfig(tokens_per_frame=options.tokens_per_frame)
    model = options.model or str(folder)
    learner = row.rank_class(config, model, 1.0, DataConfig(cache=folder), frames, 0)
    learner.random_weights = options.model is None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    learner.connect("127.0.0.1", port)
    video = FrameCache(folder, options.tokens_per_frame, 60).video(VIDEO)
    samples = make_samples(options, video, AutoConfig.from_pretrained(model))

    seconds = []
    for step in range(options.rounds + 1):
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        metrics = learner.update(samples, step)
        if ON_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return Result(
        seconds=statistics.median(seconds[1:]),
        gib=(torch.cuda.max_memory_allocated() if ON_GPU else resident) / 2**30,
        tokens=sum(len(sample.turn.prompt_ids) + len(sample.turn.response_ids) for sample in samples),
        computed=metrics["policy/computed_tokens"],
        flops=model_flops(learner, config),
        peak=matmul_rate(getattr(torch, config.dtype)),
        parameters=sum(parameter.numel() for parameter in learner.engine.module.parameters()),
        machine=machine(),
    )


def model_flops(learner: Measured, config: PolicyConfig) -> float:
    """Of one update, by the module docstring's rule."""
    # PyTorch's counter knows the attention kernels of GPUs only.
    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        for compute in learner.passes:
            compute()
    (vision,) = (sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith(".visual"))
    language = counter.get_total_flops() - vision
    return language * (2 if config.lora_rank else 3) + vision * (1 if config.lora_rank or config.freeze_vision else 3)


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a square matmul, the best of ten."""
    size, best = 8192 if ON_GPU else 1024, float("inf")
    a, b = torch.randn(2, size, size, dtype=dtype, device=DEVICE)
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if ON_GPU:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def machine() -> str:
    """Device, cores, versions."""
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown CPU")
    device = f"{torch.cuda.get_device_name()}, " if ON_GPU else ""
    threads = f"{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch thread(s)"
    return f"{device}{cpu}, {threads}, torch {torch.__version__}"


def in_own_process(row: Row, options: argparse.Namespace, folder: Path) -> Result | str:
    """The row's result, or why there is none."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, row, options, folder).result()
        except torch.OutOfMemoryError:
            return "out of memory"
        except BrokenProcessPool:
            return "killed"


def table_of(results: dict[str, Result | str], title: str) -> Table:
    """One line a row; ratios are to the first."""
    table = Table("row", *[""] * 0, title=title)
    for column in ("s", "tokens/s", "GiB", "computed", "MFU", "times s", "times GiB"):
        table.add_column(column, justify="right")
    default = results["default"]
    for name, found in results.items():
        if isinstance(found, str):
            table.add_row(name, found)
            continue
        ratios = ("–", "–")
        if isinstance(default, Result):
            ratios = (f"{found.seconds / default.seconds:.2f}", f"{found.gib / default.gib:.2f}")
        table.add_row(
            name, f"{found.seconds:.2f}", f"{found.tokens / found.seconds:,.0f}", f"{found.gib:.2f}",
            f"{found.computed:,.0f}", f"{found.flops / found.seconds / found.peak:.0%}", *ratios,
        )  # fmt: skip
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", help="folder of a Qwen2.5-VL")
    model.add_argument("--shape", choices=SHAPES, default="small", help="random weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if ON_GPU else "float32")
    sizes = {"questions": 8, "group": 8, "frames": 32, "tokens-per-frame": 256, "preview-tokens": 32}
    sizes |= {"query-tokens": 128, "answer-tokens": 128, "micro-batch-tokens": 16384, "rounds": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", help="parts of the names of rows, separated by commas")
    options = parser.parse_args()
    if not ON_GPU:
        os.environ["DS_ACCELERATOR"] = "cpu"

    wanted = ["default", *(options.only or "").split(",")]
    results: dict[str, Result | str] = {}
    console = Console()
    with TemporaryDirectory() as folder:
        make_folder(Path(folder), options)
        for row in all_rows(options.dtype):
            if any(part in row.name for part in wanted):
                with console.status(row.name):
                    results[row.name] = in_own_process(row, options, Path(folder))
    console.print(table_of(results, "t"))
    known = next(found for found in results.values() if isinstance(found, Result))
    console.print(known.machine)


if __name__ == "__main__":
    main()
