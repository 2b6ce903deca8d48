"""The candidate frames of a video, by the rule of `services.candidates`, read by whichever library can.

Invariants: a video gives all its candidates or a `VideoError` with the reason, never some of them, nor one that the decoder
had to patch up; the content alone decides which library reads it; memory does not grow with the length. Video libraries are
loaded when the first video is read, and neither torch nor ray ever: `services.decode_process` runs this room in a child.

decord reads first: plain videos, those of which PyAV's demuxer says where every frame lies, as far as they are short enough
for its memory. Whatever else there is, and what decord is not sure of, PyAV reads, on one thread; it decodes what a shown
frame may depend on, and only shown frames are converted. Pillow reads animated WebP, which FFmpeg does not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from services import decord_reader
from services.candidates import EPSILON, Candidates, Frame, each_second, held_until, since
from services.container import Track, opened, says_why
from services.display import Orientation, is_converted, orientation, shown_size
from services.display import upright as _upright
from services.errors import VideoError
from services.visual import frame_size
from services.webp import is_animated_webp, webp_pictures

if TYPE_CHECKING:
    import av
    from PIL import Image

HDR = "HDR or BT.2020, shown in BT.709"
"""Note on a video whose colours were converted."""
REORDERED = 32
"""Packets that may lie between two frames shown one after the other; H.264 allows 16."""
Write = Callable[[Candidates], None]
"""What becomes of the frames; picklable, run in the child. An OSError it raises reaches the caller as it is."""
Reader = Callable[[str, int, Write], bool]
"""Passes the candidates of the video at a path, of at most so many visual tokens, to `write`; False: another should."""


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
        if (plan := decord_reader.plan(path, max_tokens, notes)) is None:
            return False
        write(Candidates(decord_reader.frames(path, *plan), notes))
    except VideoError:  # PyAV reads it, or says what is wrong
        return False
    return True


def read_with_pyav(path: str, max_tokens: int, write: Write) -> bool:
    """True; raises VideoError when the video cannot be read. Animated WebP is Pillow's."""
    notes = set[str]()
    frames = _webp_frames(path, max_tokens) if is_animated_webp(path) else _pyav_frames(path, max_tokens, notes)
    write(Candidates(frames, notes))
    return True


def frame_rate(path: str) -> float:
    """Frames per second, as the container states them: the mean where they vary. Decodes nothing.

    Raises VideoError when the file cannot be read, or does not say.
    """
    if is_animated_webp(path):
        raise VideoError(f"{path}: an animated WebP has no frame rate")
    with says_why(path), opened(path, set()) as track:
        rate = track.stream.average_rate or track.stream.guessed_rate
        if not rate:
            raise VideoError("does not say its frame rate")
        return float(rate)


def frame_numbers(path: str) -> tuple[list[int], int]:
    """For each candidate frame the number that it has among all frames of the file, which count from 0 in the order in which
    they are shown; and how many these are. Decodes nothing.

    Raises VideoError when the file cannot be read, or does not say when each of its frames is shown.
    """
    if is_animated_webp(path):
        raise VideoError(f"{path}: an animated WebP does not number its frames")
    with says_why(path), opened(path, set()) as track:
        stamps = [track.stamp(packet) for packet in track.packets() if packet.size and not packet.is_discard]
        ticks = sorted(stamp for stamp in stamps if stamp is not None)
        if not ticks or len(ticks) < len(stamps) or ticks[0] != stamps[0]:
            raise VideoError("does not say when each of its frames is shown")
        start = float(ticks[0] * track.tick)
        shown = [(since(start, float(tick * track.tick)), number) for number, tick in enumerate(ticks)]
        candidates = each_second([*shown, *held_until(*shown[-1], since(start, track.end()))])
        return [number for _, number in candidates], len(shown)


def _pyav_frames(path: str, max_tokens: int, notes: set[str]) -> Iterator[Frame]:
    """The candidate frames. Raises VideoError."""
    with says_why(path), opened(path, notes) as track:
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


class _Clock:
    """Times of a track's frames, in seconds since the first one shown."""

    def __init__(self, track: Track) -> None:
        self._track, self._rate, self._tick = track, track.stream.guessed_rate, float(track.tick)
        self._first: float | None = None
        """The first frame's time on the stream's own clock; None before there is one."""
        self._last = 0.0
        """The time of the frame shown last, on the stream's own clock."""
        self.time = 0.0
        """The same since the first."""

    def show(self, frame: av.VideoFrame) -> float:
        """The time of the frame shown next; one without a timestamp follows evenly. Raises VideoError."""
        stamp = self._track.stamp(frame)
        if stamp is not None:
            self._last = float(stamp * self._track.tick)
        elif self._rate:
            self._last += float(1 / self._rate)
        else:
            raise VideoError("has neither timestamps nor a frame rate")
        self._first = self._last if self._first is None else self._first
        self.time = since(self._first, self._last)
        return self.time

    def expect(self, packet: av.Packet[Any]) -> float | None:
        """The time that the packet states for its frame; None where it states none, and before the first frame."""
        if self._first is None or not self._track.has_pts or packet.pts is None or packet.is_discard:
            return None
        return packet.pts * self._tick - self._first

    def end(self) -> float:
        """The time at which the last frame ends."""
        return since(self._first or 0.0, self._track.end())


def _shown(track: Track) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames in the order they are shown, each with its time since the first.

    Not all frames: of progressive H.264, one that no other depends on stays undecoded where another follows it within its
    second.
    """
    clock, context = _Clock(track), track.stream.codec_context
    recent: deque[float] = deque(maxlen=REORDERED)
    frame: av.VideoFrame | None = None
    for packet in track.packets():
        needless = False
        if (expected := clock.expect(packet)) is not None:
            progressive = frame is not None and not frame.interlaced_frame
            needless = progressive and context.name == "h264" and _outshone(expected, recent)
            recent.append(expected)
        context.skip_frame = "NONREF" if needless else "DEFAULT"
        for frame in _decoded(packet, clock):
            time = clock.show(frame)
            if frame.is_corrupt:
                raise VideoError(f"is damaged at second {time:.1f}")
            yield time, frame
    if frame is not None:
        yield from held_until(clock.time, frame, clock.end())


def _decoded(packet: av.Packet[Any], clock: _Clock) -> list[av.VideoFrame]:
    """The frames that the decoder gives for a packet. Raises VideoError when it cannot go on."""
    import av

    try:
        return packet.decode()
    except av.FFmpegError as error:
        raise VideoError(f"cannot be decoded after second {clock.time:.1f} ({error.strerror})") from error


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
        yield from held_until(start, image, end)

    with says_why(path):
        held = None
        for time, image in each_second(shown()):
            if image is not held:
                height, width = frame_size(image.height, image.width, max_tokens)
                held, pixels = image, np.asarray(image.resize((width, height)))  # bicubic
            yield time, pixels
