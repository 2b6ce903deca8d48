"""One DeepSpeed rank, which is a Ray actor: how both learners accumulate gradients, step, publish and save.

Invariants: every rank takes its own share of one global plan, so the ranks agree on the number of forward passes without
talking; losses are normalised by global counts, so how a batch is split changes nothing; a loss that is not finite stops the
run before the weights change, a gradient that is not finite before the weights are published.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from safetensors.torch import save_file

from learners.config import LearnerConfig
from learners.lora import LoraLinear
from learners.optimizer_state import SavedState, export_state, restore_state
from services.errors import StoreLost, TrainingError
from services.probes import beside_work
from services.weights import commit_version, plan_buckets, write_bucket
from services.writing import writing

OPTIMIZER = "optimizer"
"""The folder of a checkpoint that holds the state of both optimizers."""
WRITING = "writing"
"""The concurrency group of what runs beside an update."""
beside_updates: Any = ray.method(concurrency_group=WRITING)
"""Marks a method of that group."""


@dataclass(frozen=True)
class Published:
    """One weight of the network, as the readers of the store get it."""

    name: str
    base: torch.nn.Parameter
    adapted: LoraLinear | None = None
    """The layer that `base` is the weight of, when it has a LoRA adapter to merge."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the value is computed from."""
        return [self.base, *([self.adapted.lora_A, self.adapted.lora_B] if self.adapted else [])]

    @property
    def nbytes(self) -> int:
        """Size of the whole value in bytes, also while ZeRO-3 has the parameter sharded."""
        return getattr(self.base, "ds_numel", self.base.numel()) * self.base.element_size()

    def value(self) -> torch.Tensor:
        """The weight as readers use it. Under ZeRO-3 its parameters must be gathered first."""
        return self.adapted.merged() if self.adapted else self.base.data


class LearnerRank(ABC):
    """One DeepSpeed rank. Subclasses build the network and define the update."""

    network: str
    """Name of the network in the store and in metrics."""

    def __init__(self, config: LearnerConfig, rank: int, dtype: str = "float32") -> None:
        self.config, self.rank, self.dtype = config, rank, dtype
        self._version = 0  # the newest published, or being published

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Make the network to train, on the CPU."""

    @abstractmethod
    def publishable(self) -> list[Published]:
        """The network's weights, in model order."""

    @abstractmethod
    def update(self, samples: Any, step: int) -> dict[str, float]:
        """One optimizer step on all samples of a step, of which this rank computes its share. Returns metrics."""

    @abstractmethod
    def part_of(self, name: str) -> str:
        """The part of the network that `<network>/zero_gradients/<part>` counts the parameter `name` in."""

    @abstractmethod
    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the whole network, in its public format, into `folder`."""

    @beside_work
    def is_there(self) -> bool:
        """The answer to a probe."""
        return True

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, where rank 0 will listen."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def connect(self, address: str, port: int) -> None:
        """Join the process group and hand the network to DeepSpeed."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.world_size),
            LOCAL_RANK="0",
            LOCAL_SIZE="1",
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
        )
        import deepspeed

        torch.set_num_threads(self.config.threads)
        if not self.config.num_gpus:  # gloo does all we need; DeepSpeed would compile a shared-memory operator first
            sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        deepspeed.init_distributed("nccl" if self.config.num_gpus else "gloo", auto_mpi_discovery=False)
        network = self.build()
        self._trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._watch_gradients(self._trained)
        self._optimizer = torch.optim.AdamW(
            list(self._trained.values()),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=self.config.betas,
        )
        self.engine, *_ = deepspeed.initialize(
            model=network, optimizer=self._optimizer, config=self._deepspeed_config()
        )

    def shard(self, network: torch.nn.Module) -> Any:
        """Move a network that is not trained to the device: whole, or sharded when ZeRO-3 shards the trained one."""
        import deepspeed

        if self.config.zero_stage < 3:
            return network.to(self.engine.device).eval()
        engine = deepspeed.initialize(model=network, config=self._deepspeed_config())[0]
        engine.eval()  # returns nothing, unlike a module's
        return engine

    def _deepspeed_config(self) -> dict[str, Any]:
        """The config of DeepSpeed. Gradients of bfloat16 networks too are summed, and averaged over ranks, in float32."""
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.max_grad_norm,
            "bf16": {"enabled": self.dtype == "bfloat16", "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_optimization": {"stage": self.config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def accumulate(self, losses: Sequence[Callable[[], torch.Tensor]], step: int) -> float:
        """Add up the gradients of `losses`, each of which is a share of the step's loss. Returns the step's loss over all
        ranks.

        Raises TrainingError when that loss is not finite.
        """
        for flags in self._reached.values():
            flags.zero_()
        total = torch.zeros((), device=self.engine.device)
        for index, compute in enumerate(losses):
            self.engine.set_gradient_accumulation_boundary(index == len(losses) - 1)
            loss = compute()
            total += loss.detach()
            # DeepSpeed averages gradients over ranks; shares add up to the global loss.
            self.engine.backward(loss * self.config.world_size)
        torch.distributed.all_reduce(total)
        if not math.isfinite(value := float(total)):
            raise TrainingError(f"step {step}: the {self.network} loss is {value}; the weights were left as they were")
        return value

    def take_step(self, step: int) -> dict[str, float]:
        """Take one optimizer step with the accumulated gradients. Returns metrics of the gradients.

        Raises TrainingError when their norm is not finite.
        """
        zeros = self._zero_gradients()
        if self.config.zero_stage == 0:  # DeepSpeed does not report the norm
            norm = self._grad_norm()
            self._require_finite(norm, step)
            self.engine.step()
        else:  # DeepSpeed knows the norm once it has taken the step
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
            self._require_finite(norm, step)
        return {f"{self.network}/grad_norm": norm} | zeros

    def _require_finite(self, norm: float, step: int) -> None:
        if not math.isfinite(norm):
            raise TrainingError(f"step {step}: the gradient norm of the {self.network} is {norm}")

    def _watch_gradients(self, trained: dict[str, torch.nn.Parameter]) -> None:
        """Keep, for every trained parameter, whether any backward pass gave it a gradient other than 0.

        A hook on each parameter sees its gradient before DeepSpeed shards it, so this works at every ZeRO stage.
        """
        parts: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in trained.items():
            parts.setdefault(self.part_of(name), []).append(parameter)
        self._reached = {part: torch.zeros(len(among), device=self.config.device) for part, among in parts.items()}

        def note(flag: torch.Tensor, gradient: torch.Tensor) -> None:
            flag.copy_(torch.maximum(flag, (gradient != 0).any()))

        for part, among in parts.items():
            for flag, parameter in zip(self._reached[part], among, strict=True):
                parameter.register_hook(partial(note, flag))

    def _zero_gradients(self) -> dict[str, float]:
        """For each part of the network, the share of its parameters that got no gradient from any sample on any rank."""
        shares = {}
        for part, flags in self._reached.items():
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            shares[f"{self.network}/zero_gradients/{part}"] = 1.0 - float(flags.mean())
        return shares

    def _grad_norm(self) -> float:
        """Norm of the averaged gradients, which are whole on every rank at ZeRO stage 0."""
        gradients = [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def publish(self, store: ActorHandle, version: int) -> int:
        """Write the weights to the store as `version`, bucket by bucket. Every rank must call this. Returns the bytes written.

        Raises TrainingError naming a tensor that is not finite, StoreLost when the store died meanwhile; then the version does
        not appear.
        """
        self._version = version
        weights = {weight.name: weight for weight in self.publishable()}
        written, lost = 0, None
        for index, names in enumerate(plan_buckets({name: weight.nbytes for name, weight in weights.items()})):
            with self._gathered([weights[name] for name in names]):
                if self.rank == 0 and not lost:
                    tensors = ((name, self._finite(weights[name])) for name in names)
                    try:
                        written += write_bucket(store, self.network, version, index, tensors, self.config.deadline)
                    except StoreLost as error:  # the other ranks gather the further buckets, which takes all of them
                        lost = error
        if lost:
            raise lost
        if self.rank == 0:
            commit_version(store, self.network, version, self.config.deadline)
        return written

    def snapshot(self) -> int:
        """Copy the network (rank 0) and this rank's share of the optimizer's state to the CPU; bytes of these copies.

        Every rank takes part. Raises TrainingError naming a tensor that is not finite.
        """
        weights, network = self.publishable(), {}
        with self._gathered(weights):
            if self.rank == 0:
                network = {weight.name: self._finite(weight).detach().cpu().clone() for weight in weights}
        share = export_state(self.engine, self._trained, self.rank, self.config.world_size)
        self._snapshot = network, share
        return sum(tensor.nbytes for part in self._snapshot for tensor in part.values())

    @beside_updates
    def write(self, checkpoint: str) -> None:
        """Write what was copied last into a checkpoint's folder, while further updates may run, and forget it: the network in
        its public format, and the share of the optimizer's state."""
        network, share = self._snapshot
        del self._snapshot
        folder = Path(checkpoint)
        with writing(folder):
            if self.rank == 0:
                (folder / self.network).mkdir(parents=True)
                self.save_network(folder / self.network, network)
            (folder / OPTIMIZER).mkdir(parents=True, exist_ok=True)
            save_file(share, folder / OPTIMIZER / f"{self.network}-{self.rank}.safetensors")

    def restore(self, checkpoint: str) -> None:
        """Network and optimizer become what they were at that checkpoint, whatever ranks and ZeRO stage wrote it.

        Raises UserError when it is of another architecture, or damaged.
        """
        folder = Path(checkpoint) / OPTIMIZER
        with SavedState(sorted(folder.glob(f"{self.network}-*.safetensors")), folder) as saved:
            saved.check_fits(self._trained)
            restore_state(self.engine, self._trained, saved, self.rank, self.config.world_size)

    def _finite(self, weight: Published) -> torch.Tensor:
        """The value of a weight. Raises TrainingError when any of its numbers is not finite."""
        value = weight.value()
        if not value.isfinite().all():
            raise TrainingError(
                f"{self.network} weights of version {self._version}: {weight.name} holds NaN or infinity, and so would all "
                "that follows; a lower learning_rate, or a sound model to start from"
            )
        return value

    def _gathered(self, weights: Sequence[Published]) -> Any:
        import deepspeed

        parameters = [parameter for weight in weights for parameter in weight.parameters]
        return deepspeed.zero.GatheredParameters(parameters, enabled=self.config.zero_stage == 3)
