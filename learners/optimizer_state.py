"""The state of a DeepSpeed optimizer as one tensor per parameter name, which knows neither ranks nor ZeRO stages.

Each trained parameter has its float32 master and, once a step has reached it, AdamW's two moments (`exp_avg`, `exp_avg_sq`) and
count of steps. DeepSpeed's own checkpoints are pickles, and do not go between all stages and numbers of ranks.

Invariants: what is exported is a copy that no later step changes; every rank calls, as ZeRO gathers a parameter from all of
them, and keeps its share; files hold floats alone, so that reading one runs no code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from services.errors import UserError

MASTER, STEP, MOMENTS = "master", "step", ("exp_avg", "exp_avg_sq")
Parameters = Mapping[str, torch.nn.Parameter]
"""Trained parameters by name, in the order of the network."""


def adamw(engine: Any) -> torch.optim.Optimizer:
    """torch's own optimizer, beneath those that DeepSpeed wraps around it."""
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def export_state(engine: Any, trained: Parameters, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """This rank's share of the state, float32 on the CPU, as `master/<name>`, `exp_avg/<name>` and so on.

    Every rank calls with the same `trained`; one parameter is gathered at a time.
    """
    whole = _whole if engine.zero_optimization_stage() == 0 else _gathered
    share: dict[str, torch.Tensor] = {}
    for index, (name, parameter) in enumerate(trained.items()):
        for key, value in whole(engine, parameter).items():
            if index % ranks == rank:
                shape = () if key == STEP else getattr(parameter, "ds_shape", parameter.shape)
                share[f"{key}/{name}"] = value.detach().reshape(shape).to("cpu", torch.float32, copy=True).contiguous()
    return share


def _whole(engine: Any, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """ZeRO 0 in float32: the parameter is its own master."""
    return {MASTER: parameter.data} | adamw(engine).state.get(parameter, {})


def _gathered(engine: Any, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """ZeRO 1 to 3: gathered from all ranks. All parameters have taken the same steps."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {MASTER: safe_get_full_fp32_param(parameter)}
    if steps := max((float(flat["step"]) for flat in adamw(engine).state.values()), default=0.0):
        state |= {STEP: torch.tensor(steps)}
        state |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
    return state


class SavedState:
    """The shares of all ranks that saved, read tensor by tensor as they are asked for.

    Raises UserError naming the folder when it holds none, or a file that is damaged.
    """

    def __init__(self, files: Sequence[Path], where: Path) -> None:
        self._where, self._stack = where, ExitStack()
        if not files:
            raise UserError(f"{where}: holds no optimizer state; name a checkpoint that has one")
        try:
            opened = [self._stack.enter_context(safe_open(file, "pt")) for file in files]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{where}: its optimizer state is damaged ({error}); name another checkpoint") from error
        self._file_of = {key: file for file in opened for key in file.keys()}  # noqa: SIM118

    def names(self) -> Iterator[str]:
        """The parameters it is of."""
        return (key.removeprefix(f"{MASTER}/") for key in self._file_of if key.startswith(f"{MASTER}/"))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._file_of[f"{MASTER}/{name}"].get_slice(f"{MASTER}/{name}").get_shape())

    def master(self, name: str) -> torch.Tensor:
        """The float32 value of a parameter."""
        return self._file_of[f"{MASTER}/{name}"].get_tensor(f"{MASTER}/{name}")

    def moment(self, key: str, name: str) -> torch.Tensor:
        """One of the moments of a parameter; 0 when no step has reached it."""
        if f"{key}/{name}" not in self._file_of:
            return torch.zeros(self.shape(name))
        return self._file_of[f"{key}/{name}"].get_tensor(f"{key}/{name}")

    def steps(self, name: str) -> float:
        """Steps that have reached a parameter."""
        return float(self._file_of[f"{STEP}/{name}"].get_tensor(f"{STEP}/{name}")) if self.is_stepped(name) else 0.0

    def is_stepped(self, name: str) -> bool:
        """Whether any step has reached a parameter."""
        return f"{STEP}/{name}" in self._file_of

    def check_fits(self, trained: Parameters) -> None:
        """Raises UserError naming a parameter that is of another network's shape, missing, or too much."""
        saved = {name: self.shape(name) for name in self.names()}
        now = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in trained.items()}
        for name in [*now, *saved]:
            if saved.get(name) != now.get(name):
                raise UserError(
                    f"{self._where}: {name} is {_shown(saved.get(name))} there and {_shown(now.get(name))} here; a run goes "
                    "on with the architecture, LoRA and frozen parts that it began with"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not trained" if shape is None else str(list(shape))


def restore_state(engine: Any, trained: Parameters, saved: SavedState, rank: int, ranks: int) -> None:
    """Make optimizer and parameters what they were when `saved` was exported; every rank calls."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        _restore_whole(engine, trained, saved)
    elif stage < 3:
        _restore_partitions(engine, trained, saved)
    else:
        _restore_shards(engine, trained, saved, rank, ranks)


def _make_room(engine: Any, flats: Iterable[torch.Tensor], steps: float) -> None:
    """Give each of the flat tensors that AdamW steps a count of `steps`, and moments to fill.

    Moments that are there stay the same tensors, as ZeRO holds views of them.
    """
    states = adamw(engine).state
    for flat in flats:
        states[flat] = {key: torch.zeros_like(flat) for key in MOMENTS} | states.get(flat, {})
        states[flat][STEP] = torch.tensor(steps)


def _restore_whole(engine: Any, trained: Parameters, saved: SavedState) -> None:
    """ZeRO 0 in float32: the parameters are their own masters."""
    states = adamw(engine).state
    states.clear()
    for name, parameter in trained.items():
        parameter.data.copy_(saved.master(name))
        if saved.is_stepped(name):
            states[parameter] = {STEP: torch.tensor(saved.steps(name))}
            for key in MOMENTS:
                states[parameter][key] = saved.moment(key, name).to(parameter.device)


def _restore_partitions(engine: Any, trained: Parameters, saved: SavedState) -> None:
    """ZeRO 1 and 2: each rank holds masters and moments of a part of one flat tensor."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero = engine.optimizer
    # Named otherwise by each of DeepSpeed's optimizers, for float32 and for bfloat16.
    flats = [flat for group in adamw(engine).param_groups for flat in group["params"]]
    _make_room(engine, flats, max(map(saved.steps, trained)))
    zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in trained.items():
        safe_set_full_fp32_param(parameter, saved.master(name))
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, saved.moment(key, name), key)
    zero.update_lp_params()


def _restore_shards(engine: Any, trained: Parameters, saved: SavedState, rank: int, ranks: int) -> None:
    """ZeRO 3: each rank holds a padded shard of every parameter; small ones are whole on each as well."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    zero = engine.optimizer
    _make_room(engine, zero.fp32_partitioned_groups_flat, max(map(saved.steps, trained)))

    def shard(parameter: Any, value: torch.Tensor) -> torch.Tensor:
        size = parameter.ds_tensor.numel()
        return functional.pad(value.flatten(), (0, size * ranks - value.numel())).narrow(0, size * rank, size)

    for name, parameter in trained.items():
        safe_set_local_fp32_param(parameter, shard(parameter, saved.master(name)))
        for key in MOMENTS:
            safe_set_local_optimizer_state(parameter, shard(parameter, saved.moment(key, name)), key)
    for index, (low, master) in enumerate(
        zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    ):
        low.data.copy_(master.data)
        zero._unflatten_partitioned_parameters(index)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
