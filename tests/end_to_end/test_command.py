"""`msjoe train` as a person runs it: the run's folder, what a seed decides, and what becomes of bad questions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.config import Config
from cluster.report import CURVES, TABLE
from services.checkpoints import latest_checkpoint
from services.metrics import read_metrics
from services.trajectories import VALIDATION, read_trajectories

LOGGED = {
    "step",
    *(f"reward/{part}" for part in ("total", "accuracy", "format", "info")),
    *(f"policy/{name}" for name in ("loss", "grad_norm", "mismatch_kl", "version")),
    *(f"sampler/{name}" for name in ("loss", "grad_norm", "entropy", "version")),
    *(f"timing/{phase}" for phase in ("step", "rollout", "policy_update", "sampler_update", "publish")),
}


def msjoe(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def train(run_dir: Path, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    return msjoe("train", f"--run_dir={run_dir}", "--train.steps=1", *overrides)


@pytest.fixture(scope="module")
def twins(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one seed."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in folders:
        done = train(folder, [*toy_overrides, "--train.validate_budgets=[1,8]"])
        assert done.returncode == 0, done.stderr
        assert f"1/1  reward {read_metrics(folder)[1]['reward/total']:.3f}" in done.stdout
    return folders


@pytest.fixture(scope="module")
def other(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of another seed, in stage 1, with a reward function of its own, two of whose questions have bad videos; its folder
    and console."""
    folder = tmp_path_factory.mktemp("other")
    assert toy_config.data.questions is not None
    world = toy_config.data.questions.parent
    rows = [json.loads(line) for line in toy_config.data.questions.read_text().splitlines()]
    for row in rows:
        row["video"] = str(world / row["video"])
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows.append(rows[0] | {"id": "no-file", "video": str(folder / "missing.mp4")})
    rows.append(rows[0] | {"id": "no-video", "video": str(folder / "broken.mp4")})
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text("def brevity(question, attempt):\n    return -len(attempt.answer_turn.text)\n")
    changes = ["--policy.train=false", "--sampler.objective=difficulty", f"--rewards.extra=[{folder}/mine.py:brevity]"]
    done = train(folder / "run", [*toy_overrides, *changes, "--train.seed=1", f"--data.questions={questions}"])
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def choices(folder: Path) -> list[dict[str, Any]]:
    keys = ("question_id", "index", "queries", "frames", "answer_reply", "reward")
    return sorted(
        ({key: row[key] for key in keys} for row in read_trajectories(folder)),
        key=lambda row: (row["question_id"], row["index"]),
    )


def test_the_seed_decides_the_first_step(twins: tuple[Path, Path], other: tuple[Path, str]) -> None:
    one, two = map(choices, twins)
    assert len(one) == 3 * 4
    assert one == two
    elsewhere = {(row["question_id"], row["index"]): row["frames"] for row in choices(other[0])}
    shared = [row for row in one if (row["question_id"], row["index"]) in elsewhere]
    assert all(row["frames"] != elsewhere[row["question_id"], row["index"]] for row in shared)


def test_the_folder_tells_the_story(twins: tuple[Path, Path]) -> None:
    folder = twins[0]
    before, row = read_metrics(folder)
    assert row.keys() >= LOGGED
    assert row.keys() >= {metric for _, _, curves in CURVES for metric, _, _ in curves}
    assert row.keys() >= {metric for metric, _ in TABLE}
    assert row["rollout/groups"] == 3
    assert row["rollout/group_size"] == 4
    assert row["policy/skipped"] == 0
    assert all(0 <= value < 1 for name, value in row.items() if "zero_gradients/" in name and name.startswith("policy"))
    assert row["policy/version"] == row["sampler/version"] == 1
    assert abs(row["policy/mismatch_kl"]) < 1e-6
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    assert json.loads((checkpoint / "state.json").read_text()) == {"step": 1, "versions": {"policy": 1, "sampler": 1}}
    assert list((folder / "tensorboard").glob("events*"))
    assert "toyworld:" in (folder / "config.yaml").read_text()
    report, held_out = (folder / "report.html").read_text(), list(read_trajectories(folder, VALIDATION))
    assert [trajectory["step"] for trajectory in held_out] == [0, 0, 1, 1]
    assert all(trajectory["question"] in report for trajectory in held_out)
    assert not {trajectory["question_id"] for trajectory in held_out} & {row["question_id"] for row in choices(folder)}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy/before"] == before["validation/accuracy"]
    assert summary["accuracy/after"] == row["validation/accuracy"] == summary["accuracy/after/8"]
    assert 0 <= summary["accuracy/after/1"] <= 1
    assert 0 <= summary["accuracy/uniform"] <= 1
    assert (summary["questions"], summary["steps"]) == (2, 1)


def test_a_reward_of_ones_own_is_logged(other: tuple[Path, str]) -> None:
    rewards = [(row["reward"], -len(row["answer_reply"])) for row in read_trajectories(other[0])]
    assert all(reward["brevity"] == own and reward["total"] < own + 1.001 for reward, own in rewards)
    logged = read_metrics(other[0])[-1]["reward/brevity"]
    assert logged == pytest.approx(np.mean([own for _, own in rewards]))
    assert f"brevity {logged:.2f})" in other[1]
    assert "reward: brevity" in (other[0] / "report.html").read_text()


def test_a_checkpoint_is_in_public_formats(twins: tuple[Path, Path]) -> None:
    from ray.rllib.core.rl_module import RLModule
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    checkpoint = latest_checkpoint(twins[0])
    assert checkpoint is not None
    Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint / "policy")
    assert AutoProcessor.from_pretrained(checkpoint / "policy").tokenizer.chat_template
    sampler = RLModule.from_checkpoint(checkpoint / "sampler" / "rllib")
    assert any(parameter.abs().sum() > 0 for name, parameter in sampler.named_parameters() if "head" in name)


def test_a_checkpoint_is_measured_as_it_was_when_it_was_written(
    twins: tuple[Path, Path], toy_overrides: list[str], tmp_path: Path
) -> None:
    checkpoint = latest_checkpoint(twins[0])
    assert checkpoint is not None
    networks = [f"--policy.model={checkpoint / 'policy'}", f"--sampler.checkpoint={checkpoint / 'sampler'}"]
    done = train(tmp_path / "run", [*toy_overrides, *networks, "--train.steps=0"])
    assert done.returncode == 0, done.stderr
    assert latest_checkpoint(tmp_path / "run") is None
    held_out = [row for row in read_trajectories(twins[0], VALIDATION) if row["step"] == 1]
    again = list(read_trajectories(tmp_path / "run", VALIDATION))
    assert [row["frames"] for row in again] == [row["frames"] for row in held_out]
    assert [row["answer_reply"] for row in again] == [row["answer_reply"] for row in held_out]


def test_stage_1_trains_the_sampler_alone(other: tuple[Path, str]) -> None:
    (row,) = read_metrics(other[0])  # nothing was held out of these questions
    assert row["sampler/version"] == 1
    assert not any(name.startswith("policy/") for name in row)
    checkpoint = latest_checkpoint(other[0])
    assert checkpoint is not None
    assert sorted(path.name for path in checkpoint.iterdir()) == ["sampler", "state.json"]


def test_questions_with_bad_videos_are_left_out_by_id(other: tuple[Path, str]) -> None:
    folder, console = other
    left_out = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert {row["question_id"] for row in left_out} == {"no-file", "no-video"}
    assert "left out question no-file:" in console
    assert "left out question no-video:" in console
    assert re.search(r"2 of [78] questions left out", console)  # stage 1 drops a question with pass rate 1
    assert not {row["question_id"] for row in read_trajectories(folder)} & {"no-file", "no-video"}


def test_a_folder_is_not_trained_in_twice(twins: tuple[Path, Path], toy_overrides: list[str]) -> None:
    before = (twins[0] / "metrics.jsonl").read_text()
    done = train(twins[0], toy_overrides)
    assert (done.returncode, before) == (2, (twins[0] / "metrics.jsonl").read_text())
    assert "holds a run already; name another folder" in done.stderr


def test_report_is_made_anew(twins: tuple[Path, Path]) -> None:
    report = twins[1] / "report.html"
    report.unlink()
    done = msjoe("report", twins[1])
    assert (done.returncode, done.stdout.strip()) == (0, str(report)), done.stderr
    assert report.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--policy.lr=1"], "policy.lr: no such field; fields of policy: learning_rate"),
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
def test_mistakes_are_named_without_a_traceback(arguments: list[str], message: str, toy_overrides: list[str]) -> None:
    done = msjoe(*arguments, *([toy_overrides[0]] if arguments[0] == "train" else []))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("recipe", ["toy.yaml", "qwen2_5_vl_7b.yaml"])
def test_dry_run_plans_and_starts_nothing(recipe: str, tmp_path: Path) -> None:
    done = msjoe("train", f"cluster/recipes/{recipe}", "--dry-run", f"--data.cache={tmp_path}")
    assert done.returncode == 0, done.stderr
    for expected in ("Placement plan", "Memory estimate", "rollout", "questions_per_step: "):
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_world_of_any_seed_is_made_and_named(tmp_path: Path) -> None:
    small = [
        "--toyworld.videos=1",
        "--toyworld.held_out_videos=1",
        "--toyworld.min_seconds=60",
        "--toyworld.max_seconds=60",
    ]
    done = msjoe("toyworld", "--seed", "7", f"--data.cache={tmp_path}", *small)
    assert done.returncode == 0, done.stderr
    files = [Path(line.split()[1]) for line in done.stdout.splitlines()]
    assert [file.stem for file in files] == ["train", "validation", "test"]
    assert all("seed7" in file.parent.name and len(file.read_text().splitlines()) == 4 for file in files)


def test_nothing_works_on_when_the_command_is_killed(tmp_path: Path) -> None:
    command = subprocess.Popen([sys.executable, "-m", "cluster.cli", "toyworld", "--train", str(tmp_path / "models")])
    while not (tmp_path / "models").exists():
        time.sleep(0.1)
        assert command.poll() is None
    children = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    command.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not alive
