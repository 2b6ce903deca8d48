"""A disk without room, for anybody. Either files of this process may not grow beyond a size, and what grows them is refused; or
processes of their own see a small file system, which is filled and emptied while they run."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAYS = ([], ["--user"])
"""Namespaces besides that of mounts, in which a process may mount: none for the superuser, one of users for others."""
INODES = 1000
"""Files and folders that a small file system holds."""


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes from now on; Python ignores the signal, so the write raises OSError."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def full_disk(size: int = 0) -> Iterator[None]:
    """No file grows beyond `size` bytes while the block lasts."""
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(size)
    try:
        yield
    finally:
        limit_files(before)


class SmallDisk:
    """A file system in memory, mounted at a folder for those processes alone that are started behind `prefix`.

    It is gone with the last of them, and with its holder.
    """

    def __init__(self, folder: Path, holder: int, way: list[str]) -> None:
        """`holder`: a process that sees it."""
        self._root = Path(f"/proc/{holder}/root")
        self._folder = self.seen(folder)
        enter = ["nsenter", f"--target={holder}", "--mount", *way, *(["--preserve-credentials"] if way else [])]
        self.prefix = [*enter, "sh", "-c", 'cd "$0" && exec "$@"', os.getcwd()]
        """What stands before a command that is to see it; it replaces itself by the command."""

    def seen(self, path: Path) -> Path:
        """The path under which this process finds what those others find at `path`."""
        return self._root / path.relative_to("/")

    def leave_bytes(self, room: int) -> None:
        """So many are free from now on."""
        self.empty()
        with (self._folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self._folder).free - room)

    def leave_files(self, room: int) -> None:
        """So many more files and folders can be made from now on."""
        self.empty()
        fillers = self._folder / "fillers"
        fillers.mkdir()
        try:
            for number in range(INODES):
                (fillers / str(number)).touch()
        except OSError as error:
            assert error.errno == errno.ENOSPC
        for number, path in enumerate(fillers.iterdir()):
            if number < room:
                path.unlink()

    def empty(self) -> None:
        """All room is free again."""
        (self._folder / "filler").unlink(missing_ok=True)
        shutil.rmtree(self._folder / "fillers", ignore_errors=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """A file system of `size` bytes, mounted at `folder`, which exists. Skips the test where this machine lets nobody mount."""
    mount = 'mount -t tmpfs -o "size=$0,nr_inodes=$1" tmpfs "$2" && echo mounted && exec cat'
    refusals = []
    for way in WAYS:
        root = ["--map-root-user"] if way else []
        with subprocess.Popen(
            ["unshare", "--mount", *way, *root, "sh", "-c", mount, str(size), str(INODES), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as holder:  # fmt: skip
            assert holder.stdout
            assert holder.stderr
            if holder.stdout.readline() == "mounted\n":
                yield SmallDisk(folder, holder.pid, way)
                return
            refusals.append(holder.stderr.read().strip())
    pytest.skip(f"no small file system can be mounted here: {'; '.join(refusals)}")
