"""The sampler networks that can be trained, by the name that `selector.kind` gives each.

A network is a module in a file of its own and a row in `NETWORKS`. It takes the batch that the row's `collate` makes of what
was seen, and returns logits [B, T], -inf where a frame is padding. Its file imports PyTorch and numpy alone, and its arguments
have the names of the row's `fields`: so `msjoe export` publishes it.

PyTorch is imported where a network is made, not here: the config, and so every command, reads the table.

Shape letters: `B` batch, `Q` queries, `T` candidate frames, `D` dimensions of CLIP's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learners.config import SamplerConfig
from services.config import DataConfig
from services.errors import TrainingError, UserError
from services.schema import Embedded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from services.embeddings import FeatureCache

TEMPERATURE = "temperature"
"""The parameter that a network with an `anneal` divides its logits by. It is published and saved like weights, and no gradient
moves it."""


@dataclass(frozen=True)
class Seen:
    """What a network chooses frames by."""

    similarity: np.ndarray
    """[Q, T] cosines."""
    queries: np.ndarray | None = None
    """[Q, D] embeddings of the queries; None for a network that sees the cosines alone, and so is `frames`."""
    frames: np.ndarray | None = None
    """[T, D] embeddings of the candidate frames."""


@dataclass(frozen=True)
class Network:
    """One kind of sampler network."""

    build: Callable[[SamplerConfig], nn.Module]
    """Make it on the CPU, with weights of PyTorch's global random generator."""
    collate: Callable[[Sequence[Seen]], dict[str, Tensor]]
    """The batch that it takes."""
    fields: tuple[str, ...]
    """Fields of `sampler` that the shapes of its weights depend on."""
    sees_frames: bool = False
    """Whether it needs CLIP's embeddings of queries and frames."""
    anneal: Callable[[float], float] | None = None
    """Its `temperature`, from the share of the run that is done; None when it has none."""


def make_network(kind: str, config: SamplerConfig, seed: int, checkpoint: Path | None = None) -> nn.Module:
    """Make a network on the CPU, with the weights of `checkpoint` or with fresh ones that `seed` alone decides. The global
    random state does not change.

    Raises UserError when the checkpoint is of another network.
    """
    import torch

    from services.checkpoints import load_sampler

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = NETWORKS[kind].build(config)
    if checkpoint is not None:
        try:
            network.load_state_dict(load_sampler(checkpoint, architecture(kind, config)))
        except RuntimeError as error:
            raise UserError(
                f"sampler.checkpoint: {checkpoint} holds another network's weights; name another"
            ) from error
    return network


def architecture(kind: str, config: SamplerConfig) -> dict[str, Any]:
    """What tells a network's weights from another's, by the name of the config field that decides it."""
    fields = {f"sampler.{name}": getattr(config, name) for name in NETWORKS[kind].fields}
    return {"selector.kind": kind} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


def look(kind: str, config: SamplerConfig, data: DataConfig, similarity: np.ndarray, embedded: Embedded | None) -> Seen:
    """What a network of that kind sees: the cosines [Q, T], and for one that sees frames the embeddings, whose frames are read
    from the cache.

    Raises UserError when CLIP's embeddings are not of `sampler.width` dimensions, TrainingError when the cache lacks them.
    """
    if not NETWORKS[kind].sees_frames:
        return Seen(similarity)
    if embedded is None:
        raise TrainingError(
            f"selector.kind={kind} needs the embeddings behind the similarities, and was not given them"
        )
    frames = _cache(data.cache, embedded.clip, data.bucket).get(embedded.video)
    if frames is None:
        raise TrainingError(
            f"video {embedded.video} has no features in {data.cache}: this node needs the run's data.cache"
        )
    if frames.shape[1] != config.width:
        raise UserError(
            f"sampler.width: {config.width}, but embedder.model embeds in {frames.shape[1]} dimensions; set {frames.shape[1]}"
        )
    return Seen(similarity, embedded.queries, frames)


@lru_cache(4)
def _cache(root: Path, clip: str, bucket: str) -> FeatureCache:
    from services.embeddings import FeatureCache

    return FeatureCache(root, clip, bucket)


def _unet(config: SamplerConfig) -> nn.Module:
    from learners.unet import UNetSampler

    return UNetSampler(config.channels)


def _unet_batch(seen: Sequence[Seen]) -> dict[str, Tensor]:
    from learners.unet import collate

    return collate([one.similarity for one in seen])


def _tspo(config: SamplerConfig) -> nn.Module:
    from learners.tspo import TspoAgent

    return TspoAgent(config.width)


def _tspo_batch(seen: Sequence[Seen]) -> dict[str, Tensor]:
    from learners.tspo import collate

    frames = [one.frames for one in seen if one.frames is not None]
    queries = [one.queries for one in seen if one.queries is not None]
    return collate([one.similarity for one in seen], frames, queries)


def _tspo_temperature(done: float) -> float:
    from learners.tspo import FIRST_TEMPERATURE, LAST_TEMPERATURE

    return FIRST_TEMPERATURE - (FIRST_TEMPERATURE - LAST_TEMPERATURE) * done


NETWORKS = {
    "unet": Network(_unet, _unet_batch, ("channels",)),
    "tspo": Network(_tspo, _tspo_batch, ("width",), sees_frames=True, anneal=_tspo_temperature),
}
"""The learnt values of `selector.kind`."""
