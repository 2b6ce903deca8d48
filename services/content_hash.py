"""Hashes of a model's files by content, remembered so that no file is read twice."""

from __future__ import annotations

import json
from hashlib import blake2b, file_digest
from pathlib import Path

from services.storage import folder_stamp, remember


def folder_hash(folder: Path, cache: Path) -> str:
    """A hash of the names and contents of the files in `folder`, those of its subfolders left out: 16 hexadecimal digits.

    It is remembered under `cache/hashes/v1/folders/`, by the files' sizes and times of change.
    """
    stamp = json.dumps([str(folder.absolute()), folder_stamp(folder)])
    name = blake2b(stamp.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    known = cache / "hashes" / "v1" / "folders" / name
    if known.exists():
        return known.read_text()
    whole = blake2b(digest_size=8)
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as content:
            digest = file_digest(content, lambda: blake2b(digest_size=16)).hexdigest()
        whole.update(f"{file.name}\0{digest}\n".encode(errors="surrogateescape"))
    remember(known, whole.hexdigest())
    return whole.hexdigest()
