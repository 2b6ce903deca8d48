"""`msjoe questions`: the page, the JSON, the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import run

DATA = Path(__file__).parents[1] / "data" / "questions"


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def test_page(capsys):
    assert run(["questions", str(DATA / "lvbench_video_info.meta.jsonl"), "--video_root", "/videos"]) == 0
    page = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in page.splitlines()]
    for expected in (
        "recognised as LVBench",
        "questions 47",
        "evidence of 46 questions: where the answer lies",  # one span ends before it starts
        "videos 0 of 3 files found; missing: /videos/28CIeC8cZks.mp4, …",
        "reasoning 9 5 – 2 2",
        "all 47 15 6 12 14",
        "a question may count in several groups",
        "What year appears in the opening caption of the video?",
        "→ D. 1633",
        "A. 1636",
    ):
        assert expected in lines
    assert max(map(len, page.splitlines())) <= 100
    assert "gave no question" not in page


def test_rows_that_gave_none_stand_by_their_reason(tmp_path, capsys):
    rows = json.loads((DATA / "verl.json").read_text())
    rows = [rows[0], *[rows[2]] * 3, rows[4], rows[2], {**rows[0], "reward_model": {"ground_truth": "[bold]E"}}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert run(["questions", str(tmp_path / "x.json")]) == 0
    page = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in page.splitlines()]
    assert "not taken 6 rows: 1 malformed, 5 without a question" in lines
    assert "open-ended: no options in the question 4 2–4, 6" in lines
    assert "no video 1 5" in lines
    assert any(line.startswith("reward_model.ground_truth: '[bold]E' is none of the options") for line in lines)


def test_json(capsys):
    assert run(["questions", str(DATA / "video_r1.json"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["format"] == "Video-R1"
    assert (whole["questions"], whole["videos"], whole["videos_found"]) == (2, 2, 0)
    assert whole["groups"] == {"Crafts": 1, "Rooms": 1} and whole["answers"] == {"A": 1, "D": 1}
    assert [refused["row"] for refused in whole["refused"]] == ["row 2", "row 3"]
    assert whole["refused"][1]["reason"] == "data_type 'image', not 'video'"
    assert [question["id"] for question in whole["first"]] == ["video_r1-1", "video_r1-4"]


def test_exit_code_2_when_nothing_was_taken(tmp_path, capsys):
    assert run(["questions", str(DATA / "mlvu_9_summary.json")]) == 2
    shown = capsys.readouterr()
    assert "open-ended: the task summary has no candidates" in shown.out and "no row gave a question" in shown.err
    assert run(["questions", str(DATA / "mlvu_9_summary.json"), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["refused"]) == 2
    assert run(["questions", str(tmp_path / "none.json")]) == 2
    assert "no such questions file" in capsys.readouterr().err
    assert run(["questions", str(DATA / "tspo.jsonl"), "--policy.model=x"]) == 2
    assert "not --policy.model=x" in capsys.readouterr().err


def test_training_questions_count_by_their_source(tmp_path, capsys):
    row = {"id": "a", "video": "v.mp4", "question": "?", "options": ["x", "y"], "answer": "B", "data_source": "web"}
    (tmp_path / "v.mp4").touch()
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    run(["questions", str(tmp_path / "q.jsonl"), "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert whole["format"] == "training format" and whole["groups"] == {"web": 1} and whole["videos_found"] == 1
