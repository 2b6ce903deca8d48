"""The miniature world: videos, questions about them, a small CLIP and a small MLLM, all in public formats.

Invariants: a world is decided by its config and by the prompts and length of the MLLM's warm-up, and made once: it is
built in a temporary sibling and appears under its final name complete or not at all, however many makers run at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.config import ToyWorldConfig
from services.schema import Question

_VERSION = "v1"
_WARMUP_STEPS = 140
"""About 30 seconds on one core; gives the format to about four replies in five at temperature 1."""
_SAMPLE = Question("", "", "What colour is the star?", ("red", "green", "blue", "white"), "A")


@dataclass(frozen=True)
class ToyWorld:
    """Where the parts of one toy world lie."""

    root: Path

    @property
    def questions(self) -> Path:
        """Training format as JSONL; `questions.parquet` beside it holds the same rows."""
        return self.root / "questions.jsonl"

    @property
    def videos(self) -> Path:
        """Folder of the MP4 files; the questions' paths are relative to `root`."""
        return self.root / "videos"

    @property
    def clip(self) -> Path:
        """open_clip folder: `local-dir:<clip>`."""
        return self.root / "clip"

    @property
    def mllm(self) -> Path:
        """Hugging Face folder."""
        return self.root / "mllm"


def make_toy_world(
    config: ToyWorldConfig,
    root: Path,
    query_prompt: Callable[[Question], list[dict[str, Any]]],
    answer_prompt: Callable[[Question], list[dict[str, Any]]],
    *,
    warmup_steps: int = _WARMUP_STEPS,
    progress: Callable[[str, int, int], None] | None = None,
) -> ToyWorld:
    """The toy world of this config under `root/toyworld/`, made unless it is there.

    Args:
        query_prompt, answer_prompt: chat messages of the two turns, which the MLLM's warm-up replies to.
        warmup_steps: optimiser steps of that warm-up.
        progress: called with a part ("videos", "clip", "mllm"), what is done and the total.

    Raises:
        UserError: a config that no world can follow.
    """
    decided_by = [config.model_dump(), query_prompt(_SAMPLE), answer_prompt(_SAMPLE), warmup_steps]
    digest = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()[:8]
    world = ToyWorld(root / "toyworld" / f"{_VERSION}-seed{config.seed}-{digest}")
    if world.root.is_dir():
        return world
    world.root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{world.root.name}.", dir=world.root.parent))
    try:
        _build(ToyWorld(draft), config, query_prompt, answer_prompt, warmup_steps, progress or _silent)
        draft.chmod(0o755)
        os.rename(draft, world.root)
    except OSError:
        if not world.root.is_dir():  # else another maker was first: its world is the same
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return world


def _build(
    world: ToyWorld,
    config: ToyWorldConfig,
    query_prompt: Callable[[Question], list[dict[str, Any]]],
    answer_prompt: Callable[[Question], list[dict[str, Any]]],
    warmup_steps: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write all parts. The imports wait until here: a world that exists needs neither torch nor a video encoder."""
    from services.toyworld.clip import make_clip
    from services.toyworld.mllm import corpus, make_mllm
    from services.toyworld.world import write_videos_and_questions

    write_videos_and_questions(config, world.root, progress)
    make_clip(world.clip, config.seed, corpus(config.seed, query_prompt, answer_prompt))
    progress("clip", 1, 1)
    make_mllm(world.mllm, config.seed, query_prompt, answer_prompt, warmup_steps, progress)


def _silent(part: str, done: int, total: int) -> None:
    """The progress of a maker nobody watches."""
