"""What `msjoe ask` prints: the queries, their similarity with the video as sparklines, the chosen frames, the answer, and the
seconds of each stage."""

from __future__ import annotations

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.asking.ask import Answered, Asked
from cluster.figures import BLUE, ORANGE
from services.schema import LETTERS, Question

BLOCKS = "▁▂▃▄▅▆▇█"
MARK = "▲"
WIDEST = 100
"""Columns of a sparkline, at most."""
INDENT = 4


def show(asked: Asked, answered: Answered, console: Console) -> None:
    """Print the page."""
    seconds = ", ".join(map(clock, answered.frames))
    parts: list[RenderableType] = [
        "",
        Text(asked.question.question, "bold"),
        *_options(asked.question, answered.answer.letter),
        "",
        _setting(asked, answered),
        "",
        *_similarity(answered, min(console.width - 2 * INDENT, WIDEST)),
        "",
        Text(f"{len(answered.frames)} frames shown, at {seconds}"),
        "",
        _indented(_reply(answered)),
        "",
        _stages(answered),
        "",
    ]
    console.print(Group(*parts))


def clock(second: int) -> str:
    """A second of the video as `m:ss` or `h:mm:ss`."""
    minutes, hours = second // 60 % 60, second // 3600
    return f"{hours}:{minutes:02}:{second % 60:02}" if hours else f"{minutes}:{second % 60:02}"


def said(asked: Asked, answered: Answered) -> str:
    """The answer in one line: the option, or what became of the reply."""
    question, letter = asked.question, answered.answer.letter
    if letter is None or letter not in LETTERS[: len(question.options)]:
        return "no option in the reply" if question.options else "answered freely"
    return f"answered {letter}. {question.options[LETTERS.index(letter)]}"


def described(asked: Asked, answered: Answered) -> dict[str, str]:
    """Who was asked, and about what."""
    config, selector = asked.cell.config, asked.cell.selector
    untrained = selector.learns and config.sampler.checkpoint is None
    chooser = f"{selector.name}, untrained" if untrained else selector.name
    return {
        "video": f"{asked.question.video}, {clock(answered.video.num_frames)}",
        "MLLM": config.policy.model,
        "selector": f"{chooser}; {len(answered.frames)} of {answered.video.num_frames} frames",
    }


def columns(num_frames: int, width: int) -> np.ndarray:
    """The column [T] of each frame in a line of at most `width` columns, of which none is empty."""
    return np.arange(num_frames) * min(width, num_frames) // num_frames


def sparkline(row: np.ndarray, width: int) -> str:
    """The cosines [T] of a query over time: a block for each column, as high as its best frame between the lowest and the
    highest of the row."""
    place = columns(len(row), width)
    best = np.full(place[-1] + 1, -np.inf)
    np.maximum.at(best, place, row)
    levels = (best - row.min()) / max(row.max() - row.min(), 1e-6) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[round(level)] for level in levels)


def _similarity(answered: Answered, width: int) -> list[Text | Padding]:
    """Each query with its sparkline, and the chosen frames marked beneath."""
    similarity, lines = answered.similarity, list[Text | Padding]()
    place = columns(similarity.shape[1], width)
    marked = {int(place[frame]) for frame in answered.frames}
    for number, (text, row) in enumerate(zip(answered.texts, similarity, strict=True), start=1):
        scale = f"  cosine {row.min():.2f} to {row.max():.2f}"
        lines.append(Text.assemble((f"Q{number}  ", "dim"), text, (scale, "dim")))
        line = Text(sparkline(row, width), BLUE)
        for column in marked:
            line.stylize(ORANGE, column, column + 1)
        lines.append(_indented(line))
    marks = "".join(MARK if column in marked else " " for column in range(place[-1] + 1))
    start, end = clock(0), clock(similarity.shape[1])
    axis = f"{start} {end.rjust(len(marks) - len(start) - 1)}"
    return [*lines, _indented(Text(marks, ORANGE)), _indented(Text(axis, "dim"))]


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, INDENT), expand=False)


def _options(question: Question, letter: str | None) -> list[Padding]:
    rows = zip(LETTERS, question.options, strict=False)
    return [_indented(Text(f"{name}. {option}", "bold green" if name == letter else "")) for name, option in rows]


def _setting(asked: Asked, answered: Answered) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in described(asked, answered).items():
        grid.add_row(name, Text(value))
    return grid


def _reply(answered: Answered) -> Text:
    cut = "  (cut at rollout.answer_tokens)" if answered.answer.turn.truncated else ""
    return Text.assemble(answered.answer.turn.text, (cut, "dim"))


def _stages(answered: Answered) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    for stage in answered.stages:
        grid.add_row(stage.name, f"{stage.seconds:.2f} s")
    return grid
