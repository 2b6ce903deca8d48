"""`msjoe evaluate --dry-run`: what an evaluation would do, and which videos are missing. Nothing is started or written."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.prompts import answer_messages
from cluster.evaluation.choosing import check_listed
from cluster.evaluation.samples import Keys, Samples
from cluster.evaluation.setting import Setting
from services.errors import VideoError
from services.frames import FrameCache
from services.questions.evidence import has_moments
from services.schema import Video
from services.scoring import BENCHMARKS, request


def describe(setting: Setting, keys: Keys, samples: Samples, console: Console) -> None:
    """Print the plan, an example of the prompt, and every missing video."""
    grid, videos = _inventory(setting)
    grid.add_row("MLLM", Text(f"{setting.config.policy.model} ({keys.model})"))
    grid.add_row("prompt", Text(f"{setting.prompt} ({keys.prompt})"))
    console.print(grid, "", _cells(setting, keys, videos, samples), "")
    example = setting.questions[0]
    messages = answer_messages(example, request=request(setting.benchmark, setting.prompt, example))
    console.print(Text(f"Prompt of question {example.id}, behind its frames", style="bold"))
    console.print(Text(messages[0]["content"][-1]["text"]), "")
    _say_missing(setting, console)


def describe_evidence(setting: Setting, console: Console) -> None:
    """Print what `--evidence` would measure, and every missing video."""
    grid, _ = _inventory(setting)
    grid.add_row("evidence", f"known of {sum(map(has_moments, setting.questions)):,} questions")
    grid.add_row("selectors", Text(", ".join(dict.fromkeys(cell.selector.name for cell in setting.cells))))
    grid.add_row("frames", ", ".join(dict.fromkeys(str(cell.budget) for cell in setting.cells)))
    console.print(grid, "")
    _say_missing(setting, console)


def _inventory(setting: Setting) -> tuple[Table, dict[str, Video]]:
    """A grid that begins with the questions and their videos, and the videos that are in the cache by path."""
    missing, videos, unreadable = set(setting.missing), {}, 0
    cache = FrameCache.of(setting.config.data, setting.config.frames)
    paths = dict.fromkeys(question.video for question in setting.questions if question.video not in missing)
    for path in paths:
        try:
            if video := cache.find(path):
                videos[path] = video
        except VideoError:
            unreadable += 1
    check_listed(setting.cells, [question for question in setting.questions if question.video in videos], videos)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    undecoded = len(paths) - len(videos) - unreadable
    grid.add_row("benchmark", BENCHMARKS[setting.benchmark].title)
    grid.add_row("questions", f"{len(setting.questions):,}")
    grid.add_row(
        "videos", f"{len(paths):,} found, {len(missing):,} missing; {undecoded:,} to decode, {unreadable:,} unreadable"
    )
    return grid, videos


def _say_missing(setting: Setting, console: Console) -> None:
    for path in sorted(setting.missing):
        console.print(f"missing: {path}", soft_wrap=True, markup=False)


def _cells(setting: Setting, keys: Keys, videos: dict[str, Video], samples: Samples) -> Table:
    """What is known, and what is to be asked, of each selector and budget."""
    table = Table("selector", "CLIP is asked", "hash", "frames", "tokens a frame", "known", "to ask", box=None)
    there = [question for question in setting.questions if question.video not in {*setting.missing}]
    for cell in setting.cells:
        found = [keys.of(one, cell, videos[one.video]) for one in there if one.video in videos]
        known = sum(samples.find(key, keys.refused(key)) is not None for key in found)
        selector = cell.selector
        name = selector.name + (", untrained" if selector.learns and not setting.config.sampler.checkpoint else "")
        size, hash = str(cell.config.frames.tokens_per_frame), keys.selectors[selector.name]
        table.add_row(name, selector.asks, hash, str(cell.budget), size, str(known), str(len(there) - known))
    return table
