"""The metrics sink: what it is told comes back from every back end."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from services import jsonl
from services.errors import UserError
from services.metrics import MetricsSink, read_metrics
from services.metrics.console import format_line
from tests.full_disk import full_disk

JOINT = {
    "reward/total": 0.312,
    "reward/accuracy": 0.25,
    "reward/format": 0.05,
    "reward/info": 0.012,
    "policy/loss": -0.0012,
    "policy/grad_norm": 0.43,
    "policy/mismatch_kl": 1.2e-5,
    "policy/version": 3,
    "sampler/loss": 0.02,
    "sampler/grad_norm": 0.1,
    "sampler/entropy": 3.9,
    "sampler/version": 3,
    "timing/step": 5.2,
}


def tensorboard_scalars(run_dir: Path) -> dict[tuple[int, str], float]:
    """Every scalar in the event files that a reader shows, by step and tag: records of length, checksum, protobuf, checksum. A
    start hides all of its step and of later ones that came before."""
    scalars: dict[tuple[int, str], float] = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            if event.session_log.status == SessionLog.START:
                scalars = {at: value for at, value in scalars.items() if at[0] < event.step}
            scalars.update({(event.step, value.tag): value.simple_value for value in event.summary.value})
            data = data[16 + length :]
    return scalars


def test_values_come_back_from_every_back_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsSink(tmp_path / "run", total_steps=2, trackers=("tensorboard",)) as sink:
        sink.log(1, JOINT)
        sink.log(2, {**JOINT, "reward/total": 0.5})
    first, second = read_metrics(tmp_path / "run")
    assert first == {"step": 1, **JOINT}
    assert second["reward/total"] == 0.5
    assert next(iter(first)) == "step"
    scalars = tensorboard_scalars(tmp_path / "run")
    assert scalars[2, "reward/total"] == 0.5
    assert {name for step, name in scalars if step == 1} == set(JOINT)
    assert b"mismatch KL, nats per token" in next((tmp_path / "run/tensorboard").iterdir()).read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [format_line(1, 2, JOINT), format_line(2, 2, {**JOINT, "reward/total": 0.5})]


def test_steps_that_are_done_again_replace_those_before(tmp_path: Path) -> None:
    with MetricsSink(tmp_path, total_steps=3, trackers=("tensorboard",)) as sink:
        for step, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4)):
            sink.log(step, {"policy/loss": value})
    assert tensorboard_scalars(tmp_path) == pytest.approx({(1, "policy/loss"): 0.1, (2, "policy/loss"): 0.4})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_step_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    with MetricsSink(tmp_path, total_steps=2, trackers=("tensorboard",)) as sink:
        sink.log(1, JOINT)
        assert read_metrics(tmp_path) == [{"step": 1, **JOINT}]
        assert tensorboard_scalars(tmp_path)[1, "reward/accuracy"] == 0.25


def test_line() -> None:
    assert format_line(3, 10, JOINT) == (
        " 3/10  reward 0.312 (acc 0.25 fmt 0.05 info 0.01)  policy loss -0.0012 grad 0.43 kl 1.2e-05 v3"
        "  sampler loss 0.02 grad 0.1 H 3.90 v3  5.2 s"
    )


def test_line_copes_with_absent_metrics() -> None:
    frozen_policy = {name: value for name, value in JOINT.items() if not name.startswith("policy/")}
    line = format_line(1, 1, frozen_policy)
    assert line.startswith("1/1  reward 0.312 (acc")
    assert "policy" not in line
    assert format_line(1, 1, {"reward/total": 0.5}) == "1/1  reward 0.500"
    assert format_line(1, 1, {}) == "1/1"


def test_not_finite_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsSink(tmp_path, total_steps=1) as sink:
        sink.log(1, {"policy/loss": float("nan"), "policy/grad_norm": float("inf")})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "policy/loss": None, "policy/grad_norm": None}
    assert "loss nan grad inf" in capsys.readouterr().out


def test_a_step_written_again_replaces_itself_and_later_ones(tmp_path: Path) -> None:
    with MetricsSink(tmp_path, total_steps=4) as sink:
        for step in (1, 2, 3):
            sink.log(step, {"reward/total": 0.1 * step})
    with MetricsSink(tmp_path, total_steps=4) as sink:
        sink.log(2, {"reward/total": 0.9})
    assert read_metrics(tmp_path) == [{"step": 1, "reward/total": 0.1}, {"step": 2, "reward/total": 0.9}]


def test_a_terminal_gets_a_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with MetricsSink(tmp_path, total_steps=2) as sink:
        sink.log(1, JOINT)
    printed = capsys.readouterr().out
    assert "elapsed" in printed
    assert "reward 0.312" in printed


def test_a_half_written_line_is_not_read_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    jsonl.append(path, [{"step": 1}])
    with path.open("a") as file:
        file.write('{"step": 2, "rew')
    assert list(jsonl.read(path)) == [{"step": 1}]
    jsonl.append(path, [{"step": 2}])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        list(jsonl.read(path))


def test_a_metric_without_a_row_is_logged_and_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsSink(tmp_path, total_steps=2) as sink:
        for step in (1, 2):
            sink.log(step, {"reward/total": 0.5, "timing/lunch": 1.0})
    assert [row["timing/lunch"] for row in read_metrics(tmp_path)] == [1.0, 1.0]
    assert capsys.readouterr().out.count("timing/lunch has no row") == 1


def test_a_tracker_that_fails_is_warned_of_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file grows faster than metrics.jsonl, so there is a size that refuses the one and not the other."""
    row = {"a": 0.0}
    with MetricsSink(tmp_path, total_steps=5, trackers=("tensorboard",)) as sink:
        sink.log(1, row)
        (events,) = (tmp_path / "tensorboard").iterdir()
        room = events.stat().st_size
        with full_disk(room):
            for step in (2, 3):
                sink.log(step, row)
        sink.log(4, row)
    assert read_metrics(tmp_path) == [{"step": step, **row} for step in (1, 2, 3, 4)]
    assert (
        capsys.readouterr().out.count("tensorboard gets no more of this run (OSError: [Errno 27] File too large)") == 1
    )
    assert tensorboard_scalars(tmp_path) == {(1, "a"): 0.0}


def test_a_tracker_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with MetricsSink(tmp_path, total_steps=2, trackers=("tensorboard",)) as sink:
        sink.log(1, JOINT)
        sink.log(2, JOINT)
    assert len(read_metrics(tmp_path)) == 2
    assert capsys.readouterr().out.count("tensorboard gets no more of this run (FileExistsError: ") == 1


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "in the way").mkdir()
    with pytest.raises(UserError, match="in the way: cannot be written"):
        jsonl.append(tmp_path / "in the way", [{"a": 1}])
