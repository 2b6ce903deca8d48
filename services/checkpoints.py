"""Checkpoints: `checkpoints/step-000123/` in the run's folder, holding both networks in their public formats.

Invariant: a checkpoint's folder appears only whole; what an error left half-written is removed at once, what a killed run
left is never taken for one and is removed by the next attempt.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.writing import writing


@contextmanager
def checkpoint_folder(run_dir: Path, step: int) -> Iterator[Path]:
    """A folder to write the checkpoint of `step` to; it gets its name when the block ends well.

    Raises UserError naming the folder when the file system refuses (full, read-only).
    """
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The whole checkpoint of the highest step; None when there is none."""
    return max((run_dir / "checkpoints").glob("step-??????"), default=None)
