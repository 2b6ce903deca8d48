"""Selections: K distinct frames in time order, decided by logits and seed, from whatever there is."""

from __future__ import annotations

import numpy as np
import pytest

from actors.config import SelectorConfig
from actors.selector import SelectorActor
from learners.config import SamplerConfig
from services.errors import TrainingError
from services.selection import choose
from services.selection.uniform import uniform_frames
from services.weights import SAMPLER, create_store, write_bucket

SIMILARITY = np.random.default_rng(0).normal(0.2, 0.05, (2, 50)).astype(np.float32)


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


@pytest.mark.parametrize("kind", ["unet", "qframe"])
def test_a_cosine_that_is_no_number_ends_the_run(kind: str) -> None:
    actor = SelectorActor(SelectorConfig(kind=kind), SamplerConfig(channels=(8,)), 0, store=None)
    broken = SIMILARITY.copy()
    broken[1, 3] = np.nan
    for seed in (1, None):
        with pytest.raises(TrainingError, match="query 2 with frame 3 is nan"):
            actor.select(broken, 8, seed)


@pytest.mark.parametrize("kind", ["uniform", "topk", "qframe"])
def test_selectors_without_a_network(kind: str) -> None:
    actor = SelectorActor(SelectorConfig(kind=kind), SamplerConfig(channels=(8,)), 0, store=None)
    for seed in (1, 2, None):
        selection = actor.select(SIMILARITY, 8, seed)
        assert selection.frames == choose(kind, SIMILARITY, 8, seed)
        assert (selection.draw, selection.log_prob) == ((), None)
