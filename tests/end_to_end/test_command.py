"""`msjoe train` as a person runs it: the run's folder, what a seed decides, and what becomes of bad questions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.cli import run
from cluster.config import Config
from cluster.training.run_state import read_state
from services.checkpoints import damage, latest_checkpoint
from services.metrics import read_metrics
from services.metrics.names import METRICS, row_of
from services.questions import read_questions
from services.trajectories import VALIDATION, read_trajectories


def msjoe(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *map(str, arguments)]
    env = os.environ | {"WANDB_MODE": "offline"}
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, env=env)


def train(run_dir: Path, *overrides: str) -> str:
    """The console of a run that ends well."""
    done = msjoe("train", f"--run_dir={run_dir}", "--train.steps=1", *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Runs:
    """What the tests look at."""

    one: Path
    """Trained for a step, and validated."""
    two: Path
    """The checkpoint of `one`, trained for two epochs on videos that were prepared and then made noise of: whoever opened one
    would find no picture. Its policy stays near the model it started from, with the engine's mismatch corrected."""
    other: Path
    """Another seed, stage 1, a reward function of its own, W&B instead of TensorBoard, questions that each lack something."""
    consoles: dict[Path, str]


@pytest.fixture(scope="module")
def runs(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    assert toy_config.data.questions is not None
    folder, world = tmp_path_factory.mktemp("runs"), toy_config.data.questions.parent
    one, two, other = (folder / name for name in ("one", "two", "other"))
    consoles = {one: train(one, *toy_overrides, "--train.validate_budgets=[1,8]")}
    consoles[other] = train(other, *toy_overrides, *differences(world, tmp_path_factory.mktemp("differences")))

    shutil.copytree(world, folder / "world")
    questions = folder / "world" / toy_config.data.questions.name
    done = msjoe("prepare", questions, *toy_overrides)
    assert done.returncode == 0, done.stderr
    for video in (folder / "world" / "videos").iterdir():
        stat = video.stat()
        video.write_bytes(os.urandom(stat.st_size))
        os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    checkpoint = latest_checkpoint(one)
    assert checkpoint is not None
    networks = [f"--policy.model={checkpoint / 'policy'}", f"--sampler.checkpoint={checkpoint / 'sampler'}"]
    data = [f"--data.questions={questions}", f"--data.validation={toy_config.data.validation}"]
    measures_kl = ["--policy.kl_coef=0.01", "--policy.old_log_probs=learner"]
    consoles[two] = train(two, *toy_overrides, *networks, *measures_kl, *data, "--train.steps=4")
    return Runs(one, two, other, consoles)


def differences(world: Path, folder: Path) -> list[str]:
    """What sets the other run apart; its questions and its reward function lie in `folder`."""
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["video"] = str(world / row["video"])
    (folder / "broken.mp4").write_bytes(b"not a video")
    plain = rows[0] | {"pass_rate": 0.5}
    rows.append(plain | {"id": "no-file", "video": str(folder / "missing.mp4")})
    rows.append(plain | {"id": "no-video", "video": str(folder / "broken.mp4")})
    rows.append(plain | {"id": "too-long", "question": "what is seen " * 300})
    rows.append(plain | {"id": "unheard", "subtitles": str(folder / "missing.srt")})
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text("def brevity(question, attempt):\n    return -len(attempt.answer_turn.text)\n")
    changes = ["--policy.train=false", "--sampler.objective=difficulty", f"--rewards.extra=[{folder}/mine.py:brevity]"]
    changes += ["--prompts.subtitles=true", "--train.questions_per_step=8"]  # all that can be asked
    return [*changes, "--train.seed=1", "--train.trackers=[wandb]", f"--data.questions={questions}"]


def choices(folder: Path) -> list[dict[str, Any]]:
    """What was chosen in the first step."""
    keys = ("question_id", "index", "queries", "frames", "answer_reply", "reward")
    return sorted(
        ({key: row[key] for key in keys} for row in read_trajectories(folder) if row["step"] == 1),
        key=lambda row: (row["question_id"], row["index"]),
    )


def test_another_seed_takes_other_frames(runs: Runs) -> None:
    one = choices(runs.one)
    assert len(one) == 3 * 4
    elsewhere = {(row["question_id"], row["index"]): row["frames"] for row in choices(runs.other)}
    shared = [row for row in one if (row["question_id"], row["index"]) in elsewhere]
    assert all(row["frames"] != elsewhere[row["question_id"], row["index"]] for row in shared)


def test_two_epochs_on_prepared_data_open_no_video(runs: Runs, toy_config: Config) -> None:
    assert [row["cache/decodes"] for row in read_metrics(runs.two) if row["step"]] == [0] * 4
    asked = Counter(row["question_id"] for row in read_trajectories(runs.two))
    assert toy_config.data.questions is not None
    assert asked == {question.id: 2 * 4 for question in read_questions(toy_config.data.questions)}


def test_the_folder_tells_the_story(runs: Runs) -> None:
    folder = runs.one
    before, row = read_metrics(folder)
    assert f"1/1  reward {row['reward/total']:.3f}" in runs.consoles[folder]
    assert row["rollout/groups"] == 3
    assert row["rollout/group_size"] == 4
    assert row["policy/skipped"] == 0
    assert all(0 <= value < 1 for name, value in row.items() if "zero_gradients/" in name and name.startswith("policy"))
    assert row["policy/version"] == row["sampler/version"] == 1
    assert abs(row["policy/mismatch_kl"]) < 1e-6
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert (state.step, state.versions, state.accuracy) == (1, {"policy": 1, "sampler": 1}, row["validation/accuracy"])
    assert damage(checkpoint) is None
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


def test_every_metric_logged_has_a_row_and_every_row_is_logged(runs: Runs) -> None:
    logged = {name for folder in runs.consoles for row in read_metrics(folder) for name in row if name != "step"}
    logged |= {name for name in json.loads((runs.one / "summary.json").read_text()) if name.startswith("accuracy/")}
    assert {name for name in logged if row_of(name) is None} == set()
    assert set(METRICS) - {row_of(name) for name in logged} == set()


def test_a_reward_of_ones_own_is_logged(runs: Runs) -> None:
    rewards = [(row["reward"], -len(row["answer_reply"])) for row in read_trajectories(runs.other)]
    assert all(reward["brevity"] == own and reward["total"] < own + 1.001 for reward, own in rewards)
    logged = read_metrics(runs.other)[-1]["reward/brevity"]
    assert logged == pytest.approx(np.mean([own for _, own in rewards]))
    assert f"brevity {logged:.2f})" in runs.consoles[runs.other]
    assert "reward: brevity" in (runs.other / "report.html").read_text()


def test_the_trackers_are_those_asked_for(runs: Runs) -> None:
    assert (runs.other / "wandb.log").exists()
    assert not (runs.other / "tensorboard").exists()


def test_a_checkpoint_is_in_public_formats(runs: Runs) -> None:
    from ray.rllib.core.rl_module import RLModule
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    checkpoint = latest_checkpoint(runs.one)
    assert checkpoint is not None
    Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint / "policy")
    assert AutoProcessor.from_pretrained(checkpoint / "policy").tokenizer.chat_template
    sampler = RLModule.from_checkpoint(checkpoint / "sampler" / "rllib")
    assert any(parameter.abs().sum() > 0 for name, parameter in sampler.named_parameters() if "head" in name)


def test_a_checkpoint_is_measured_as_it_was_when_it_was_written(runs: Runs) -> None:
    held_out = [row for row in read_trajectories(runs.one, VALIDATION) if row["step"] == 1]
    again = [row for row in read_trajectories(runs.two, VALIDATION) if row["step"] == 0]
    assert [row["frames"] for row in again] == [row["frames"] for row in held_out]
    assert [row["answer_reply"] for row in again] == [row["answer_reply"] for row in held_out]


def test_stage_1_trains_the_sampler_alone(runs: Runs) -> None:
    (row,) = read_metrics(runs.other)  # nothing was held out of these questions
    assert row["sampler/version"] == 1
    assert not any(name.startswith("policy/") for name in row)
    checkpoint = latest_checkpoint(runs.other)
    assert checkpoint is not None
    names = ["checksums.json", "optimizer", "sampler", "state.json"]
    assert sorted(path.name for path in checkpoint.iterdir()) == names


def test_what_cannot_be_asked_is_left_out_by_id(runs: Runs) -> None:
    folder, console = runs.other, runs.consoles[runs.other]
    rows = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    reasons = {row["question_id"]: row["reason"] for row in rows if row["lost"] == "question"}
    assert reasons.keys() == {"no-file", "no-video", "too-long"}
    assert re.fullmatch(r"its prompt has \d+ tokens; rollout.max_model_len=512", reasons["too-long"])
    for name, reason in reasons.items():
        assert f"left out question {name}: {reason}" in console
    assert re.search(r"3 of (9|10) questions left out", console)  # stage 1 drops a question with pass rate 1
    asked = {row["question_id"] for row in read_trajectories(folder)}
    assert not asked & reasons.keys()
    assert read_metrics(folder)[-1]["rollout/left_out"] == 3
    (unheard,) = [row for row in rows if row["lost"] == "subtitles"]
    assert (unheard["question_id"], "unheard" in asked) == ("unheard", True)
    assert f"unheard: no subtitles: {unheard['reason']}" in console


def test_a_folder_is_not_trained_in_twice(runs: Runs, toy_overrides: list[str]) -> None:
    before = (runs.one / "metrics.jsonl").read_text()
    done = msjoe("train", f"--run_dir={runs.one}", *toy_overrides)
    assert (done.returncode, before) == (2, (runs.one / "metrics.jsonl").read_text())
    assert "holds a run already; go on with it by --resume, name another folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_is_made_anew(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    report = runs.one / "report.html"
    report.unlink()
    assert run(["report", str(runs.one)]) == 0
    assert capsys.readouterr().out.strip() == str(report)
    assert report.stat().st_size > 10_000


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
