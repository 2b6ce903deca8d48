"""The only room that opens a video: its candidate frames, one a second, decoded in a process that can be killed.

The rule (`DECODE_RULE`; a change of it is a new version): time runs from the first frame's timestamp. Candidate `i` is the
frame on screen at second `i`, the last one whose timestamp is at most `i + EPSILON`; there are
`T = floor(last timestamp + EPSILON) + 1` of them, so a video of N whole seconds has N, and the shortest has one. Choosing by
timestamps makes variable frame rates right; the number of frames that a container states is never used. Pictures are upright
and have square pixels, as a player shows them.

Invariants: a video gives all its candidates or a `VideoError` with the reason, never some of them, nor one that the decoder
had to patch up; memory does not grow with its length, because frames stream one by one; no video library is loaded outside
the child, and the child loads neither torch nor ray.

PyAV reads everything, on one thread. It decodes what a shown frame may depend on, and only shown frames are converted.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from services.errors import DecoderLost, VideoError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

DECODE_RULE = "2"
"""Version of the rule above; part of the key of every cached frame."""
EPSILON = 0.005
"""Seconds: containers round timestamps, and a frame meant for second `i` may say a little more."""
LONGEST_FRAME = 3600.0
"""Seconds one frame may stay on screen; more is a broken clock, and would fill the disk with copies of one frame."""
OVERSTATED = 0.5
"""Seconds by which a sound file may end before the end its container states: they round, and count an encoder's padding."""
REORDERED = 32
"""Packets that may lie between two frames shown one after the other; H.264 allows 16."""
PATCH = 28
"""Pixels of one visual token's side."""
GRACE = 10
"""Seconds past the deadline after which a child ends itself, should its parent be gone."""

Frame = tuple[float, np.ndarray]
"""Timestamp in seconds, and pixels uint8 [H, W, 3]."""
Write = Callable[[Iterator[Frame]], None]
"""What becomes of the frames; picklable, run in the child. An OSError it raises reaches the caller as it is."""
Item = TypeVar("Item")


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

    Raises VideoError when timestamps run backwards or jump by more than `LONGEST_FRAME`.
    """
    second, held = 0, None
    for item in shown:
        if held is not None:
            if not -EPSILON < item[0] - held[0] < LONGEST_FRAME:
                raise VideoError(f"timestamps jump from {held[0]:.3f} s to {item[0]:.3f} s")
            while item[0] > second + EPSILON:
                yield held
                second += 1
        held = item
    if held is not None and (second == 0 or second <= held[0] + EPSILON):
        yield held


def decode(path: str, max_tokens: int, write: Write) -> None:
    """Pass the video's candidate frames to `write`, rescaled to `frame_size`.

    Raises VideoError with the reason when not all can be had.
    """
    write(_candidates(path, max_tokens))


def _candidates(path: str, max_tokens: int) -> Iterator[Frame]:
    """The candidate frames; whatever goes wrong in making them is a VideoError, which names the path."""
    import av

    try:
        with av.open(path) as container:
            stream = _stream(container)
            stream.codec_context.thread_count = 1  # frame threads can deadlock when reading stops early
            size = held = None
            for time, frame in each_second(_shown(container, stream)):
                size = size or _size(frame, stream.sample_aspect_ratio or Fraction(1), max_tokens)
                if frame is not held:
                    held, pixels = frame, _upright(frame, *size)
                yield time, pixels
            if held is None:
                raise VideoError("has no frame")
    except Exception as error:
        raise VideoError(f"{path}: {_reason(error)}") from error


def _stream(container: InputContainer) -> av.VideoStream:
    """The main video stream; a song's cover is not one."""
    import av

    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None or stream.disposition & cover:
        raise VideoError("has no video stream that can be decoded")
    return stream


def _shown(container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames in the order they are shown, each with its time since the first; one without a timestamp follows evenly.

    Not all frames: of H.264, one that no other depends on stays undecoded where another follows it within its second.
    """
    import av

    context, tick, rate = stream.codec_context, float(stream.time_base or 0), stream.guessed_rate
    has_pts = container.format.name != "avi"  # which knows the order of decoding only
    clock, time, start, progressive = 0.0, 0.0, None, False
    recent: deque[float] = deque(maxlen=REORDERED)
    for packet in _packets(container, stream):
        needless = False
        if start is not None and has_pts and packet.pts is not None and not packet.is_discard:
            at = packet.pts * tick - start
            needless = progressive and context.name == "h264" and _outshone(at, recent)
            recent.append(at)
        context.skip_frame = "NONREF" if needless else "DEFAULT"
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise VideoError(f"cannot be decoded after second {time:.1f} ({error.strerror})") from error
        for frame in frames:
            stamp = frame.pts if has_pts else frame.dts
            if stamp is not None:
                clock = stamp * tick
            elif rate:
                clock += float(1 / rate)
            else:
                raise VideoError("has neither timestamps nor a frame rate")
            start = clock if start is None else start
            time = clock - start
            if frame.is_corrupt:
                raise VideoError(f"is damaged at second {time:.1f}")
            progressive = not frame.interlaced_frame
            yield time, frame


def _outshone(time: float, others: Iterable[float]) -> bool:
    """Whether one of `others` is shown after `time` and before or at the next whole second: no candidate is shown at `time`."""
    second = math.ceil(time - 2 * EPSILON)
    return any(time < other <= second for other in others)


def _packets(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[Any]]:
    """The stream's packets. Raises VideoError when one is damaged, or the file ends before its container says.

    What a container says of the stream counts; else what it says of the longest of its streams, all of them then measured.
    """
    import av

    tick = stream.time_base or Fraction(0)
    start = float((stream.start_time or 0) * tick)
    end = reached = start
    if stream.duration is not None:
        ticks = stream.frames if container.format.name == "avi" else 0  # what its header says, cut or not
        end = start + float(max(stream.duration, ticks) * tick)
    elif container.duration is not None:
        end = container.duration / av.time_base
    marks_damage = container.format.name != "mpegts"  # which marks sound packets where two files were joined
    damaged = None
    for packet in container.demux():
        own = packet.stream is stream
        if packet.pts is not None and (own or stream.duration is None):
            reached = max(reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if own and packet.is_corrupt and marks_damage:
            damaged = reached if damaged is None else damaged
        elif own:
            yield packet
    if reached < end - OVERSTATED:
        raise VideoError(f"ends at second {reached - start:.1f} of {end - start:.1f}")
    if damaged is not None:
        raise VideoError(f"is damaged at second {damaged - start:.1f}")


def _size(frame: av.VideoFrame, pixel_aspect: Fraction, max_tokens: int) -> tuple[int, int]:
    """The (height, width) to show the video at, by its first frame: upright, its pixels square."""
    height, width = frame.height, max(1, round(frame.width * pixel_aspect))
    return frame_size(width, height, max_tokens) if _quarters(frame) % 2 else frame_size(height, width, max_tokens)


def _upright(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8 of the frame as it is to be seen."""
    from av.video.reformatter import Interpolation

    quarters = _quarters(frame)
    h, w = (width, height) if quarters % 2 else (height, width)
    pixels = frame.to_ndarray(format="rgb24", height=h, width=w, interpolation=Interpolation.BICUBIC, threads=1)
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _quarters(frame: av.VideoFrame) -> int:
    """Quarter turns against the clock that set the frame upright."""
    return round(frame.rotation / 90)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    import av

    if isinstance(error, VideoError):
        return str(error)
    if isinstance(error, av.FFmpegError | OSError):
        return f"not a readable video ({error.strerror})"
    return f"cannot be decoded ({type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]})"


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
                raise DecoderLost(f"{path}: decoding took longer than the deadline of {deadline:g} s")
            error = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            raise DecoderLost(f"{path}: its decoder died ({_cause(self.close())})") from gone
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
