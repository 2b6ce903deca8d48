"""Videos that are odd or broken on purpose, and what must come of each. Their pictures say when they are shown."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 12
"""Vertical bars of a picture, most significant first: the number it shows."""
BT2100_PQ = {"color_primaries": "bt2020", "color_trc": "smpte2084", "colorspace": "bt2020nc"}
MATROSKA_DURATION = (b"\x44\x89\x88", 3, struct.pack(">d", 7200))
"""The place where a Matroska header states the file's length, and 7.2 seconds as it writes them."""


GBK_NAME = os.fsdecode("视频 100%41.mkv".encode("gbk"))


@dataclass(frozen=True)
class Odd:
    """A file, and the numbers its candidate frames show; or, for None, a pattern of the reason why it has none."""

    name: str
    path: Path
    numbers: list[int] | None
    reason: str = ""


def picture(number: int, height: int = 96, width: int = 168) -> np.ndarray:
    """[height, width, 3] uint8 that shows `number`."""
    bars = np.arange(width) * BITS // width
    row = np.where(number >> (BITS - 1 - bars) & 1, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_numbers(frames: np.ndarray) -> list[int]:
    """The number each of `frames` [N, H, W, 3] shows."""
    row = frames.mean(axis=(1, 3))
    middles = ((np.arange(BITS) + 0.5) * row.shape[1] / BITS).astype(int)
    bits = row[:, middles] > 127
    return [int(number) for number in bits @ (1 << np.arange(BITS)[::-1])]


def hundredths(time: float) -> int:
    """What a frame shows unless told otherwise."""
    return round(time * 100)


def every(seconds: float, until: float, start: float = 0.0) -> list[float]:
    """Times from `start` on, `seconds` apart."""
    return [round(start + n * seconds, 3) for n in range(round((until - start) / seconds))]


def write_video(
    path: Path,
    times: Iterable[float],
    codec: str = "libx264",
    *,
    height: int = 96,
    width: int = 168,
    pix_fmt: str = "yuv420p",
    tick: Fraction = Fraction(1, 1000),
    turn: int = 0,
    aspect: int = 1,
    flags: int = 0,
    encoder: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    number: Callable[[float], int] = hundredths,
) -> Path:
    """A video whose frame shown from `t` seconds on shows `number(t)`.

    Args:
        tick: seconds that timestamps are whole multiples of.
        turn: degrees against the clock that a player must turn the picture.
        aspect: width of a pixel in heights.
    """
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=min(30, 1 / tick), options=encoder or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = tick
        stream.codec_context.gop_size = 40
        stream.codec_context.flags |= flags
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        stream.metadata.update(metadata or {})
        if turn:
            stream.set_display_rotation(turn)
        size = (width, height) if turn % 180 else (height, width)
        for time in times:
            pixels = np.ascontiguousarray(np.rot90(picture(number(time), *size), -turn // 90))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _remux(source: Path, path: Path, shift: float = 0.0, silence: float = 0.0) -> Path:
    """The same packets in another file, `shift` seconds later, beside `silence` seconds of sound."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        sound = new.add_stream("aac", rate=16000) if silence else None
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                move = round(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + move, packet.dts + move, stream
                new.mux(packet)
        if sound:
            _write_silence(new, sound, silence)
    return path


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, round(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _sound(path: Path, cover: bool = False, video: bool = False) -> Path:
    """Sound alone, with a cover, or with a video stream that holds no frame."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        if cover:
            art = container.add_stream("png", rate=1)
            art.width, art.height, art.pix_fmt = 168, 96, "rgb24"
            art.disposition = av.stream.Disposition.attached_pic
            container.mux(art.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24")))
        if video:
            empty = container.add_stream("libx264", rate=10)
            empty.width, empty.height, empty.pix_fmt = 168, 96, "yuv420p"
            empty.codec_context.open()
        _write_silence(container, sound, 2)
    return path


def _patched(source: Path, path: Path, box: bytes, offset: int, value: bytes) -> Path:
    """A copy with the bytes at `offset` past the start of the first `box` replaced."""
    content = source.read_bytes()
    at = content.index(box) + offset
    path.write_bytes(content[:at] + value + content[at + len(value) :])
    return path


def _cut(source: Path, path: Path, keep: float) -> Path:
    """The first part of a file."""
    content = source.read_bytes()
    path.write_bytes(content[: round(len(content) * keep)])
    return path


def _scratched(source: Path, path: Path, nbytes: int) -> Path:
    """A copy with noise in the middle of its pictures."""
    content = source.read_bytes()
    start = content.index(b"mdat") + 4
    middle = start + int.from_bytes(content[start - 8 : start - 4], "big") // 2
    return _patched(source, path, b"mdat", middle - start + 4, np.random.default_rng(0).bytes(nbytes))


def ten_hours(path: Path) -> Path:
    """36,000 candidates of few frames: that of second `i` shows `i // 100`."""
    return write_video(path, [*range(0, 36_000, 100), 35_999], number=lambda time: int(time) // 100)


def odd_videos(folder: Path) -> list[Odd]:
    """One of each kind under `folder`; all but the shortest are five seconds long."""
    return [*_sound_videos(folder), _named_in_gbk(folder), *_lying_videos(folder), *_broken_videos(folder)]


def _named_in_gbk(folder: Path) -> Odd:
    """One whose name is not UTF-8."""
    path = write_video(folder / "gbk.mkv", every(0.1, 5)).rename(folder / GBK_NAME)
    return Odd(path.name, path, [0, 100, 200, 300, 400])


def _sound_videos(folder: Path) -> list[Odd]:
    """Videos that are as they should be."""
    tenths, numbers, fps = every(0.1, 5), [0, 100, 200, 300, 400], Fraction(1, 25)
    fast = {"preset": "ultrafast", "x265-params": "log-level=none"}
    realtime = {"deadline": "realtime", "cpu-used": "8"}
    fields = int(av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me)
    made: dict[str, tuple[Sequence[float], str, dict[str, Any]]] = {
        "plain.mp4": (tenths, "libx264", {}),
        "hevc.mp4": (tenths, "libx265", {"encoder": fast}),
        "hevc-10-bit.mkv": (tenths, "libx265", {"encoder": fast, "pix_fmt": "yuv420p10le"}),
        "h264-10-bit.mp4": (tenths, "libx264", {"pix_fmt": "yuv420p10le"}),
        "vp9.webm": (tenths, "libvpx-vp9", {"encoder": realtime}),
        "av1.mp4": (tenths, "libsvtav1", {"encoder": {"preset": "12"}}),
        "av1-10-bit.mkv": (tenths, "libsvtav1", {"encoder": {"preset": "12"}, "pix_fmt": "yuv420p10le"}),
        "h264-interlaced.mp4": (tenths, "libx264", {"encoder": {"x264-params": "interlaced=1:tff=1"}}),
        "mpeg2-interlaced.mpg": (every(0.04, 5), "mpeg2video", {"tick": fps, "flags": fields}),
        "b-frames.avi": (every(0.04, 5), "mpeg4", {"tick": fps, "encoder": {"bf": "2"}}),
        "h264-b-frames.avi": (every(0.04, 5), "libx264", {"tick": fps}),
        "flash.flv": (tenths, "libx264", {}),
        "stream.ts": (tenths, "libx264", {}),
        "moving.gif": (tenths, "gif", {"tick": Fraction(1, 100), "pix_fmt": "rgb8"}),
        "turned-90.mp4": (tenths, "libx264", {"turn": 90}),
        "turned-180.mp4": (tenths, "libx264", {"turn": 180}),
        "turned-270.mkv": (tenths, "libx264", {"turn": 270}),
        "wide-pixels.mp4": (tenths, "libx264", {"aspect": 2}),
        "odd-sides.mp4": (tenths, "libx264", {"height": 95, "width": 171, "pix_fmt": "yuv444p"}),
        "odd-sides.webm": (tenths, "libvpx-vp9", {"height": 95, "width": 171, "encoder": realtime}),
        "hdr.mp4": (tenths, "libx264", {"pix_fmt": "yuv420p10le", "encoder": BT2100_PQ}),
        "bare.h264": (every(0.04, 5), "libx264", {"tick": fps}),
        "fragments.mp4": (tenths, "libx264", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        "no-duration.mkv": (tenths, "libx264", {"muxer": {"live": "1"}}),
    }
    odds = [
        Odd(name, write_video(folder / name, times, codec, **options), numbers)
        for name, (times, codec, options) in made.items()
    ]
    shown = [0.0, 3.2, 3.24, 3.28, 4.9, 5.0, 6.6, 6.9, 7.2, 10.99, 11.01, 13.5]
    on_screen = [max(t for t in shown if t <= second) for second in range(14)]
    for name, start, codec in (
        ("uneven.mp4", 0.0, "libx264"),
        ("late.mp4", 2.5, "libx264"),
        ("uneven.webm", 0.0, "libvpx-vp9"),
    ):
        path = write_video(folder / name, [start + t for t in shown], codec)
        odds.append(Odd(name, path, [hundredths(start + t) for t in on_screen]))
    for name, codec in (("one-frame.mp4", "libx264"), ("one-frame.webm", "libvpx-vp9")):
        odds.append(Odd(name, write_video(folder / name, [7.0], codec), [700]))
    plain = folder / "plain.mp4"
    for name in ("long-sound.mp4", "long-sound.mkv"):
        odds.append(Odd(name, _remux(plain, folder / name, silence=9), numbers))
    odds.append(Odd("starts-within.mp4", _remux(plain, folder / "starts-within.mp4", shift=-1.5), [150, 250, 350, 450]))
    parts = [folder / "part-1.ts", folder / "part-2.ts"]
    write_video(parts[0], every(0.1, 4, start=1))
    write_video(parts[1], every(0.1, 6, start=4), height=144, width=240)
    joined = folder / "two-sizes.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    return [*odds, Odd(joined.name, joined, [100, 200, 300, 400, 500])]


def _lying_videos(folder: Path) -> list[Odd]:
    """Videos whose containers state something wrong, made from `_sound_videos`."""
    numbers, plain, avi = [0, 100, 200, 300, 400], folder / "plain.mp4", folder / "b-frames.avi"
    century, webm = (10**9).to_bytes(4, "big"), folder / "vp9.webm"
    tags = {"NUMBER_OF_FRAMES": "99999", "DURATION": "99:00:00.000000000"}
    return [
        Odd("wall-clock.webm", _patched(webm, folder / "wall-clock.webm", *MATROSKA_DURATION), numbers),
        Odd("tags.mkv", write_video(folder / "tags.mkv", every(0.1, 5), metadata=tags), numbers),
        Odd("long-movie.mp4", _patched(plain, folder / "long-movie.mp4", b"mvhd", 20, century), numbers),
        Odd("many-frames.avi", _patched(avi, folder / "many-frames.avi", b"avih", 24, century), numbers),
        Odd("long-track.mp4", _patched(plain, folder / "long-track.mp4", b"mdhd", 20, century), numbers),
        Odd(
            "long-stream.avi",
            _patched(avi, folder / "long-stream.avi", b"strh", 40, century),
            None,
            "ends at second 5.0 of ",
        ),
    ]


def _broken_videos(folder: Path) -> list[Odd]:
    """Videos that must be refused, made from `_sound_videos`."""
    fast = write_video(folder / "index-first.mp4", every(0.1, 5), muxer={"movflags": "faststart"})
    plain, unreadable = folder / "plain.mp4", "not a readable video .Invalid data"
    broken = [
        (_cut(plain, folder / "cut.mp4", 0.5), unreadable),
        (_cut(fast, folder / "cut-index-first.mp4", 0.7), r"ends at second \d\.\d of 4\.9"),
        (_cut(folder / "vp9.webm", folder / "cut.webm", 0.7), r"ends at second \d\.\d of 4\.9"),
        (_cut(folder / "flash.flv", folder / "cut.flv", 0.7), r"ends at second \d\.\d of 4\.9"),
        (_cut(folder / "b-frames.avi", folder / "cut.avi", 0.7), r"ends at second \d\.\d of \d\.\d|is damaged"),
        (_cut(folder / "fragments.mp4", folder / "cut-fragments.mp4", 0.45), r"ends at second|is damaged|cannot be"),
        (_scratched(plain, folder / "scratched.mp4", 30), r"is damaged at second \d|cannot be decoded after second \d"),
        (_scratched(plain, folder / "spoilt.mp4", 200), r"is damaged at second \d|cannot be decoded after second \d"),
        (_patched(plain, folder / "unknown-codec.mp4", b"stsd", 16, b"zzzz"), "no video stream that can be decoded"),
        (_sound(folder / "sound.mp4"), "no video stream"),
        (_sound(folder / "cover.mp4", cover=True), "no video stream"),
        (_sound(folder / "frameless.mkv", video=True), "ends at second 0.0 of 2.1"),
        (_written(folder / "empty.mp4", b""), unreadable),
        (_written(folder / "noise.mp4", np.random.default_rng(0).bytes(5000)), unreadable),
        (_written(folder / "page.mp4", b"<html>404 Not Found</html>" * 20), unreadable),
        (
            _written(folder / "twice.ts", (folder / "stream.ts").read_bytes() * 2),
            "timestamps jump from 4.900 s to 0.000 s",
        ),
    ]
    return [Odd(path.name, path, None, reason) for path, reason in broken]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
