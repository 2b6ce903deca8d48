"""vLLM's Ray executor on CPUs: an engine's tensor-parallel workers as Ray actors without a GPU.

vLLM's own asks Ray for accelerators alone. Imported only in the process of such an engine and in those of its workers.
"""

from __future__ import annotations

from typing import Any

import ray
from vllm.platforms import current_platform
from vllm.v1.executor import ray_executor_v2


class CpuWorker(ray_executor_v2.RayWorkerProc):
    """A worker that holds no accelerator and looks for none."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), []

    def initialize_worker(self, *arguments: Any, assigned_physical_gpu_ids: list[int] | None = None) -> None:
        super().initialize_worker(*arguments)


class CpuRayExecutor(ray_executor_v2.RayExecutorV2):
    """Its workers sit in the bundles of the actor's placement group that `VLLM_RAY_BUNDLE_INDICES` names."""

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, Any]:
        return {"num_gpus": 0}

    def _init_executor(self) -> None:
        type(current_platform).ray_device_key = "CPU"
        # The executor starts what its own module calls by this name; the process has no other engine.
        vars(ray_executor_v2)["RayWorkerProc"] = CpuWorker
        super()._init_executor()
