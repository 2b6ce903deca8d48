"""The only room that opens a video: its candidate frames, one a second.

The rule (`DECODE_RULE`; a change of it is a new version): time runs from the first frame's timestamp. Candidate `i` is the
frame on screen at second `i`, the last one whose timestamp is at most `i + EPSILON`; there are
`T = floor(last timestamp + EPSILON) + 1` of them, so a video of N whole seconds has N, and the shortest has one. Choosing by
timestamps makes variable frame rates right; the number of frames that a container states is never used. Pictures are upright
and have square pixels, as a player shows them.

Invariants: a video gives all its candidates or a `VideoError` with the reason, never some of them, nor one that the decoder
had to patch up; the content alone decides which library reads it; memory does not grow with the length. Video libraries are
loaded when the first video is read, and neither torch nor ray ever: `services.decode_process` runs this room in a child.

decord reads first: plain videos, those of which PyAV's demuxer says where every frame lies, as far as they are short enough
for its memory. Whatever else there is, and what decord is not sure of, PyAV reads, on one thread; it decodes what a shown
frame may depend on, and only shown frames are converted.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from services.errors import VideoError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

DECODE_RULE = "3"
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
DECORD_BYTES = 256 * 2**20
"""What a video may have, packets and converted frames together, for decord to read it: its thread runs ahead unbounded."""
DECORD_CODECS = {"h264", "hevc", "vp9"}
"""That its FFmpeg 4 decodes and whose every packet is one shown frame."""
DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""That give every packet its timestamp."""

Frame = tuple[float, np.ndarray]
"""Timestamp in seconds, and pixels uint8 [H, W, 3]."""
Write = Callable[[Iterator[Frame]], None]
"""What becomes of the frames; picklable, run in the child. An OSError it raises reaches the caller as it is."""
Reader = Callable[[str, int, Write], bool]
"""Passes the candidates of the video at a path, of at most so many visual tokens, to `write`; False: another should."""
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
    """Pass the video's candidate frames to `write`, rescaled to `frame_size`; anew when decord turns out not to be sure.

    Raises VideoError with the reason when not all can be had.
    """
    if not read_with_decord(path, max_tokens, write):
        read_with_pyav(path, max_tokens, write)


def read_with_decord(path: str, max_tokens: int, write: Write) -> bool:
    """Whether decord read the video; what went to `write` otherwise is to be thrown away."""
    try:
        if (plan := _plan(path, max_tokens)) is None:
            return False
        write(_decord_frames(path, *plan))
    except VideoError:  # PyAV reads it, or says what is wrong
        return False
    return True


def read_with_pyav(path: str, max_tokens: int, write: Write) -> bool:
    """True; raises VideoError when the video cannot be read."""
    write(_pyav_frames(path, max_tokens))
    return True


@contextmanager
def _says_why(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading is a VideoError, which names the path."""
    try:
        yield
    except Exception as error:
        raise VideoError(f"{path}: {_reason(error)}") from error


def _plan(path: str, max_tokens: int) -> tuple[int, int, list[float]] | None:
    """Height, width and every frame's timestamp, for a video that decord reads; else None. Decodes the first frame only.

    Raises VideoError when the file is damaged.
    """
    import av

    with _says_why(path), av.open(path) as container:
        stream = _stream(container)
        first = next(container.decode(stream), None)
        if first is None or first.rotation or first.interlaced_frame or (stream.sample_aspect_ratio or 1) != 1:
            return None
        codec, pixels = stream.codec_context.name, stream.codec_context.pix_fmt
        if codec not in DECORD_CODECS or container.format.name not in DECORD_CONTAINERS or pixels != "yuv420p":
            return None
        height, width = _size(first, Fraction(1), max_tokens)
    with _says_why(path), av.open(path) as container:
        nbytes, stamps = 0, list[int]()
        for packet in _packets(container, stream := _stream(container)):
            if packet.size == 0:  # the end
                continue
            nbytes += packet.size + height * width * 3
            if packet.pts is None or packet.is_discard or nbytes > DECORD_BYTES:
                return None
            stamps.append(packet.pts)
        if stamps[0] != min(stamps):  # frames that need one from before the file's start
            return None
        tick = float(stream.time_base or 0)
        return height, width, [(stamp - stamps[0]) * tick for stamp in sorted(stamps)]


def _decord_frames(path: str, height: int, width: int, times: Sequence[float]) -> Iterator[Frame]:
    """The candidates among frames at `times`. Raises VideoError when decord counts others, fails or complains."""
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    candidates = list(each_second((time, index) for index, time in enumerate(times)))
    with TemporaryFile() as complaints, _stderr_in(complaints.fileno()):
        try:
            reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
            starts = reader.get_frame_timestamp(range(len(reader)))[:, 0] if len(reader) else np.empty(0)
            if len(starts) != len(times) or np.abs(starts - starts[0] - times).max() > EPSILON:
                raise VideoError(f"decord counts {len(starts)} frames of {len(times)}, or other timestamps")
            keys, position, held = reader.get_key_indices(), 0, None
            for time, index in candidates:
                if index != held:
                    for key in (key for key in keys if position < key <= index):
                        reader.seek_accurate(key - 1)
                        reader.next()  # a seek across a key frame drops frames that depend on an earlier one
                    reader.seek_accurate(index)
                    held, position, pixels = index, index + 1, reader.next().asnumpy()
                yield time, pixels
        except decord.DECORDError as error:
            raise VideoError("decord failed") from error
        if os.fstat(complaints.fileno()).st_size:
            raise VideoError("decord complained")


@contextmanager
def _stderr_in(file: int) -> Iterator[None]:
    """What this process, native code included, says on standard error goes to a file meanwhile."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _pyav_frames(path: str, max_tokens: int) -> Iterator[Frame]:
    """The candidate frames. Raises VideoError."""
    import av

    with _says_why(path), av.open(path) as container:
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
