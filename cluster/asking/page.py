"""The page of `msjoe ask`: what it prints, with the similarities drawn and the chosen frames shown, in one self-contained HTML
file where everything that a model wrote is escaped."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from cluster.asking.ask import Answered, Asked
from cluster.asking.console import clock, described, said
from cluster.figures import STYLE, similarity_plot, thumbnail
from cluster.pages import render
from services.frames import FrameCache
from services.schema import LETTERS
from services.storage import written_whole


def write_page(path: Path, asked: Asked, answered: Answered) -> Path:
    """Write the page to `path`; returns it. The frames are read from the cache.

    Raises UserError when it cannot be written.
    """
    cache = FrameCache.of(asked.cell.config.data, asked.cell.config.frames)
    pixels = cache.read(answered.video.key, answered.frames)
    with matplotlib.rc_context(STYLE):
        plot = similarity_plot(answered.similarity, answered.frames)
    page = render(
        "ask.html.j2",
        question=asked.question,
        said=said(asked, answered),
        setting=described(asked, answered),
        answered=answered,
        plot=plot,
        thumbnails=[(clock(frame), thumbnail(image)) for frame, image in zip(answered.frames, pixels, strict=True)],
        letters=LETTERS,
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path
