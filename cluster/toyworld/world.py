"""The toy world's splits: videos whose seconds are laid out around the questions asked about them.

Invariants: the seed decides every byte; a video belongs to one split and depends on no other; within a split right letters
are spread evenly. A video shows one thing a second. What a question reserves is shown in its own moments (and look-alikes)
alone; all other seconds show things that no question is about, or the one that an easy question asks about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.toyworld.config import ToyWorldConfig
from cluster.toyworld.pictures import Scene, encode
from cluster.toyworld.questions import NUM_OPTIONS, Asked, Palette, ask, look_alikes
from cluster.toyworld.words import Thing
from services.questions import write_questions
from services.schema import LETTERS, Question

SPLITS = ("train", "validation", "test")
SCENE_SECONDS = (5, 20)
"""Shortest and longest scene of what no question is about."""
MAIN_SHARE = 0.7
"""Share of those scenes that show what an easy question asks about."""
NOMINAL_BUDGET = 8
"""Frames of the reader that nominal pass rates are about."""


@dataclass(frozen=True)
class Event:
    """A thing that is seen from second `first` to second `last`, both included."""

    thing: Thing
    first: int
    last: int

    @property
    def seconds(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Plan:
    """One video before it is drawn."""

    seconds: int
    asked: tuple[Asked, ...]
    easy: int | None
    """The question that asks about what most of the video shows."""
    events: tuple[Event, ...]
    """In time order, without gaps."""

    def evidence(self, asked: Asked) -> list[list[tuple[int, int]]]:
        """For each moment of a question the spans of seconds, first and last, in which it is seen."""
        return [[(event.first, event.last) for event in self.events if event.thing is thing] for thing in asked.moments]


def write_split(split: str, config: ToyWorldConfig, root: Path, progress: Callable[[str, int, int], None]) -> None:
    """Write `<split>.jsonl`, `<split>.parquet` and their videos under `root`."""
    count = config.videos if split == "train" else config.held_out_videos
    number, total = SPLITS.index(split), count * config.questions_per_video
    letters = np.random.default_rng([config.seed, number]).permutation(total) % NUM_OPTIONS
    questions: list[Question] = []
    (root / "videos").mkdir(exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng([config.seed, number, index])
        video = f"videos/{split}-{index:04d}.mp4"
        mine = letters[index * config.questions_per_video :][: config.questions_per_video]
        plan = plan_video(config, [LETTERS[letter] for letter in mine], rng)
        encode(root / video, _pictures(plan, rng))
        questions += [_question(plan, place, video, f"{split}-{index:04d}-{place}") for place in range(len(plan.asked))]
        progress(f"{split} videos", index + 1, count)
    for suffix in ("jsonl", "parquet"):
        write_questions(questions, root / f"{split}.{suffix}")


def plan_video(config: ToyWorldConfig, letters: list[str], rng: np.random.Generator) -> Plan:
    """Questions, one for each right letter, and when what they ask about is seen."""
    seconds = int(rng.integers(config.min_seconds, config.max_seconds + 1))
    palette = Palette(rng)
    kinds: list[str] = []
    names: list[list[str]] = []
    easy: int | None = None
    for place in range(len(letters)):
        kind = _kind(config, palette, easy is None, rng)
        if kind == "easy":
            kind, easy = "colour", place
        kinds.append(kind)
        names.append(palette.reserve(kind))
    asked = tuple(
        ask(kind, of_kind, palette, config.aliases, letter, rng)
        for kind, of_kind, letter in zip(kinds, names, letters, strict=True)
    )
    blocks = [block for place, one in enumerate(asked) if place != easy for block in _blocks(config, one, seconds, rng)]
    blocks += [
        [(thing, int(rng.integers(1, config.needle_seconds + 1)))]
        for one in asked
        for thing in look_alikes(one, config.look_alikes, palette)
    ]
    main = None if easy is None else asked[easy].moments[0]
    return Plan(seconds, asked, easy, tuple(_timeline(blocks, seconds, main, palette, rng)))


def _kind(config: ToyWorldConfig, palette: Palette, may_be_easy: bool, rng: np.random.Generator) -> str:
    """A kind of question by the config's shares, among those there are names left for."""
    plain = (1 - config.temporal - config.two_moments - config.easy) / 3
    shares = {
        "colour": plain, "shape": plain, "place": plain,
        "after": config.temporal, "both": config.two_moments, "easy": config.easy * may_be_easy,
    }  # fmt: skip
    open_ones = [kind for kind in shares if palette.has_room("colour" if kind == "easy" else kind)]
    weights = np.array([shares[kind] for kind in open_ones]) + 1e-9
    return open_ones[rng.choice(len(open_ones), p=weights / weights.sum())]


Block = list[tuple[Thing, int]]
"""Things seen one right after the other, each with its seconds."""


def _blocks(config: ToyWorldConfig, asked: Asked, seconds: int, rng: np.random.Generator) -> list[Block]:
    """A question's moments; those of `both` may lie anywhere, those of `after` stay together."""
    lengths = [int(rng.integers(1, config.needle_seconds + 1)) for _ in asked.moments]
    if asked.kind == "both":
        longer = int(rng.integers(2))
        lengths[longer] = max(1, min(config.unequal * lengths[1 - longer], seconds // 4))
        return [[moment] for moment in zip(asked.moments, lengths, strict=True)]
    return [list(zip(asked.moments, lengths, strict=True))]


def _timeline(
    blocks: list[Block], seconds: int, main: Thing | None, palette: Palette, rng: np.random.Generator
) -> Iterator[Event]:
    """The blocks in random order, other scenes before, between and behind them; blocks that find no room are shortened."""
    while (free := seconds - sum(length for block in blocks for _, length in block)) < len(blocks) + 1:
        blocks = [[(thing, max(1, length // 2)) for thing, length in block] for block in blocks]
    ends = np.sort(rng.choice(np.arange(1, free), len(blocks), replace=False)) if blocks else np.zeros(0, int)
    gaps = np.diff([0, *ends, free])
    second = 0
    for gap, place in zip(gaps, [*rng.permutation(len(blocks)), None], strict=True):
        until = second + int(gap)
        while second < until:
            length = min(int(rng.integers(SCENE_SECONDS[0], SCENE_SECONDS[1] + 1)), until - second)
            thing = main if main is not None and rng.random() < MAIN_SHARE else palette.thing()
            yield Event(thing, second, second + length - 1)
            second += length
        for thing, length in blocks[place] if place is not None else ():
            yield Event(thing, second, second + length - 1)
            second += length


def _pictures(plan: Plan, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for event in plan.events:
        scene = Scene(event.thing, rng)
        for _ in range(event.seconds):
            yield scene.picture()


def _question(plan: Plan, place: int, video: str, id: str) -> Question:
    asked = plan.asked[place]
    evidence = plan.evidence(asked)
    return Question(
        id,
        video,
        asked.text,
        asked.options,
        asked.answer,
        _pass_rate(plan, place, evidence),
        "toyworld",
        group=("easy" if place == plan.easy else asked.kind,),
        moments=tuple(tuple((float(first), float(last)) for first, last in spans) for spans in evidence),
        wanted_queries=asked.wanted,
    )


def _pass_rate(plan: Plan, place: int, evidence: list[list[tuple[int, int]]]) -> float:
    """A *nominal* pass rate in eighths: of a perfect reader who guesses unless a few random frames show all; no model's."""
    if place == plan.easy:
        return 1.0
    lengths = [sum(last - first + 1 for first, last in spans) for spans in evidence]
    seen = [min(1.0, NOMINAL_BUDGET * length / plan.seconds) for length in lengths]
    return round(8 * (1 + (NUM_OPTIONS - 1) * float(np.prod(seen))) / NUM_OPTIONS) / 8
