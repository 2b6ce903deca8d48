"""Ranks of the learners, and the weight store, that are killed or stopped while a run trains: the steps since the newest
checkpoint are done again, and in the end it is the run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.runs import (
    STEPS,
    Phase,
    Training,
    assert_same,
    assert_versions_rise,
    calls,
    writes_checkpoint,
)

Blow = tuple[int, Phase, str, signal.Signals]
"""The step that is done and what the run does then, when the actors of that class get that signal."""
ROLLS_OUT = calls("RolloutActor.generate")
STATES: list[Blow] = [
    (-1, calls("PolicyLearner.connect"), "PolicyLearner", signal.SIGKILL),
    (-1, calls("EmbedderActor.ready"), "WeightStore", signal.SIGKILL),
    (0, ROLLS_OUT, "PolicyLearner", signal.SIGSTOP),
    (1, calls("PolicyLearner.update"), "PolicyLearner", signal.SIGKILL),
    (2, calls("SamplerLearner.update"), "SamplerLearner", signal.SIGKILL),
    (2, calls("PolicyLearner.publish"), "PolicyLearner", signal.SIGKILL),
    (3, ROLLS_OUT, "SamplerLearner", signal.SIGKILL),
    (3, calls("PolicyLearner.publish"), "WeightStore", signal.SIGKILL),
    (3, writes_checkpoint, "PolicyLearner", signal.SIGKILL),
]
"""Both learners and the store, while they are constructed, idle, at work, while weights are published and a checkpoint is
written."""


def random_blows(count: int, last_step: int, seed: int) -> list[Blow]:
    """Any actor at any moment of the run's steps, in their order."""
    draw = random.Random(seed)
    steps = sorted(draw.randrange(last_step) for _ in range(count))
    victims = ("PolicyLearner", "SamplerLearner", "WeightStore", "RolloutActor", "SelectorActor", "EmbedderActor")
    return [(step, after(draw.uniform(0, 3)), draw.choice(victims), signal.SIGKILL) for step in steps]


def after(seconds: float) -> Phase:
    """So long after the step was done."""
    done: list[float] = []

    def is_over(run_dir: Path, driver: object) -> bool:
        done.append(time.monotonic())
        return done[-1] - done[0] >= seconds

    return is_over


RANDOM = random_blows(20, last_step=18, seed=20)


def struck(run_dir: Path, arguments: Sequence[str], blows: Sequence[Blow]) -> str:
    """The console of a training that got these blows and came to its end."""
    running = Training(run_dir, *arguments)
    for step, phase, actor, number in blows:
        running.reach(step, phase)
        running.strike(actor, number)
    code, console = running.end()
    assert code == 0, console
    return console


@pytest.mark.chaos
def test_a_run_whose_learners_and_weight_store_are_killed_in_every_state(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    console = struck(run_dir, [*toy_overrides, *STEPS, "--policy.restarts=9", "--sampler.restarts=9"], STATES)
    assert console.count("the learners are back after") == sum("Learner" in actor for _, _, actor, _ in STATES) - 1
    assert_versions_rise(run_dir)
    assert_same(run_dir, undisturbed, numbered=False)


@pytest.mark.chaos
def test_a_run_whose_learner_is_lost_too_often_ends_by_name_and_goes_on_by_resume(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    running = Training(run_dir, *toy_overrides, *STEPS, "--policy.restarts=0")
    running.reach(3, ROLLS_OUT)
    running.strike("PolicyLearner")
    code, console = running.end()
    assert code == 1, console
    assert "msjoe: the policy learner is not started again (policy.restarts=0): policy learner, rank 0" in console
    assert "Traceback" not in console
    code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume").end()
    assert code == 0, console
    assert_same(run_dir, undisturbed)


@pytest.mark.chaos
def test_a_run_that_gets_twenty_blows_at_random_moments(toy_overrides: list[str], tmp_path: Path) -> None:
    restarts = [f"--{part}.restarts={len(RANDOM)}" for part in ("policy", "sampler", "rollout", "selector", "embedder")]
    longer = [*toy_overrides, "--train.steps=20", "--train.validate_every=5", "--train.checkpoint_every=2", *restarts]
    code, console = Training(tmp_path / "undisturbed", *longer).end()
    assert code == 0, console
    console = struck(tmp_path / "run", longer, RANDOM)
    assert "the learners are back after" in console
    assert_versions_rise(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "undisturbed", numbered=False)
