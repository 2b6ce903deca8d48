"""What `msjoe prepare` is for: pass rates that are measured once, and training that opens no video."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import Config
from services.metrics import read_metrics
from services.questions import read_questions
from services.trajectories import read_trajectories
from tests.end_to_end.test_command import msjoe


@pytest.fixture(scope="module")
def measured(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy questions with their pass rates, measured by a command that was killed and one that went on."""
    folder = tmp_path_factory.mktemp("measured")
    command = ["prepare", toy_config.data.questions, f"--pass-rate={folder / 'measured.jsonl'}", *toy_overrides]
    rates = toy_config.data.cache / "pass_rates"
    first = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *map(str, command)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    try:
        while not list(rates.rglob("*.json")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    known = len(list(rates.rglob("*.json")))
    done = msjoe(*command)
    assert done.returncode == 0, done.stderr
    assert (f"{known} of 6 pass rates are known; measuring {6 - known}" in done.stdout) == (known < 6)
    return folder / "measured.jsonl"


def test_pass_rates_are_measured_over_eight_answers(
    measured: Path, toy_config: Config, toy_overrides: list[str]
) -> None:
    assert toy_config.data.questions is not None
    given = read_questions(toy_config.data.questions)
    found = read_questions(measured)
    assert [replace(new, pass_rate=old.pass_rate, pass_rate_samples=None, pass_rate_model="") for new, old in
            zip(found, given, strict=True)] == given  # fmt: skip
    for question in found:
        assert question.pass_rate is not None
        assert question.pass_rate * 8 == int(question.pass_rate * 8)
        assert (question.pass_rate_samples, question.pass_rate_model) == (8, "mllm")
    assert len({question.pass_rate for question in found}) > 1
    again = msjoe("prepare", toy_config.data.questions, f"--pass-rate={measured}", *toy_overrides)
    assert again.returncode == 0, again.stderr
    assert read_questions(measured) == found
    assert "measuring" not in again.stdout


def test_two_epochs_on_prepared_data_open_no_video(
    toy_config: Config, toy_overrides: list[str], tmp_path: Path
) -> None:
    """Once they are prepared, noise takes the videos' places: whoever opened one would find no picture in it."""
    assert toy_config.data.questions is not None
    questions = shutil.copy(toy_config.data.questions, tmp_path)
    shutil.copytree(toy_config.data.questions.parent / "videos", tmp_path / "videos")
    done = msjoe("prepare", questions, *toy_overrides)
    assert done.returncode == 0, done.stderr
    for video in (tmp_path / "videos").iterdir():
        stat = video.stat()
        video.write_bytes(os.urandom(stat.st_size))
        os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    epochs = ["--train.steps=2", "--train.questions_per_step=6", "--train.group_size=2"]
    done = msjoe("train", *toy_overrides, f"--data.questions={questions}", f"--run_dir={tmp_path / 'run'}", *epochs)
    assert done.returncode == 0, done.stderr
    assert [row["cache/decodes"] for row in read_metrics(tmp_path / "run")] == [0, 0]
    asked = Counter(row["question_id"] for row in read_trajectories(tmp_path / "run"))
    assert asked == {question.id: 2 * 2 for question in read_questions(Path(questions))}
