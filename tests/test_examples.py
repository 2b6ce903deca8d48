"""The examples do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.config import Config
from services.questions import read_questions


def test_frames_are_chosen_by_a_sentence(toy_config: Config, tmp_path: Path) -> None:
    assert toy_config.data.questions is not None
    question = read_questions(toy_config.data.questions)[0]
    command = [
        sys.executable,
        "examples/choose_frames.py",
        question.video,
        question.wanted_queries[0],
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"MSJOE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": "."}
    subprocess.run(command, env=environment, check=True)
    seconds = [int(picture.stem) for picture in (tmp_path / "out").glob("*.png")]
    assert len(seconds) == 4
    assert any(first <= second <= last for first, last in question.moments[0] for second in seconds)
