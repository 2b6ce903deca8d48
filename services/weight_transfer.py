"""How a vLLM engine takes new weights in from the object store: backend `object_store` of vLLM's weight transfer.

Importing this module registers the backend; vLLM's worker processes import it too, because the engine is started with
`worker_extension_cls` naming `WeightTransferExtension`.

Invariants: loading goes through vLLM's layerwise reload, which also reaches weights that a kernel keeps repacked
(`model.load_weights` alone does not); a tied head, which no version names, is repacked from the embedding; a version that did
not reach every layer whole is an error that names the layers, since vLLM would go on with what is left in them.
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
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from services.errors import TrainingError
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
        self._tied = tied_layers(self.model)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def receive_weights(self, update_info: StoreUpdateInfo) -> None:
        version, tensors = read_version(self._store, POLICY, update_info.version)
        model: Any = self.model
        try:
            model.load_weights(tensors)
            if incomplete := incomplete_layers(model, self._tied):
                raise TrainingError(f"{POLICY} weights of version {version} lack part of {', '.join(incomplete)}")
        except Exception:
            self.finish_weight_update()  # so that the layers are whole again for the next version
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self._tied.values():
            layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def tied_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Layers by name whose every weight is an earlier layer's too, as that of a head tied to the embedding."""
    tied: dict[str, Any] = {}
    known: set[int] = set()
    for name, layer in model.named_modules():
        weights = {id(weight) for weight in layer.parameters(recurse=False)}
        if weights and weights <= known:
            tied[name] = layer
        known |= weights
    return tied


def incomplete_layers(model: torch.nn.Module, tied: dict[str, Any]) -> list[str]:
    """Names of the layers that a reload has begun and not filled; to be called before it is finalized."""
    names = []
    for name, layer in model.named_modules():
        info: Any = get_layerwise_info(layer)
        if name in tied or not info.can_load() or is_deferred_attention_layer(layer):
            continue
        missing = info.load_numel_total - info.load_numel
        if isinstance(layer, VocabParallelEmbedding):  # whose padding no version holds
            weight: Any = layer.weight
            missing -= (weight.shape[0] - layer.shard_indices.num_org_elements) * layer.embedding_dim
        if missing > 0 and list(layer.parameters(recurse=False)):
            names.append(name)
    return names


class WeightTransferExtension:
    """Named as `worker_extension_cls`, so that every vLLM worker imports this module before it loads the model and has these
    methods."""

    model_runner: Any

    def forget_step(self) -> None:
        """After a step that failed between the forward pass and sampling, whose half the worker would wait for ever after."""
        self.model_runner.execute_model_state = None


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
