"""The setting of an evaluation, settled before anything starts: benchmark, questions, selectors, budgets, models.

Whatever can be wrong with what the user gave is said here, as a UserError.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from actors.config import SelectorConfig
from cluster.checks import check_models
from cluster.config import RECIPES, Config, load_config
from cluster.evaluation.frame_files import FrameFile
from cluster.evaluation.questions import read_annotations
from cluster.resolve import resolve
from learners.config import RewardConfig
from services.checkpoints import find_checkpoint
from services.errors import UserError
from services.schema import Question, label, num_layers
from services.selection import RULES

Asks = Literal["queries", "question", "nothing"]
"""What CLIP compares the frames with: the queries that the MLLM writes, or the question without its options; with nothing
where a file lists the frames."""
NAMED = 5
"""Missing videos that an error names."""


@dataclass(frozen=True)
class Selector:
    """One way of choosing frames."""

    name: str
    """As the user wrote it, `KIND`, `KIND@queries` or `KIND@question`; `file:NAME`, without the folder, of a file."""
    kind: str
    """A value of `selector.kind`, or `file`."""
    asks: Asks
    file: FrameFile | None = None
    """The file that lists its frames, if one does."""

    @property
    def learns(self) -> bool:
        """Whether it is a network, which an actor holds, and not a rule or a file."""
        return self.file is None and self.kind not in RULES


@dataclass(frozen=True)
class Cell:
    """One selector at one budget; a column of the evaluation."""

    selector: Selector
    budget: int
    config: Config
    """The config at this budget, in which a turn's frames have their size."""


@dataclass(frozen=True)
class Setting:
    """Everything that an evaluation is asked for."""

    benchmark: str
    prompt: str
    questions: Sequence[Question]
    videos: Path
    config: Config
    """What the actors start with: the largest budget."""
    cells: Sequence[Cell]

    @property
    def missing(self) -> list[str]:
        """Paths of videos that are not there."""
        return [path for path in dict.fromkeys(one.video for one in self.questions) if not os.path.exists(path)]

    def below_videos(self, path: str) -> str:
        """The path of a video below their folder, or as it is when it lies elsewhere."""
        whole = Path(path)
        return str(whole.relative_to(self.videos)) if whole.is_relative_to(self.videos) else path

    def without_missing(self, skip: bool) -> list[Question]:
        """The questions whose videos are there. Raises UserError when some are not, unless they are to be skipped, or none."""
        missing = self.missing
        if missing and not skip:
            lost = sum(question.video in {*missing} for question in self.questions)
            names = "\n  ".join(missing[:NAMED])
            more = f"\n  and {len(missing) - NAMED} more, which --dry-run lists" if len(missing) > NAMED else ""
            raise UserError(
                f"--videos={self.videos}: {len(missing)} videos of {lost} questions are missing:\n  {names}{more}\n"
                "get them, name their folder, or leave their questions out with --skip-missing"
            )
        there = [question for question in self.questions if question.video not in {*missing}]
        if not there:
            raise UserError(
                f"--videos={self.videos}: holds no video of the questions; name the folder that they are in"
            )
        return there


def selectors(names: str, writes_queries: bool = True) -> list[Selector]:
    """The selectors of `NAME[,NAME…]`. Rules ask CLIP with the question, as they were published; a network with what
    it learnt to be asked, unless `@queries` or `@question` says otherwise. Without an MLLM that `writes_queries` all ask with
    the question. `file:PATH` takes the frames that a file lists.

    Raises UserError for a name that is none, or comes twice, for queries that nobody writes, and for a file without frames.
    """
    found = [_selector(name.strip(), writes_queries) for name in names.split(",")]
    if len({one.name for one in found}) < len(found):
        raise UserError(f"--selector={names}: names one twice")
    if len(networks := {one.kind for one in found if one.learns}) > 1:
        raise UserError(
            f"--selector={names}: {' and '.join(sorted(networks))} are two networks; evaluate them one by one"
        )
    return found


def _selector(name: str, writes_queries: bool) -> Selector:
    if name.startswith("file:"):
        file = FrameFile(Path(os.path.expanduser(name.removeprefix("file:"))))
        return Selector(f"file:{file.path.name}", "file", "nothing", file)
    kinds = get_args(SelectorConfig.model_fields["kind"].annotation)
    kind, at, asks = name.partition("@")
    if kind not in kinds or (at and asks not in ("queries", "question")):
        raise UserError(
            f"--selector={name}: valid: {', '.join(kinds)}; with @queries or @question behind them; or file:PATH"
        )
    if asks == "queries" and not writes_queries:
        raise UserError(
            f"--selector={name}: queries are written by the MLLM, which --evidence does without; leave one of them "
            "out (a whole evaluation measures the evidence too)"
        )
    asks = asks or ("queries" if kind not in RULES and writes_queries else "question")
    return Selector(name, kind, asks)  # type: ignore[arg-type]


def budgets(text: str) -> list[int]:
    """The budgets of `K[,K…]`, ascending. Raises UserError for what is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len({*parts}) < len(parts):
        raise UserError(f"--frames={text}: valid: one or more different whole numbers above 0, as 8,32")
    return sorted(map(int, parts))


def settle(
    benchmark: str,
    annotations: Sequence[Path],
    videos: Path,
    prompt: str,
    chosen: Sequence[Selector],
    frames: Sequence[int],
    visual_tokens: int | None,
    load: Callable[[Sequence[str]], Config],
) -> Setting:
    """The whole setting. `load`: the config with overrides, as `loader` makes it. `visual_tokens`: of every answer turn,
    whatever its budget; None: each frame has `frames.tokens_per_frame`.

    Raises UserError for annotations of another benchmark, doubled ids, a budget beyond the context, and models that are not
    there or are of another architecture.
    """
    if not videos.is_dir():
        raise UserError(f"--videos={videos}: no such folder; name the one that the benchmark's videos are in")
    questions = read_annotations(benchmark, annotations, videos.absolute())
    for question in questions:
        label(question)
    there = [question for question in questions if os.path.exists(question.video)]
    for one in chosen:
        if one.file:
            one.file.check(there, frames)
    network = [f"--selector.kind={one.kind}" for one in chosen if one.learns][:1]
    of_budget = {}
    for budget in frames:
        overrides = [f"--frames.budget={budget}", *network, "--train.validate_budgets=[]"]
        config = load(overrides)
        if visual_tokens is not None:
            size = _size(config, budget, visual_tokens)
            config = load([*overrides, f"--frames.tokens_per_frame={size}"])
        of_budget[budget] = for_asking(config, annotations[0], videos)
    whole = for_asking(load([f"--frames.budget={max(frames)}", *overrides[1:]]), annotations[0], videos)
    check_models(whole)
    cells = [Cell(selector, budget, of_budget[budget]) for budget in frames for selector in chosen]
    return Setting(benchmark, prompt, questions, videos.absolute(), whole, cells)


def _size(config: Config, budget: int, visual_tokens: int) -> int:
    """Tokens of each frame, so that the answer turn has `visual_tokens` or just below."""
    size = visual_tokens // num_layers(budget, config.frames.shown_as)
    most = config.frames.tokens_per_frame
    if not 1 <= size <= most:
        raise UserError(
            f"--visual-tokens={visual_tokens}: {budget} frames would have {size} tokens each; valid: 1 to {most}, the size "
            "that frames are cached at (frames.tokens_per_frame)"
        )
    return size


def for_asking(config: Config, questions: Path | None, videos: Path | None) -> Config:
    """The config without what only training needs, and with the models it names."""
    data = config.data.model_copy(update={"questions": questions, "validation": None, "video_root": videos})
    train = config.train.model_copy(update={"trackers": ()})
    return resolve(config.model_copy(update={"data": data, "train": train, "rewards": RewardConfig()}), None)


def loader(
    recipe: Path | None, checkpoint: Path | None, model: str | None, overrides: Sequence[str]
) -> Callable[[Sequence[str]], Config]:
    """What loads the config with further overrides: of the recipe, or else of the checkpoint's run, or else the toy one.

    `checkpoint`: a run's folder, whose newest whole checkpoint is meant, or one of its checkpoints. Raises UserError when it
    is neither, or damaged.
    """
    networks = [f"--policy.model={model}"] if model else []
    if checkpoint:
        step = find_checkpoint(checkpoint)
        recipe = recipe or step.absolute().parents[1] / "config.yaml"
        networks = [
            f"--{field}={step / name}"
            for field, name in (("policy.model", "policy"), ("sampler.checkpoint", "sampler"))
            if (step / name).is_dir()
        ]
    path = recipe or RECIPES / "toy.yaml"
    return lambda further: load_config(path, [*overrides, *networks, *further])
