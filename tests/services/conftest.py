"""Real videos whose pictures say when they are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.services import odd_videos
from tests.services.odd_videos import every, write_video


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    return odd_videos.read_numbers


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds at 10 frames a second: candidate i shows the number 100 * i."""
    return write_video(tmp_path_factory.mktemp("videos") / "twelve.mp4", every(0.1, 12))
