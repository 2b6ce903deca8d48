"""A checkpoint's folder appears only whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.checkpoints import (
    checkpoint_folder,
    damage,
    latest_checkpoint,
    newest_whole_checkpoint,
    seal,
    steps_to_keep,
)
from services.errors import UserError


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    with checkpoint_folder(tmp_path, 9) as partial:
        (partial / "a").write_text("9")
        assert latest_checkpoint(tmp_path) is None
    with pytest.raises(RuntimeError, match="not finite"), checkpoint_folder(tmp_path, 10) as partial:
        (partial / "half").write_text("10")
        raise RuntimeError("not finite")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000009"]
    killed = tmp_path / "checkpoints" / "step-000010.partial"
    killed.mkdir()
    (killed / "half").write_text("10")
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.name, (newest / "a").read_text()) == ("step-000009", "9")
    with checkpoint_folder(tmp_path, 10) as partial:
        assert not list(partial.iterdir()), "what was half-written is gone"
        (partial / "a").write_text("10")
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest / "a").read_text() == "10"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with (
        pytest.raises(UserError, match="step-000001: cannot be written"),
        checkpoint_folder(tmp_path, 1),
    ):
        pass


def write(run_dir: Path, step: int) -> Path:
    with checkpoint_folder(run_dir, step) as partial:
        (partial / "policy").mkdir()
        (partial / "policy" / "weights").write_bytes(bytes(range(256)))
        (partial / "state.json").write_text(f'{{"step": {step}}}')
        seal(partial)
    return run_dir / "checkpoints" / f"step-{step:06d}"


DAMAGES = {
    "a flipped bit": lambda folder: (folder / "policy/weights").write_bytes(bytes([1, *range(1, 256)])),
    "cut short": lambda folder: (folder / "policy/weights").write_bytes(bytes(range(255))),
    "a file lost": lambda folder: (folder / "state.json").unlink(),
    "never sealed": lambda folder: (folder / "checksums.json").unlink(),
    "half its checksums": lambda folder: (folder / "checksums.json").write_text('{"state.json": "9'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(name: str, tmp_path: Path) -> None:
    older, newer = write(tmp_path, 3), write(tmp_path, 20)
    said: list[str] = []
    assert newest_whole_checkpoint(tmp_path, said.append) == newer
    assert (damage(newer), said) == (None, [])
    DAMAGES[name](newer)
    assert newest_whole_checkpoint(tmp_path, said.append) == older
    assert len(said) == 1
    assert said[0].startswith(f"{newer} is damaged and passed over: ")
    DAMAGES[name](older)
    assert newest_whole_checkpoint(tmp_path, said.append) is None


def test_a_checkpoint_without_room_says_how_much_it_needs(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match=r"step-000001: a checkpoint takes 1048576.00 GiB and .* GiB are free; free some"
        ),
        checkpoint_folder(tmp_path, 1, nbytes=2**50),
    ):
        pass
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_newest_and_the_best_are_kept() -> None:
    accuracies = {10: 0.5, 20: 0.7, 30: 0.7, 40: None, 50: 0.6}
    assert steps_to_keep(accuracies, keep_last=1, keep_best=1) == {50, 30}
    assert steps_to_keep(accuracies, keep_last=2, keep_best=3) == {50, 40, 30, 20}
    assert steps_to_keep(accuracies, keep_last=1, keep_best=0) == {50}
    assert steps_to_keep({}, keep_last=1, keep_best=1) == set()
