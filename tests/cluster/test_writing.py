"""A full disk: every write that it refuses says which file, why, and what helps, and leaves nothing half-written behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from cluster.cli import TOY
from cluster.config import load_config
from cluster.preparing.prepare import write_summary
from cluster.questions.left_out import Losses
from cluster.report import write_report
from cluster.toyworld import make_toy_world
from cluster.training.train import train
from cluster.training.validation import Validation
from services import jsonl
from services.checkpoints import checkpoint_folder, latest_checkpoint
from services.errors import UserError
from services.questions import write_questions
from services.schema import Question
from services.storage import written_whole
from tests.full_disk import full_disk


def save_weights(folder: Path) -> None:
    with checkpoint_folder(folder, 7) as partial:
        save_file({"weight": torch.zeros(4096)}, partial / "model.safetensors")


def save_whole(folder: Path) -> None:
    with written_whole(folder / "entry.arrow") as temporary:
        temporary.write_bytes(b"0" * 5000)


def make_world(folder: Path) -> None:
    config = load_config(TOY).toyworld
    assert config is not None
    make_toy_world(config, folder, lambda *_: None)


def summarise(folder: Path) -> None:
    Validation(load_config(TOY), {}, [], folder, Losses(folder, Console(quiet=True)), {}).summarise(3, 60.0)


def begin(folder: Path) -> None:
    asyncio.run(train(load_config(TOY), [], [], folder, Console()))


WRITES: dict[str, Callable[[Path], object]] = {
    "config.yaml": begin,
    "metrics.jsonl": lambda folder: jsonl.append(folder / "metrics.jsonl", [{"step": 1}]),
    "step-000007": save_weights,
    "entry.arrow": save_whole,
    "report.html": lambda folder: write_report(folder, SimpleNamespace()),  # type: ignore[arg-type]
    "summary.json": summarise,
    "videos.json": lambda folder: write_summary(folder / "videos.json", []),
    "q.parquet": lambda folder: write_questions([Question("a", "/v.mp4", "?", ("x", "y"), "A")], folder / "q.parquet"),
    "seed0-": make_world,
}


@pytest.mark.parametrize("name", WRITES)
def test_every_refused_write_names_the_file_the_reason_and_the_remedy(name: str, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=rf"{name}\S*: cannot be written \(.*File too large.*; free some"):
        WRITES[name](tmp_path)
    assert latest_checkpoint(tmp_path) is None
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".arrow", ".parquet", ".mp4", ".tmp"}]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/rows.jsonl: cannot be written .Not a directory"):
        jsonl.append(tmp_path / "file" / "rows.jsonl", [{"a": 1}])
