"""Both networks must learn a tiny world through the whole system: the tests that fail when learning breaks.

Seen to fail by what they are for: the advantage of either network with its sign turned, an engine or a selector that never
takes new weights in, log-probs that belong to other tokens, draws that belong to other similarities.
"""

from __future__ import annotations

import pytest

from cluster.cli import TOY
from cluster.config import load_config
from cluster.toyworld import make_world
from services.metrics import read_metrics
from tests.end_to_end.test_command import msjoe

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


def learn(tmp_path_factory: pytest.TempPathFactory, *overrides: str) -> list[dict[str, float]]:
    """The metrics of a run that trains on eight questions and is measured on the same ones."""
    folder = tmp_path_factory.mktemp("learning")
    cache = f"--data.cache={folder / 'cache'}"
    questions = make_world(load_config(TOY, [cache, *WORLD])).questions
    every = [f"--train.{name}={STEPS}" for name in ("steps", "validate_every", "checkpoint_every")]
    given = [f"--data.questions={questions}", f"--data.validation={questions}"]
    done = msjoe("train", f"--run_dir={folder / 'run'}", cache, *WORLD, *given, *every, *overrides)
    assert done.returncode == 0, done.stderr
    return read_metrics(folder / "run")


def gain(rows: list[dict[str, float]], metric: str) -> float:
    return rows[-1][metric] - rows[0][metric]


def test_the_mllm_learns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Eight answers are soon known by heart."""
    rows = learn(tmp_path_factory, "--policy.learning_rate=5e-4", "--selector.kind=uniform")
    assert gain(rows, "validation/accuracy") >= 0.3, rows
    assert max(row.get("policy/mismatch_kl", 0.0) for row in rows) < 1e-3, (
        "it learns from other log-probs than were sampled"
    )


def test_the_sampler_learns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The MLLM stays as it is: only frames that show the moment lead to right answers."""
    rows = learn(tmp_path_factory, "--policy.train=false", "--sampler.learning_rate=4e-4")
    assert gain(rows, "validation/moments_seen") >= 0.3, rows
