"""Pass rates, measured once, by a command that may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import Config
from services.questions import read_questions, write_questions
from tests.end_to_end.test_command import msjoe


@pytest.fixture(scope="module")
def measured(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy questions with their pass rates, and one that is too long to be asked, measured by a command that was killed and
    one that went on."""
    folder = tmp_path_factory.mktemp("measured")
    assert toy_config.data.questions is not None
    questions = read_questions(toy_config.data.questions)
    too_long = replace(questions[0], id="too-long", question="what is seen " * 300)
    write_questions([*questions, too_long], folder / "questions.jsonl")
    command = ["prepare", folder / "questions.jsonl", f"--pass-rate={folder / 'measured.jsonl'}", *toy_overrides]
    rates = toy_config.data.cache / "pass_rates"
    first = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *map(str, command)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 1500
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
    assert f"{known} of 7 pass rates are known; measuring {7 - known}" in done.stdout
    assert "no pass rate for too-long: the engine refuses the prompt" in done.stdout
    return folder / "measured.jsonl"


def test_pass_rates_are_measured_over_eight_answers(
    measured: Path, toy_config: Config, toy_overrides: list[str]
) -> None:
    assert toy_config.data.questions is not None
    given = read_questions(toy_config.data.questions)
    *found, too_long = read_questions(measured)
    assert (too_long.id, too_long.pass_rate) == ("too-long", None)
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
