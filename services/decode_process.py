"""Decoding in a child process that can be killed, so that no file hangs or brings down whoever asks for its frames.

Invariants: pixels never cross the pipe, `write` runs in the child; a video on which decord hangs or crashes is PyAV's within
the same deadline; a killed parent leaves no child behind.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from services.errors import DecoderLost, VideoError
from services.video import Reader, Write, read_with_decord, read_with_pyav

GRACE = 10
"""Seconds past the deadline after which a child ends itself, should its parent be gone."""
DECORDS_SHARE = 0.5
"""decord's share of the deadline; the rest is PyAV's."""


class _Late(Exception):
    """The child did not answer in time. Not a TimeoutError, which a `write` may raise."""


class DecodeProcess:
    """One child process that decodes, started at the first call and kept; killed at a deadline, replaced when it died.

    A plain subprocess: it may be started from a daemonic process or a Ray actor, and does not import their main module.
    One caller at a time.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid if self._child else None

    def decode(self, path: str, max_tokens: int, write: Write, deadline: float) -> None:
        """Pass the video's candidate frames to `write`, as `services.video.decode` does.

        Raises VideoError when the video cannot be decoded, takes longer than `deadline` seconds or brings the child down;
        an OSError of `write` comes through.
        """
        start = time.monotonic()
        try:
            done = self._ask(read_with_decord, path, max_tokens, write, deadline * DECORDS_SHARE)
        except (DecoderLost, _Late):
            done = False
        left = deadline - (time.monotonic() - start)
        try:
            done = done or self._ask(read_with_pyav, path, max_tokens, write, left)
        except _Late:
            raise DecoderLost(f"{path}: decoding took longer than the deadline of {deadline:g} s") from None

    def close(self) -> int:
        """Kill the child if there is one; its return code (0 without one)."""
        if self._finalizer is None or self._child is None:
            return 0
        self._finalizer()
        code = self._child.returncode
        self._child = self._connection = self._finalizer = None
        return code

    def _ask(self, reader: Reader, path: str, max_tokens: int, write: Write, seconds: float) -> bool:
        """What `reader` returns or raises in the child. Raises _Late, DecoderLost."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((reader, path, max_tokens, write, seconds))
            if not self._connection.poll(seconds):
                raise _Late
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            raise DecoderLost(f"{path}: its decoder died ({_cause(self.close())})") from gone
        except BaseException:  # a late answer must not be taken for the next video's
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
        command = [sys.executable, "-c", "from services.decode_process import serve; serve()", str(theirs.fileno())]
        with theirs:
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._finalizer = weakref.finalize(self, _stop, self._child, self._connection)


def _stop(child: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    child.kill()
    child.wait()


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve() -> None:
    """The child: answer what the connection asks for until it closes, with a reader's result or its exception.

    An alarm ends it even inside native code that holds the interpreter, so that a killed parent leaves nothing behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            reader, path, max_tokens, write, seconds = connection.recv()
        except EOFError:
            return
        signal.alarm(math.ceil(seconds) + GRACE)
        try:
            answer: bool | Exception = reader(path, max_tokens, write)
        except (VideoError, OSError) as error:
            answer = error
        signal.alarm(0)
        connection.send(answer)
