"""Animated WebP, which FFmpeg does not read, through Pillow: its pictures, in order, and when each is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from services.errors import VideoError

if TYPE_CHECKING:
    from PIL import Image

ANIMATED = 0x02
"""Bit of a WebP file's flags."""


def is_animated_webp(path: str) -> bool:
    """By the file's header; False also when the file cannot be opened."""
    try:
        with open(path, "rb") as file:
            head = file.read(21)
    except OSError:  # whoever reads it says why
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:] and head[20] & ANIMATED)


def webp_pictures(path: str) -> Iterator[tuple[float, float, Image.Image]]:
    """Start and end in seconds, and the RGB picture, on white where it is transparent.

    Raises VideoError when the file breaks off, OSError when a picture cannot be decoded.
    """
    from PIL import Image

    with open(path, "rb") as file:
        stated, found = int.from_bytes(file.read(8)[4:], "little") + 8, file.seek(0, 2)
        if found < stated:
            raise VideoError(f"ends at byte {found} of {stated}")
        with Image.open(file) as image:
            for index in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(index)
                picture = image.convert("RGBA")
                start = image.info["timestamp"] / 1000
                white = Image.new("RGBA", picture.size, "white")
                yield start, start + image.info["duration"] / 1000, Image.alpha_composite(white, picture).convert("RGB")
