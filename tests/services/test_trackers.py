"""Trackers: the real packages, offline, get config, name and metrics; and none that fails or hangs is in training's way."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from services.errors import UserError
from services.metrics import MetricsSink, apart, read_metrics
from services.metrics.trackers import TRACKERS, check_trackers

CONFIG = {"train": {"steps": 2, "trackers": ["wandb", "mlflow"]}, **{f"field{place}": place for place in range(150)}}
STEPS = {1: {"policy/loss": 0.25, "reward/total": 0.5}, 2: {"policy/loss": -0.5, "reward/total": float("inf")}}


class Hangs:
    """A tracker whose server never answers."""

    package: ClassVar[str] = "time"
    apart: ClassVar[bool] = True

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        print("connecting", flush=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        time.sleep(10_000)

    def close(self) -> None:
        raise AssertionError


class Fails(Hangs):
    """A tracker whose server has gone away."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("the server is gone")


class Absent(Hangs):
    """A tracker whose package nobody has."""

    package: ClassVar[str] = "no_such_package"


@pytest.fixture(autouse=True)
def trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    for tracker in (Hangs, Fails, Absent):
        monkeypatch.setitem(TRACKERS, tracker.__name__, tracker)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two steps that W&B and MLflow followed, offline."""
    folder = tmp_path_factory.mktemp("runs") / "run-a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setattr(apart, "CLOSING", 600.0)
        with MetricsSink(folder, 2, ("wandb", "mlflow"), CONFIG) as sink:
            for step, values in STEPS.items():
                sink.log(step, values)
        yield folder


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """What an offline run holds: a LevelDB log, chunks of checksum, length, kind (1 whole, 4 last) in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_wandb_gets_name_config_and_metrics(run_dir: Path) -> None:
    records = list(wandb_records(run_dir))
    (run,) = [record.run for record in records if record.HasField("run")][:1]
    assert (run.display_name, run.project) == ("run-a", "msjoe")
    config = {update.key: update.value_json for update in run.config.update}
    assert config["train"] == '{"steps":2,"trackers":["wandb","mlflow"]}'
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["policy/loss"], row["reward/total"]) for row in rows] == [
        ("1", "0.25", "0.5"),
        ("2", "-0.5", "Infinity"),
    ]
    assert any(record.HasField("exit") for record in records)


def test_mlflow_gets_name_config_and_metrics(run_dir: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient((run_dir / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("msjoe")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run-a", "FINISHED")
    assert run.data.params["train.steps"] == "2"
    assert run.data.params["train.trackers"] == "['wandb', 'mlflow']"
    assert run.data.params["field149"] == "149"
    for name in STEPS[1]:
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert logged == {step: values[name] for step, values in STEPS.items()}


def test_a_run_imports_no_tracker_it_did_not_ask_for() -> None:
    packages = {tracker.package for tracker in TRACKERS.values()} - {"time"}
    look = f"import sys, services.metrics\nassert not {packages} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def test_a_tracker_that_hangs_blocks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "CLOSING", 1.0)
    with MetricsSink(tmp_path, 3, ("Hangs",)) as sink:
        for step in range(3):
            sink.log(step, STEPS[1])
    assert len(read_metrics(tmp_path)) == 3
    said = capsys.readouterr().out
    assert said.count("Hangs gets no more of this run (TrackerLost: it did not finish within 1 s of the end") == 1
    assert str(tmp_path / "Hangs.log") in said


def test_a_tracker_that_lags_too_far_behind_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "PIPE_BYTES", 4096)
    with MetricsSink(tmp_path, 1000, ("Hangs",)) as sink:
        for step in range(1000):
            sink.log(step, STEPS[1])
    assert (
        capsys.readouterr().out.count("Hangs gets no more of this run (TrackerLost: it takes steps in more slowly") == 1
    )


def test_a_tracker_that_fails_is_warned_of_once_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsSink(tmp_path, 3, ("Fails",)) as sink:
        for step in range(3):
            sink.log(step, STEPS[1])
    assert len(read_metrics(tmp_path)) == 3
    assert (
        capsys.readouterr().out.count("Fails gets no more of this run (TrackerLost: ConnectionError: the server") == 1
    )


def test_a_call_past_its_deadline_ends_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "CALL", 1)
    monkeypatch.setattr(apart, "CLOSING", 600.0)
    with MetricsSink(tmp_path, 3, ("Hangs",)) as sink:
        sink.log(0, STEPS[1])
    assert "Hangs gets no more of this run (TrackerLost: a call took longer than 1 s" in capsys.readouterr().out


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["tensorboard", "wandb", "mlflow"])
    with pytest.raises(
        UserError, match=r"train.trackers: Absent needs the Python package no_such_package.*leave Absent out"
    ):
        check_trackers(["tensorboard", "Absent"])
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_package, which is not installed"):
        check_trackers(["Absent"])
