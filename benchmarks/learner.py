"""One GRPO update of the policy learner: what each of its optimisations saves in time and in memory.

    python -m benchmarks.learner --questions 1 --group 4 --frames 8 --tokens-per-frame 48 --preview-tokens 16 \
        --query-tokens 96 --answer-tokens 48 --micro-batch-tokens 2048 --rounds 3

The model is a folder's, or has a shape and random weights. Each question has G query turns that share a prompt with K // 2
previews, and G answer turns with K frames of their own each; frames, tokens and advantages are random. A row is a process of
its own: one update to warm up, then `--rounds`. All rows but the first and the last, which show the noise, change one thing.
`padded, all logits` is the plain trainer: transformers' own forward pass over turns padded on the right, logits of every
token, nothing shared; checkpointing and optimizer are the default's.

s: median of the rounds; on CPU in processor seconds, which other processes disturb less. tokens/s: prompts and responses of
all turns over s, whatever a row computes of them. GiB: peak of the GPU's allocations in the last round, or of the process's
resident memory. computed: tokens that the language model runs over, padding included. MFU: model FLOPs of these over s, as a
share of the rate of a large square matmul in the same process and dtype. Model FLOPs are 3 times those counted in a forward
pass, with causal attention in full and without recomputation; with LoRA 2 times, as the base weights need no gradient; and
once for a vision tower without gradients. loss: of the first update, which no row should change. bfloat16 is left out on a
CPU that does not multiply in it.

Shape letters: `B` turns, `L` tokens of the longest, `N` response tokens, `V` vocabulary.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

import learners.mllm
from benchmarks.random_turns import SHAPES, RandomFrames, make_folder, make_samples
from cluster.resolve import multiplies_in_bfloat16
from learners.config import PolicyConfig
from learners.credit import PolicySample
from learners.micro_batches import plan_micro_batches
from learners.mllm import LOGIT_CHUNK, PolicyNetwork, prepare_mllm
from learners.packing import ATTENTION, packed_attention, plan_families
from learners.policy import PolicyLearner
from learners.vision_attention import GroupedVisionAttention
from services.config import DataConfig, FramesConfig

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


class Measured(PolicyLearner):
    """A policy learner that keeps its forward passes, and that makes random weights where it computes."""

    attention: ClassVar[Any] = {"text_config": ATTENTION, "vision_config": "sdpa"}
    network_class = PolicyNetwork
    vision_class: type[Qwen2_5_VLVisionAttention] = GroupedVisionAttention

    def __init__(self, config: PolicyConfig, options: argparse.Namespace, folder: str) -> None:
        self.random_weights = options.model is None
        super().__init__(config, options.model or folder, 1.0, DataConfig(), FramesConfig(), rank=0)
        self._frames = RandomFrames(options)

    def build(self) -> torch.nn.Module:
        from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText

        AttentionInterface.register(ATTENTION, packed_attention)
        how = {"dtype": getattr(torch, self.config.dtype), "attn_implementation": self.attention}
        if self.random_weights:
            with torch.device(DEVICE):
                mllm = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(self._model), **how)
        else:
            mllm = AutoModelForImageTextToText.from_pretrained(self._model, **how)
        mllm = prepare_mllm(mllm, self.config)
        for block in mllm.model.visual.blocks:
            block.attn.__class__ = self.vision_class
        return self.network_class(mllm, self._temperature)

    def accumulate(self, losses: Sequence[Callable[[], torch.Tensor]], step: int) -> float:
        self.passes = losses
        return super().accumulate(losses, step)


class WindowsLearner(Measured):
    """Attends once a window in the vision tower."""

    vision_class = Qwen2_5_VLVisionAttention


class PaddedNetwork(PolicyNetwork):
    """Transformers' own forward pass on a padded batch, and the log-probs of all its tokens."""

    def forward(
        self, inputs: dict[str, Any], predicts: torch.Tensor, targets: torch.Tensor, num_chunks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the packed network, but without entropies."""
        lengths = [span.length for span in inputs["spans"]]

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


class PaddedLearner(WindowsLearner):
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
    """Fields of the policy's config, with their values."""
    rank_class: type[Measured] = Measured
    logit_chunk: int = LOGIT_CHUNK


def all_rows(dtype: str) -> list[Row]:
    """One optimisation off, or one saving on, a row."""
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    return [
        Row("default"),
        Row("padded, all logits", rank_class=PaddedLearner),
        Row("prompts not shared", {"share_prompts": False}),
        Row("one turn a pass", {"micro_batch_tokens": 1}),
        Row("no checkpointing", {"gradient_checkpointing": False}),
        Row("all logits at once", logit_chunk=2**62),
        Row("a call each window", rank_class=WindowsLearner),
        Row("vision frozen", {"freeze_vision": True}),
        Row("LoRA r=16", {"lora_rank": 16}),
        Row(other, {"dtype": other}),
        Row("default again"),
    ]


@dataclass(frozen=True)
class Result:
    """The columns of a row, and what the model, the turns and the machine are."""

    seconds: float
    tokens_per_second: float
    gib: float
    computed: float
    mfu: float
    loss: float
    about: str


def clock() -> float:
    """Seconds: the GPU's work done, or this process's time on the processor."""
    if not ON_GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(row: Row, options: argparse.Namespace, folder: str) -> Result:
    """Measure one way of making the update, in a process that does nothing else."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    torch.manual_seed(0)
    learners.mllm.LOGIT_CHUNK = row.logit_chunk
    common = {
        "num_gpus": int(ON_GPU),
        "dtype": options.dtype,
        "zero_stage": int(options.dtype == "bfloat16"),
        "micro_batch_tokens": options.micro_batch_tokens,
    }
    config = PolicyConfig(**common | row.changes)
    learner = row.rank_class(config, options, folder)
    learner.connect("127.0.0.1", learner.address()[1])
    samples = make_samples(options, learner._frames.video, learner.engine.module.mllm.config)
    seconds, losses = [], []
    for step in range(options.rounds + 1):
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        start = clock()
        metrics = learner.update(samples, step)
        seconds.append(clock() - start)
        losses.append(metrics["policy/loss"])
    resident, median = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10, statistics.median(seconds[1:])
    parameters = sum(parameter.numel() for parameter in learner.engine.module.parameters())
    tokens = sum(len(sample.turn.prompt_ids) + len(sample.turn.response_ids) for sample in samples)
    return Result(
        seconds=median,
        tokens_per_second=tokens / median,
        gib=(torch.cuda.max_memory_allocated() if ON_GPU else resident) / 2**30,
        computed=metrics["policy/computed_tokens"],
        mfu=model_flops(learner, config) / median / matmul_rate(getattr(torch, config.dtype)),
        loss=losses[0],
        about=f"{parameters / 1e6:,.0f}M parameters; {len(samples)} turns, {tokens:,} tokens\n{machine()}",
    )


def model_flops(learner: Measured, config: PolicyConfig) -> float:
    """Floating-point operations of one update, by the module docstring's rule."""
    # PyTorch's counter does not know the CPU's attention, nor keys with fewer heads than queries on a GPU.
    aten = torch.ops.aten
    kernels = [
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
    ]
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=dict.fromkeys(kernels, _attention)) as counter:
        for compute in learner.passes:
            compute()
    (vision,) = (sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith(".visual"))
    language = counter.get_total_flops() - vision
    return language * (2 if config.lora_rank else 3) + vision * (1 if config.lora_rank or config.freeze_vision else 3)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of both products, from the shapes [B, H, L, D] of a fused call."""
    heads = (query[0], query[1])
    return int(sdpa_flop_count(query, (*heads, *key[2:]), (*heads, *value[2:])))


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s, the best of ten."""
    size, best = 8192 if ON_GPU else 1024, float("inf")
    a, b = torch.randn(2, size, size, dtype=dtype, device=DEVICE)
    for _ in range(10):
        start = clock()
        a @ b
        best = min(best, clock() - start)
    return 2 * size**3 / best


def machine() -> str:
    """Device, cores, version."""
    with open("/proc/cpuinfo") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown CPU")
    device = f"{torch.cuda.get_device_name()}, " if ON_GPU else ""
    return f"{device}{cpu}, {os.cpu_count()} cores ({torch.get_num_threads()} used), torch {torch.__version__}"


def in_own_process(row: Row, options: argparse.Namespace, folder: str) -> Result | str:
    """The row's result, or why there is none."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, row, options, folder).result()
        except torch.OutOfMemoryError:
            return "no room"
        except BrokenProcessPool:
            return "killed"


def table_of(results: dict[str, Result | str]) -> Table:
    """A line a row; ratios are to the first."""
    table = Table("row", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("s", "tokens/s", "GiB", "computed", "MFU", "× s", "× GiB", "loss"):
        table.add_column(column, justify="right")
    default = results["default"]
    for name, found in results.items():
        if isinstance(found, str):
            table.add_row(name, found)
            continue
        ratios = ["", ""]
        if isinstance(default, Result):
            ratios = [f"{found.seconds / default.seconds:.2f}", f"{found.gib / default.gib:.2f}"]
        table.add_row(
            name, f"{found.seconds:.2f}", f"{found.tokens_per_second:,.0f}", f"{found.gib:.2f}",
            f"{found.computed:,.0f}", f"{found.mfu:.0%}", *ratios, f"{found.loss:.4f}",
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
    parser.add_argument("--only", default="", help="parts of the names of rows, separated by commas; the default stays")
    options = parser.parse_args()
    if not ON_GPU:
        os.environ["DS_ACCELERATOR"] = "cpu"

    parts = ["default", *options.only.split(",")]
    results: dict[str, Result | str] = {}
    with TemporaryDirectory() as folder:
        make_folder(folder, options.shape)
        for row in all_rows(options.dtype):
            if not any(part in row.name for part in parts):
                continue
            if row.changes.get("dtype") == "bfloat16" and not ON_GPU and not multiplies_in_bfloat16():
                results[row.name] = "emulated"
            else:
                results[row.name] = in_own_process(row, options, folder)
            print(row.name, results[row.name], file=sys.stderr)
    abouts = [found.about for found in results.values() if isinstance(found, Result)]
    Console().print(*abouts[:1], soft_wrap=True)
    Console().print(table_of(results))


if __name__ == "__main__":
    main()
