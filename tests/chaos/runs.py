"""Trainings that are killed while they run, and what they leave behind."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from torch import Tensor

from services import jsonl
from services.checkpoints import checkpoints, latest_checkpoint
from tests.full_disk import SmallDisk

PATIENCE = 900.0
"""Seconds after which a run that should have come somewhere is taken for hung."""
STEPS = ["--train.steps=4", "--train.validate_every=2", "--train.checkpoint_every=2", "--train.keep_last=4"]
"""What all of these trainings do, disturbed or not."""
KEY_BIASES = ("k_proj.bias", "qkv.bias")
"""Parameters to which a softmax is blind: their gradient is rounding alone, which AdamW makes as large as any other."""
Phase = Callable[[Path, psutil.Process], bool]
"""Whether the run in that folder, whose driver is that process, is in the phase."""


def titles(driver: psutil.Process) -> Iterator[str]:
    """What Ray calls the processes below a driver: `ray::<class>.<method>`."""
    for process in driver.children(recursive=True):
        try:
            yield " ".join(process.cmdline())
        except psutil.Error:
            continue


def newest(run_dir: Path, file: str) -> int:
    """The last step that the file has rows of; -1 when it has none."""
    return max((row["step"] for row in jsonl.read(run_dir / file)), default=-1)


def calls(method: str) -> Phase:
    """Some actor is in that method."""
    return lambda run_dir, driver: any(f"ray::{method}" in title for title in titles(driver))


def validates(run_dir: Path, driver: psutil.Process) -> bool:
    """The trajectories of a step with a validation are written, and its answers are not."""
    step = newest(run_dir, "trajectories.jsonl")
    return step > 0 and step % 2 == 0 and newest(run_dir, "validation.jsonl") < step


def saved(step: int) -> Phase:
    """The checkpoint of that step is whole."""
    return lambda run_dir, driver: step in checkpoints(run_dir)


def writes_checkpoint(run_dir: Path, driver: psutil.Process) -> bool:
    """A checkpoint is half-written."""
    return any((run_dir / "checkpoints").glob("*.partial"))


class Training:
    """A training as a process, with all that it starts."""

    def __init__(self, run_dir: Path, *arguments: str, disk: SmallDisk | None = None) -> None:
        """`disk`: the file system that it sees besides."""
        self.run_dir = disk.seen(run_dir) if disk else run_dir
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a suite in the background ignores
        self.process = subprocess.Popen(
            [*(disk.prefix if disk else ()), sys.executable, "-m", "cluster.cli", "train", f"--run_dir={run_dir}", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed,
        )  # fmt: skip
        self.driver = psutil.Process(self.process.pid)
        self._started: set[psutil.Process] = set()

    def reach(self, step: int, phase: Phase) -> None:
        """Wait until step `step` is done and the run is in `phase`."""
        deadline = time.monotonic() + PATIENCE
        while not (newest(self.run_dir, "metrics.jsonl") >= step and phase(self.run_dir, self.driver)):
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline, "the run came nowhere"
            time.sleep(0.01)

    def strike(self, actor: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send that signal to the actors of that class, as soon as there is one."""
        while not (struck := self.processes(actor)):
            assert self.process.poll() is None, self.end()
        for process in struck:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def processes(self, actor: str) -> set[psutil.Process]:
        """The processes of the actors of that class."""
        found = set()
        for process in self.driver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                if process.cmdline()[0].startswith(f"ray::{actor}"):
                    found.add(process)
        return found

    def kill(self) -> None:
        """The driver and everything it started are gone at once, as when the machine is."""
        for process in [self.driver, *self.driver.children(recursive=True)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send the driver a signal."""
        self._started = {*self.driver.children(recursive=True)}
        self.process.send_signal(number)

    def left(self) -> list[psutil.Process]:
        """What the driver had started when it got its signal and that is still there a minute after its end."""
        return psutil.wait_procs(self._started, timeout=60)[1]

    def end(self) -> tuple[int, str]:
        """Exit code and console of the run, once it has ended by itself."""
        console, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, console


def trajectories(run_dir: Path, file: str) -> list[dict[str, Any]]:
    """All that was asked, chosen, answered and earned, in an order of its own."""
    return sorted(jsonl.read(run_dir / file), key=lambda row: (row["step"], row["question_id"], row["index"]))


def metrics(run_dir: Path, numbered: bool) -> list[dict[str, float]]:
    """The metrics of every step that a clock does not decide, a cache, or what was lost on the way."""
    left_out = ("timing/", "cache/", "supervision/") + (() if numbered else ("policy/version", "sampler/version"))
    rows = jsonl.read(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if not name.startswith(left_out)} for row in rows]


def parameters(run_dir: Path) -> dict[str, Tensor]:
    """Both networks of the last checkpoint, by network and name."""
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    return {
        f"{network}.{name}": tensor
        for network in ("policy", "sampler")
        for name, tensor in load_file(checkpoint / network / "model.safetensors").items()
    }


def assert_versions_rise(run_dir: Path) -> None:
    """No turn of a later step was answered by an older version of the weights."""
    newest: dict[str, int] = {}
    for row in trajectories(run_dir, "trajectories.jsonl"):
        for who, version in row["versions"].items():
            assert version >= newest.get(who, 0), row["step"]
            newest[who] = version


def assert_same(run_dir: Path, undisturbed: Path, *, numbered: bool = True) -> None:
    """The same questions, choices, answers, rewards, metrics and networks, none twice and none missing.

    `numbered`: the versions of the weights have the same numbers too, as they have where no learner was lost.
    """
    for file in ("trajectories.jsonl", "validation.jsonl"):
        mine, theirs = trajectories(run_dir, file), trajectories(undisturbed, file)
        if not numbered:
            for row in (*mine, *theirs):
                del row["versions"]
        assert [(row["step"], row["question_id"], row["index"]) for row in mine] == [
            (row["step"], row["question_id"], row["index"]) for row in theirs
        ]
        for row, other in zip(mine, theirs, strict=True):
            assert row.pop("reward") == pytest.approx(other.pop("reward"), abs=1e-6)
            np.testing.assert_allclose(row.pop("similarity") or 0, other.pop("similarity") or 0, atol=2e-4)
            assert row == other
    for row, other in zip(metrics(run_dir, numbered), metrics(undisturbed, numbered), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5), row["step"]
    networks = parameters(run_dir)
    for name, tensor in parameters(undisturbed).items():
        assert float((networks[name] - tensor).abs().max()) < (1e-5 if name.endswith(KEY_BIASES) else 1e-6), name
    assert all(not math.isnan(float(tensor.sum())) for tensor in networks.values())
