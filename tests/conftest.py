"""What every test stands on: a private cluster, made for the tests that need Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster.config import Config
    from tests.services.odd_videos import Odd

os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"


HEAVY_FIXTURES, HEAVY_FOLDERS = {"ray_cluster", "vllm"}, {"end_to_end", "chaos"}
"""A test is heavy if it uses one of the fixtures, directly or through another, or lies in one of the folders."""


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark the heavy tests; `make test-quick` leaves them out."""
    if "vllm" in sys.modules:
        raise pytest.UsageError("a test module imports vllm when it is collected: use the fixture `vllm`")
    for item in items:
        if HEAVY_FIXTURES & set(item.fixturenames) or HEAVY_FOLDERS & set(item.path.parts):
            item.add_marker("heavy")


def heavy_parts() -> set[str]:
    """The names of Ray, if this process has started it, and of vLLM, if it has loaded it."""
    ray_runs = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return ({"Ray"} if ray_runs else set()) | ({"vllm"} & sys.modules.keys())


@pytest.fixture(autouse=True)
def quick_tests_stay_quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever starts Ray or imports vLLM without a fixture of theirs fails."""
    before = heavy_parts()
    yield
    if not request.node.get_closest_marker("heavy"):
        assert heavy_parts() <= before, f"starts Ray or imports vLLM: use one of {HEAVY_FIXTURES}"


@pytest.fixture(scope="session")
def vllm() -> ModuleType:
    """vLLM, for tests that compare with its code; without an engine."""
    import vllm

    return vllm


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private cluster for the whole session."""
    import ray

    from cluster.training.connection import COMMON_ENV

    os.environ.update(COMMON_ENV)
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
    from cluster.cli import TOY
    from cluster.config import load_config
    from cluster.resolve import resolve
    from cluster.toyworld.make import make_world

    config = load_config(TOY, toy_overrides)
    return resolve(config, make_world(config))
