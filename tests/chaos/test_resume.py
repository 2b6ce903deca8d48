"""A run that is killed, or told to stop, and goes on: in the end it is the run that nobody disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from services.checkpoints import checkpoints
from tests.chaos.runs import (
    STEPS,
    Phase,
    Training,
    assert_same,
    calls,
    parameters,
    saved,
    trajectories,
    validates,
    writes_checkpoint,
)

PHASES: dict[str, tuple[int, Phase]] = {
    "before the first checkpoint": (1, calls("SamplerLearner.update")),
    "rollout": (2, lambda run_dir, driver: True),
    "policy update": (2, calls("PolicyLearner.update")),
    "sampler update": (2, calls("SamplerLearner.update")),
    "publication": (2, calls("PolicyLearner.publish")),
    "validation": (3, validates),
    "checkpoint": (3, writes_checkpoint),
}
"""The step that is done, and what the run does then, when it is killed."""


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    killed = Training(run_dir, *toy_overrides, *STEPS)
    killed.reach(2, saved(2))
    killed.kill()
    code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume").end()
    assert code == 0, console
    assert "going on after step 2, from" in console
    assert_same(run_dir, undisturbed)


@pytest.mark.chaos
def test_a_run_that_is_told_to_stop_goes_on_as_if_nothing_had_happened(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    stopped = Training(run_dir, *toy_overrides, *STEPS)
    stopped.reach(*PHASES["before the first checkpoint"])
    stopped.send(signal.SIGTERM)
    code, console = stopped.end()
    assert code == 143, console
    (step,) = checkpoints(run_dir)
    assert f"msjoe: terminated after step {step}, which is saved" in console
    assert not stopped.left(), "no process is left"
    code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume").end()
    assert code == 0, console
    assert f"going on after step {step}, from" in console
    assert_same(run_dir, undisturbed)


@pytest.mark.chaos
def test_a_run_that_is_killed_in_every_phase(undisturbed: Path, toy_overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for step, phase in PHASES.values():
        running = Training(run_dir, *toy_overrides, *STEPS, "--resume")
        running.reach(step, phase)
        running.kill()
    code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume").end()
    assert code == 0, console
    assert_same(run_dir, undisturbed)


@pytest.mark.chaos
def test_a_run_goes_on_with_other_ranks_and_another_stage(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir, two = tmp_path / "run", ["--policy.world_size=2", "--policy.zero_stage=3", "--policy.num_cpus=0.2"]
    running = Training(run_dir, *toy_overrides, *STEPS)
    running.reach(2, calls("PolicyLearner.update"))
    running.kill()
    code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume", *two).end()
    assert code == 0, console
    assert "changed: policy.zero_stage: 0 before, 3 now" in console
    ids = [(row["step"], row["question_id"]) for row in trajectories(run_dir, "trajectories.jsonl")]
    assert ids == [(row["step"], row["question_id"]) for row in trajectories(undisturbed, "trajectories.jsonl")]
    networks = parameters(run_dir)
    for name, tensor in parameters(undisturbed).items():
        torch.testing.assert_close(networks[name], tensor, atol=1e-4, rtol=0, msg=name)
