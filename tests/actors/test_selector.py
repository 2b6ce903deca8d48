"""Selections: K distinct frames in time order, decided by logits and seed, from whatever there is."""

from __future__ import annotations

import numpy as np
import pytest

from actors.config import SelectorConfig
from actors.selector import SelectorActor
from learners.config import SamplerConfig
from services.selection.topk import topk_frames
from services.selection.uniform import uniform_frames
from services.weights import SAMPLER, create_store, write_bucket

SIMILARITY = np.random.default_rng(0).normal(0.2, 0.05, (2, 50)).astype(np.float32)


def test_uniform_and_topk() -> None:
    assert uniform_frames(100, 4) == (0, 33, 66, 99)
    assert uniform_frames(3, 4) == (0, 1, 2)
    assert uniform_frames(10, 1) == (0,)
    assert topk_frames(np.array([0.1, 0.9, 0.3, 0.9]), 2) == (1, 3)
    assert topk_frames(np.array([0.5, 0.5, 0.5]), 2) == (0, 1)


@pytest.fixture(scope="module")
def unet(ray_cluster: None) -> SelectorActor:
    actor = SelectorActor(SelectorConfig(), SamplerConfig(channels=(8,)), 0, create_store("store-selector"))
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
    before = SelectorActor(SelectorConfig(), sampler, 0, store)
    assert before.ready() == 0
    moved = [(name, tensor + 0.1) for name, tensor in before._network.state_dict().items()]
    write_bucket(store, SAMPLER, 4, 0, moved, 60)
    import ray

    ray.get(store.commit.remote(SAMPLER, 4))
    assert before.pull(4) == 4
    restarted = SelectorActor(SelectorConfig(), sampler, 0, store)
    assert restarted.ready() == 4, "an actor that comes back has the newest weights"
    one, two = (actor.select(SIMILARITY, 8, 3) for actor in (before, restarted))
    assert (one.draw, one.log_prob, one.version) == (two.draw, two.log_prob, 4)


@pytest.mark.parametrize("kind", ["uniform", "topk"])
def test_selectors_without_a_network(ray_cluster: None, kind: str) -> None:
    actor = SelectorActor(SelectorConfig(kind=kind), SamplerConfig(channels=(8,)), 0, create_store(f"store-{kind}"))
    actor.ready()
    expected = {"uniform": uniform_frames(50, 8), "topk": topk_frames(SIMILARITY.mean(0), 8)}[kind]
    selection = actor.select(SIMILARITY, 8, 1)
    assert selection.frames == expected
    assert (selection.draw, selection.log_prob) == ((), None)
