"""`msjoe prepare`: odd and bad videos, kills in the middle, a second run that does nothing, and training that decodes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.config import Config
from cluster.prepare import find_videos
from services.embeddings import FeatureCache
from services.errors import UserError
from services.frames import FrameCache

ROOT = Path(__file__).parents[2]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(arguments: list[str]) -> tuple[int, str]:
    process = start(arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out + err


def contents(cache: Path) -> dict[str, bytes]:
    """Every entry of the frame and feature caches."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for part in ("frames", "features", "quarantine")
        for path in sorted((cache / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def arguments(toy_config: Config, tmp_path: Path) -> Callable[..., list[str]]:
    """The command for a folder of videos and a cache of its own, with the toy world's CLIP."""

    def make(videos: Path, cache: str, *more: str) -> list[str]:
        model = f"--embedder.model={toy_config.embedder.model}"
        return ["prepare", str(videos), f"--cache={tmp_path / cache}", model, "--data.decoders=2", *more]

    return make


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Eight videos of half a minute, large enough that some are still to do when the first is done."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(8):
        make_video(folder / f"{index}.mp4", np.arange(0, 30, 0.1) + index / 100, height=336, width=588)
    return folder


def killed_in_the_middle(command: list[str], cache: Path, whole: bool) -> tuple[int, str]:
    """Run the command; once the first video is cached, kill -9 its decoding actors, or all of it."""
    process = start(command)
    deadline = time.monotonic() + 300
    while not list(cache.glob("frames/v2/*/*.arrow")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    tree = psutil.Process(process.pid).children(recursive=True)
    victims = tree if whole else [child for child in tree if "DecodeStage" in " ".join(child.cmdline())]
    assert victims
    if whole:
        process.send_signal(signal.SIGKILL)
    for child in victims:
        child.kill()
    out, err = process.communicate(timeout=400)
    return process.returncode, out + err


def test_a_kill_in_the_middle_loses_nothing(arguments: Callable[..., list[str]], videos: Path, tmp_path: Path) -> None:
    code, undisturbed = run(arguments(videos, "undisturbed"))
    assert code == 0, undisturbed
    code, output = killed_in_the_middle(arguments(videos, "worker"), tmp_path / "worker", whole=False)
    assert code == 0, output
    code, output = killed_in_the_middle(arguments(videos, "command"), tmp_path / "command", whole=True)
    assert code == -signal.SIGKILL, output
    assert len(contents(tmp_path / "command")) < 16
    code, output = run(arguments(videos, "command"))
    assert code == 0, output
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) == 16
    assert contents(tmp_path / "worker") == contents(tmp_path / "command") == expected
