"""The way into Ray: whoever does not answer, or refuses, is said soon and by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.training import connection
from cluster.training.connection import connect
from services.errors import UserError


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265 is a dashboard: `ray job submit` to it"),
        ("ray://127.0.0.1:10001", "ray://127.0.0.1:10001 is a Ray Client server"),
        ("nowhere", "no Ray cluster at nowhere"),
    ],
)
def test_an_address_that_is_no_clusters(address: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        connect(ClusterConfig(address=address))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_DEADLINE", 1.0)


@pytest.mark.parametrize("listens", [True, False], ids=["silent", "closed"])
def test_an_address_where_nobody_answers(hurried: None, monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        with pytest.raises(UserError, match=rf"no Ray cluster answered at {address} .* within 1 s; `ray start --head`"):
            connect(ClusterConfig(address=address))
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"no Ray cluster answered at {address}"):
            connect(ClusterConfig())


def test_what_a_dead_cluster_left_behind(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # whatever else runs on this machine
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda temp_dir: "127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster answered at auto \(\S+:1\) within 1 s"):
        connect(ClusterConfig(address="auto"))


JOIN = """
from cluster.config import ClusterConfig
from cluster.training.connection import connect
from services.errors import UserError
try:
    connect(ClusterConfig(address={address!r}))
except UserError as error:
    print(error)
else:
    import ray
    print("joined", ray.cluster_resources()["CPU"])
"""


def in_a_process(address: str, **env: str) -> str:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = JOIN.format(address=address)
    done = subprocess.run([sys.executable, "-c", code], env=others | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_is_joined_with_its_token_alone(ray_cluster: None, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    assert "joined 8.0" in in_a_process(address, RAY_AUTH_MODE="token")
    refused = f"the Ray cluster at {address} refuses this process: set RAY_AUTH_MODE=token"
    assert refused in in_a_process(address)
    assert refused in in_a_process(address, RAY_AUTH_MODE="token", HOME=str(tmp_path))


def test_a_token_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    assert f"Ray keeps its token in {home}/.ray/auth_token, which cannot be written" in in_a_process(
        "local", HOME=str(home)
    )


TASKS = """
import time
import ray
from cluster.config import ClusterConfig
from cluster.training.connection import connect
connect(ClusterConfig(address="local"))
ray.get(ray.remote(lambda: 1).remote())
time.sleep(3)  # events are reported every second
print(len(ray.timeline()), "events")
"""


@pytest.mark.heavy
def test_a_private_cluster_remembers_no_tasks() -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", TASKS], env=others, capture_output=True, text=True, check=False)
    assert done.stdout == "0 events\n", done.stderr
