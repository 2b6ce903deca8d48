"""Candidates at any frame rate, until the end of the last frame, and in files whose containers state another length."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from services.candidates import Candidates
from services.container import PROMISED_MORE
from services.errors import VideoError
from services.video import decode, read_with_pyav
from tests.services.odd_videos import hundredths, picture, read_numbers, write_video

TOKENS = 8
REALTIME = {"deadline": "realtime", "cpu-used": "8"}


def shown(path: Path, read: Callable[..., object] = decode) -> tuple[list[int], set[str]]:
    """The numbers that the candidates show, and what is noted about the video."""
    frames, notes = [], set[str]()

    def keep(candidates: Candidates) -> None:
        frames.extend(pixels for _, pixels in candidates)
        notes.update(candidates.notes)

    assert read(str(path), TOKENS, keep) in (None, True)
    return read_numbers(np.stack(frames)), notes


@pytest.mark.parametrize("rate", [120, 200, 240, 480, 960, 1000])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.webm"])
def test_two_seconds_have_two_candidates_at_any_rate(name: str, rate: int, tmp_path: Path) -> None:
    """Each frame shows its own number; AVI holds no B-frames here, as its clock is that of decoding."""
    tick = Fraction(1, 1000) if name in ("v.mkv", "v.webm") else Fraction(1, rate)
    times = [round(Fraction(n, rate) / tick) * tick for n in range(2 * rate)]
    codec, encoder = ("libvpx-vp9", REALTIME) if name == "v.webm" else ("libx264", {"preset": "ultrafast", "bf": "0"})
    options = {"height": 32, "width": 96, "tick": tick, "encoder": encoder}
    path = write_video(tmp_path / name, times, codec, number=lambda time: round(time * rate), **options)
    assert shown(path) == shown(path, read_with_pyav) == ([0, rate], set())


def held(path: Path, times: list[float], last: float, codec: str = "libx264", **encoder: str) -> Path:
    """A video whose last frame stays `last` seconds."""
    tick = Fraction(1, 100)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=encoder)
        stream.width, stream.height, stream.pix_fmt = 168, 96, "rgb8" if codec == "gif" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        ends = dict(zip([round(time / tick) for time in times], [*times[1:], times[-1] + last], strict=True))
        frames: list[av.VideoFrame | None] = []
        for stamp in ends:
            frame = av.VideoFrame.from_ndarray(picture(stamp), format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            frames.append(frame)
        for packet in (packet for frame in [*frames, None] for packet in stream.encode(frame)):
            packet.duration = round(ends[packet.pts] / tick) - packet.pts
            container.mux(packet)
    return path


@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize("name", ["v.mp4", "v.mov", "v.mkv", "v.webm", "vp9.mp4", "v.gif", "v.webp"])
def test_the_last_frame_stays_as_long_as_its_container_says(name: str, bframes: str, tmp_path: Path) -> None:
    times, path = [0.0, 3.0, 5.0, 9.3], tmp_path / name
    if name.endswith("webp"):
        images = [Image.fromarray(picture(hundredths(time))) for time in times]
        images[0].save(path, save_all=True, append_images=images[1:], duration=[3000, 2000, 4300, 4200], lossless=True)
    elif name.endswith("gif"):
        held(path, times, 4.2, "gif")
    elif "webm" in name or "vp9" in name:
        held(path, times, 4.2, "libvpx-vp9", **REALTIME)
    else:
        held(path, times, 4.2, bf=bframes)
    expected = [0, 0, 0, 300, 300, 500, 500, 500, 500, 500, 930, 930, 930, 930]
    assert shown(path) == shown(path, read_with_pyav) == (expected, set())


def test_one_picture_under_a_long_talk_is_shown_throughout(tmp_path: Path) -> None:
    assert shown(held(tmp_path / "talk.mp4", [0.0], 600))[0] == [0] * 600
    with pytest.raises(VideoError, match=r"timestamps jump from 0\.000 s to 3999"):
        shown(held(tmp_path / "broken.mp4", [0.0], 4000))


def edited(source: Path, path: Path, edits: list[tuple[float, float]]) -> Path:
    """A copy of an MP4 whose index comes last, with another edit list: seconds, and where in the media, -1 for nowhere."""
    content = bytearray(source.read_bytes())
    at = content.index(b"elst")
    size, first = struct.unpack(">I", content[at - 4 : at])[0], struct.unpack(">i", content[at + 16 : at + 20])[0]
    movie, media = (struct.unpack(">I", content[content.index(box) + 16 :][:4])[0] for box in (b"mvhd", b"mdhd"))
    entries = b"".join(
        struct.pack(">IiHH", round(length * movie), -1 if start < 0 else first + round(start * media), 1, 0)
        for length, start in edits
    )
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    content[at - 4 : at - 4 + size] = box
    for name in (b"edts", b"trak", b"moov"):
        start = content.rindex(name, 0, at) - 4
        content[start : start + 4] = struct.pack(
            ">I", struct.unpack(">I", content[start : start + 4])[0] + len(box) - size
        )
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(2, -1), (10, 0)], list(range(0, 1000, 100))),
        ([(4, 0)], [0, 100, 200, 300]),
        ([(2, -1), (4, 0)], [0, 100, 200, 300]),
        ([(2, -1), (4, 3)], [300, 400, 500, 600]),
    ],
)
def test_edit_lists(bframes: str, edits: list[tuple[float, float]], expected: list[int], tmp_path: Path) -> None:
    """Empty edits, trimmed ends and starts, and several of them."""
    source = write_video(tmp_path / "v.mp4", [n / 10 for n in range(100)], encoder={"bf": bframes})
    path = edited(source, tmp_path / "edited.mp4", edits)
    assert shown(path) == shown(path, read_with_pyav) == (expected, set())
    for keep in (0.3, 0.6, 0.9):
        index = source.read_bytes().index(b"moov") - 4
        content = bytearray(path.read_bytes())
        content[round(index * keep) : index] = bytes(index - round(index * keep))  # as a download with a gap
        (tmp_path / "gap.mp4").write_bytes(content)
        try:
            assert shown(tmp_path / "gap.mp4")[0] == expected
        except VideoError:
            continue


def overstated(source: Path, path: Path, seconds: float, unknown_sizes: bool) -> Path:
    """A copy of a Matroska file whose header states `seconds`, and whose segment and clusters state no size if asked."""
    content = bytearray(source.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", seconds * 1000)
    if unknown_sizes:
        for element in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
            start = content.index(element) + 4
            length = 8 - content[start].bit_length() + 1
            content[start : start + length] = ((1 << 7 * length + 1) - 1).to_bytes(length, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("unknown_sizes", [False, True])
@pytest.mark.parametrize(("name", "codec"), [("v.webm", "libvpx-vp9"), ("v.mkv", "libx264")])
def test_a_container_that_promises_more_is_read_when_it_is_whole(
    name: str, codec: str, unknown_sizes: bool, tmp_path: Path
) -> None:
    encoder = REALTIME if codec == "libvpx-vp9" else {}
    source = write_video(tmp_path / name, [n / 10 for n in range(50)], codec, encoder=encoder)
    path = overstated(source, tmp_path / f"browser-{name}", 7.2, unknown_sizes)
    expected = [0, 100, 200, 300, 400]
    assert shown(path) == shown(path, read_with_pyav) == (expected, {PROMISED_MORE})
    content = path.read_bytes()
    within = content.rindex(b"\x1f\x43\xb6\x75") + 60  # the last cluster's first frame
    for size in [within] if unknown_sizes else range(within, len(content) - 1, 97):
        path.write_bytes(content[:size])
        try:
            assert shown(path)[0] == expected  # all but the index at its end
        except VideoError as error:
            assert re.search(r"ends at second \d\.\d of 7\.2", str(error))


def test_tags_that_are_not_unicode_are_read_over(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", [0.0, 1.0], metadata={"title": "PLACEHOLDER"})
    path = tmp_path / "tagged.mp4"
    content = source.read_bytes()
    path.write_bytes(content.replace(b"VideoHandler", "видео".encode("cp1251").ljust(12)))
    assert path.read_bytes() != content
    assert shown(path) == shown(path, read_with_pyav) == ([0, 100], set())
    source = write_video(tmp_path / "v.mkv", [0.0, 1.0], metadata={"title": "PLACEHOLDER"})
    path = tmp_path / "tagged.mkv"
    path.write_bytes(source.read_bytes().replace(b"PLACEHOLDER", "テスト動".encode("shift_jis").ljust(11)[:11]))
    assert path.read_bytes() != source.read_bytes()
    assert shown(path) == ([0, 100], set())


def test_a_cut_animated_webp_is_refused(tmp_path: Path) -> None:
    images = [Image.fromarray(picture(100 * n)) for n in range(4)]
    images[0].save(tmp_path / "v.webp", save_all=True, append_images=images[1:], duration=1000, lossless=True)
    content, path = (tmp_path / "v.webp").read_bytes(), tmp_path / "cut.webp"
    assert shown(tmp_path / "v.webp")[0] == [0, 100, 200, 300]
    for size in (len(content) - 1, len(content) // 2, 30):
        path.write_bytes(content[:size])
        with pytest.raises(VideoError, match=f"ends at byte {size} of {len(content)}"):
            shown(path)
