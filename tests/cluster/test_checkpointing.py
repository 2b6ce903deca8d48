"""Checkpoints beside training: a disk that refuses one is named at once, and the same step is saved later."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster.cli import TOY
from cluster.config import TrainConfig, load_config
from cluster.training.checkpointing import Checkpoints
from cluster.training.run_state import RunState
from services.checkpoints import checkpoints, damage
from services.errors import UserError
from services.writing import writing
from tests.full_disk import full_disk


class Slow:
    """A learner that writes its files one after another."""

    network = "policy"

    def __init__(self, files: int) -> None:
        self._files = files

    async def snapshot(self) -> int:
        """Bytes."""
        return 4096

    async def write(self, checkpoint: str) -> None:
        """So many files."""
        for number in range(self._files):
            await asyncio.sleep(0.01)
            with writing(Path(checkpoint)):
                Path(checkpoint).mkdir(exist_ok=True)
                (Path(checkpoint) / f"{self._files}-{number}").write_bytes(bytes(4096 if self._files == 1 else 1))


def test_a_refused_checkpoint_is_named_and_written_when_there_is_room(tmp_path: Path) -> None:
    said = io.StringIO()
    learners = SimpleNamespace(present=[Slow(1), Slow(5)])
    written = Checkpoints(learners, TrainConfig(), tmp_path, Console(file=said, width=500), 0)  # type: ignore[arg-type]
    state = RunState.start(load_config(TOY), {})

    async def save(step: int) -> None:
        await written.begin(replace(state, step=step))
        assert written.newest == step, "it is being written"
        try:
            await written.finish()
        finally:
            await asyncio.sleep(0.1)

    with full_disk(1000), pytest.raises(UserError, match="cannot be written .File too large"):
        asyncio.run(save(1))
    assert "the checkpoint of step 1 failed: " in said.getvalue()
    assert written.newest == 0, "so a run that stops now saves it"
    assert not list((tmp_path / "checkpoints").iterdir()), "no learner writes on into a folder that is gone"
    asyncio.run(save(1))
    assert list(checkpoints(tmp_path)) == [1]
    assert damage(checkpoints(tmp_path)[1]) is None
