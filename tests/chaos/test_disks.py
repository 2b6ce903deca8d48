"""Disks that are full, and checkpoints that are damaged, under a run: it says so, and in the end it is the run that nobody
disturbed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.checkpoints import SPARE_BYTES, checkpoints
from tests.chaos.runs import STEPS, Training, assert_same, calls, saved, writes_checkpoint
from tests.full_disk import small_disk

SIZE = 256 * 2**20
EACH_STEP = [*STEPS, "--train.checkpoint_every=1"]


def size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*"))


@pytest.mark.chaos
def test_a_run_whose_checkpoint_disk_is_full(undisturbed: Path, toy_overrides: list[str], tmp_path: Path) -> None:
    """The first checkpoint finds no room, the second is refused half-written, the third is whole, and the last one finds no
    room again."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    one = size_of(checkpoints(undisturbed)[4])
    with small_disk(run_dir / "checkpoints", SIZE) as disk:
        disk.leave_bytes(SPARE_BYTES)
        running = Training(run_dir, *toy_overrides, *EACH_STEP, disk=disk)
        running.reach(1, calls("RolloutActor.generate"))
        disk.leave_files(6)
        running.reach(2, lambda *run: not writes_checkpoint(*run) and calls("RolloutActor.generate")(*run))
        disk.leave_bytes(one + SPARE_BYTES + one // 2)
        code, console = running.end()
        assert code == 2, console
        folder = re.escape(f"{run_dir}/checkpoints/step-00000")
        no_room = "a checkpoint takes 0.03 GiB and 0.0. GiB are free; free some room, or lower train.keep_last"
        assert re.search(rf"the checkpoint of step 1 failed: {folder}1: {no_room}", console)
        assert re.search(
            rf"the checkpoint of step 2 failed: {folder}2\S*: cannot be written \(No space left on device\)", console
        )
        assert re.search(rf"^msjoe: {folder}4: {no_room}", console, re.MULTILINE)
        assert [path.name for path in sorted(disk.seen(run_dir / "checkpoints").glob("step*"))] == ["step-000003"]

        disk.empty()
        code, console = Training(run_dir, *toy_overrides, *EACH_STEP, "--resume", disk=disk).end()
        assert code == 0, console
        assert "going on after step 3, from" in console
        assert_same(disk.seen(run_dir), undisturbed)


@pytest.mark.chaos
def test_a_run_whose_folder_has_no_room_left(undisturbed: Path, toy_overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with small_disk(run_dir, SIZE) as disk:
        running = Training(run_dir, *toy_overrides, *STEPS, disk=disk)
        running.reach(2, saved(2))
        disk.leave_bytes(0)
        code, console = running.end()
        assert code == 2, console
        assert re.search(
            rf"^msjoe: {re.escape(str(run_dir))}/\w+.jsonl: cannot be written \(No space left on device\); free some room",
            console,
            re.MULTILINE,
        )
        assert "Traceback" not in console

        disk.empty()
        code, console = Training(run_dir, *toy_overrides, *STEPS, "--resume", disk=disk).end()
        assert code == 0, console
        assert "going on after step 2, from" in console
        assert_same(disk.seen(run_dir), undisturbed)


@pytest.mark.chaos
def test_a_run_whose_newest_checkpoint_is_damaged(undisturbed: Path, toy_overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    running = Training(run_dir, *toy_overrides, *EACH_STEP)
    running.reach(2, saved(2))
    running.kill()
    *_, older, newest = checkpoints(run_dir)
    weights = checkpoints(run_dir)[newest] / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    code, console = Training(run_dir, *toy_overrides, *EACH_STEP, "--resume").end()
    assert code == 0, console
    damaged = f"{weights.parents[1]} is damaged and passed over: policy/model.safetensors is not as it was written"
    assert damaged in console
    assert f"going on after step {older}, from" in console
    assert_same(run_dir, undisturbed)
