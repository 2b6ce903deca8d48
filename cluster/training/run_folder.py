"""The folder of a run, taken by one run at a time.

Invariants: two runs never write into one folder, and a folder whose run took a step is only written into again by a run that
goes on from one of its checkpoints, behind which all rows are forgotten first. Whoever holds the lock on `run.lock` has the
folder, and the system lets go of it however that process ends; so what a start left that failed or was killed before its first
step is in nobody's way.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.training.run_state import RunState, read_state
from cluster.training.validation import SUMMARY
from services import jsonl, metrics, trajectories
from services.checkpoint_bucket import CheckpointBucket
from services.checkpoints import checkpoints, damage, latest_checkpoint, newest_whole_checkpoint
from services.errors import UserError
from services.writing import writing

CONFIG, LOCK = "config.yaml", "run.lock"
"""The resolved config; the file that a run holds a lock on while it writes."""
APPENDED = (metrics.FILE, trajectories.FILE, trajectories.VALIDATION, "left_out.jsonl")
"""Files that a run adds rows to; all others are written anew."""


@contextmanager
def run_folder(asked: Path | None, recipe: str, *, resume: bool = False) -> Iterator[Path]:
    """The folder asked for, or a new one `runs/<recipe>-<time>`, held for this run alone while the block lasts.

    Raises UserError when another run writes there now, when it holds a run already that this one does not `resume`, or when it
    cannot be written.
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
        if not resume:
            if _holds_a_run(folder):
                raise UserError(
                    f"--run_dir={folder}: holds a run already; go on with it by --resume, name another folder, or remove it"
                )
            _forget_rows(folder)
        yield folder


def folder_of(run_dir: Path | None, checkpoint: Path | None) -> Path:
    """The folder of a run that goes on: the one named, or that of the checkpoint.

    Raises UserError when neither says which.
    """
    if run_dir is None and checkpoint is None:
        raise UserError("--resume: of which run? Give its --run_dir, or --resume=RUN/checkpoints/step-N")
    return run_dir or checkpoint.absolute().parents[1]  # type: ignore[union-attr]


def go_on_from(
    folder: Path, asked: Path | None, bucket: str, check: Callable[[RunState], None], report: Callable[[str], None]
) -> Path | None:
    """The checkpoint that a resumed run in `folder` goes on from: the one asked for, or the newest whole one of the folder and
    of the `bucket` behind it, if one is named. None when there is none, so that the run starts anew. What the folder holds of
    later steps is forgotten, once `check` has not refused the state of the checkpoint.

    Raises UserError when the checkpoint asked for is damaged, or all there are, or the bucket does not answer.
    """
    if bucket and not asked:
        CheckpointBucket(bucket, folder).fetch_newest()
    if asked and (wrong := damage(asked)):
        raise UserError(
            f"--resume={asked}: the checkpoint is damaged ({wrong}); name another, or none for the newest whole one"
        )
    checkpoint = asked or newest_whole_checkpoint(folder, report)
    if checkpoint is None:
        if damaged := [path.name for path in checkpoints(folder).values()]:
            then = "takes the newest of the bucket" if bucket else "starts anew and forgets all steps"
            raise UserError(
                f"--resume: every checkpoint in {folder / 'checkpoints'} is damaged ({', '.join(damaged)}); put a whole copy "
                f"of one back, or remove that folder: --resume then {then}"
            )
        report(f"no checkpoint in {folder} to go on from: a new start")
        _forget_rows(folder)
        return None
    state = read_state(checkpoint)
    check(state)
    step = state.step
    forget_after(folder, step)
    if asked:
        for later, path in checkpoints(folder).items():
            if later > step:
                report(f"{path} is removed: the run goes back to step {step}")
                shutil.rmtree(path)
    return checkpoint


def forget_after(folder: Path, step: int) -> None:
    """Cut off the rows of later steps, which are done again."""
    for name in APPENDED:
        jsonl.cut_after(folder / name, step)


def _forget_rows(folder: Path) -> None:
    for name in APPENDED:
        (folder / name).unlink(missing_ok=True)


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
