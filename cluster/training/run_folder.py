"""The folder of a run, taken by one run at a time.

Invariants: two runs never write into one folder, and a folder whose run took a step is never written into again. Whoever
holds the lock on `run.lock` has the folder, and the system lets go of it however that process ends; so what a start left that
failed or was killed before its first step is in nobody's way.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.training.validation import SUMMARY
from services import jsonl, metrics, trajectories
from services.checkpoints import latest_checkpoint
from services.errors import UserError
from services.writing import writing

CONFIG, LOCK = "config.yaml", "run.lock"
"""The resolved config; the file that a run holds a lock on while it writes."""
APPENDED = (metrics.FILE, trajectories.FILE, trajectories.VALIDATION, "left_out.jsonl")
"""Files that a run adds rows to; all others are written anew."""


@contextmanager
def run_folder(asked: Path | None, recipe: str) -> Iterator[Path]:
    """The folder asked for, or a new one `runs/<recipe>-<time>`, held for this run alone while the block lasts.

    Raises UserError when another run writes there now, when it holds a run already, or when it cannot be written.
    """
    folder = asked or _new_folder(Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not (folder / LOCK).exists() and any((folder / name).exists() for name in (CONFIG, *APPENDED)):
        raise UserError(f"--run_dir={folder}: holds files of another run; name another folder, or remove it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    with lock:
        with writing(folder / LOCK):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--run_dir={folder}: another run writes there now; name another folder") from None
        if _holds_a_run(folder):
            raise UserError(f"--run_dir={folder}: holds a run already; name another folder, or remove it")
        for name in APPENDED:
            (folder / name).unlink(missing_ok=True)
        yield folder


def _holds_a_run(folder: Path) -> bool:
    """Whether a step was logged there, or networks were saved or measured to the end."""
    logged = any(row["step"] > 0 for row in jsonl.read(folder / metrics.FILE))
    return logged or (folder / SUMMARY).exists() or latest_checkpoint(folder) is not None


def _new_folder(wanted: Path) -> Path:
    """A folder of that name, or the first of `<name>-2`, `<name>-3`, … that nobody else has made."""
    folder, number = wanted, 1
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = wanted.with_name(f"{wanted.name}-{number}")
