"""The weight store: whole versions, verified, the newest two kept; buckets that never split a layer."""

from __future__ import annotations

import os
import signal

import pytest
import ray
import torch

from services.errors import StoreLost, TrainingError
from services.weights import (
    checksum,
    commit_version,
    create_store,
    newest_version,
    plan_buckets,
    read_version,
    write_bucket,
)


def test_buckets_hold_whole_layers() -> None:
    sizes = {"embed": 5, "layers.0.a": 3, "layers.0.b": 3, "layers.1.a": 3, "layers.1.b": 3, "head": 5}
    assert plan_buckets(sizes, limit=4) == [
        ["embed"],
        ["layers.0.a", "layers.0.b"],
        ["layers.1.a", "layers.1.b"],
        ["head"],
    ]
    assert plan_buckets(sizes, limit=100) == [list(sizes)]
    assert [name for bucket in plan_buckets(sizes, limit=7) for name in bucket] == list(sizes)
    assert plan_buckets({}, limit=4) == []


def test_checksum_sees_names_values_and_bfloat16() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert checksum({"a": tensor}) == checksum({"a": tensor.clone()})
    assert checksum({"a": tensor}) != checksum({"b": tensor})
    assert checksum({"a": tensor}) != checksum({"a": tensor.flip(1).contiguous()})


def test_versions(ray_cluster: None) -> None:
    store = create_store("test-weights")
    with pytest.raises(StoreLost, match="version None are not in the store"):
        read_version(store, "policy")
    for version in (1, 2, 3):
        write_bucket(store, "policy", version, 0, [("a", torch.full((3,), float(version)))], 60)
        write_bucket(store, "policy", version, 1, [("b", torch.full((2,), -float(version), dtype=torch.bfloat16))], 60)
        ray.get(store.commit.remote("policy", version))
    newest, tensors = read_version(store, "policy")
    values = dict(tensors)
    assert newest == 3
    assert values["a"].tolist() == [3.0] * 3
    assert values["b"].dtype == torch.bfloat16
    assert dict(read_version(store, "policy", 2)[1])["a"].tolist() == [2.0] * 3
    with pytest.raises(TrainingError, match="version 1 are not in the store; it keeps the newest 2"):
        read_version(store, "policy", 1)
    with pytest.raises(TrainingError, match="sampler"):
        read_version(store, "sampler")


def test_a_version_appears_only_whole_and_undamaged(ray_cluster: None) -> None:
    store = create_store("test-weights-whole")
    write_bucket(store, "policy", 1, 0, [("left", torch.ones(2))], 60)
    assert ray.get(store.manifest.remote("policy")) is None, "not committed"
    write_bucket(store, "policy", 1, 0, [("a", torch.ones(2))], 60)  # the writer died and began again
    ray.get(store.put.remote("policy", 1, 1, {"b": torch.ones(2)}, 12345))
    ray.get(store.commit.remote("policy", 1))
    _, tensors = read_version(store, "policy")
    assert next(tensors)[0] == "a", "the abandoned bucket is gone"
    with pytest.raises(TrainingError, match="bucket 1 arrived damaged"):
        next(tensors)


def test_a_store_that_was_killed_is_empty_and_takes_versions_in_again(ray_cluster: None) -> None:
    store = create_store("test-weights-killed")
    weights = [("a", torch.ones(2**18))]  # too large to travel with the reference

    def kill() -> None:
        os.kill(ray.get(store.__ray_call__.remote(lambda store: os.getpid())), signal.SIGKILL)

    write_bucket(store, "policy", 1, 0, weights, 60)
    commit_version(store, "policy", 1, 60)
    _, tensors = read_version(store, "policy", 1)
    kill()
    assert newest_version(store, "policy", 60) == 0, "asked again until it is there"
    with pytest.raises(StoreLost, match="version 1 were lost with their store"):
        next(tensors)
    with pytest.raises(StoreLost, match="version 1 are not in the store"):
        read_version(store, "policy", 1)
    write_bucket(store, "policy", 1, 0, weights, 60)
    kill()
    newest_version(store, "policy", 60)
    with pytest.raises(StoreLost, match="died while policy weights of version 1 came in"):
        commit_version(store, "policy", 1, 60)
    write_bucket(store, "policy", 1, 0, weights, 60)
    commit_version(store, "policy", 1, 60)
    assert next(read_version(store, "policy", 1)[1])[1].sum() == 2**18
