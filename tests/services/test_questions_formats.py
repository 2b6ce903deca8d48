"""Every published form is recognised by its columns and read as it is; what it does not hold is named with its row.

The files and where their rows are from: `tests/data/questions/README.md`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import UserError
from services.questions import read_questions, scan_questions, write_questions
from services.schema import Question

DATA = Path(__file__).parents[1] / "data" / "questions"


def rows_of(name: str) -> list[dict]:
    content = (DATA / name).read_text()
    return json.loads(content) if content.startswith("[") else [json.loads(line) for line in content.splitlines()]


def save(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path


LVBENCH_GROUPS = {
    "event understanding": 24,
    "entity recognition": 18,
    "reasoning": 9,
    "temporal grounding": 5,
    "summarization": 4,
    "key information retrieval": 2,
}


@pytest.mark.parametrize(
    ("name", "form", "answers", "groups", "refused"),
    [
        ("videomme.json", "VideoMME", "A7 B5 C8 D7", {"short": 9, "medium": 9, "long": 9}, []),
        ("longvideobench_val.json", "LongVideoBench", "A10 B4 C6 D7 E3", {"600": 30}, []),
        ("lvbench_video_info.meta.jsonl", "LVBench", "A15 B6 C12 D14", LVBENCH_GROUPS, []),
        ("mlvu_1_plotQA.json", "MLVU dev", "A2 B2 C2 D2", {"plotQA": 8}, []),
        ("mlvu_2_needle.json", "MLVU dev", "A2 B2 D4", {"needle": 8}, []),
        ("mlvu_4_count.json", "MLVU dev", "A1 B3 C2 D2", {"count": 8}, []),
        ("mlvu_9_summary.json", "MLVU dev", "", {}, ["row 1: open-ended", "row 2: open-ended"]),
        ("mlvu_test.json", "MLVU test", "D1 F1", {"plotQA": 1, "sportsQA": 1}, ["row 3: no answer is published"]),
        (
            "verl.json",
            "verl",
            "B1 C1",
            {"kitchen": 1, "street": 1},
            ["row 3: open-ended", "row 4: several videos", "row 5: no video"],
        ),
        ("easyr1.jsonl", "EasyR1", "C2", {"cups": 2}, ["row 2: open-ended"]),
        ("longvila_r1.jsonl", "LongVILA-R1", "B2", {"goal": 1, "temporal": 1}, []),
        (
            "video_r1.json",
            "Video-R1",
            "A1 D1",
            {"Crafts": 1, "Rooms": 1},
            ["row 2: problem_type 'regression'", "row 3: data_type 'image'"],
        ),
        ("tspo.jsonl", "TSPO-10K", "A1 C1", {"general": 1, "specific": 1}, ["row 3: open-ended"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".json", ".jsonl", ".parquet"])
def test_counts(name, form, answers, groups, refused, suffix, tmp_path):
    found = scan_questions(save(tmp_path / f"x{suffix}", rows_of(name)) if suffix else DATA / name)
    assert found.format == form
    counts = Counter(question.answer for question in found.questions)
    assert " ".join(f"{letter}{count}" for letter, count in sorted(counts.items())) == answers
    assert Counter(group for question in found.questions for group in question.group) == groups
    assert [str(one).startswith(start) for one, start in zip(found.refused, refused, strict=True)] == [True] * len(
        refused
    )
    assert not any(one.malformed for one in found.refused)
    assert all(question.answer in "ABCDEFG"[: len(question.options)] for question in found.questions)


def question(name: str, number: int = 0) -> Question:
    return scan_questions(DATA / name, Path("/videos")).questions[number]


def test_benchmark_rows_word_for_word():
    assert question("videomme.json", 2) == Question(
        "001-3",
        "/videos/fFjv93ACGo8.mp4",
        "How many red socks are above the fireplace at the end of this video?",
        ("1.", "4.", "2.", "3."),
        "D",
        data_source="VideoMME",
        group=("short",),
    )
    assert question("longvideobench_val.json", 2) == Question(
        "9PD3ciudpIE_0",
        "/videos/9PD3ciudpIE.mp4",
        "In front of an ancient building, a woman walks by holding something. When the subtitle says 'temples "
        "scattered throughout the', what color is the woman's clothing at that moment?",
        ("yellow", "green", "blue", "red"),
        "A",
        data_source="LongVideoBench",
        group=("600",),
        subtitles="/videos/9PD3ciudpIE_en.json",
    )
    assert question("lvbench_video_info.meta.jsonl", 19) == Question(
        "115",
        "/videos/q01CUy_gwdU.mp4",
        "What happens from 01:58-02:46?",
        (
            "A woman runs, stumbles against a man, and knocks over all his stuff",
            "A woman runs, stumbles against a man, and he cries",
            "A man runs, stumbles against a woman, and she cries",
            "A man runs, stumbles against a woman, and knocks over all her stuff",
        ),
        "D",
        data_source="LVBench",
        group=("summarization", "temporal grounding"),
    )
    assert question("mlvu_4_count.json", 1) == Question(
        "mlvu_4_count-2",
        "/videos/count_151.mp4",
        "In this video, how many times does the scene of the 'shredding paper' action appear in total?",
        ("3", "2", "1", "6"),
        "B",
        data_source="MLVU",
        group=("count",),
    )


def test_training_rows_word_for_word():
    assert question("verl.json") == Question(
        "verl-1",
        "/data/pour.mp4",
        "What is poured first?",
        ("Milk", "Water", "Oil"),
        "B",
        None,
        "kitchen",
        ("kitchen",),
    )
    assert question("verl.json", 1) == Question(
        "verl-2",
        "/videos/street/bus.mp4",
        "Where does the bus stop?",
        ("At the bank", "At the school", "It never stops"),
        "C",
        None,
        "street",
        ("street",),
    )
    assert question("easyr1.jsonl", 1) == Question(
        "easyr1-3", "/videos/cups/2.mp4", "How many cups are there?", ("2", "3", "1"), "C", None, "cups", ("cups",)
    )
    assert question("longvila_r1.jsonl") == Question(
        "longvila_r1-1",
        "/videos/longvila_videos/garden.mp4",
        "Why does the gardener return to the shed?",
        ("To fetch a rake", "To hide from the rain", "To lock the door", "To rest"),
        "B",
        group=("goal",),
    )
    assert question("video_r1.json", 1) == Question(
        "video_r1-4",
        "/videos/Rooms/4.mp4",
        "Who leaves the room last?",
        ("The tall man", "The dog", "The girl", "Nobody"),
        "D",
        None,
        "Rooms",
        ("Rooms",),
    )
    assert question("tspo.jsonl") == Question(
        "tspo-1",
        "/videos/0_30_s/shore.mp4",
        "What opens the film?",
        ("A sandy shore.", "A dark forest.", "A train.", "An elephant."),
        "A",
        None,
        "TSPO-10K",
        ("general",),
    )


def test_verl_content_in_parts(tmp_path):
    row = rows_of("verl.json")[0]
    said = row["prompt"][1]["content"].removeprefix("<video>\n")
    row["prompt"] = [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}, {"type": "text", "text": said}]}]
    for suffix in (".json", ".parquet"):
        (read,) = read_questions(save(tmp_path / f"verl{suffix}", [row]))
        assert read == question("verl.json")


def test_longvideobench_parquet_form(tmp_path):
    rows = rows_of("longvideobench_val.json")
    for row in rows:
        candidates = row.pop("candidates")
        row |= {f"option{index}": text for index, text in enumerate(candidates + ["N/A"] * (5 - len(candidates)))}
    read = read_questions(save(tmp_path / "validation.parquet", rows), Path("/videos"))
    assert read == list(scan_questions(DATA / "longvideobench_val.json", Path("/videos")).questions)


def test_longvideobench_offset_and_test_split(tmp_path):
    row = rows_of("longvideobench_val.json")[0] | {"starting_timestamp_for_subtitles": 12}
    missing = {key: value for key, value in row.items() if key != "correct_choice"}
    hidden = [missing, *({**row, "correct_choice": mark} for mark in (None, -1, "@"))]
    found = scan_questions(save(tmp_path / "lvb.json", [row, *hidden]))
    assert [one.subtitle_offset for one in found.questions] == [12.0]
    assert [str(one) for one in found.refused] == [f"row {number}: no answer is published" for number in (2, 3, 4, 5)]


@pytest.mark.parametrize("name", ["mlvu_1_plotQA.json", "mlvu_2_needle.json", "mlvu_test.json"])
def test_mlvu_parquet_form(name, tmp_path):
    def converted(number: int, row: dict) -> dict:
        lines = [f"({letter}) {text}\n" for letter, text in zip("ABCDEF", row["candidates"], strict=False)]
        answer = "ABCDEF"[row["candidates"].index(row["answer"])] if "answer" in row else None
        task = row["question_type"].replace("findNeedle", "needle")
        whole = row["question"] + "\n" + "".join(lines)
        return {"video_name": row["video"], "question": whole, "candidates": row["candidates"]} | {
            "duration": row["duration"], "answer": answer, "task_type": task, "question_id": f"Q{number}"
        }  # fmt: skip

    rows = [converted(number, row) for number, row in enumerate(rows_of(name))]
    read, official = scan_questions(save(tmp_path / "x.parquet", rows)), scan_questions(DATA / name, tmp_path)
    assert read.format == official.format and len(read.questions) >= 2
    assert [one.id for one in read.questions] == [f"Q{number}" for number in range(len(read.questions))]
    for ours, theirs in zip(read.questions, official.questions, strict=True):
        assert (ours.question, ours.options, ours.answer) == (theirs.question, theirs.options, theirs.answer)
        assert (ours.video, ours.group) == (theirs.video, theirs.group)


def test_mlvu_candidates_that_say_the_same_or_nothing(tmp_path):
    rows = rows_of("mlvu_1_plotQA.json")[:2]
    rows[0] |= {"candidates": ["Six", "Three", "Three", "Eight"], "answer": "Three"}
    rows[1] |= {"candidates": ["", "There is one", "There is none", ""], "answer": "There is none"}
    read = read_questions(save(tmp_path / "x.json", rows))
    assert [one.answer for one in read] == ["B", "C"] and read[1].options[0] == ""


def test_lvbench_ids_may_be_numbers(tmp_path):
    rows = rows_of("lvbench_video_info.meta.jsonl")
    rows[1]["qa"][0]["uid"] = 3630
    assert read_questions(save(tmp_path / "x.jsonl", rows))[18].id == "3630"


@pytest.mark.parametrize(
    ("name", "table", "video", "subtitles"),
    [
        ("videomme.json", "videomme/x.json", "data/fFjv93ACGo8.mp4", "subtitle/fFjv93ACGo8.srt"),
        ("videomme.json", "x.json", "data/fFjv93ACGo8.mp4", "fFjv93ACGo8.srt"),
        ("longvideobench_val.json", "x.json", "videos/86CxyhFV9MI.mp4", "subtitles/86CxyhFV9MI_en.json"),
        ("lvbench_video_info.meta.jsonl", "data/x.jsonl", "scripts/videos/Cm73ma6Ibcs.mp4", None),
        ("mlvu_1_plotQA.json", "json/x.json", "video/1_plotQA/movie101_66.mp4", None),
        ("mlvu_2_needle.json", "json/x.json", "video/2_needle/needle_32.mp4", None),
        ("mlvu_test.json", "test-ground-truth/x.json", "MLVU_Test/video/test_kitchen_1.mp4", None),
    ],
)
def test_official_folders(name, table, video, subtitles, tmp_path):
    for file in filter(None, (video, subtitles, table)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    first = scan_questions(save(tmp_path / table, rows_of(name))).questions[0]
    assert first.video == str(tmp_path / video)
    assert first.subtitles == (str(tmp_path / subtitles) if subtitles else None)


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


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["lvbench_video_info.meta.jsonl", "longvideobench_val.json"])
def test_written_as_training_format_nothing_is_lost(name, suffix, tmp_path):
    questions = read_questions(DATA / name, Path("/videos"))
    write_questions(questions, tmp_path / f"x{suffix}")
    assert read_questions(tmp_path / f"x{suffix}") == questions
