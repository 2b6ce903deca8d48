"""What every test stands on: private clusters without authentication, and one made for the tests that need Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private cluster for the whole session."""
    import ray

    from cluster.fleet import COMMON_ENV

    ray.init(
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        runtime_env={"env_vars": COMMON_ENV},
        log_to_driver=False,
    )
    yield
    ray.shutdown()
