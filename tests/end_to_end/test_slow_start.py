"""A machine on which Ray does not start in time: it is started again, and nothing of the first attempt stays behind."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.end_to_end.test_prepare import until, workers

START = """
import ray
from cluster.config import ClusterConfig
from cluster.training.connection import connect
connect(ClusterConfig(address="local"))
print(ray.get(ray.remote(lambda: "runs").remote()))
ray.shutdown()
"""


@pytest.mark.chaos
def test_a_private_cluster_that_starts_too_slowly_is_started_again() -> None:
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as starting:
        first = until(lambda: next(workers(starting, "raylet/raylet"), None), starting)
        first.suspend()
        started = psutil.Process(starting.pid).children(recursive=True)
        console, _ = starting.communicate(timeout=600)
    assert (starting.returncode, console) == (0, "runs\n")
    _, alive = psutil.wait_procs([first, *started], timeout=60)
    assert not alive
