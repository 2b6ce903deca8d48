"""A GPU that no config asks for is left alone, although torch sees one; CPUs are shared fairly."""

from __future__ import annotations

import asyncio
import os

import pytest
import ray
import torch

from actors.config import SelectorConfig
from actors.embedder import EmbedderActor
from actors.selector import SelectorActor
from cluster.config import Config
from cluster.training.connection import COMMON_ENV
from learners.config import SamplerConfig
from learners.group import LearnerGroup
from learners.sampler import SamplerLearner
from services.config import DataConfig
from services.weights import create_store
from tests.learners.turns import ENV

SAMPLER = SamplerConfig(channels=(8,), num_cpus=0.1)


class OnWorkstation(SamplerLearner):
    """A rank on a machine with a GPU."""

    def connect(self, address: str, port: int) -> None:
        torch.cuda.is_available = lambda: True
        super().connect(address, port)

    def where(self) -> tuple[str, str]:
        return torch.distributed.get_backend(), str(next(self.engine.module.parameters()).device)


def test_a_rank_without_a_gpu_computes_on_the_cpu(ray_cluster: None) -> None:
    async def where() -> tuple[str, str]:
        arguments = (SAMPLER, "unet", 0, DataConfig(), 1)
        return await (await LearnerGroup.start(OnWorkstation, arguments, SAMPLER, ENV, ["SPREAD"])).call(
            OnWorkstation.where
        )

    assert asyncio.run(where()) == ("gloo", "cpu")


def test_selector_and_embedder_without_a_gpu_compute_on_the_cpu(
    ray_cluster: None, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    selector = SelectorActor(SelectorConfig(), SAMPLER, 0, create_store("store-devices"), toy_config.data)
    selector.ready()
    assert {parameter.device.type for parameter in selector._network.parameters()} == {"cpu"}
    config = toy_config.embedder
    embedder = EmbedderActor(config.model, config, toy_config.data, toy_config.frames)
    embedder.ready()
    assert {parameter.device.type for parameter in embedder._clip._model.parameters()} == {"cpu"}


def test_ray_hides_gpus_from_who_asked_for_none(ray_cluster: None) -> None:
    env = COMMON_ENV | {"CUDA_VISIBLE_DEVICES": "0,1"}

    @ray.remote(num_cpus=0.1, num_gpus=0, runtime_env={"env_vars": env})
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(visible.remote(), timeout=60) == ""


def test_actors_get_their_share_of_a_busy_machine(ray_cluster: None) -> None:
    """Ray makes its workers so nice that any other busy process starves them."""
    niceness = ray.remote(num_cpus=0.1)(lambda: os.nice(0))
    assert ray.get(niceness.remote(), timeout=60) == os.nice(0)
