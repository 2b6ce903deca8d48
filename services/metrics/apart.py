"""A tracker in a process of its own, so that a server that hangs, or a library that waits for it, is nobody else's affair.

Invariants: no call waits for the tracker, except `close`, for at most CLOSING seconds. The process ends when its pipe closes,
so also when the run is killed, or when one call takes longer than CALL seconds. What it prints is in a log in the run's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.metrics.trackers import Tracker

CALL = 300
"""Seconds that one call of a tracker may take."""
CLOSING = 60.0
"""Seconds that the end of a run waits for a tracker to take in what it was sent."""
PIPE_BYTES = 2**20
"""How far a tracker may lag behind: some 400 steps."""


class TrackerLost(Exception):
    """The tracker's process has died or does not keep up; the message says why."""


class Apart:
    """Sends what it is told to a tracker in a child process, which `serve` runs."""

    def __init__(self, tracker: type[Tracker], log: Path, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._log = log
        root = str(Path(__file__).resolve().parent.parent.parent)
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-c", "from services.metrics.apart import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
                start_new_session=True,
            )
        assert self._child.stdin is not None
        self._pipe = self._child.stdin
        os.set_blocking(self._pipe.fileno(), False)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._send((CALL, tracker, run_dir, dict(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step. Raises TrackerLost when they could not be."""
        self._send((step, dict(values)))

    def close(self) -> None:
        """Let the tracker finish. Raises TrackerLost when it does not, or failed before."""
        self._pipe.close()
        try:
            code = self._child.wait(CLOSING)
        except subprocess.TimeoutExpired:
            raise self._lost(f"it did not finish within {CLOSING:g} s of the end of the run") from None
        if code:
            raise self._lost()

    def _send(self, message: object) -> None:
        data = pickle.dumps(message)
        try:
            written = self._pipe.write(data)
        except BrokenPipeError:
            raise self._lost() from None
        if written != len(data):
            raise self._lost("it takes steps in more slowly than they are made")

    def _lost(self, reason: str | None = None) -> TrackerLost:
        """End what is left of it; the `reason`, or else what its process said last."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        code = self._child.wait()
        if reason is None and code == -signal.SIGALRM:
            reason = f"a call took longer than {CALL} s"
        lines = self._log.read_text(errors="replace").split("\n")
        reason = reason or next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        return TrackerLost(f"{reason}; {self._log} has the rest")


def serve() -> None:
    """The child: run the tracker that comes first through stdin on the steps that follow, until the pipe closes."""
    pipe = sys.stdin.buffer
    seconds, *start = pickle.load(pipe)

    def within_the_deadline(call: Any, *arguments: Any) -> Any:
        signal.alarm(seconds)  # nobody handles it, so it ends the process even inside native code
        result = call(*arguments)
        signal.alarm(0)
        return result

    tracker = within_the_deadline(*start)
    while True:
        try:
            row = pickle.load(pipe)
        except EOFError:
            break
        within_the_deadline(tracker.log, *row)
    within_the_deadline(tracker.close)
