"""What is said when the file system refuses to write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from services.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError naming `path` and the reason when the block's writes are refused: full, read-only, not a folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error of its own
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{path}: cannot be written ({reason}); free some room, or mend its folder") from error
