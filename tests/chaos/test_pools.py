"""Actors of the pools that are killed or stopped while a run trains: it goes on, and in the end it is the run that nobody
disturbed."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from services import jsonl
from services.checkpoints import checkpoints
from tests.chaos.runs import STEPS, Phase, Training, assert_same, calls, newest

BLOWS: list[tuple[int, Phase, str, signal.Signals]] = [
    (-1, calls("EmbedderActor.ready"), "EmbedderActor", signal.SIGKILL),
    (-1, calls("RolloutActor.ready"), "RolloutActor", signal.SIGKILL),
    (0, calls("RolloutActor.generate"), "RolloutActor", signal.SIGSTOP),
    (0, calls("RolloutActor.ready"), "SelectorActor", signal.SIGSTOP),
    (1, calls("PolicyLearner.update"), "SelectorActor", signal.SIGKILL),
    (1, calls("RolloutActor.pull"), "RolloutActor", signal.SIGKILL),
    (2, calls("RolloutActor.generate"), "EmbedderActor", signal.SIGSTOP),
]
"""The step that is done and what the run does then, when an actor of that class gets that signal: each role, while it is
constructed, idle, at work, and while it takes weights in."""


def assert_went_on(run_dir: Path, undisturbed: Path, console: str, restarts: int) -> None:
    """Every actor that was lost came back, and nothing shows but the count."""
    back = re.findall(r"(\w+) actor 0 is back after [\d.]+ s with version (\d+)", console)
    *_, last = jsonl.read(run_dir / "metrics.jsonl")
    assert (len(back), last["supervision/restarts"]) == (restarts, restarts)
    assert last["supervision/lost_seconds"] > 0
    assert_same(run_dir, undisturbed)


@pytest.mark.chaos
def test_a_run_that_has_lost_a_whole_pool_is_saved(toy_overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    running = Training(run_dir, *toy_overrides, *STEPS, "--embedder.restarts=0")
    running.reach(1, calls("RolloutActor.generate"))
    running.strike("EmbedderActor")
    code, console = running.end()
    assert code == 1, console
    assert "msjoe: no embedder actor is left, and none is restarted again (embedder.restarts=0)" in console
    assert "Traceback" not in console
    assert max(checkpoints(run_dir)) == newest(run_dir, "metrics.jsonl"), "what was learnt is saved"


@pytest.mark.chaos
def test_a_run_whose_actors_are_killed_or_stopped_in_every_state(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    running = Training(run_dir, *toy_overrides, *STEPS)
    for step, phase, actor, number in BLOWS:
        running.reach(step, phase)
        running.strike(actor, number)
    code, console = running.end()
    assert code == 0, console
    assert_went_on(run_dir, undisturbed, console, restarts=len(BLOWS))
