"""A sampler network as an RLlib `RLModule`, for those who work with RLlib: every checkpoint holds one, which nothing here
reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.rl_module.torch import TorchRLModule

from learners.config import SamplerConfig
from learners.networks import NETWORKS
from learners.unet import MAX_QUERIES


class SamplerModule(TorchRLModule):
    """A network of `NETWORKS`. `model_config` is what `architecture` makes of its config: its kind and its fields."""

    model_config: dict[str, Any]

    def setup(self) -> None:
        kind = self.model_config["selector.kind"]
        fields = {name: self.model_config[f"sampler.{name}"] for name in NETWORKS[kind].fields}
        self.network = NETWORKS[kind].build(SamplerConfig(**fields))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        """The batch that the network's `collate` makes, to `logits` [B, T]; padded frames get -inf."""
        return {"logits": self.network(batch)}


def rl_module(architecture: dict[str, Any], state: Mapping[str, torch.Tensor]) -> SamplerModule:
    """The module of a network with the weights `state`. RLlib asks for spaces; here they are per frame: the cosines of at most
    4 queries are seen, and the frame is drawn or not."""
    module = SamplerModule(
        observation_space=gym.spaces.Sequence(gym.spaces.Box(-1.0, 1.0, (MAX_QUERIES,), np.float32)),
        action_space=gym.spaces.Sequence(gym.spaces.Discrete(2)),
        model_config=architecture,
    )
    module.network.load_state_dict(state)
    return module
