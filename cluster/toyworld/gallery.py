"""Pictures to train the toy models on: several of every thing there is, drawn once, shown anew with noise."""

from __future__ import annotations

from itertools import product

import numpy as np

from cluster.toyworld.pictures import Scene
from cluster.toyworld.words import COLOURS, PLACES, SHAPES, Thing
from services.visual import resize

NOISE = 6
"""Most that a pixel is off, of 255: about what encoding does."""


class Gallery:
    """`each` pictures of every thing."""

    def __init__(self, each: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.things = [Thing(*looks) for looks in product(SHAPES, COLOURS, PLACES)]
        self._number = {thing: number for number, thing in enumerate(self.things)}
        self._each = each
        drawn = np.stack([Scene(thing, rng).picture() for thing in self.things for _ in range(each)])
        self._by_side = {side: resize(drawn, side, side) for side in (28, 56)}

    def number(self, thing: Thing) -> int:
        """Its place in `things`."""
        return self._number[thing]

    def pictures(self, things: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 [N, side, side, 3]: one random picture of each of `things` [N], by number."""
        chosen = self._by_side[side][things * self._each + rng.integers(self._each, size=len(things))]
        noise = rng.integers(-NOISE, NOISE + 1, chosen.shape, np.int16)
        return np.clip(chosen + noise, 0, 255).astype(np.uint8)
