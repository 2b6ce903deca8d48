"""A command that is told to stop says so in one line, and leaves no process behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster.config import Config
from tests.end_to_end.test_prepare import until, workers


@pytest.mark.parametrize(
    ("command", "at_work", "how", "code", "said"),
    [
        ("train", "ray::RolloutActor", signal.SIGTERM, 143, "msjoe: terminated"),
        ("prepare", "DecodeStage", signal.SIGINT, 130, "msjoe: interrupted"),
    ],
)
def test_a_stopped_command(
    command: str, at_work: str, how: signal.Signals, code: int, said: str,
    toy_config: Config, toy_overrides: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    where = {
        "train": [f"--run_dir={tmp_path / 'run'}", *toy_overrides],
        "prepare": [toy_config.data.questions, f"--data.cache={tmp_path}", *toy_overrides[1:]],
    }[command]
    line = [sys.executable, "-m", "cluster.cli", command, *map(str, where)]
    heed = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a suite in the background ignores it, and so would the child
    with subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as running:
        assert running.stderr
        until(lambda: list(workers(running, at_work)), running)
        started = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(how)
        stderr = running.stderr.read()
    assert running.returncode == code, stderr
    assert stderr.splitlines()[-1] == said
    assert "Traceback" not in stderr
    assert "***" not in stderr
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
