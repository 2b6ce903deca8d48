"""What both learners are made of: a group of Ray actors, each one DeepSpeed rank, driven in lockstep.

Invariants: every rank gets the same samples by reference and takes its own share of one global plan, so the ranks agree on
the number of forward passes without talking; losses are normalised by global counts, so the split changes nothing; a loss
or a gradient that is not finite stops the run before the weights take it in; every remote call has a deadline.
"""

from __future__ import annotations

import asyncio
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
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learners.config import LearnerConfig
from learners.lora import LoraLinear
from learners.schedule import learning_rates
from services import remote
from services.errors import TrainingError
from services.weights import plan_buckets, write_bucket
from services.writing import writing

BEHIND_A_FAULT = 5.0
"""Seconds that the other ranks get to say why one of them failed."""


def plan_micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, padded: bool = True
) -> list[list[list[int]]]:
    """Item indices by rank and micro-batch: sorted by length, at most `budget` tokens each (or one item).

    `padded`: every item of a micro-batch takes the room of its longest. Every rank gets the same number of micro-batches;
    where they do not divide evenly the surplus ones are empty.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        needed = lengths[batches[-1][0]] if padded and batches else lengths[index]
        if needed > room:
            batches.append([])
            needed, room = lengths[index], budget
        batches[-1].append(index)
        room -= needed
    # Few batches for many ranks: cut the fullest, so that no rank idles while another works.
    while len(batches) < world_size and max(map(len, batches)) > 1:
        fullest = max(batches, key=len)
        batches.remove(fullest)
        batches += [fullest[::2], fullest[1::2]]
    batches += [[] for _ in range(-len(batches) % world_size)]
    return [batches[rank::world_size] for rank in range(world_size)]


@dataclass(frozen=True)
class Published:
    """One weight under the name that readers of the store expect."""

    name: str
    base: torch.nn.Parameter
    adapted: LoraLinear | None = None
    """The layer whose weight `base` is, when its adapter is to be merged."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What its value is made of."""
        return [self.base, *([self.adapted.lora_A, self.adapted.lora_B] if self.adapted else [])]

    @property
    def nbytes(self) -> int:
        """Bytes of its value, also while ZeRO-3 has it sharded."""
        return getattr(self.base, "ds_numel", self.base.numel()) * self.base.element_size()

    def value(self) -> torch.Tensor:
        """The weight as readers use it; its parameters must be gathered."""
        return self.adapted.merged() if self.adapted else self.base.data


class LearnerRank(ABC):
    """One DeepSpeed rank. Subclasses build the network and define the update."""

    network: str
    """Name of its weights in the store."""

    def __init__(self, config: LearnerConfig, rank: int, dtype: str = "float32") -> None:
        self.config, self.rank, self.dtype = config, rank, dtype
        self._version = 0  # the newest published, or being published

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """The network to train, on CPU."""

    @abstractmethod
    def publishable(self) -> list[Published]:
        """The network's weights, in model order."""

    @abstractmethod
    def part_of(self, name: str) -> str:
        """The part of the network that the parameter `name` is counted in, for metrics."""

    @abstractmethod
    def save_network(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the whole network, in its public format, into `folder`."""

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen: this node's address and a free port."""
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
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._watch_gradients(trained)
        self._optimizer = torch.optim.AdamW(
            list(trained.values()),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=self.config.betas,
        )
        self.engine, *_ = deepspeed.initialize(
            model=network, optimizer=self._optimizer, config=self._deepspeed_config()
        )

    def shard(self, network: torch.nn.Module) -> Any:
        """A network that is only read, held as the trained one is: whole on the device, or sharded by ZeRO-3."""
        import deepspeed

        if self.config.zero_stage < 3:
            return network.to(self.engine.device).eval()
        engine = deepspeed.initialize(model=network, config=self._deepspeed_config())[0]
        engine.eval()  # returns nothing, unlike a module's
        return engine

    def _deepspeed_config(self) -> dict[str, Any]:
        """Gradients of bfloat16 networks are added up, and averaged over ranks, in float32."""
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
        """The optimizer's next steps are taken with `rate`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def accumulate(self, losses: Sequence[Callable[[], torch.Tensor]], step: int) -> float:
        """Gradients of the losses, each a share of the global one, which is returned.

        Raises TrainingError when it is not finite.
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
        """One optimizer step on what was accumulated; the metrics of its gradients.

        Raises TrainingError when their norm is not finite.
        """
        zeros = self._zero_gradients()
        norm = self._grad_norm_without_zero()
        if norm is None:
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
        elif math.isfinite(norm):
            self.engine.step()
        if not math.isfinite(norm):
            raise TrainingError(f"step {step}: the gradient norm of the {self.network} is {norm}")
        return {f"{self.network}/grad_norm": norm} | zeros

    def _watch_gradients(self, trained: dict[str, torch.nn.Parameter]) -> None:
        """Note of every parameter whether any backward pass gave it a gradient other than 0, by part of the network.

        A hook on each sees the gradient before DeepSpeed shards it, so this holds for every ZeRO stage.
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
        """Share of the parameter tensors of each part that got no gradient from any sample of any rank."""
        shares = {}
        for part, flags in self._reached.items():
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            shares[f"{self.network}/zero_gradients/{part}"] = 1.0 - float(flags.mean())
        return shares

    def _grad_norm_without_zero(self) -> float | None:
        """Norm of the averaged gradients, which DeepSpeed does not report at stage 0; None where it does."""
        if self.config.zero_stage > 0:
            return None
        gradients = [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def publish(self, store: ActorHandle, version: int) -> int:
        """Write the weights to the store as `version`, bucket by bucket; every rank takes part. Returns the bytes.

        Raises TrainingError naming a tensor that is not finite; then the version never appears.
        """
        self._version = version
        weights = {weight.name: weight for weight in self.publishable()}
        written = 0
        for index, names in enumerate(plan_buckets({name: weight.nbytes for name, weight in weights.items()})):
            with self._gathered([weights[name] for name in names]):
                if self.rank == 0:
                    tensors = ((name, self._finite(weights[name])) for name in names)
                    written += write_bucket(store, self.network, version, index, tensors, self.config.deadline)
        if self.rank == 0:
            ray.get(store.commit.remote(self.network, version), timeout=self.config.deadline)
        return written

    def save(self, folder: str) -> None:
        """Write the network into `folder`; every rank takes part, rank 0 writes.

        Raises TrainingError naming a tensor that is not finite; then nothing is written.
        """
        weights = self.publishable()
        with self._gathered(weights):
            if self.rank == 0:
                state = {weight.name: self._finite(weight).detach().cpu().clone() for weight in weights}
                with writing(Path(folder)):
                    Path(folder).mkdir(parents=True, exist_ok=True)
                    self.save_network(Path(folder), state)

    def _finite(self, weight: Published) -> torch.Tensor:
        """Its value. Raises TrainingError when any of it is not finite."""
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


class LearnerGroup:
    """The driver's handle on all ranks of one learner."""

    def __init__(self, network: str, ranks: Sequence[ActorHandle], config: LearnerConfig, steps: int) -> None:
        self.network, self._ranks, self._deadline = network, list(ranks), config.deadline
        self._learning_rate = learning_rates(config, steps)
        self.version = 0
        """Newest version published; 0 is the network as it was loaded."""
        self.is_ahead = False
        """The network has learnt since it was last published."""

    @classmethod
    async def start(
        cls,
        rank_class: type[LearnerRank],
        arguments: tuple[Any, ...],
        config: LearnerConfig,
        env: dict[str, str],
        bundles: Sequence[PlacementGroupSchedulingStrategy],
        steps: int = 1,
    ) -> LearnerGroup:
        """One actor per bundle, connected to each other.

        `arguments`: those of `rank_class` before its rank. `steps`: those of the run, for learning rates that fall.
        """
        start: Any = ray.remote(rank_class)
        env = env | {"DS_ACCELERATOR": config.device}
        ranks = [
            start.options(
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                scheduling_strategy=bundle,
                runtime_env={"env_vars": env},
            ).remote(*arguments, rank)
            for rank, bundle in enumerate(bundles)
        ]
        group = cls(rank_class.network, ranks, config, steps)
        address, port = await group._call(0, "address", ())
        await group.call("connect", address, port)
        return group

    async def update(self, batch: Any, step: int) -> dict[str, float]:
        """One optimizer step; the ranks read the batch from the object store. Returns metrics."""
        await self.call("set_learning_rate", self._learning_rate(step))
        metrics = await self.call("update", ray.put(batch), step)
        self.is_ahead = True
        return metrics | self._own_metrics(step, skipped=0.0)

    def idle(self, step: int) -> dict[str, float]:
        """The metrics of a step that held no signal for this network: nothing moves."""
        return self._own_metrics(step, loss=0.0, grad_norm=0.0, skipped=1.0)

    def _own_metrics(self, step: int, **metrics: float) -> dict[str, float]:
        metrics |= {"learning_rate": self._learning_rate(step), "version": float(self.version + self.is_ahead)}
        return {f"{self.network}/{name}": value for name, value in metrics.items()}

    async def publish(self, store: ActorHandle) -> None:
        """The network as it is becomes the store's next version."""
        await self.call("publish", store, self.version + 1)
        self.version, self.is_ahead = self.version + 1, False

    async def call(self, method: str, *arguments: Any) -> Any:
        """Run `method` on every rank; rank 0's result.

        The first error of any rank is raised, not waited out. When it is a fault, as a broken connection to a rank that
        died is, the others get a moment to say what is behind it.
        """
        calls = [asyncio.ensure_future(self._call(rank, method, arguments)) for rank in range(len(self._ranks))]
        try:
            return (await asyncio.gather(*calls))[0]
        except remote.FOR_A_PERSON:
            raise
        except Exception as fault:
            done, _ = await asyncio.wait(calls, timeout=BEHIND_A_FAULT)
            errors = [error for call in done if (error := call.exception())]
            raise next((error for error in errors if isinstance(error, remote.FOR_A_PERSON)), fault) from None

    async def _call(self, rank: int, method: str, arguments: tuple[Any, ...]) -> Any:
        name = f"{self.network} learner, rank {rank}"
        return await remote.call(self._ranks[rank], name, method, arguments, self._deadline)
