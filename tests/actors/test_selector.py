"""Selections: K distinct frames in time order, decided by logits and seed, from whatever there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.config import SelectorConfig
from actors.selector import SelectorActor
from learners.config import SamplerConfig
from services.config import DataConfig
from services.embeddings import FeatureCache
from services.errors import TrainingError, UserError
from services.schema import Embedded
from services.selection import choose
from services.selection.uniform import uniform_frames
from services.weights import SAMPLER, create_store, write_bucket

SIMILARITY = np.random.default_rng(0).normal(0.2, 0.05, (2, 50)).astype(np.float32)


@pytest.fixture(scope="module")
def unet(ray_cluster: None) -> SelectorActor:
    actor = SelectorActor(
        SelectorConfig(), SamplerConfig(channels=(8,)), 0, create_store("store-selector"), DataConfig()
    )
    actor.ready()
    return actor


def test_draws(unet: SelectorActor) -> None:
    one, again, other = (unet.select(SIMILARITY, 8, seed) for seed in (1, 1, 2))
    assert one.draw == again.draw
    assert one.frames != other.frames
    assert one.frames == tuple(sorted(set(one.draw)))
    assert len(one.frames) == 8
    assert one.log_prob is not None


def test_all_frames_when_there_are_no_more_than_k(unet: SelectorActor) -> None:
    for num_frames in (1, 8):
        selection = unet.select(SIMILARITY[:, :num_frames], 8, 1)
        assert selection.frames == tuple(range(num_frames))
        assert (selection.draw, selection.log_prob) == ((), None)


def test_without_a_seed_an_untrained_sampler_takes_uniform_frames(unet: SelectorActor) -> None:
    selection = unet.select(SIMILARITY, 3, None)
    assert selection.log_prob is None
    assert selection.frames == uniform_frames(50, 3)


def test_new_weights(ray_cluster: None) -> None:
    store = create_store("store-selector-weights")
    sampler = SamplerConfig(channels=(8,))
    before = SelectorActor(SelectorConfig(), sampler, 0, store, DataConfig())
    assert before.ready() == 0
    moved = [(name, tensor + 0.1) for name, tensor in before._network.state_dict().items()]
    write_bucket(store, SAMPLER, 4, 0, moved, 60)
    import ray

    ray.get(store.commit.remote(SAMPLER, 4))
    assert before.pull(4) == 4
    restarted = SelectorActor(SelectorConfig(), sampler, 0, store, DataConfig())
    assert restarted.ready() == 4, "an actor that comes back has the newest weights"
    one, two = (actor.select(SIMILARITY, 8, 3) for actor in (before, restarted))
    assert (one.draw, one.log_prob, one.version) == (two.draw, two.log_prob, 4)


@pytest.mark.parametrize("kind", ["unet", "qframe"])
def test_a_cosine_that_is_no_number_ends_the_run(kind: str) -> None:
    actor = SelectorActor(SelectorConfig(kind=kind), SamplerConfig(channels=(8,)), 0, None, DataConfig())
    broken = SIMILARITY.copy()
    broken[1, 3] = np.nan
    for seed in (1, None):
        with pytest.raises(TrainingError, match="query 2 with frame 3 is nan"):
            actor.select(broken, 8, seed)


@pytest.mark.parametrize("kind", ["uniform", "topk", "qframe"])
def test_selectors_without_a_network(kind: str) -> None:
    actor = SelectorActor(SelectorConfig(kind=kind), SamplerConfig(channels=(8,)), 0, None, DataConfig())
    for seed in (1, 2, None):
        selection = actor.select(SIMILARITY, 8, seed)
        assert selection.frames == choose(kind, SIMILARITY, 8, seed)
        assert (selection.draw, selection.log_prob) == ((), None)


def test_a_network_that_sees_frames(ray_cluster: None, tmp_path: Path) -> None:
    data, sampler = DataConfig(cache=tmp_path), SamplerConfig(width=16)
    rng, cache = np.random.default_rng(1), FeatureCache(tmp_path, "clip")
    cache.put("video", rng.normal(size=(50, 16)))
    embedded = Embedded("clip", "video", rng.normal(size=(2, 16)).astype(np.float32))
    actor = SelectorActor(SelectorConfig(kind="tspo"), sampler, 0, create_store("store-tspo"), data)
    actor.ready()
    one, again, best = (actor.select(SIMILARITY, 8, seed, embedded) for seed in (1, 1, None))
    assert one.draw == again.draw and len(set(one.draw)) == 8
    assert one.embedded is embedded, "the learner computes the draw's log-probability anew from it"
    assert (best.draw, best.log_prob) == ((), None) and len(best.frames) == 8
    other = actor.select(SIMILARITY, 8, None, replace(embedded, queries=-embedded.queries))
    assert other.frames != best.frames
    with pytest.raises(TrainingError, match="selector.kind=tspo needs the embeddings"):
        actor.select(SIMILARITY, 8, 1)
    with pytest.raises(TrainingError, match="video elsewhere has no features in"):
        actor.select(SIMILARITY, 8, 1, replace(embedded, video="elsewhere"))
    cache.put("wide", rng.normal(size=(50, 24)))
    with pytest.raises(UserError, match="sampler.width: 16, but embedder.model embeds in 24 dimensions; set 24"):
        actor.select(SIMILARITY, 8, 1, replace(embedded, video="wide"))
