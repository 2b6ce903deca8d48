"""What a container holds: the packets of its main video stream, whether they are all there, and when the last frame ends.

Invariants: a file that breaks off gives a `VideoError` with the second at which it does. One that promises more than it holds
is read when its structure says that it is whole, and is noted as `PROMISED_MORE`. Tags are never used, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from services.display import UNSPECIFIED
from services.errors import VideoError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

PROMISED_MORE = "container promised more than it holds"
"""Note on a video that is whole, but whose container states a length of more than `OVERSTATED` beyond its end."""
OVERSTATED = 0.5
"""Seconds by which a sound file may end before the end its container states: they round, and count an encoder's padding."""
SHORT = 0.05
"""Seconds of a frame at the usual rates, at most."""
MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675
"""Elements of Matroska that may be of unknown size; what they hold follows."""


class Track:
    """The main video stream of an open container."""

    def __init__(self, container: InputContainer, notes: set[str]) -> None:
        self.container, self.stream, self.notes = container, _stream(container), notes
        self.kind = container.format.name
        self.tick = self.stream.time_base or Fraction(0)
        context = self.stream.codec_context
        self._colours = context.color_trc, context.color_primaries
        self.has_pts = self.kind != "avi"
        """Whether packets say when they are shown; AVI knows the order of decoding only."""
        self._last: tuple[int, int] | None = None
        """Timestamp and duration of the frame shown last, in ticks."""
        self._before: int | None = None
        """Timestamp of the frame shown before it."""
        self._length = 0
        """Sum of all durations, in ticks."""
        self._gapless = True
        """Whether every frame lasts until the next, where packets lie in the order of showing."""

    def stamp(self, item: av.Packet[Any] | av.VideoFrame) -> int | None:
        """When it is shown, in ticks; None when the container does not say."""
        return item.pts if self.has_pts else item.dts

    def tag(self, frame: av.VideoFrame) -> None:
        """Give the frame the container's colour tags where its own say nothing, as HEVC's do."""
        if (frame.color_trc, frame.color_primaries) == (UNSPECIFIED, UNSPECIFIED):
            frame.color_trc, frame.color_primaries = self._colours

    def packets(self) -> Iterator[av.Packet[Any]]:
        """The stream's packets. Raises VideoError when one is damaged or the file breaks off.

        What a container says of the stream counts; else what it says of the longest of its streams, all of them measured.
        """
        stream, own_end = self.stream, self.stream.duration is not None
        start = reached = self._seconds(stream.start_time or 0)
        found, damaged = 0, None
        marks_damage = self.kind != "mpegts"  # which marks sound packets where two files were joined
        for packet in self.container.demux():
            own = packet.stream is stream
            if packet.pts is not None and (own or not own_end):
                reached = max(reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if own and packet.size:
                found += 1
                self._measure(packet)
            if own and packet.is_corrupt and marks_damage:
                damaged = reached if damaged is None else damaged
            elif own:
                yield packet
        end, reached = self._promised(), max(reached, self.end())
        short = reached < end - OVERSTATED
        if (self.kind == MP4 and self._indexes_more_than(found)) or (short and not (found and self._is_whole())):
            raise VideoError(f"ends at second {reached - start:.1f} of {end - start:.1f}")
        if damaged is not None:
            raise VideoError(f"is damaged at second {damaged - start:.1f}")
        if short:
            self.notes.add(PROMISED_MORE)

    def end(self) -> float:
        """Seconds on the stream's clock until which its last frame is shown, once all packets were read; 0 if unknown.

        By that frame's packet; an MP4's track ends earlier when an edit trims it. Where an MP4's packets contradict each other
        about durations (the demuxer guesses those of VP9), the track's length counts. A duration of less than `SHORT` that is
        longer than the time since the frame before is a muxer's default, and counts as that time.
        """
        if self._last is None:
            return 0.0
        stamp, duration = self._last
        last, until = self._seconds(stamp), self._seconds(stamp + duration)
        total, rate = self.stream.duration or 0, self.stream.guessed_rate
        if not duration and rate:
            until = last + float(1 / rate)
        if self.kind == MP4 and self.stream.frames and total > stamp:
            if not self._gapless:
                until = self._seconds(total + (self.stream.start_time or 0))
            elif total < self._length:
                until = min(until, self._seconds(total))
        gap = self._seconds(stamp - self._before) if self._before is not None else SHORT
        return last + gap if gap < until - last < SHORT else until

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self.tick)

    def _measure(self, packet: av.Packet[Any]) -> None:
        """Take the packet of a shown frame into account."""
        stamp, duration = self.stamp(packet), packet.duration or 0
        if stamp is None or packet.is_discard:
            return
        self._length += duration
        if self._last is None or stamp > self._last[0]:
            if self._last is not None:
                self._gapless &= packet.dts != stamp or abs(sum(self._last) - stamp) <= 1
                self._before = self._last[0]
            self._last = stamp, duration
        elif self._before is None or self._before < stamp < self._last[0]:
            self._before = stamp

    def _promised(self) -> float:
        """Seconds on the stream's clock at which it ends by what its container states; 0 when that states nothing."""
        import av

        stream, start = self.stream, self._seconds(self.stream.start_time or 0)
        if stream.duration is None:
            return (self.container.duration or 0) / av.time_base
        if self.kind == MP4 and stream.frames:  # begins at 0, with an empty edit before a later first frame
            return self._seconds(stream.duration)
        ticks = stream.frames if self.kind == "avi" else 0  # what its header says, cut or not
        return start + self._seconds(max(stream.duration, ticks))

    def _indexes_more_than(self, found: int) -> bool:
        """Whether the container's index has more frames than were found."""
        entries = self.stream.index_entries
        return found < len(entries) and found < sum(entry.size > 0 for entry in entries)

    def _is_whole(self) -> bool:
        """Whether nothing of the file is missing, by its structure; False when that does not say."""
        if self.kind == MP4 and self.stream.frames:
            return True  # all of its index was found
        if self.kind not in STRUCTURES:
            return False
        with open(self.container.name, "rb") as file:
            return STRUCTURES[self.kind](file)


@contextmanager
def says_why(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading is a VideoError, which names the path."""
    try:
        yield
    except Exception as error:
        raise VideoError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    import av

    if isinstance(error, VideoError):
        return str(error)
    if isinstance(error, av.FFmpegError | OSError):
        return f"not a readable video ({error.strerror or error})"
    return f"cannot be decoded ({type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]})"


@contextmanager
def opened(path: str, notes: set[str]) -> Iterator[Track]:
    """The main video stream of the file at `path`; what is found out about it is added to `notes`."""
    import av

    with av.open(path, metadata_errors="replace") as container:
        yield Track(container, notes)


def _stream(container: InputContainer) -> av.VideoStream:
    """The main video stream; a song's cover is not one."""
    import av

    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None or stream.disposition & cover:
        raise VideoError("has no video stream that can be decoded")
    return stream


def _ends_with_element(file: BinaryIO) -> bool:
    """Whether a Matroska file ends where one of its elements does (RFC 8794)."""
    size = file.seek(0, 2)
    at = file.seek(0)
    while at < size:
        name = _number(file, keep_marker=True)
        length = _number(file, keep_marker=False)
        if name is None or length is None:
            return False
        at = file.tell()
        if length >= 0:
            at = file.seek(at + length)
        elif name not in (SEGMENT, CLUSTER):
            return False
    return at == size


def _number(file: BinaryIO, keep_marker: bool) -> int | None:
    """A number of variable length; -1 when all its bits are set, which is "unknown", None where there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    number = int.from_bytes(first + rest, "big")
    if len(rest) < extra or keep_marker:
        return number if len(rest) == extra else None
    marker = 1 << 7 * (extra + 1)
    return -1 if number == 2 * marker - 1 else number - marker


STRUCTURES: dict[str, Callable[[BinaryIO], bool]] = {MATROSKA: _ends_with_element}
"""Whether an open file is whole, by its container's structure, which other containers do not show."""
