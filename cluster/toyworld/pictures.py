"""The toy world's pictures and videos: one thing before a background of its own, and H.264 files of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from cluster.toyworld.words import COLOURS, PLACES, Thing

SIDE, FPS = 112, 2
"""Pixels of a picture's sides (16 visual tokens), and encoded frames per second."""


class Scene:
    """A thing that drifts a little before one background; every picture of it is another."""

    def __init__(self, thing: Thing, rng: np.random.Generator) -> None:
        self._thing, self._rng = thing, rng
        self._background = _background(rng)
        self._radius = rng.uniform(23, 29)
        self._middle = PLACES[thing.place] + rng.uniform(-3, 3, 2)

    def picture(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        image = Image.fromarray(np.clip(self._background + self._rng.normal(0, 5), 0, 255).astype(np.uint8))
        x, y = np.clip(self._middle + self._rng.normal(0, 1.5, 2), self._radius, SIDE - self._radius)
        _draw(ImageDraw.Draw(image), self._thing, x, y, self._radius)
        return np.asarray(image)


def encode(path: Path, pictures: Iterable[np.ndarray]) -> None:
    """Encode pictures (uint8 [SIDE, SIDE, 3], one a second) as an MP4 of `FPS` frames a second, a key frame every 2 seconds.

    Without x264's lookahead, whose thread would make one encoding in some differ from the others by a few bytes.
    """
    options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "g": str(2 * FPS), "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for second, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            for repeat in range(FPS):
                frame.pts = second * FPS + repeat
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _background(rng: np.random.Generator) -> np.ndarray:
    """[SIDE, SIDE, 3] float32: a ramp between two muted colours in a random direction, with stripes of a random width."""
    low, high = rng.uniform(70, 170, (2, 3))
    angle, waves, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 12), rng.uniform(0, 20)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    ramp = (x * math.cos(angle) + y * math.sin(angle))[..., None]
    mix = (ramp / math.sqrt(2) + 1) / 2
    return (low + (high - low) * mix + depth * np.sin(waves * ramp)).astype(np.float32)


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float) -> None:
    """Draw the thing around (x, y), in pixels."""
    fill = COLOURS[thing.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=fill, width=round(radius / 3))
    elif thing.shape == "bar":
        draw.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=fill)
    elif thing.shape == "cross":
        arm = radius / 3
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
    else:
        radii, turn = {
            "square": ((1.2,) * 4, math.pi / 4),
            "diamond": ((1.2, 0.8) * 2, 0.0),
            "triangle": ((1.2,) * 3, 0.0),
            "star": ((1.2, 0.5) * 5, 0.0),
        }[thing.shape]
        angles = [turn + 2 * math.pi * corner / len(radii) for corner in range(len(radii))]
        corners = [
            (x + radius * r * math.sin(a), y - radius * r * math.cos(a)) for r, a in zip(radii, angles, strict=True)
        ]
        draw.polygon(corners, fill=fill)
