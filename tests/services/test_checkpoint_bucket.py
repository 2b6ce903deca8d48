"""Checkpoints in a bucket: what is whole there comes to a machine that has lost its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.checkpoint_bucket import CheckpointBucket
from services.checkpoints import checkpoint_folder, checkpoints, damage, newest_whole_checkpoint, seal
from services.errors import UserError


def write(run_dir: Path, step: int) -> Path:
    with checkpoint_folder(run_dir, step) as partial:
        (partial / "policy").mkdir()
        (partial / "policy" / "weights").write_bytes(bytes([step]) * 10_000)
        seal(partial)
    return checkpoints(run_dir)[step]


def test_another_machine_goes_on_from_what_is_whole_there(bucket: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here" / "run", tmp_path / "elsewhere" / "run"
    mine = CheckpointBucket(bucket, here)
    mine.fetch_newest()
    assert not checkpoints(here)
    for step in (1, 2, 3):
        mine.put(write(here, step))
    torn = write(here, 4)
    (torn / "checksums.json").unlink()
    mine.put(torn)
    mine.keep({2, 3})

    theirs = CheckpointBucket(bucket, elsewhere)
    theirs.fetch_newest()
    (fetched,) = checkpoints(elsewhere).values()
    assert (fetched.name, damage(fetched)) == ("step-000003", None)
    assert newest_whole_checkpoint(elsewhere, print) == fetched
    write(elsewhere, 5)
    theirs.fetch_newest()
    assert sorted(checkpoints(elsewhere)) == [3, 5], "what is newer here stays the newest"
    CheckpointBucket(bucket, tmp_path / "another").fetch_newest()
    assert not checkpoints(tmp_path / "another"), "each run has a place of its own"


def test_a_bucket_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.checkpoint_bucket: nonsense://x: "):
        CheckpointBucket("nonsense://x", tmp_path).fetch_newest()
