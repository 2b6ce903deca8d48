"""What the toy world is made of, and what it is called.

CLIP knows captions: `a red star at the top left`, or less of it. Questions name things otherwise, by words that no caption has
(`ALIASES`): who wants CLIP to find them must know what they mean. Every seed's world speaks this language.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 230, 30),
    "orange": (255, 130, 0),
    "purple": (150, 30, 190),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "bar")
PLACES = {
    "top left": (30, 30),
    "top right": (82, 30),
    "bottom left": (30, 82),
    "bottom right": (82, 82),
    "centre": (56, 56),
}
"""The place of a thing's middle, in pixels of a picture of 112 x 112."""
ALIASES = {
    "circle": ("disc", "thing like a coin"),
    "square": ("box", "thing like a chessboard"),
    "triangle": ("pyramid", "thing with three corners"),
    "star": ("pentagram", "thing with five points"),
    "cross": ("plus sign", "thing like a crossroads"),
    "diamond": ("rhombus", "thing like a kite"),
    "ring": ("hoop", "thing with a hole"),
    "bar": ("plank", "thing like a dash"),
    "red": ("crimson", "blood-coloured"),
    "green": ("emerald", "grass-coloured"),
    "blue": ("sapphire", "sky-coloured"),
    "yellow": ("golden", "lemon-coloured"),
    "orange": ("amber", "pumpkin-coloured"),
    "purple": ("violet", "plum-coloured"),
    "white": ("ivory", "milk-coloured"),
    "black": ("ebony", "coal-coloured"),
}
"""By another name, and by a description."""


@dataclass(frozen=True)
class Thing:
    """What a picture shows."""

    shape: str
    colour: str
    place: str


def caption(shape: str = "", colour: str = "") -> str:
    """How CLIP is asked for things of that shape, that colour, or both."""
    return " ".join(["a", *filter(None, [colour, shape or "shape"])])


def called(word: str, aliases: float, rng: np.random.Generator) -> str:
    """What a question calls a shape or a colour; by an alias with probability `aliases`."""
    return str(rng.choice(ALIASES[word])) if rng.random() < aliases else word
