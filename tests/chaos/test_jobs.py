"""A training that is submitted as a job to a cluster of its own: killed, submitted again, told to stop, submitted again; in the
end it is the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from services.checkpoints import checkpoints
from tests.chaos.runs import PATIENCE, STEPS, Training, assert_same, calls, newest

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.stdin.readline(); sys.exit(main())"]
"""The command `ray`, which is loaded, and then waits for a line or for the end of its input."""
ACTOR = re.compile(r"ray::\w+(Actor|Learner|Store)\b")
ENV = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def is_driver(process: psutil.Process) -> bool:
    """It is the command that trains, and not the shell that started it."""
    with suppress(psutil.Error):
        return process.cmdline()[1:4] == ["-m", "cluster.cli", "train"]
    return False


def trains(process: psutil.Process) -> bool:
    """It is a part of a training."""
    with suppress(psutil.Error):
        return is_driver(process) or bool(ACTOR.match(" ".join(process.cmdline())))
    return False


class Cluster:
    """A cluster of one node, with ports, token and temporary folder of its own; all its processes come from `head`."""

    def __init__(self, temporary: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = secrets.token_hex(32)
        env = inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_worker_niceness": "0",
        }
        self._start = partial(subprocess.Popen, cwd=ROOT, env=env, text=True, stderr=subprocess.STDOUT)
        with ExitStack() as sockets:  # all of them at once, or one port might come twice
            taken = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
            ports = [one.getsockname()[1] for one in taken]
        names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-port")
        options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={temporary}"]
        options += ["--num-cpus=4", f"--object-store-memory={2**30}", "--disable-usage-stats"]
        self._log = temporary / "head.log"
        with self._log.open("w") as log:
            self._process = self._start(
                [*RAY, "start", "--head", "--block", *options], stdin=subprocess.DEVNULL, stdout=log
            )
        self.head = psutil.Process(self._process.pid)
        self._jobs = f"http://127.0.0.1:{ports[-1]}"
        self._asking = urllib.request.Request(f"{self._jobs}/api/jobs/", headers={"Authorization": f"Bearer {token}"})

    def wait(self) -> None:
        """Return when its job server answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return urllib.request.urlopen(self._asking, timeout=5).close()
            except OSError as error:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, error
                time.sleep(0.5)

    def job(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """`ray job <command>`, which waits for a line, or for the end of its input."""
        line = [*RAY, "job", command, f"--address={self._jobs}", *arguments]
        return self._start(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def training(self) -> set[psutil.Process]:
        """The driver and the actors that are there now."""
        return {process for process in self.head.children(recursive=True) if trains(process)}

    def stop(self) -> None:
        """End the head, which ends the rest, and whatever does not heed."""
        started = self.head.children(recursive=True)
        self._process.terminate()
        for process in psutil.wait_procs([self.head, *started], timeout=60)[1]:
            process.kill()
        self._process.wait()


class Job(Training):
    """A training that `ray job submit` submits, and follows to its end."""

    def __init__(self, cluster: Cluster, name: str, run_dir: Path, *arguments: str) -> None:
        self.run_dir, self.driver, self._cluster = run_dir, cluster.head, cluster
        self.process = cluster.job(
            "submit", f"--submission-id={name}", "--working-dir=.", f"--runtime-env-json={json.dumps(ENV)}", "--",
            "python", "-m", "cluster.cli", "train", f"--run_dir={run_dir}", *arguments,
        )  # fmt: skip
        assert self.process.stdin
        self.process.stdin.close()
        self.process.stdin = None

    def kill(self) -> None:
        """The driver is gone at once, as the machine that it ran on; the cluster is there."""
        (driver,) = filter(is_driver, self._cluster.training())
        driver.kill()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster for one test."""
    temporary = Path(
        tempfile.mkdtemp(prefix="r-")
    )  # in a short place: Ray's sockets have a path of at most 107 letters
    cluster = Cluster(temporary)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(temporary)


@pytest.mark.chaos
def test_a_job_is_submitted_again_until_it_is_done(
    cluster: Cluster, undisturbed: Path, toy_overrides: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    line = [*toy_overrides, *STEPS, "--resume"]
    killed = Job(cluster, "first", run_dir, *line)
    killed.reach(2, calls("PolicyLearner.update"))
    killed.kill()
    code, console = killed.end()
    assert code, console
    assert "a new start" in console

    stopped = Job(cluster, "second", run_dir, *line)
    stopping = cluster.job("stop", "second")
    stopped.reach(3, calls("RolloutActor.generate"))
    parts = cluster.training()
    said, _ = stopping.communicate("\n", timeout=PATIENCE)
    assert stopping.returncode == 0, said
    code, console = stopped.end()
    assert "going on after step 2, from" in console
    step = newest(run_dir, "metrics.jsonl")
    assert f"msjoe: terminated after step {step}, which is saved" in console
    assert max(checkpoints(run_dir)) == step
    assert parts
    assert not psutil.wait_procs(parts, timeout=60)[1], "no driver and no actor is left"

    code, console = Job(cluster, "third", run_dir, *line).end()
    assert code == 0, console
    assert f"going on after step {step}, from" in console
    assert_same(run_dir, undisturbed)
