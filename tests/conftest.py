"""What every test stands on: private clusters without authentication, and one made for the tests that need Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster.config import Config
    from tests.services.odd_videos import Odd

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private cluster for the whole session."""
    import ray

    from cluster.connection import COMMON_ENV

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        runtime_env={"env_vars": COMMON_ENV},
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def odds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Odd]:
    """Odd and broken videos by name."""
    from tests.services.odd_videos import odd_videos

    return {odd.name: odd for odd in odd_videos(tmp_path_factory.mktemp("odd"))}


@pytest.fixture(scope="session")
def toy_overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line overrides that make the toy recipe small, with a cache of this session's own."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        f"--data.cache={cache}",
        "--toyworld.videos=3",
        "--toyworld.held_out_videos=1",
        "--toyworld.questions_per_video=2",
        "--toyworld.min_seconds=30",
        "--toyworld.max_seconds=60",
        "--train.questions_per_step=3",
        "--train.group_size=4",
        "--train.draws=1",
    ]


@pytest.fixture(scope="session")
def toy_config(toy_overrides: list[str]) -> Config:
    """The small toy recipe, resolved, its world made."""
    from cluster.checks import resolve
    from cluster.cli import TOY
    from cluster.config import load_config
    from cluster.toyworld import make_world

    config = load_config(TOY, toy_overrides)
    return resolve(config, make_world(config))
