"""The way into Ray: a cluster that is there, or a private one. Loads nothing of what runs on it.

Invariants: a private cluster is private, and only who can read this user's token may talk to it; an address that does not
answer is said within `ANSWER_DEADLINE`; the process's SIGTERM handler is its own again once Ray has started.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from pathlib import Path

import grpc
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]  # made at run time
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from cluster.config import ClusterConfig
from services.errors import TrainingError, UserError

COMMON_ENV = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who asked for no GPU sees none
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 starves every actor beside any other busy process
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every process of a run."""
WITHOUT_TASK_EVENTS = {"RAY_task_events_report_interval_ms": "0"}
"""Environment of a private cluster: without a dashboard nobody sees its tasks, the last 100,000 of which Ray would remember, at
3.6 kB each."""
ANSWER_DEADLINE = 15.0
"""Seconds that a cluster may take to answer; Ray itself would wait for ten minutes and more."""
STARTS = 5
"""Attempts to start a private cluster; Ray gives each 30 s, which a busy machine may exceed."""
OTHER_SCHEMES = {
    "http": "a dashboard: `ray job submit` to it",
    "ray://": "a Ray Client server: `ray job submit` to the cluster's dashboard",
}
"""Addresses that a driver cannot join."""
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def connect(config: ClusterConfig) -> None:
    """Join the cluster that `address` or `RAY_ADDRESS` names, or start a private one.

    Raises UserError when the address is a dashboard's, no cluster answers there, or the token for either is missing.
    """
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update(COMMON_ENV)
    # Ray warns each time that it authenticates, which it does by itself.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address == "local":
        os.environ.update(WITHOUT_TASK_EVENTS)
        _start(config)
    else:
        _join(address)
    signal.signal(signal.SIGTERM, on_sigterm)


def _start(config: ClusterConfig) -> None:
    for _ in range(STARTS):
        try:
            return _init(config)
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray raises it as a bare Exception
                raise
            _kill_half_started(error)
    raise TrainingError(f"Ray did not start in {STARTS} attempts of 30 s: this machine has too much else to do")


def _kill_half_started(error: Exception) -> None:
    """End the processes of the node whose start `error` ended."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False)


def _init(config: ClusterConfig) -> None:
    memory = None if config.object_store_gib is None else int(config.object_store_gib * 2**30)
    try:
        ray.init(
            address="local",  # without one, Ray would join whatever cluster it finds on this machine
            include_dashboard=False,
            object_store_memory=memory,
            runtime_env={"env_vars": COMMON_ENV},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except OSError as error:
        token = Path.home() / ".ray" / "auth_token"
        if error.filename is None or not token.is_relative_to(error.filename):
            raise
        raise UserError(
            f"Ray keeps its token in {token}, which cannot be written ({error.strerror}): set HOME to a folder that can be"
        ) from None


def _join(address: str) -> None:
    for scheme, what in OTHER_SCHEMES.items():
        if address.startswith(scheme):
            raise UserError(f"{address} is {what}, or give --cluster.address=local for a private cluster")
    if address == "auto":  # as `ray.init` does, but before it asks
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        gcs = canonicalize_bootstrap_address_or_die(address)
        with init_grpc_channel(gcs) as channel:
            cluster = NodeInfoGcsServiceStub(channel)
            cluster.GetClusterId(GetClusterIdRequest(), timeout=ANSWER_DEADLINE, wait_for_ready=True)
        ray.init(address, runtime_env={"env_vars": COMMON_ENV}, log_to_driver=False)
    except (grpc.RpcError, ray.exceptions.AuthenticationError) as error:
        if isinstance(error, ray.exceptions.AuthenticationError) or error.code() in REFUSALS:
            raise UserError(
                f"the Ray cluster at {address} refuses this process: set RAY_AUTH_MODE=token, and have its token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from None
        raise UserError(
            f"no Ray cluster answered at {address} ({gcs}) within {ANSWER_DEADLINE:g} s; `ray start --head` starts one, "
            "--cluster.address=local a private one"
        ) from None
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address} ({error}); `ray start --head` starts one") from None
