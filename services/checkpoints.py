"""Checkpoints: `checkpoints/step-000123/` in the run's folder, holding both networks in their public formats.

Invariants: a checkpoint's folder appears only whole; what an error left half-written is removed at once, what a killed run
left is never taken for one and is removed by the next attempt. Reading one runs none of its code: nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from services.errors import UserError
from services.writing import writing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a sampler."""


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


def save_sampler(folder: Path, channels: Sequence[int], state: Mapping[str, torch.Tensor]) -> None:
    """Write the sampler's weights and the channels they are for into `folder`, which exists."""
    (folder / CONFIG).write_text(json.dumps({"channels": list(channels)}) + "\n")
    save_file(dict(state), folder / WEIGHTS)


def load_sampler(folder: Path, channels: Sequence[int]) -> dict[str, torch.Tensor]:
    """The weights of a saved sampler, whatever else lies in its folder.

    Raises UserError for a folder that holds none, a damaged one, or one of other channels.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UserError(
            f"sampler.checkpoint: {folder} has no {' and no '.join(missing)}; name a run's checkpoints/step-N/sampler "
            "(pickles are not read: they can run code)"
        )
    try:
        saved, state = json.loads((folder / CONFIG).read_text())["channels"], load_file(folder / WEIGHTS)
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"sampler.checkpoint: {folder} is damaged ({error}); name another") from error
    if saved != list(channels):
        raise UserError(f"sampler.checkpoint: {folder} has channels {saved}; set sampler.channels={saved}")
    return state
