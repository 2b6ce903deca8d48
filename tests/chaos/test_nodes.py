"""A node that is lost with all actors on it while a run trains: they come back on another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.training.connection import COMMON_ENV, STARTS
from services import jsonl
from tests.chaos.runs import STEPS, Training, assert_same, assert_versions_rise, calls


class Member(Training):
    """A training on a cluster whose processes are started by this one, which is therefore where they are looked for."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        super().__init__(run_dir, *arguments)
        self.driver = psutil.Process()


def patiently(start: Callable[[], Any]) -> Any:
    """A part of a cluster, to which Ray gives 30 s; a busy machine may take longer."""
    for _ in range(STARTS):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError("this machine has too much else to do")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without work, and two nodes of which each has room for the whole run."""
    for name, value in COMMON_ENV.items():
        monkeypatch.setenv(name, value)
    nodes = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0}))
    try:
        for _ in range(2):
            patiently(lambda: nodes.add_node(num_cpus=2, object_store_memory=2**29))
        yield nodes
    finally:
        nodes.shutdown()


def holds(node: object, actor: str) -> bool:
    """An actor of that class runs on the node."""
    (raylet,) = node.all_processes["raylet"]  # type: ignore[attr-defined]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    return any(process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{actor}") for process in workers)


@pytest.mark.chaos
def test_a_run_that_loses_the_node_of_its_learners(
    undisturbed: Path, toy_overrides: list[str], tmp_path: Path, cluster: Cluster
) -> None:
    run_dir = tmp_path / "run"
    running = Member(run_dir, *toy_overrides, *STEPS, f"--cluster.address={cluster.address}")
    running.reach(2, calls("RolloutActor.generate"))
    (lost,) = [node for node in cluster.worker_nodes if holds(node, "PolicyLearner")]
    cluster.remove_node(lost, allow_graceful=False)
    code, console = running.end()
    assert code == 0, console
    assert "the learners are back after" in console
    *_, last = jsonl.read(run_dir / "metrics.jsonl")
    assert last["supervision/restarts"] >= 1
    assert_versions_rise(run_dir)
    assert_same(run_dir, undisturbed, numbered=False)
