"""The way into Ray: a cluster that is there, or a private one. Loads nothing of what runs on it."""

from __future__ import annotations

import logging
import os

import ray

from cluster.config import ClusterConfig
from services.errors import UserError

COMMON_ENV = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Of every process of a run."""


def connect(config: ClusterConfig) -> None:
    """Join the cluster that `address` or `RAY_ADDRESS` names, or start a private one.

    Raises UserError when the address is a dashboard's, or no cluster answers there.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.update(COMMON_ENV)
    if address:
        if address.startswith("http"):
            raise UserError(
                f"{address} is a dashboard: `ray job submit` to it, or unset RAY_ADDRESS for a private cluster"
            )
        try:
            ray.init(address, runtime_env={"env_vars": COMMON_ENV}, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {address} ({error}); `ray start --head` starts one") from None
        return
    memory = None if config.object_store_gib is None else int(config.object_store_gib * 2**30)
    ray.init(
        address="local",  # without one, Ray would join whatever cluster it finds on this machine
        include_dashboard=False,
        object_store_memory=memory,
        runtime_env={"env_vars": COMMON_ENV},
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
