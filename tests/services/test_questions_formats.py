"""Every published form is recognised by its columns and read as it is; what it does not hold is named with its row.

The files and where their rows are from: `tests/data/questions/README.md`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from services.questions import read_questions, scan_questions, write_questions
from services.schema import Question
from tests.services.question_files import DATA, rows_of, save

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
        ("videomme_v2.json", "Video-MME-v2", "A1 B1 C1 E1 F1 G1 H2", {}, []),
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
    assert Counter(group for question in found.questions for group in question.group if ": " not in group) == groups
    assert [str(one).startswith(start) for one, start in zip(found.refused, refused, strict=True)] == [True] * len(
        refused
    )
    assert not any(one.malformed for one in found.refused)
    assert all(question.answer in "ABCDEFGH"[: len(question.options)] for question in found.questions)


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
        group=("short", "domain: Knowledge", "sub-category: Humanity & History", "task type: Counting Problem"),
    )
    assert question("videomme_v2.json", 7) == Question(
        "002-4",
        "/videos/002.mp4",
        "What can be seen in part 4?",
        ("Red.", "Blue.", "Green.", "White.", "Black.", "Yellow.", "Pink.", "None."),
        "C",
        data_source="Video-MME-v2",
        group=("group type: logic [1, [2, 3], 4]", "level: 2", "second head: Action & Motion", "third head: Counting"),
    )
    assert question("videomme_v2.json").group == ("group type: relevance",)
    assert question("longvideobench_val.json", 2) == Question(
        "9PD3ciudpIE_0",
        "/videos/9PD3ciudpIE.mp4",
        "In front of an ancient building, a woman walks by holding something. When the subtitle says 'temples "
        "scattered throughout the', what color is the woman's clothing at that moment?",
        ("yellow", "green", "blue", "red"),
        "A",
        data_source="LongVideoBench",
        group=("600", "category: T2A", "level: L1-Perception"),
        subtitles="/videos/9PD3ciudpIE_en.json",
        moment_frames=(3068,),
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
        moments=(((118.0, 166.0),),),
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


@pytest.mark.parametrize(
    ("reference", "moments"),
    [
        ("00:15-00:19", (((15.0, 19.0),),)),
        ("22:42-22:42", (((1362.0, 1362.0),),)),
        ("59:04-63:48", (((3544.0, 3828.0),),)),
        ("59:04 - 1:03:48", (((3544.0, 3828.0),),)),
        ("33:52-33:46", ()),  # as released
        ("33:52", ()),
        ("0:61-2:00", ()),
        (None, ()),
        (["00:15", "00:19"], ()),
    ],
)
def test_lvbench_says_where_the_answer_lies(reference, moments, tmp_path):
    rows = rows_of("lvbench_video_info.meta.jsonl")[:1]
    rows[0]["qa"] = [rows[0]["qa"][0] | {"time_reference": reference}]
    (read,) = read_questions(save(tmp_path / "x.jsonl", rows))
    assert read.moments == moments


@pytest.mark.parametrize(
    ("position", "frames"),
    [([8438, 8450.0], (8438, 8450)), ([], ()), (None, ()), ([-1, 4], ()), ("7", ()), ([1.5], ())],
)
def test_longvideobench_names_frames(position, frames, tmp_path):
    row = rows_of("longvideobench_val.json")[0] | {"position": position}
    (read,) = read_questions(save(tmp_path / "x.json", [row]))
    assert read.moment_frames == frames


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


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["lvbench_video_info.meta.jsonl", "longvideobench_val.json"])
def test_written_as_training_format_nothing_is_lost(name, suffix, tmp_path):
    questions = read_questions(DATA / name, Path("/videos"))
    write_questions(questions, tmp_path / f"x{suffix}")
    assert read_questions(tmp_path / f"x{suffix}") == questions
