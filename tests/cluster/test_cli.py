"""The command where it starts nothing: mistakes are named with exit code 2, plans are printed, toy worlds are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.cli import run
from cluster.config import RECIPES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--policy.lr=1"], "policy.lr: no such field; fields of policy: num_cpus, num_gpus"),
        (["train", "--policy.zero_stage=9"], "policy.zero_stage: Input should be less than or equal to 3 (got '9')"),
        (["train", "nothing.yaml"], "nothing.yaml: no such recipe; the shipped ones"),
        (["train", "--policy.model=x/y/z"], "x/y/z: no such model folder"),
        (["train", "--data.questions=none.parquet"], "data.questions: none.parquet: no such file"),
        (
            ["train", "--sampler.checkpoint=none"],
            "sampler.checkpoint: none has no config.json and no model.safetensors",
        ),
        (["report", "nowhere"], "nowhere: not a run's folder"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = [f"--data.cache={tmp_path}"] if arguments[0] == "train" else []
    assert run([*arguments, *cache]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["toy.yaml", "qwen2_5_vl_7b.yaml", "tspo_qwen2_5_vl_7b.yaml"])
def test_dry_run_plans_and_starts_nothing(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(RECIPES / recipe), "--dry-run", f"--data.cache={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    for expected in ("Placement plan", "Memory estimate", "rollout", "questions_per_step: "):
        assert expected in printed
    assert not list(tmp_path.iterdir())


def test_a_world_of_any_seed_is_made_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--toyworld.videos=1",
        "--toyworld.held_out_videos=1",
        "--toyworld.min_seconds=60",
        "--toyworld.max_seconds=60",
    ]
    assert run(["toyworld", "--seed", "7", f"--data.cache={tmp_path}", *small]) == 0
    files = [Path(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert [file.stem for file in files] == ["train", "validation", "test"]
    assert all("seed7" in file.parent.name and len(file.read_text().splitlines()) == 4 for file in files)


def test_toy_models_learn_the_default_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["toyworld", "--train", str(tmp_path / "models"), "--prompts.max_queries=2"]) == 2
    assert "prompts.max_queries: 2, but toy models learn the default prompts" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"msjoe \d+\.\d+\.\d+\n", capsys.readouterr().out)
