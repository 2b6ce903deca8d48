"""A disk without room, for anybody: files of this process may not grow beyond a size, and what grows them is refused."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


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
