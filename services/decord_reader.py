"""Plain videos read by decord, which is fast and sometimes wrong: whatever it is not sure of, it leaves to PyAV.

Invariant: a video is read here only when PyAV's demuxer says where each of its frames lies, and decord finds the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from services.candidates import EPSILON, Frame, each_second, held_until, since
from services.container import MATROSKA, MP4, opened, says_why
from services.display import AS_STORED, is_converted, orientation, shown_size
from services.errors import VideoError

DECORD_BYTES = 256 * 2**20
"""What a video may have, packets and converted frames together, for decord to read it: its thread runs ahead unbounded."""
DECORD_CODECS = {"h264", "hevc", "vp9"}
"""Codecs that decord's FFmpeg 4 decodes, with exactly one shown frame per packet."""
DECORD_CONTAINERS = {MP4, MATROSKA}
"""Containers that give every packet its timestamp."""


def plan(path: str, max_tokens: int, notes: set[str]) -> tuple[int, int, list[float], float] | None:
    """What `frames` needs of a video that decord reads: height, width, every frame's time, the end of the last; else None.

    Decodes the first frame only. Raises VideoError when the file is damaged.
    """
    with says_why(path), opened(path, notes) as track:
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
    with says_why(path), opened(path, notes) as track:
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
        times = [since(start, float(stamp * track.tick)) for stamp in sorted(stamps)]
        return height, width, times, since(start, track.end())


def frames(path: str, height: int, width: int, times: Sequence[float], end: float) -> Iterator[Frame]:
    """The candidates among frames at `times`, of which the last stays until `end`.

    Raises VideoError when decord finds other frames, fails, or prints a complaint.
    """
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    shown = [(time, index) for index, time in enumerate(times)]
    candidates = each_second([*shown, *held_until(*shown[-1], end)])
    with TemporaryFile() as complaints, _stderr_in(complaints.fileno()):
        try:
            reader = _reader(path, height, width)
            _check_times(reader, times)
            yield from _picked(reader, candidates)
        except Exception as error:  # decord raises a DECORDError, a RuntimeError, …
            raise VideoError("decord failed") from error
        if os.fstat(complaints.fileno()).st_size:
            raise VideoError("decord complained")


def _check_times(reader: Any, times: Sequence[float]) -> None:
    """Raises VideoError unless decord's frames are as many as `times` and begin then."""
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0] if len(reader) else np.empty(0)
    if len(starts) != len(times) or np.abs(starts - starts[0] - times).max() > EPSILON:
        raise VideoError(f"decord counts {len(starts)} frames of {len(times)}, or other timestamps")


def _picked(reader: Any, candidates: Iterable[tuple[float, int]]) -> Iterator[Frame]:
    """The frames of `candidates`, each a time and a frame's index; indices never decrease, and equal ones are read once.

    A seek across a key frame drops frames that depend on an earlier one, so each key frame on the way is entered from the
    frame before it.
    """
    keys, position, held = reader.get_key_indices(), 0, None
    for time, index in candidates:
        if index != held:
            for key in (key for key in keys if position < key <= index):
                reader.seek_accurate(key - 1)
                reader.next()
            reader.seek_accurate(index)
            held, position, pixels = index, index + 1, reader.next().asnumpy()
        yield time, pixels


def _reader(path: str, height: int, width: int) -> Any:
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
