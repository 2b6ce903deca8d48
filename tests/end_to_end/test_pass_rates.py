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
from services.questions import read_questions
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
