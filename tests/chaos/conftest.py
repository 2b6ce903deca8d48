"""The training that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.runs import STEPS, Training


@pytest.fixture(scope="package")
def undisturbed(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, console = Training(run_dir, *toy_overrides, *STEPS).end()
    assert code == 0, console
    return run_dir
