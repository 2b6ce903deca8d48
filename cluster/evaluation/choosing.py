"""Frames chosen for a question by the fleet's actors: CLIP looks at a video for some texts, and a rule or a network chooses.
What a file lists needs no actor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from actors.embedder import EmbedderActor
from actors.selector import SelectorActor
from cluster.evaluation.setting import Cell
from cluster.training.fleet import Fleet
from services.errors import QuestionError
from services.schema import Embedded, Question, Video
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


def check_listed(cells: Iterable[Cell], questions: Iterable[Question], videos: Mapping[str, Video]) -> dict[str, str]:
    """The questions of which a cell's file says that they could not be asked: its reason, by id.

    Raises UserError when a file lists too few frames for the budget, or some that the video has not.
    """
    asked, reasons = list(questions), {}
    files = [(cell.selector.file, cell.budget) for cell in cells if cell.selector.file]
    for file, budget in files:
        for question in asked:
            try:
                file.choose(question, videos[question.video], budget)
            except QuestionError as error:
                reasons[question.id] = str(error)
    return reasons
