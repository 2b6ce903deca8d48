"""Frames chosen for a question by the fleet's actors: CLIP looks at a video for some texts, and a rule or a network chooses."""

from __future__ import annotations

import numpy as np

from actors.embedder import EmbedderActor
from actors.selector import SelectorActor
from cluster.evaluation.setting import Cell
from cluster.training.fleet import Fleet
from services.schema import Embedded, Video
from services.selection import choose

Seen = tuple[tuple[str, ...], np.ndarray, Embedded]
"""What CLIP was asked, its cosines [Q, T] with every candidate frame, and what these were computed from."""


async def look(actors: Fleet, video: Video, texts: tuple[str, ...]) -> Seen:
    """Ask CLIP with `texts` where they are seen in the video."""
    return texts, *await actors.embedders.call(EmbedderActor.match, video.key, texts)


async def take(actors: Fleet, cell: Cell, seen: Seen) -> tuple[int, ...]:
    """The frames that the cell's selector takes, ascending; nothing is drawn."""
    _, similarity, embedded = seen
    if not cell.selector.learns:
        return tuple(map(int, choose(cell.selector.kind, similarity, cell.budget)))
    selection = await actors.selectors.call(SelectorActor.select, similarity, cell.budget, None, embedded)
    return tuple(map(int, selection.frames))
