"""Selectors: from a similarity matrix [Q, T] to K frames.

Invariants: frames come back in time order; `T <= K` gives all frames and draws nothing; a draw depends on the logits (or a
rule's scores) and the seed alone, not on what else the actor was asked.
"""

from __future__ import annotations

import numpy as np
import torch
from ray.actor import ActorHandle

from actors.config import SelectorConfig
from actors.supervised import Pooled
from learners.config import SamplerConfig
from learners.networks import NETWORKS, look, make_network
from learners.plackett_luce import entropy, log_prob, sample
from services.config import DataConfig
from services.schema import Embedded, Selection
from services.selection import RULES, check_finite, choose
from services.selection.topk import topk_frames
from services.selection.uniform import uniform_frames
from services.weights import SAMPLER, newest_version, read_version


class SelectorActor(Pooled):
    """The sampler network behind `select`; takes new weights from the store."""

    def __init__(
        self, config: SelectorConfig, sampler: SamplerConfig, seed: int, store: ActorHandle, data: DataConfig
    ) -> None:
        self._config, self._sampler, self._seed, self._store, self._data = config, sampler, seed, store, data
        self.version = 0

    def ready(self) -> int:
        """Build the network, if there is one, with the newest weights if there are any; the version it holds.

        Raises UserError when the checkpoint to start from cannot be read.
        """
        torch.set_num_threads(self._config.threads)
        if self._config.learns:
            network = make_network(self._config.kind, self._sampler, self._seed, self._sampler.checkpoint)
            self._network = network.to(self._config.device)
        if newest := newest_version(self._store, SAMPLER, self._config.deadline):
            self.pull(newest)
        return self.version

    def pull(self, version: int) -> int:
        """Take `version` of the sampler in; returns its number."""
        self.version, tensors = read_version(self._store, SAMPLER, version)
        self._network.load_state_dict({name: tensor.clone() for name, tensor in tensors})
        return self.version

    def select(
        self, similarity: np.ndarray, budget: int, seed: int | None, embedded: Embedded | None = None
    ) -> Selection:
        """K frames for `similarity` [Q, T]: drawn with `seed`, or the K largest logits when it is None (test time).

        A network that prefers no frame, as before training, then takes uniform ones. `embedded` is what the similarity was
        computed from, which some networks see.
        Raises TrainingError for a cosine that is not a number, and where a network needs `embedded` and does not get it.
        """
        check_finite(similarity)
        num_frames, kind = similarity.shape[1], self._config.kind
        logits = torch.from_numpy(similarity.mean(0)) if kind in RULES else self._logits(similarity, embedded)
        draw: tuple[int, ...] = ()
        score = None
        if kind in RULES:
            frames = choose(kind, similarity, budget, seed)
        elif num_frames <= budget:
            frames = tuple(range(num_frames))
        elif seed is None:
            is_flat = logits.min() == logits.max()
            frames = uniform_frames(num_frames, budget) if is_flat else topk_frames(logits.numpy(), budget)
        else:
            chosen = sample(logits, budget, torch.Generator().manual_seed(seed))
            score = float(log_prob(logits[None], chosen[None])[0])
            draw = tuple(chosen.tolist())
            frames = tuple(sorted(draw))
        return Selection(frames, draw, score, float(entropy(logits[None])[0]), similarity, self.version, embedded)

    def _logits(self, similarity: np.ndarray, embedded: Embedded | None) -> torch.Tensor:
        """The network's logit of every frame, [T]."""
        kind = self._config.kind
        seen = look(kind, self._sampler, self._data, similarity, embedded)
        batch = {name: tensor.to(self._config.device) for name, tensor in NETWORKS[kind].collate([seen]).items()}
        with torch.no_grad():
            return self._network(batch)[0].cpu()
