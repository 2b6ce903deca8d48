"""What cannot be taken is named with its row, field and reason, and costs nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from services.errors import UserError
from services.questions import read_questions, scan_questions
from tests.services.question_files import DATA, rows_of, save


@pytest.mark.parametrize(
    ("name", "change", "field", "reason"),
    [
        ("videomme.json", {"options": ["A. x", "B. y", "D. z"]}, "options", "lettered A, B, D"),
        ("videomme.json", {"options": "A. x B. y"}, "options", "a list of 2 to 26"),
        ("videomme.json", {"answer": "E"}, "answer", "'E'; valid: one letter of A, B, C, D"),
        ("videomme.json", {"videoID": ""}, "videoID", "non-empty"),
        ("videomme.json", {"duration": None}, "duration", "non-empty"),
        ("longvideobench_val.json", {"correct_choice": 4}, "correct_choice", "an index from 0 to 3"),
        ("longvideobench_val.json", {"candidates": ["one"]}, "candidates", "a list of 2 to 26"),
        ("longvideobench_val.json", {"duration_group": "long"}, "duration_group", "seconds"),
        ("longvideobench_val.json", {"starting_timestamp_for_subtitles": "1"}, "starting_timestamp", "seconds"),
        ("mlvu_1_plotQA.json", {"answer": "Purple"}, "answer", "text of one of the candidates"),
        ("mlvu_1_plotQA.json", {"candidates": ["x", 3]}, "candidates", "strings"),
        ("verl.json", {"prompt": "x"}, "prompt", "a list of messages"),
        ("verl.json", {"prompt": [{"role": "user", "content": "Q?\nA. x\nC. y"}]}, "prompt", "lettered A, C"),
        ("verl.json", {"reward_model": {"style": "rule"}}, "reward_model", "ground_truth"),
        ("verl.json", {"reward_model": {"ground_truth": "D"}}, "reward_model.ground_truth", "none of the options"),
        ("verl.json", {"videos": [{"path": "x"}]}, "videos", "'video'"),
        ("easyr1.jsonl", {"answer": None}, "answer", "None; valid"),
        ("easyr1.jsonl", {"data_source": 3}, "data_source", "string"),
        ("video_r1.json", {"solution": "<answer>E</answer>"}, "solution", "one letter of A, B, C"),
        ("video_r1.json", {"options": []}, "options", "a list of 2 to 26"),
        ("tspo.jsonl", {"original_answer": "B. A sandy shore."}, "original_answer", "none of the options"),
        ("tspo.jsonl", {"video": 1}, "video", "non-empty"),
    ],
)
def test_a_malformed_row_is_named(name, change, field, reason, tmp_path):
    rows = rows_of(name)
    path = save(tmp_path / f"x{Path(name).suffix}", [rows[1], rows[0] | change])
    (bad,) = [one for one in scan_questions(path).refused if one.malformed]
    assert bad.row == "row 2" and bad.field.startswith(field) and reason in bad.reason
    with pytest.raises(UserError) as error:
        read_questions(path)
    assert str(error.value) == f"{path}, row 2, field {bad.field!r}: {bad.reason}"


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"question": "No options here?"}, "row 1, question 2, field 'question'", "no options in it"),
        ({"question": "Gap?\n(A) x\n(C) y"}, "row 1, question 2, field 'question'", "lettered A, C"),
        ({"answer": "E"}, "row 1, question 2, field 'answer'", "'E'"),
        ({"question_type": "reasoning"}, "row 1, question 2, field 'question_type'", "a list of strings"),
        ({"uid": "55"}, "row 1, question 2, field 'uid'", "'55' is already the id of row 1, question 1"),
    ],
)
def test_a_malformed_question_of_lvbench_is_named(change, place, reason, tmp_path):
    rows = rows_of("lvbench_video_info.meta.jsonl")
    rows[0]["qa"][1] |= change
    found = scan_questions(save(tmp_path / "x.jsonl", rows))
    assert len(found.questions) == 46
    (refused,) = found.refused
    assert str(refused).startswith(f"{place}: ") and reason in refused.reason


@pytest.mark.parametrize("asked", [[], None, ["x"]])
def test_a_video_without_questions_is_named(asked, tmp_path):
    rows = rows_of("lvbench_video_info.meta.jsonl")
    rows[2]["qa"] = asked
    (refused,) = scan_questions(save(tmp_path / "x.jsonl", rows)).refused
    assert str(refused).startswith("row 3, field 'qa': ") and refused.malformed


def test_an_id_twice_in_a_benchmark(tmp_path):
    rows = rows_of("videomme.json")[:2]
    rows[1]["question_id"] = rows[0]["question_id"]
    with pytest.raises(UserError, match="row 2, field 'question_id': '001-1' is already the id of row 1"):
        read_questions(save(tmp_path / "x.json", rows))


def test_what_is_left_out_is_counted_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read_questions(DATA / "video_r1.json")) == 2
    (message,) = caplog.messages
    assert (
        "2 questions; 2 rows left out (" in message
        and "problem_type 'regression', not 'multiple choice' (1)" in message
    )
    caplog.clear()
    assert len(read_questions(DATA / "videomme.json")) == 27
    assert not caplog.messages


def test_nothing_to_take():
    with pytest.raises(UserError, match=r"holds no questions that can be taken \(MLVU dev\): open-ended: .* \(2\)"):
        read_questions(DATA / "mlvu_9_summary.json")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_unknown_columns_are_named(suffix, tmp_path):
    path = save(tmp_path / f"x{suffix}", [{"video": "a.mp4", "caption": "A dog."}])
    for read in (read_questions, scan_questions):
        with pytest.raises(UserError, match=r"no known form of questions; its columns are video, caption\.") as error:
            read(path)
        assert "VideoMME (videoID" in str(error.value) and "training format (id, video" in str(error.value)


def test_a_line_that_is_not_json_costs_only_itself(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{\n" + (DATA / "easyr1.jsonl").read_text())
    found = scan_questions(path)
    assert len(found.questions) == 2 and [one.row for one in found.refused] == ["row 1", "row 3"]
    with pytest.raises(UserError, match="row 1: not JSON"):
        read_questions(path)


def test_json_lines_named_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("\n" + (DATA / "tspo.jsonl").read_text())
    assert [one.id for one in read_questions(path)] == ["x-2", "x-3"]
    path.write_text("[{]")
    with pytest.raises(UserError, match=r"x\.json: not JSON"):
        read_questions(path)
