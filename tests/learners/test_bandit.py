"""The sampler learns: from the uniform network to planted frames, in both stages; and what a nested baseline is worth."""

from __future__ import annotations

import asyncio
import copy

import numpy as np
import pytest
import torch

from benchmarks.bandit import (
    CONFIG,
    MIXED,
    WORLD,
    Estimator,
    Training,
    credit,
    gradient_variance,
    ratio,
    spread,
    train_bandit,
)
from benchmarks.puzzles import play, puzzles, similarities


@pytest.fixture(scope="module")
def joint(ray_cluster: None) -> Training:
    """A sampler trained by `objective="joint"`."""
    return asyncio.run(train_bandit(WORLD, CONFIG, seed=0))


def test_the_sampler_learns_to_pick_planted_frames(joint: Training) -> None:
    assert CONFIG.log_prob == "plackett_luce" and CONFIG.objective == "joint"
    assert joint.before == pytest.approx(WORLD.chance, abs=0.1)
    assert joint.after >= 0.9


def test_the_sampler_learns_by_difficulty(ray_cluster: None) -> None:
    config = CONFIG.model_copy(update={"objective": "difficulty"})
    training = asyncio.run(train_bandit(WORLD, config, seed=0, steps=60))
    assert training.before == pytest.approx(WORLD.chance, abs=0.1)
    assert training.after >= training.before + 0.5


def test_a_nested_baseline_lowers_the_variance_where_the_queries_decide_the_reward(joint: Training) -> None:
    nested, group = (Estimator(4, 4, kind) for kind in ("nested", "group"))
    network = copy.deepcopy(joint.networks[max(joint.networks)])
    with torch.no_grad():
        network.head.weight *= 3  # surer of the same ranking, as after many more steps
    world = MIXED["only sight counts"]
    assert spread(network, world, seed=0) > 1
    variances = gradient_variance(network, world, (nested, group), seed=0, questions=12, repeats=6)
    value, error = ratio(variances[nested][:, 0], variances[group][:, 0])
    assert value + 2 * error < 1


def test_both_baselines_see_the_same_trajectories(joint: Training) -> None:
    rng = np.random.default_rng(0)
    (puzzle,) = puzzles(WORLD, 1, rng)
    (group,) = play(WORLD, joint.networks[0], [(puzzle, similarities(WORLD, puzzle, 4, rng))], 4, rng)
    rewards = np.reshape([t.reward.total for t in group.trajectories], (4, 4))
    of_group = rewards - (rewards.sum() - rewards) / 15
    advantages = [s.advantage for s in credit([group], "group")[0]]
    assert advantages == pytest.approx(of_group.ravel()[of_group.ravel() != 0].tolist())
