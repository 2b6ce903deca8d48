"""The miniature world: videos and questions about them, made from a seed, and the small CLIP and MLLM that ship for it.

Invariants: a world is decided by its config alone, and made once: it is built in a temporary sibling and appears under its
final name complete or not at all, however many makers run at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.toyworld.config import ToyWorldConfig
from services.writing import writing

_VERSION = "v4"
MODELS = Path(__file__).parent / "models"
"""The shipped models: `clip` in open_clip's folder format, `mllm` in Hugging Face's. Their README says how they were made."""
Progress = Callable[[str, int, int], None]
"""Called with a part, what is done of it and its total."""


@dataclass(frozen=True)
class ToyWorld:
    """The places of one toy world's parts."""

    root: Path

    @property
    def questions(self) -> Path:
        """The questions to train on, in the training format as JSONL; `train.parquet` beside it holds the same rows."""
        return self.split("train")

    def split(self, name: str) -> Path:
        """The questions of `train`, `validation` or `test`."""
        return self.root / f"{name}.jsonl"

    @property
    def validation(self) -> Path | None:
        """The questions to validate on; None in a world that holds no videos out."""
        held_out = self.split("validation")
        return held_out if held_out.stat().st_size else None

    @property
    def videos(self) -> Path:
        """Folder of the MP4 files; the questions' paths are relative to `root`."""
        return self.root / "videos"


def toy_world(config: ToyWorldConfig, root: Path) -> ToyWorld:
    """The place of this config's toy world under `root/toyworld/`, made or not."""
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]
    return ToyWorld(root / "toyworld" / f"{_VERSION}-seed{config.seed}-{digest}")


def make_toy_world(config: ToyWorldConfig, root: Path, progress: Progress) -> ToyWorld:
    """The toy world of this config under `root/toyworld/`, made unless it is there."""
    world = toy_world(config, root)
    if world.root.is_dir():
        return world
    from cluster.toyworld.world import SPLITS, write_split  # a world that exists needs no video encoder

    with writing(world.root):
        world.root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{world.root.name}.", dir=world.root.parent))
        try:
            for split in SPLITS:
                write_split(split, config, draft, progress)
            draft.chmod(0o755)
            os.rename(draft, world.root)
        except OSError:
            if not world.root.is_dir():  # else another maker was first: its world is the same
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return world
