"""A run that loses one actor of every role."""

from __future__ import annotations

import re
from pathlib import Path

from services import jsonl
from tests.chaos.runs import STEPS, Training, assert_same, assert_versions_rise, calls


def test_a_run_that_loses_an_actor_of_every_role_ends_as_if_nothing_had_happened(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    running = Training(run_dir, *toy_overrides, *STEPS)
    running.reach(1, calls("RolloutActor.generate"))
    for actor in ("RolloutActor", "SelectorActor", "EmbedderActor", "WeightStore"):
        running.strike(actor)
    running.reach(3, calls("RolloutActor.generate"))
    running.strike("PolicyLearner")
    code, console = running.end()
    assert code == 0, console
    assert len(re.findall(r"(\w+) actor 0 is back after [\d.]+ s with version \d+", console)) == 3
    assert re.search(r"policy learner, rank 0: .* the actor died: .*; all ranks start anew", console)
    assert re.search(r"the learners are back after [\d.]+ s; whole steps to do again: 1\n", console)
    assert "going on after step 2, from" in console
    *_, last = jsonl.read(run_dir / "metrics.jsonl")
    assert last["supervision/steps_again"] == 1
    assert last["supervision/restarts"] >= 4
    assert last["supervision/redispatched"] > 0, "the engine had work"
    assert last["supervision/lost_seconds"] > 0
    assert_versions_rise(run_dir)
    assert_same(run_dir, undisturbed, numbered=False)
