"""A checkpoint's folder appears only whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.checkpoints import checkpoint_folder, latest_checkpoint
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
