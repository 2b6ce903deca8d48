"""Checkpoints in a bucket (`s3://…`, `gs://…`), beside those in the run's folder: what outlives the machine.

Invariants: a checkpoint's `checksums.json` is put there last, so one without it is torn and never fetched; what is fetched
appears in the run's folder only whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from services.checkpoints import CHECKSUMS, checkpoints
from services.errors import UserError


class CheckpointBucket:
    """The checkpoints of the run in `run_dir`, at `address` under the name of its folder.

    Every method raises UserError naming the bucket when it does not answer or refuses.
    """

    def __init__(self, address: str, run_dir: Path) -> None:
        self._address, self._run_dir = address, run_dir

    def put(self, folder: Path) -> None:
        """Copy a checkpoint of the run's folder there."""
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == CHECKSUMS)
        with self._asked() as (remote, prefix):
            for path in files:
                there = f"{prefix}/{folder.name}/{path.relative_to(folder)}"
                fs.copy_files(str(path), there, fs.LocalFileSystem(), remote)

    def keep(self, steps: Collection[int]) -> None:
        """Remove all others."""
        for step, there in self._whole().items():
            if step not in steps:
                with self._asked() as (remote, _):
                    remote.delete_dir(there)

    def fetch_newest(self) -> None:
        """Bring the newest whole checkpoint into the run's folder, unless one as new is there; nothing when there is none."""
        whole, here = self._whole(), checkpoints(self._run_dir)
        if not whole or (here and max(here) >= max(whole)):
            return
        folder = self._run_dir / "checkpoints" / Path(whole[max(whole)]).name
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with self._asked() as (remote, _):
            fs.copy_files(whole[max(whole)], str(partial), remote, fs.LocalFileSystem())
        partial.rename(folder)

    def _whole(self) -> dict[int, str]:
        """Addresses of the checkpoints there by step."""
        with self._asked() as (remote, prefix):
            found = remote.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        folders = [Path(info.path).parent for info in found if Path(info.path).name == CHECKSUMS]
        return {int(folder.name.removeprefix("step-")): str(folder) for folder in folders}

    @cached_property
    def _remote(self) -> tuple[fs.FileSystem, str]:
        remote, prefix = fs.FileSystem.from_uri(self._address)
        return remote, f"{prefix.rstrip('/')}/{self._run_dir.name}"

    @contextmanager
    def _asked(self) -> Iterator[tuple[fs.FileSystem, str]]:
        """The bucket's file system and the run's place there; what it refuses becomes a UserError."""
        try:
            yield self._remote
        except (OSError, ValueError) as error:
            raise UserError(f"train.checkpoint_bucket: {self._address}: {error}") from error
