"""A run's folder: one run at a time, one run ever, and nothing in the way of the next try of a start that failed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.cli import run
from cluster.training.run_folder import run_folder
from services import jsonl
from services.checkpoints import checkpoint_folder
from services.errors import UserError


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    with run_folder(None, "toy") as first, run_folder(None, "toy") as second, run_folder(None, "toy") as third:
        assert [folder.name for folder in (first, second, third)] == [
            "toy-20260102-030405",
            "toy-20260102-030405-2",
            "toy-20260102-030405-3",
        ]
        assert all(folder.is_dir() for folder in (first, second, third))


def test_two_runs_never_write_into_one_folder(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", "toy") as folder:
        jsonl.append(folder / "left_out.jsonl", [{"step": 0, "question_id": "a"}])
        with pytest.raises(UserError, match="run: another run writes there now"), run_folder(tmp_path / "run", "toy"):
            pass
        assert len(list(jsonl.read(folder / "left_out.jsonl"))) == 1


def test_a_killed_start_is_not_in_the_way(tmp_path: Path) -> None:
    hold = "import sys, time\nfrom pathlib import Path\nfrom cluster.training.run_folder import run_folder\n" + (
        "with run_folder(Path(sys.argv[1]), 'toy'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run writes there now"), run_folder(tmp_path / "run", "toy"):
            pass
        other.send_signal(signal.SIGKILL)
    with run_folder(tmp_path / "run", "toy"):
        pass


def test_a_failed_start_leaves_no_rows_to_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the cause"), run_folder(tmp_path, "toy") as folder:
            assert not (folder / "left_out.jsonl").exists()
            (folder / "config.yaml").write_text("train: {}\n")
            jsonl.append(folder / "left_out.jsonl", [{"step": 0, "question_id": "a"}])
            jsonl.append(folder / "metrics.jsonl", [{"step": 0}])
            raise RuntimeError("the cause")


@pytest.mark.parametrize("left", ["a step", "a summary", "a checkpoint"])
def test_a_run_is_never_written_over(left: str, tmp_path: Path) -> None:
    with run_folder(tmp_path, "toy") as folder:
        if left == "a step":
            jsonl.append(folder / "metrics.jsonl", [{"step": 0}, {"step": 1}])
        elif left == "a summary":
            (folder / "summary.json").write_text("{}")
        else:
            with checkpoint_folder(folder, 1):
                pass
    with (
        pytest.raises(UserError, match="holds a run already; go on with it by --resume, name another folder"),
        run_folder(tmp_path, "toy"),
    ):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "left_out.jsonl"])
def test_what_nobody_started_here_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine\n")
    for _ in range(2):
        with pytest.raises(UserError, match="holds files of another run"), run_folder(tmp_path, "toy"):
            pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine\n"}


def test_the_same_command_works_once_the_cause_is_mended(
    toy_config: object, toy_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends for the same reason each time, not because the folder is taken; the config was written before."""
    for _ in range(2):
        assert run(["train", f"--run_dir={tmp_path}", "--cluster.address=http://nobody", *toy_overrides]) == 2
        assert re.search("http://nobody is a dashboard", capsys.readouterr().err)
        assert (tmp_path / "config.yaml").exists()
