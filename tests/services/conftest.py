"""Real videos whose pictures say when they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BITS = 12
"""Vertical bars of a picture, most significant first: the number it shows."""
TICKS = Fraction(1, 1000)


def _picture(number: int, height: int, width: int) -> np.ndarray:
    bits = [255 * (number >> bit & 1) for bit in reversed(range(BITS))]
    row = np.repeat(np.array(bits, np.uint8), width // BITS)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, len(row), 3)))


def _make_video(
    path: Path, times: Iterable[float], codec: str = "libx264", height: int = 96, width: int = 168, turned: bool = False
) -> Path:
    """A video whose frame shown from `t` seconds on shows the number round(t * 100)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICKS
        stream.codec_context.gop_size = 40
        for time in times:
            frame = av.VideoFrame.from_ndarray(_picture(round(time * 100), height, width), format="rgb24")
            frame.pts, frame.time_base = round(time / TICKS), TICKS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if turned:
        content = path.read_bytes()
        upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
        clockwise = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, height << 16, 0, 1 << 30], ">i4").tobytes()
        matrix = content.index(upright, content.index(b"tkhd"))
        path.write_bytes(content[:matrix] + clockwise + content[matrix + len(clockwise) :])
    return path


def _read_numbers(frames: np.ndarray) -> list[int]:
    """The number each of `frames` [N, H, W, 3] shows."""
    row = frames.mean(axis=(1, 3))
    middles = ((np.arange(BITS) + 0.5) * row.shape[1] / BITS).astype(int)
    bits = row[:, middles] > 127
    return [int(number) for number in bits @ (1 << np.arange(BITS)[::-1])]


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return _make_video


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    return _read_numbers


def every(seconds: float, until: float) -> list[float]:
    return [round(n * seconds, 3) for n in range(round(until / seconds))]


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds at 10 frames a second: candidate i shows the number 100 * i."""
    return _make_video(tmp_path_factory.mktemp("videos") / "twelve.mp4", every(0.1, 12))
