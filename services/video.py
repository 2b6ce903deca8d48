"""The only room that opens a video: its candidate frames, one per second.

The rule (`DECODE_RULE`; a change of it is a new version): time runs from the first frame's timestamp. Candidate `i` is the
frame on screen at second `i`, until the video ends: the last one whose timestamp is at most `i + EPSILON`, or, with frames
closer than twice that, nearer to `i` than the one before it. The last frame stays for the duration that its container states,
so that a video of N whole seconds has N candidates at any frame rate, and the shortest has one. Choosing by timestamps makes
variable frame rates right; the number of frames that a container states is never used. Pictures are as a player shows them
(`services.display`).

Invariants: a video gives all its candidates or a `VideoError` with the reason, never some of them, nor one that the decoder
had to patch up; the content alone decides which library reads it; memory does not grow with the length. Video libraries are
loaded when the first video is read, and neither torch nor ray ever: `services.decode_process` runs this room in a child.

decord reads first: plain videos, those of which PyAV's demuxer says where every frame lies, as far as they are short enough
for its memory. Whatever else there is, and what decord is not sure of, PyAV reads, on one thread; it decodes what a shown
frame may depend on, and only shown frames are converted. Pillow reads animated WebP, which FFmpeg does not.
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

from services.container import MATROSKA, MP4, Track, opened
from services.display import AS_STORED, Orientation, is_converted, orientation, shown_size
from services.display import upright as _upright
from services.errors import VideoError
from services.visual import frame_size
from services.webp import is_animated_webp, webp_pictures

if TYPE_CHECKING:
    import av
    from PIL import Image

DECODE_RULE = "4"
"""Version of the rule above; part of the key of every cached frame."""
HDR = "HDR or BT.2020, shown in BT.709"
"""Note on a video whose colours were converted."""
EPSILON = 0.005
"""Seconds: containers round timestamps, and a frame meant for second `i` may say a little more."""
LONGEST_FRAME = 3600.0
"""Seconds one frame may stay on screen; more is a broken clock, and would fill the disk with copies of one frame."""
REORDERED = 32
"""Packets that may lie between two frames shown one after the other; H.264 allows 16."""
DECORD_BYTES = 256 * 2**20
"""What a video may have, packets and converted frames together, for decord to read it: its thread runs ahead unbounded."""
DECORD_CODECS = {"h264", "hevc", "vp9"}
"""Codecs that decord's FFmpeg 4 decodes, with exactly one shown frame per packet."""
DECORD_CONTAINERS = {MP4, MATROSKA}
"""Containers that give every packet its timestamp."""

Frame = tuple[float, np.ndarray]
"""Timestamp in seconds, and pixels uint8 [H, W, 3]."""
Write = Callable[["Candidates"], None]
"""What becomes of the frames; picklable, run in the child. An OSError it raises reaches the caller as it is."""
Reader = Callable[[str, int, Write], bool]
"""Passes the candidates of the video at a path, of at most so many visual tokens, to `write`; False: another should."""
Item = TypeVar("Item")


def each_second(shown: Iterable[tuple[float, Item]]) -> Iterator[tuple[float, Item]]:
    """The frame on screen at second 0, 1, 2, …, from frames (timestamp, frame) in the order they are shown, the first at 0.

    A frame given again is still on screen at that time. Raises VideoError when timestamps run backwards or jump by more than
    `LONGEST_FRAME`.
    """
    second, now, tolerance = 0, 0.0, 0.0
    held: tuple[float, Item] | None = None
    for time, frame in shown:
        if held is not None:
            if not -EPSILON < time - now < LONGEST_FRAME:
                raise VideoError(f"timestamps jump from {now:.3f} s to {time:.3f} s")
            tolerance = _tolerance(time - now)
            while time > second + tolerance:
                yield held
                second += 1
        if held is None or frame is not held[1]:
            held = time, frame
        now = time
    if held is not None and (second == 0 or second <= now + tolerance):
        yield held


def _tolerance(gap: float) -> float:
    """Seconds after a whole second at which a frame may begin that is taken for it, `gap` seconds after the one before."""
    return max(0.0, min(EPSILON, gap / 2))


def _held(time: float, frame: Item, end: float) -> Iterator[tuple[float, Item]]:
    """The last frame again, at the last whole second before `end`, unless it begins there."""
    second = math.ceil(end - _tolerance(end - time)) - 1
    if second > time:
        yield second, frame


class Candidates(Iterator[Frame]):
    """Candidate frames as they come."""

    def __init__(self, frames: Iterator[Frame], notes: set[str]) -> None:
        self._frames = frames
        self.notes = notes
        """What is to be known about the video (`HDR`, `PROMISED_MORE`); complete once all frames were taken."""

    def __next__(self) -> Frame:
        return next(self._frames)


def decode(path: str, max_tokens: int, write: Write) -> None:
    """Pass the video's candidate frames to `write`, rescaled to `frame_size`; anew when decord turns out not to be sure.

    Raises VideoError with the reason when not all can be had.
    """
    if not read_with_decord(path, max_tokens, write):
        read_with_pyav(path, max_tokens, write)


def read_with_decord(path: str, max_tokens: int, write: Write) -> bool:
    """Whether decord read the video; what went to `write` otherwise is to be thrown away."""
    notes = set[str]()
    try:
        if (plan := _plan(path, max_tokens, notes)) is None:
            return False
        write(Candidates(_decord_frames(path, *plan), notes))
    except VideoError:  # PyAV reads it, or says what is wrong
        return False
    return True


def read_with_pyav(path: str, max_tokens: int, write: Write) -> bool:
    """True; raises VideoError when the video cannot be read. Animated WebP is Pillow's."""
    notes = set[str]()
    frames = _webp_frames(path, max_tokens) if is_animated_webp(path) else _pyav_frames(path, max_tokens, notes)
    write(Candidates(frames, notes))
    return True


@contextmanager
def _says_why(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading is a VideoError, which names the path."""
    try:
        yield
    except Exception as error:
        raise VideoError(f"{path}: {_reason(error)}") from error


def _plan(path: str, max_tokens: int, notes: set[str]) -> tuple[int, int, list[float], float] | None:
    """For a video that decord reads, height, width, every frame's time and the end of the last one; else None.

    Decodes the first frame only. Raises VideoError when the file is damaged.
    """
    with _says_why(path), opened(path, notes) as track:
        stream, container = track.stream, track.container
        first = next(container.decode(stream), None)
        if first is None or orientation(first) != AS_STORED or first.interlaced_frame:
            return None
        track.tag(first)
        if is_converted(first):
            return None
        codec, pixels = stream.codec_context.name, stream.codec_context.pix_fmt
        if codec not in DECORD_CODECS or track.kind not in DECORD_CONTAINERS or pixels != "yuv420p":
            return None
        if (stream.sample_aspect_ratio or 1) != 1:
            return None
        height, width = shown_size(first, Fraction(1), max_tokens)
    with _says_why(path), opened(path, notes) as track:
        nbytes, stamps = 0, list[int]()
        for packet in track.packets():
            if packet.size == 0:  # the end
                continue
            nbytes += packet.size + height * width * 3
            if packet.pts is None or packet.is_discard or nbytes > DECORD_BYTES:
                return None
            stamps.append(packet.pts)
        if stamps[0] != min(stamps):  # frames that need one from before the file's start
            return None
        start = float(stamps[0] * track.tick)
        times = [_since(start, float(stamp * track.tick)) for stamp in sorted(stamps)]
        return height, width, times, _since(start, track.end())


def _since(start: float, stamp: float) -> float:
    """Seconds from one to the other, alike whichever library counts them."""
    return round(stamp - start, 6)


def _decord_frames(path: str, height: int, width: int, times: Sequence[float], end: float) -> Iterator[Frame]:
    """The candidates among frames at `times`, the last until `end`.

    Raises VideoError when decord counts others, fails or complains.
    """
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    shown = [(time, index) for index, time in enumerate(times)]
    candidates = list(each_second([*shown, *_held(*shown[-1], end)]))
    with TemporaryFile() as complaints, _stderr_in(complaints.fileno()):
        try:
            reader = _decord_reader(path, height, width)
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
        except Exception as error:  # decord raises a DECORDError, a RuntimeError, …
            raise VideoError("decord failed") from error
        if os.fstat(complaints.fileno()).st_size:
            raise VideoError("decord complained")


def _decord_reader(path: str, height: int, width: int) -> Any:
    """decord's reader, which opens only names that are UTF-8: others by their descriptor."""
    import decord

    with open(path, "rb") as file:
        name = path if os.fsencode(path).decode(errors="replace") == path else f"/dev/fd/{file.fileno()}"
        return decord.VideoReader(name, ctx=decord.cpu(0), width=width, height=height, num_threads=1)


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


def _pyav_frames(path: str, max_tokens: int, notes: set[str]) -> Iterator[Frame]:
    """The candidate frames. Raises VideoError."""
    with _says_why(path), opened(path, notes) as track:
        aspect = track.stream.sample_aspect_ratio or Fraction(1)
        track.stream.codec_context.thread_count = 1  # frame threads can deadlock when reading stops early
        size = held = None
        turned: dict[int, Orientation] = {}
        for time, frame in each_second(_shown(track)):
            size = size or shown_size(frame, aspect, max_tokens)
            track.tag(frame)
            if frame.rotation not in turned:
                turned[frame.rotation] = orientation(frame)
            if frame is not held:
                held, pixels = frame, _upright(frame, *size, turned[frame.rotation])
                notes |= {HDR} if is_converted(frame) else set()
            yield time, pixels
        if held is None:
            raise VideoError("has no frame")


def _shown(track: Track) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames in the order they are shown, each with its time since the first; one without a timestamp follows evenly.

    Not all frames: of H.264, one that no other depends on stays undecoded where another follows it within its second.
    """
    import av

    context, tick, rate = track.stream.codec_context, float(track.tick), track.stream.guessed_rate
    clock, time, start, progressive, frame = 0.0, 0.0, None, False, None
    recent: deque[float] = deque(maxlen=REORDERED)
    for packet in track.packets():
        needless = False
        if start is not None and track.has_pts and packet.pts is not None and not packet.is_discard:
            at = packet.pts * tick - start
            needless = progressive and context.name == "h264" and _outshone(at, recent)
            recent.append(at)
        context.skip_frame = "NONREF" if needless else "DEFAULT"
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise VideoError(f"cannot be decoded after second {time:.1f} ({error.strerror})") from error
        for frame in frames:
            stamp = track.stamp(frame)
            if stamp is not None:
                clock = float(stamp * track.tick)
            elif rate:
                clock += float(1 / rate)
            else:
                raise VideoError("has neither timestamps nor a frame rate")
            start = clock if start is None else start
            time = _since(start, clock)
            if frame.is_corrupt:
                raise VideoError(f"is damaged at second {time:.1f}")
            progressive = not frame.interlaced_frame
            yield time, frame
    if start is not None and frame is not None:
        yield from _held(time, frame, _since(start, track.end()))


def _outshone(time: float, others: Iterable[float]) -> bool:
    """Whether one of `others` is shown after `time` and before or at the next whole second: no candidate is shown at `time`."""
    second = math.ceil(time - 2 * EPSILON)
    return any(time < other <= second for other in others)


def _webp_frames(path: str, max_tokens: int) -> Iterator[Frame]:
    """The candidate frames of an animated WebP. Raises VideoError."""

    def shown() -> Iterator[tuple[float, Image.Image]]:
        end = 0.0
        for start, until, image in webp_pictures(path):
            end = until
            yield start, image
        yield from _held(start, image, end)

    with _says_why(path):
        held = None
        for time, image in each_second(shown()):
            if image is not held:
                height, width = frame_size(image.height, image.width, max_tokens)
                held, pixels = image, np.asarray(image.resize((width, height)))  # bicubic
            yield time, pixels


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    import av

    if isinstance(error, VideoError):
        return str(error)
    if isinstance(error, av.FFmpegError | OSError):
        return f"not a readable video ({error.strerror or error})"
    return f"cannot be decoded ({type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]})"
