"""Both networks must learn a tiny world through the whole system: the tests that fail when learning breaks.

Seen to fail by what they are for: the advantage of either network with its sign turned, an engine or a selector that never
takes new weights in, log-probs that belong to other tokens, draws that belong to other similarities.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli import TOY
from cluster.config import load_config
from cluster.toyworld.make import make_world
from services.metrics import read_metrics
from tests.end_to_end.test_command import train

WORLD = (
    "--toyworld.seed=3",
    "--toyworld.videos=4",
    "--toyworld.held_out_videos=0",
    "--toyworld.questions_per_video=2",
    "--toyworld.min_seconds=60",
    "--toyworld.max_seconds=90",
    "--toyworld.aliases=0",
    "--toyworld.easy=0",
    "--toyworld.temporal=0",
    "--toyworld.two_moments=0",
)
STEPS = 20


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that trains on eight questions, measured on the same ones before the first and after the last step."""
    cache = f"--data.cache={tmp_path_factory.mktemp('cache')}"
    questions = make_world(load_config(TOY, [cache, *WORLD])).questions
    every = [f"--train.{name}={STEPS}" for name in ("steps", "validate_every", "checkpoint_every")]
    return [cache, *WORLD, f"--data.questions={questions}", f"--data.validation={questions}", *every]


def gain(rows: list[dict[str, float]], metric: str) -> float:
    return rows[-1][metric] - rows[0][metric]


def test_the_mllm_learns(given: list[str], tmp_path: Path) -> None:
    """Eight answers are soon known by heart."""
    train(tmp_path / "run", *given, "--policy.learning_rate=5e-4", "--selector.kind=uniform")
    rows = read_metrics(tmp_path / "run")
    assert gain(rows, "validation/accuracy") >= 0.3, rows
    assert max(row.get("policy/mismatch_kl", 0.0) for row in rows) < 1e-3, (
        "it learns from other log-probs than were sampled"
    )


def test_the_sampler_learns(given: list[str], tmp_path: Path) -> None:
    """The MLLM stays as it is: only frames that show the moment lead to right answers."""
    train(tmp_path / "run", *given, "--policy.train=false", "--sampler.learning_rate=4e-4")
    rows = read_metrics(tmp_path / "run")
    assert gain(rows, "validation/moments_seen") >= 0.3, rows
