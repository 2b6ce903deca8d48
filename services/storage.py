"""Files of the caches: in one folder, and shared through a bucket when there is one.

Invariants: a file appears whole or not at all, whoever else writes it; with a bucket the folder is a read-through copy: what
only the bucket has is fetched once, what is made here is put there.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from services.errors import UserError
from services.writing import writing

ABANDONED = 3600.0
"""Seconds without a write after which a temporary file is taken for what a killed writer left."""
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException)
"""What opening an Arrow file raises when it is not as it was written, or is not there."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` when the block ends well, and is removed when not.

    Raises UserError naming the path when the file system refuses (full, read-only, not a folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def folder_written_whole(folder: Path, nbytes: int) -> Iterator[Path]:
    """A temporary folder beside `folder` to write about `nbytes` bytes to; it becomes `folder` when the block ends well, and is
    removed when not.

    Raises UserError naming the folder when it holds something already, when its disk has no room for that much, or when the
    file system refuses.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: holds something already; name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < nbytes:
            raise UserError(
                f"{folder}: takes {nbytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; free some room"
            )
        try:
            temporary.mkdir()
            yield temporary
            temporary.rename(folder)  # in the place of an empty one, if there is one
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remember(path: Path, text: str) -> None:
    """Write what spares later work, where the cache may be written: what only reads it does not need that."""
    with suppress(UserError), written_whole(path) as temporary:
        temporary.write_text(text)


def remove_abandoned(root: Path) -> None:
    """Remove what killed writers left in the versioned folders (`<kind>/v<number>/`) under `root`."""
    for temporary in root.glob("*/v*/**/.*.tmp"):
        try:
            if time.time() - temporary.stat().st_mtime > ABANDONED:
                temporary.unlink()
        except OSError:  # became a file, another one removes it, or the cache may only be read
            continue


def folder_stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file in a model's folder; empty when `folder` is none (a model's name)."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


class Storage:
    """Files by their name under the folder `root`, and under the same name in `bucket` (`s3://…`, `gs://…`; empty: none)."""

    def __init__(self, root: Path, bucket: str = "") -> None:
        self.root, self.bucket = root, bucket

    def find(self, name: str) -> Path:
        """The file of that name, fetched first when only the bucket has it.

        Raises FileNotFoundError when there is none, UserError when the bucket does not answer.
        """
        path = self.root / name
        if not path.exists() and self.bucket:
            with self._asked(name) as (remote, address):
                if remote.get_file_info(address).type == fs.FileType.File:
                    with written_whole(path) as temporary:
                        fs.copy_files(address, str(temporary), remote, fs.LocalFileSystem())
        if not path.exists():
            raise FileNotFoundError(path)
        return path

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """A temporary file to write to; it becomes the file of that name, here and in the bucket, when the block ends well."""
        with written_whole(self.root / name) as temporary:
            yield temporary
        if self.bucket:
            with self._asked(name) as (remote, address):
                fs.copy_files(str(self.root / name), address, fs.LocalFileSystem(), remote)

    def remove(self, name: str) -> None:
        """Forget the file, here and in the bucket; nothing when there is none."""
        (self.root / name).unlink(missing_ok=True)
        if self.bucket:
            with self._asked(name) as (remote, address):
                if remote.get_file_info(address).type == fs.FileType.File:
                    remote.delete_file(address)

    @cached_property
    def _remote(self) -> tuple[fs.FileSystem, str]:
        return fs.FileSystem.from_uri(self.bucket)

    @contextmanager
    def _asked(self, name: str) -> Iterator[tuple[fs.FileSystem, str]]:
        """The bucket's file system and the name's address there; what it refuses becomes a UserError."""
        try:
            remote, prefix = self._remote
            yield remote, f"{prefix.rstrip('/')}/{name}"
        except (OSError, ValueError) as error:
            raise UserError(f"data.bucket: {self.bucket}: {name}: {error}") from error
