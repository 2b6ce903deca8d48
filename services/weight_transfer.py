"""How a vLLM engine takes new weights in from the object store: backend `object_store` of vLLM's weight transfer.

Importing this module registers the backend; vLLM's worker processes import it too, because the engine is started with
`worker_extension_cls` naming `WeightTransferExtension`. Loading goes through vLLM's layerwise reload, which also reaches
weights that a kernel keeps repacked; `model.load_weights` alone does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from services.weights import POLICY, read_version

BACKEND = "object_store"


@dataclass
class StoreInitInfo(WeightTransferInitInfo):
    """Name of the weight store's actor."""

    store: str


@dataclass
class StoreUpdateInfo(WeightTransferUpdateInfo):
    """The version to take in."""

    version: int


class ObjectStoreEngine(WeightTransferEngine[StoreInitInfo, StoreUpdateInfo]):
    """Reads whole versions, in Hugging Face names, from the weight store."""

    init_info_cls = StoreInitInfo
    update_info_cls = StoreUpdateInfo

    def init_transfer_engine(self, init_info: StoreInitInfo) -> None:
        self._store = ray.get_actor(init_info.store)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def receive_weights(self, update_info: StoreUpdateInfo) -> None:
        _, tensors = read_version(self._store, POLICY, update_info.version)
        model: Any = self.model
        model.load_weights(tensors)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class WeightTransferExtension:
    """Named as `worker_extension_cls`, so that every vLLM worker imports this module before it loads the model and has these
    methods."""

    model_runner: Any

    def forget_step(self) -> None:
        """After a step that failed between the forward pass and sampling, whose half the worker would wait for ever after."""
        self.model_runner.execute_model_state = None


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
