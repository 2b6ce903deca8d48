"""Real videos whose pictures say when they are shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="package")
def bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    before = dict(os.environ)
    os.environ.update(keys)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir("caches")  # fmt: skip
    yield f"s3://caches/team?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()
    os.environ.clear()
    os.environ.update(before)
