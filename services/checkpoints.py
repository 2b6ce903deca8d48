"""Checkpoints: `checkpoints/step-000123/` in the run's folder, holding both networks in their public formats.

Invariants: a checkpoint's folder appears only whole, on the disk, with the SHA-256 of each of its files in `checksums.json`;
what an error left half-written is removed at once, what a killed run left is never taken for one and is removed by the next
attempt. Reading one runs none of its code: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from services.errors import UserError
from services.writing import writing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a sampler."""
CHECKSUMS = "checksums.json"
"""The file of a checkpoint that names all others, each with its SHA-256; written last."""
SPARE_BYTES = 2**26
"""Room that a checkpoint leaves on its disk, for the run's other files."""


@contextmanager
def checkpoint_folder(run_dir: Path, step: int, nbytes: int = 0) -> Iterator[Path]:
    """A folder to write the checkpoint of `step` to, and to `seal`; it gets its name when the block ends well.

    `nbytes`: about what will be written. Raises UserError naming the folder when the disk has no room for that, or when the
    file system refuses (full, read-only).
    """
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _check_room(folder, nbytes)
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _check_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < nbytes + SPARE_BYTES:
        raise UserError(
            f"{folder}: a checkpoint takes {nbytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; free some room, or "
            "lower train.keep_last or train.keep_best"
        )


def seal(folder: Path) -> None:
    """Put every file on the disk, and its checksum into `checksums.json`: what has none counts as damaged."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    with (folder / CHECKSUMS).open("w") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None when they are as they were written."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_bytes())
        for name, expected in sums.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step, oldest first."""
    return {int(path.name[-6:]): path for path in sorted((run_dir / "checkpoints").glob("step-??????"))}


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the highest step; None when there is none."""
    return max(checkpoints(run_dir).values(), default=None)


def newest_whole_checkpoint(run_dir: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; `report` is told of each newer one that is damaged."""
    for folder in reversed(checkpoints(run_dir).values()):
        if not (wrong := damage(folder)):
            return folder
        report(f"{folder} is damaged and passed over: {wrong}")
    return None


def find_checkpoint(named: Path) -> Path:
    """The checkpoint that a person named: itself, or the newest whole one of a run's folder.

    Raises UserError when it is neither, or damaged.
    """
    if (named / "checkpoints").is_dir():
        if found := newest_whole_checkpoint(named, lambda said: None):
            return found
        raise UserError(f"{named}: the run has no whole checkpoint; name another")
    if not any((named / network).is_dir() for network in ("policy", "sampler")):
        raise UserError(f"{named}: is neither a run's folder nor one of its checkpoints/step-N; name one")
    if wrong := damage(named):
        raise UserError(f"{named}: is damaged ({wrong}); name another")
    return named


def steps_to_keep(accuracies: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """The `keep_last` newest of the checkpointed steps, and the `keep_best` of the highest accuracy, the newer of equals.

    `accuracies`: validation accuracy of the networks at each step; None where it was not measured.
    """
    measured = [(accuracy, step) for step, accuracy in accuracies.items() if accuracy is not None]
    best = sorted(measured, reverse=True)[:keep_best]
    return {*sorted(accuracies, reverse=True)[:keep_last], *(step for _, step in best)}


def save_sampler(folder: Path, architecture: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Write the sampler's weights into `folder`, which exists, and the config fields whose values they are for."""
    (folder / CONFIG).write_text(json.dumps(dict(architecture)) + "\n")
    save_file(dict(state), folder / WEIGHTS)


def load_sampler(folder: Path, architecture: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a saved sampler, whatever else lies in its folder.

    Raises UserError for a folder that holds none, a damaged one, or one of another architecture.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UserError(
            f"sampler.checkpoint: {folder} has no {' and no '.join(missing)}; name a run's checkpoints/step-N/sampler "
            "(pickles are not read: they can run code)"
        )
    try:
        saved, state = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
        kind = {"selector.kind": saved["selector.kind"]}  # without which it is no sampler's config
        differing = {field: value for field, value in (kind | saved).items() if architecture.get(field) != value}
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"sampler.checkpoint: {folder} is damaged ({error}); name another") from error
    if differing:
        settings = " ".join(f"{field}={json.dumps(value).strip(chr(34))}" for field, value in differing.items())
        raise UserError(f"sampler.checkpoint: {folder} holds another network; set {settings}")
    return state
