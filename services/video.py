"""The only room that opens a video: its candidate frames, one a second, decoded in a process that can be killed.

The rule (`DECODE_RULE`; a change of it is a new version): time runs from the first frame's timestamp. Candidate `i` is the
frame on screen at second `i`, the last one whose timestamp is at most `i + EPSILON`; there are
`T = floor(last timestamp + EPSILON) + 1` of them, so a video of N whole seconds has N, and the shortest has one. Choosing by
timestamps makes variable frame rates right; no container is asked for its duration, which many state wrongly.

Invariants: a video gives all its candidates or a `VideoError` with the reason, never some of them; memory does not grow
with its length, because frames stream one by one; no video library is loaded outside the child, and the child loads neither
torch nor ray.

decord reads first where all of the video's frames, at the size asked for, fit into `DECORD_BYTES`: its decoding thread runs
ahead of the reader without bound, so that its memory may hold them all. PyAV reads longer ones, and what decord gives up on;
decord, with its own older FFmpeg, gets what PyAV gives up on.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from services.errors import VideoError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

DECODE_RULE = "1"
"""Version of the rule above; part of the key of every cached frame."""
EPSILON = 0.005
"""Seconds: readers round timestamps, and a frame meant for second `i` may say a little more."""
LONGEST_FRAME = 3600.0
"""Seconds one frame may stay on screen; more is a broken clock, and would fill the disk with copies of one frame."""
PATCH = 28
"""Pixels of one visual token's side."""
DECORD_BYTES = 256 * 2**20
"""Of frames that decord may hold decoded at once."""
GRACE = 10
"""Seconds past the deadline after which a child ends itself, should its parent be gone."""

Frame = tuple[float, np.ndarray]
"""Timestamp in seconds, and pixels uint8 [H, W, 3]."""
Write = Callable[[Iterator[Frame]], None]
"""What becomes of the frames; picklable, run in the child. An OSError it raises reaches the caller as it is."""
Item = TypeVar("Item")


class ReaderError(Exception):
    """One reader could not read the video; another may."""


def frame_size(height: int, width: int, max_tokens: int) -> tuple[int, int]:
    """The (height, width) to show a `height` x `width` frame at: multiples of 28 with `h * w / 784 <= max_tokens`.

    As near to the source as the tokens allow, never above it but for rounding to 28. Of the roundings of both sides the
    one that keeps the aspect ratio best wins, then the one nearest in area.
    """
    rows, columns = height / PATCH, width / PATCH
    scale = min(1.0, math.sqrt(max_tokens / (rows * columns)))
    rows, columns = rows * scale, columns * scale

    def cost(size: tuple[int, int]) -> tuple[float, float]:
        r, c = size
        return abs(math.log((r / c) / (rows / columns))), abs(math.log((r * c) / (rows * columns)))

    sizes = [
        (r, min(max(c, 1), max_tokens // r))
        for r in {min(max(n, 1), max_tokens) for n in (math.floor(rows), math.ceil(rows))}
        for c in (math.floor(columns), math.ceil(columns))
    ]
    r, c = min(sorted(sizes), key=cost)
    return r * PATCH, c * PATCH


def each_second(shown: Iterable[tuple[float, Item]]) -> Iterator[tuple[float, Item]]:
    """Of frames (timestamp, frame) in the order they are shown, the first at 0, the one on screen at second 0, 1, 2, …

    Raises ReaderError when timestamps run backwards or jump by more than `LONGEST_FRAME`.
    """
    second, held = 0, None
    for item in shown:
        if held is not None:
            if not -EPSILON < item[0] - held[0] < LONGEST_FRAME:
                raise ReaderError(f"timestamps jump from {held[0]:.3f} s to {item[0]:.3f} s")
            while item[0] > second + EPSILON:
                yield held
                second += 1
        held = item
    if held is not None and (second == 0 or second <= held[0] + EPSILON):
        yield held


def decode(path: str, max_tokens: int, write: Write) -> None:
    """Pass the video's candidate frames to `write`, rescaled to `frame_size`; all anew when one reader gives up.

    Raises VideoError with the reasons of both.
    """
    shown_height, shown_width, num_frames = _probe(path)
    height, width = frame_size(shown_height, shown_width, max_tokens)
    readers = [_decord_frames, _pyav_frames]
    if num_frames * height * width * 3 > DECORD_BYTES:
        readers.reverse()
    reasons = []
    for reader in readers:
        try:
            return write(_guarded(reader(path, height, width)))
        except ReaderError as error:
            reasons.append(f"{reader.__name__.split('_')[1]}: {error}")
    raise VideoError(f"{path}: cannot be decoded ({'; '.join(reasons)})")


def _probe(path: str) -> tuple[int, int, float]:
    """Height and width of the picture as shown, upright; and about how many frames there are (infinite: unknown)."""
    import av

    try:
        with av.open(path) as container:
            stream = _stream(container)
            frame = next(container.decode(stream), None) if stream else None
            if stream:
                seconds = container.duration / av.time_base if container.duration else math.inf
                num_frames = max(stream.frames, seconds * float(stream.average_rate or math.inf))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_first_line(error)})") from error
    if frame is None:
        raise VideoError(f"{path}: has no {'frame' if stream else 'video stream'}")
    if frame.rotation % 180:
        return frame.width, frame.height, num_frames
    return frame.height, frame.width, num_frames


def _stream(container: InputContainer) -> av.VideoStream | None:
    """The main video stream, None when there is none; a song's cover is not one."""
    import av

    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    return stream if isinstance(stream, av.VideoStream) and not stream.disposition & cover else None


def _pyav_frames(path: str, height: int, width: int) -> Iterator[Frame]:
    """Read without frame threads, which can deadlock when reading stops early."""
    import av
    from av.video.reformatter import Interpolation

    with av.open(path) as container:
        stream = _stream(container)
        assert stream is not None
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        for time, frame in each_second(_timed(container.decode(stream), stream.average_rate)):
            turned = frame.rotation % 180 != 0
            h, w = (width, height) if turned else (height, width)
            pixels = frame.to_ndarray(format="rgb24", height=h, width=w, interpolation=Interpolation.BICUBIC)
            yield time, np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))


def _timed(frames: Iterator[av.VideoFrame], rate: Fraction | None) -> Iterator[tuple[float, av.VideoFrame]]:
    """`frames` with their time since the first; without timestamps they count as evenly spaced, `rate` a second."""
    start = None
    for index, frame in enumerate(frames):
        time = frame.time
        if time is None:
            if not rate:
                raise ReaderError("neither timestamps nor a frame rate")
            time = index / float(rate)
        start = time if start is None else start
        yield time - start, frame


def _decord_frames(path: str, height: int, width: int) -> Iterator[Frame]:
    """Read front to back, so that no seek can land on a wrong frame."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    times = reader.get_frame_timestamp(list(range(len(reader))))[:, 0].astype(np.float64)
    shown = ((float(time), index) for index, time in enumerate(times - times[0]))
    position, pixels = 0, None
    for time, index in each_second(shown):
        if pixels is None or index >= position:
            if index > position:
                reader.skip_frames(index - position)
            pixels, position = reader.next().asnumpy(), index + 1
        yield time, pixels


def _guarded(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The same frames; whatever the reader raises becomes a ReaderError, so that it is not taken for one of `write`."""
    try:
        yield from frames
    except ReaderError:
        raise
    except Exception as error:
        raise ReaderError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


class DecodeProcess:
    """One child process that decodes, started at the first call and kept; killed at a deadline, replaced when it died.

    A plain subprocess: it may be started from a daemonic process or a Ray actor, and does not import their main module.
    Pixels never cross the pipe: `write` runs in the child. One caller at a time.
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
        """`decode` in the child.

        Raises VideoError when the video cannot be decoded, takes longer than `deadline` seconds or brings the child down;
        an OSError of `write` comes through.
        """
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((path, max_tokens, write, deadline))
            if not self._connection.poll(deadline):
                raise VideoError(f"{path}: decoding took longer than the deadline of {deadline:g} s")
            error = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            raise VideoError(f"{path}: its decoder died ({_cause(self.close())})") from gone
        except BaseException:  # a late answer must not be taken for the next video's
            self.close()
            raise
        if error is not None:
            raise error

    def close(self) -> int:
        """Kill the child if there is one; its return code (0 without one)."""
        if self._finalizer is None or self._child is None:
            return 0
        self._finalizer()
        code = self._child.returncode
        self._child = self._connection = self._finalizer = None
        return code

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
        command = [sys.executable, "-c", "from services.video import serve; serve()", str(theirs.fileno())]
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
    """The child: decode what the connection asks for until it closes, answering None or the exception.

    An alarm ends it even inside native code that holds the interpreter, so that a killed parent leaves nothing behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            path, max_tokens, write, deadline = connection.recv()
        except EOFError:
            return
        signal.alarm(math.ceil(deadline) + GRACE)
        try:
            decode(path, max_tokens, write)
            answer = None
        except (VideoError, OSError) as error:
            answer = error
        signal.alarm(0)
        connection.send(answer)
