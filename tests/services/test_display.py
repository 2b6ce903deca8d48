"""Pictures are as a player shows them: turned, mirrored and in their colours, whatever the container and the codec."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from services.candidates import Candidates
from services.video import HDR, decode, read_with_decord

TOKENS = 24
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "white": (235, 235, 235)}
"""Colours of the stored picture's quadrants, in reading order."""
PATCHES = np.array(
    [[255, 255, 255], [0, 0, 0], [128, 128, 128], [220, 20, 20], [20, 200, 20], [230, 180, 140]], np.uint8
)
"""SDR colours that test videos carry as HDR."""
MUTED = [0, 1, 2, 5]
"""The others' dark channels are a level or two of an 8-bit signal from black."""
FROM_BT2020 = np.array([[1.6605, -0.5876, -0.0729], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
LIMITED, FULL = 1, 2


def first_frame(path: Path, tokens: int = TOKENS) -> np.ndarray:
    frames: list[np.ndarray] = []
    decode(str(path), tokens, lambda shown: frames.extend(pixels for _, pixels in shown))
    return frames[0]


def quadrants(picture: np.ndarray) -> list[str]:
    """The names of its quadrants' colours, in reading order."""
    height, width, _ = picture.shape
    middles = [picture[height * y // 4, width * x // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    return [min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum()) for middle in middles]


def ffmpegs(path: Path, size: tuple[int, int]) -> np.ndarray:
    """ffmpeg's own picture of the first frame, [height, width, 3]."""
    height, width = size
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1", "-vf", f"scale={width}:{height}"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3)


def write(
    path: Path, picture: np.ndarray, setup: Callable[[Any], None], codec: str = "libx264", pix_fmt: str = "yuv420p"
) -> Path:
    """Two seconds of one `picture` [height, width, 3], uint8 or uint16."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        context = stream.codec_context
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pix_fmt
        setup(stream)
        for index in range(20):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le" if picture.dtype == np.uint16 else "rgb24")
            frame = frame.reformat(
                format=pix_fmt, dst_colorspace=context.colorspace, dst_color_range=context.color_range or LIMITED
            )
            frame.color_trc, frame.color_primaries = context.color_trc, context.color_primaries
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_turned_and_mirrored_pictures_are_as_ffmpeg_shows_them(container: str, tmp_path: Path) -> None:
    """Every turn, with and without a reflection; ffmpeg's own picture of the file says what is right."""
    picture = np.array(list(COLOURS.values()), np.uint8).reshape(2, 2, 3).repeat(56, axis=0).repeat(84, axis=1)
    seen = set()
    for degrees, mirrored in product((0, 90, 180, 270), (False, True)):
        path = tmp_path / f"{degrees}{mirrored}.{container}"
        write(path, picture, lambda stream, turn=(degrees, mirrored): stream.set_display_rotation(*turn))
        shown = first_frame(path)
        expected = ffmpegs(path, shown.shape[:2])
        assert quadrants(shown) == quadrants(expected), path.name
        assert np.abs(shown.astype(int) - expected).mean() < 4, path.name
        seen.add((shown.shape, *quadrants(shown)))
        with_decord = read_with_decord(str(path), TOKENS, lambda shown: list(shown))
        assert with_decord == (quadrants(shown) == list(COLOURS)), "decord knows no display matrix"
    assert len(seen) == 8


def to_pq(light: np.ndarray) -> np.ndarray:
    """PQ's signal of light whose 1.0 is 203 cd/m² (BT.2100)."""
    y = (light * 203 / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def to_hlg(light: np.ndarray) -> np.ndarray:
    """HLG's signal of a scene's light whose 1.0 gives 75 % (BT.2100)."""
    scene = light * 0.26496256
    low, high = np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, low, high)


def to_sdr(light: np.ndarray) -> np.ndarray:
    return light ** (1 / 2.4)


CURVES = {"pq": (16, to_pq), "hlg": (18, to_hlg), "sdr": (1, to_sdr), "bt2020": (14, to_sdr)}
FILES = {
    "h264.mp4": ("libx264", "yuv420p10le"),
    "hevc.mkv": ("libx265", "yuv420p10le"),
    "hevc.mov": ("libx265", "yuv420p10le"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "av1.mp4": ("libsvtav1", "yuv420p10le"),
    "8-bit.mp4": ("libx264", "yuv420p"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("curve", CURVES)
def test_hdr_and_wide_colours_are_brought_to_bt709(curve: str, name: str, tmp_path: Path) -> None:
    """Against the colours that were brought into BT.2020 before."""
    codec, pix_fmt = FILES[name]
    transfer, encode = CURVES[curve]
    light = (PATCHES / 255.0) ** 2.4 @ np.linalg.inv(FROM_BT2020).T
    signal = np.round(65535 * encode(np.clip(light, 0, 1))).astype(np.uint16)
    picture = signal.reshape(2, 3, 3).repeat(56, axis=0).repeat(56, axis=1)
    for color_range in (LIMITED, FULL):

        def tag(stream: Any, color_range: int = color_range) -> None:
            context = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
            context.color_range = color_range

        path = write(tmp_path / f"{color_range}-{name}", picture, tag, codec, pix_fmt)
        shown = first_frame(path)
        middles = shown[28::56, 28::56].reshape(-1, 3)
        errors = np.abs(middles.astype(int) - PATCHES).max(axis=1)
        assert errors[MUTED].max() < 10 and errors.max() <= 20, (color_range, middles)
        assert notes(path) == {HDR}


@pytest.mark.parametrize("name", ["untagged.mkv", "untagged.mp4"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_colour_tags_of_the_container_alone_count(name: str, codec: str, tmp_path: Path) -> None:
    plain = write(tmp_path / name, np.full((56, 112, 3), 128, np.uint8), lambda stream: None, codec)
    tags = ["-color_trc", "arib-std-b67", "-color_primaries", "bt2020", "-colorspace", "bt2020nc"]
    path = tmp_path / f"tagged-{name}"
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", plain, "-c", "copy", *tags, path], check=True)
    assert (notes(plain), notes(path)) == (set(), {HDR})


def notes(path: Path) -> set[str]:
    kept: list[Candidates] = []
    decode(str(path), TOKENS, lambda shown: kept.append(shown) or list(shown))  # type: ignore[func-returns-value]
    return kept[-1].notes


def test_ordinary_colours_are_left_alone(video: Path) -> None:
    assert notes(video) == set()
