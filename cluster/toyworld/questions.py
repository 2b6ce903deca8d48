"""What is asked about a toy video, and what the video must show for it.

A question *reserves* shapes and colours: nothing else in its video has them, but what it puts there itself. So it has one
right answer, and only its moments show it.

| kind | asks | shows |
|---|---|---|
| `colour` | the colour of a shape | one moment |
| `shape` | the shape of a colour | one moment |
| `place` | where a thing of that colour and shape is | one moment, and look-alikes of the same shape or colour |
| `after` | the colour of what comes right after a shape | two moments, one after the other |
| `both` | the colours of two shapes | two moments, one of them many times longer |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.toyworld.words import COLOURS, PLACES, SHAPES, Thing, called, caption
from services.schema import LETTERS

RESERVES = {"colour": (1, 0), "shape": (0, 1), "place": (1, 1), "after": (1, 0), "both": (2, 0)}
"""Shapes and colours that a question of each kind reserves."""
NUM_OPTIONS = 4


class Palette:
    """Shapes and colours of one video that no question has reserved; what else is shown is made of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.shapes: list[str] = rng.permutation(SHAPES).tolist()
        self.colours: list[str] = rng.permutation(list(COLOURS)).tolist()

    def has_room(self, kind: str) -> bool:
        """Two shapes and three colours stay for the rest of the video."""
        shapes, colours = RESERVES[kind]
        return len(self.shapes) - shapes >= 2 and len(self.colours) - colours >= 3

    def reserve(self, kind: str) -> list[str]:
        """The names a question of that kind is about: shapes, then colours."""
        shapes, colours = RESERVES[kind]
        return [self.shapes.pop() for _ in range(shapes)] + [self.colours.pop() for _ in range(colours)]

    def thing(self, shape: str = "", colour: str = "") -> Thing:
        """One of that shape and colour, and what is not given of what is free."""
        return Thing(shape or self._pick(self.shapes), colour or self._pick(self.colours), self.place())

    def place(self) -> str:
        return self._pick(list(PLACES))

    def _pick(self, names: list[str]) -> str:
        return names[self._rng.integers(len(names))]


@dataclass(frozen=True)
class Asked:
    """A question as it is asked, and what shows its answer."""

    kind: str
    names: tuple[str, ...]
    """Shapes and colours it is about, in CLIP's words."""
    called: tuple[str, ...]
    """What it calls them."""
    text: str
    options: tuple[str, ...]
    answer: str
    """The right option's letter."""
    moments: tuple[Thing, ...]
    """What must be seen, in the order of time where the question depends on it."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The queries that find its moments."""
        return self.queries(self.names)

    def queries(self, names: Sequence[str]) -> tuple[str, ...]:
        """Queries that would find its moments if it were about `names`."""
        if self.kind == "place":
            return (caption(*names),)
        if self.kind == "shape":
            return (caption(colour=names[0]),)
        return tuple(caption(name) for name in names)

    @property
    def truth(self) -> str:
        """The right option."""
        return self.options[LETTERS.index(self.answer)]


def ask(kind: str, names: list[str], palette: Palette, aliases: float, letter: str, rng: np.random.Generator) -> Asked:
    """A question of that kind about `names`, reserved before; the right option stands at `letter`."""
    first, last = names[0], names[-1]
    words = [called(name, aliases, rng) for name in names]
    if kind == "colour":
        moments = [palette.thing(first)]
        text, truth, pool = f"What colour is the {words[0]}?", moments[0].colour, list(COLOURS)
    elif kind == "shape":
        moments = [palette.thing(colour=first)]
        text, truth, pool = f"Which shape is {words[0]}?", moments[0].shape, list(SHAPES)
    elif kind == "place":
        moments = [palette.thing(first, last)]
        text, truth, pool = f"Where is the {words[1]} {words[0]}?", moments[0].place, list(PLACES)
    elif kind == "after":
        moments = [palette.thing(first)]
        other = [colour for colour in palette.colours if colour != moments[0].colour]
        moments.append(palette.thing(colour=other[rng.integers(len(other))]))
        text, truth, pool = f"What colour comes right after the {words[0]}?", moments[1].colour, list(COLOURS)
    else:
        one, two = rng.permutation(palette.colours)[:2].tolist()
        moments = [palette.thing(first, one), palette.thing(last, two)]
        three, four = rng.permutation([colour for colour in COLOURS if colour not in (one, two)])[:2].tolist()
        text, truth = f"Which two colours have the {words[0]} and the {words[1]}?", pair(one, two)
        pool = [pair(a, b) for a in (one, three) for b in (two, four)]
    options = rng.choice([option for option in pool if option != truth], NUM_OPTIONS - 1, replace=False).tolist()
    options.insert(LETTERS.index(letter), truth)
    return Asked(kind, tuple(names), tuple(words), text, tuple(options), letter, tuple(moments))


def pair(one: str, two: str) -> str:
    """Two colours as an option, always in the same order."""
    return " and ".join(sorted((one, two)))


def look_alikes(asked: Asked, count: int, palette: Palette) -> list[Thing]:
    """Things that share a name with what a `place` question asks about, by turns its shape and its colour."""
    if asked.kind != "place":
        return []
    shape, colour = asked.names
    return [palette.thing(shape) if index % 2 else palette.thing(colour=colour) for index in range(count)]
