"""The rule that says which frames of a video are its candidates: one per second, by the frames' timestamps.

The rule (`DECODE_RULE`; a change of it is a new version): time runs from the first frame's timestamp. Candidate `i` is the
frame on screen at second `i`, until the video ends: the last one whose timestamp is at most `i + EPSILON`, or, with frames
closer than twice that, nearer to `i` than the one before it. The last frame stays for the duration that its container states,
so that a video of N whole seconds has N candidates at any frame rate, and the shortest has one. Choosing by timestamps makes
variable frame rates right; the number of frames that a container states is never used. Pictures are as a player shows them
(`services.display`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from services.errors import VideoError

DECODE_RULE = "4"
"""Version of the rule above; part of the key of every cached frame."""
EPSILON = 0.005
"""Seconds: containers round timestamps, and a frame meant for second `i` may say a little more."""
LONGEST_FRAME = 3600.0
"""Seconds one frame may stay on screen; more is a broken clock, and would fill the disk with copies of one frame."""

Frame = tuple[float, np.ndarray]
"""Timestamp in seconds, and pixels uint8 [H, W, 3]."""
Item = TypeVar("Item")


def each_second(shown: Iterable[tuple[float, Item]]) -> Iterator[tuple[float, Item]]:
    """The frame on screen at second 0, 1, 2, …, from frames (timestamp, frame) in the order they are shown, the first at 0.

    A frame given again is still on screen at that time. Raises VideoError when timestamps run backwards or jump by more than
    `LONGEST_FRAME`.
    """
    second, now, tolerance = 0, 0.0, 0.0
    held: tuple[float, Item] | None = None
    for time, frame in shown:
        if held is not None:
            if not -EPSILON < time - now < LONGEST_FRAME:
                raise VideoError(f"timestamps jump from {now:.3f} s to {time:.3f} s")
            tolerance = _tolerance(time - now)
            while time > second + tolerance:
                yield held
                second += 1
        if held is None or frame is not held[1]:
            held = time, frame
        now = time
    if held is not None and (second == 0 or second <= now + tolerance):
        yield held


def _tolerance(gap: float) -> float:
    """Seconds after a whole second at which a frame may begin that is taken for it, `gap` seconds after the one before."""
    return max(0.0, min(EPSILON, gap / 2))


def held_until(time: float, frame: Item, end: float) -> Iterator[tuple[float, Item]]:
    """The last frame again, at the last whole second before `end`, unless it begins there."""
    second = math.ceil(end - _tolerance(end - time)) - 1
    if second > time:
        yield second, frame


class Candidates(Iterator[Frame]):
    """A video's candidate frames, each given once it is decoded."""

    def __init__(self, frames: Iterator[Frame], notes: set[str]) -> None:
        self._frames = frames
        self.notes = notes
        """What is to be known about the video (`HDR`, `PROMISED_MORE`); complete once all frames were taken."""

    def __next__(self) -> Frame:
        return next(self._frames)


def since(start: float, stamp: float) -> float:
    """Seconds from one to the other, alike whichever library counts them."""
    return round(stamp - start, 6)
