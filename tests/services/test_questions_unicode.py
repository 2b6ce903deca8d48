"""Text that is not Unicode costs its own row, named with its field; whole numbers may be floats, as tables with gaps
write them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import UserError
from services.questions import read_questions, scan_questions, write_questions
from tests.services.question_files import DATA, rows_of, save

HALF, NUL, LATIN = "\ud83d", "\0", "\ue009"
"""Half an emoji, a NUL, and a mark for the byte that `é` is in Latin-1."""
FIELDS = [
    ("training.jsonl", "id"), ("training.jsonl", "video"), ("training.jsonl", "question"),
    ("training.jsonl", "options"), ("training.jsonl", "answer"), ("training.jsonl", "data_source"),
    ("training.jsonl", "group"), ("training.jsonl", "subtitles"), ("training.jsonl", "pass_rate_model"),
    ("verl.json", "prompt"), ("verl.json", "videos"), ("verl.json", "reward_model"), ("verl.json", "data_source"),
    ("easyr1.jsonl", "problem"), ("easyr1.jsonl", "answer"), ("easyr1.jsonl", "videos"),
    ("longvila_r1.jsonl", "videos"), ("longvila_r1.jsonl", "problem_type"),
    ("video_r1.json", "problem"), ("video_r1.json", "options"), ("video_r1.json", "solution"),
    ("video_r1.json", "path"), ("tspo.jsonl", "original_question"), ("tspo.jsonl", "original_answer"),
    ("tspo.jsonl", "video"), ("videomme.json", "videoID"), ("videomme.json", "question_id"),
    ("videomme.json", "options"), ("videomme.json", "answer"), ("videomme.json", "duration"),
    ("longvideobench_val.json", "id"), ("longvideobench_val.json", "video_path"),
    ("longvideobench_val.json", "candidates"), ("longvideobench_val.json", "subtitle_path"),
    ("lvbench_video_info.meta.jsonl", "qa"), ("lvbench_video_info.meta.jsonl", "key"),
    ("mlvu_1_plotQA.json", "video"), ("mlvu_1_plotQA.json", "question_type"), ("mlvu_1_plotQA.json", "answer"),
    ("mlvu_1_plotQA.json", "candidates"), ("mlvu_test.json", "question"),
]  # fmt: skip
"""Every field of text that a form reads."""
TRAINING = [
    {
        "id": name,
        "video": "v.mp4",
        "question": "What?",
        "options": ["red", "blue"],
        "answer": "B",
        "data_source": "web",
        "group": ["long"],
        "subtitles": "s.srt",
        "pass_rate_model": "m",
    }
    for name in "ab"
]


def rows_of_form(name: str) -> list[dict]:
    return TRAINING if name == "training.jsonl" else rows_of(name)[:2]


def spoilt(value: Any, by: str) -> Any:
    """The same with `by` at the end of every text in it."""
    if isinstance(value, dict):
        return {name: part if name in ("role", "style") else spoilt(part, by) for name, part in value.items()}
    if isinstance(value, list):
        return [spoilt(part, by) for part in value]
    return value + by if isinstance(value, str) else value


def parquet_in_latin1(path: Path, rows: list[dict]) -> Path:
    """A parquet file whose text has a Latin-1 byte wherever `rows` have the mark."""
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(LATIN.encode(), b"\xe9  "))
    return path


def json_in_latin1(path: Path, rows: list[dict]) -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    path.write_bytes(path.read_bytes().replace(LATIN.encode(), b"\xe9"))
    return path


WRITERS: dict[str, tuple[str, str, Callable[[Path, list[dict]], Path]]] = {
    "half an emoji in JSON lines": (HALF, "jsonl", save),
    "half an emoji in JSON": (HALF, "json", save),
    "NUL in JSON": (NUL, "json", save),
    "NUL in parquet": (NUL, "parquet", save),
    "Latin-1 in parquet": (LATIN, "parquet", parquet_in_latin1),
    "Latin-1 in JSON lines": (LATIN, "jsonl", json_in_latin1),
}


@pytest.mark.parametrize("way", WRITERS)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_text_that_is_not_unicode_costs_its_row(name, field, way, tmp_path, caplog):
    by, suffix, write = WRITERS[way]
    good, bad = rows_of_form(name)[1], rows_of_form(name)[0]
    path = write(tmp_path / f"x.{suffix}", [good, {**bad, field: spoilt(bad[field], by)}])
    found = scan_questions(path)
    refused = [one for one in found.refused if one.malformed]
    assert refused and all(one.row.startswith("row 2") and not one.readable for one in refused)
    if field != "qa":  # whose fields are named themselves
        assert {one.field.split(".")[0] for one in refused} == {field}
    str(refused[0]).encode()  # can be printed
    if found.questions:  # else the other row holds none by its nature
        with caplog.at_level(logging.WARNING):
            assert read_questions(path) == list(found.questions)
        assert str(path) in caplog.text and str(refused[0]) in caplog.text


def test_a_file_of_nothing_else_says_where(tmp_path):
    row = TRAINING[0] | {"question": f"What is this {HALF}"}
    with pytest.raises(UserError, match=r"x\.jsonl: holds no questions .* row 1, field 'question': .*\\ud83d"):
        read_questions(save(tmp_path / "x.jsonl", [row]))


def test_text_that_is_not_read_may_be_anything(tmp_path):
    rows = [TRAINING[0] | {"note": HALF}, TRAINING[1] | {"note": NUL}]
    assert len(read_questions(save(tmp_path / "x.jsonl", rows))) == 2


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_that_python_cannot_hold(suffix, content, tmp_path):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not JSON"):
        read_questions(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_whole_numbers_that_a_table_made_floats(suffix, tmp_path):
    measured = [TRAINING[0] | {"pass_rate": 0.5, "pass_rate_samples": 8.0}, TRAINING[1] | {"pass_rate_samples": None}]
    read = read_questions(save(tmp_path / f"x.{suffix}", measured))
    assert [one.pass_rate_samples for one in read] == [8, None] and type(read[0].pass_rate_samples) is int
    write_questions(read, tmp_path / "again.parquet")
    assert read_questions(tmp_path / "again.parquet") == read

    rows = rows_of("longvideobench_val.json")[:3]
    rows[0] |= {"correct_choice": float(rows[0]["correct_choice"]), "duration_group": 600.0}
    rows[1]["correct_choice"] = float("nan")
    rows[2]["correct_choice"] = -1.0
    found = scan_questions(save(tmp_path / f"l.{suffix}", rows))
    assert [one.reason for one in found.refused] == ["no answer is published"] * 2
    official = scan_questions(DATA / "longvideobench_val.json").questions[0]
    assert [(one.id, one.answer, one.group) for one in found.questions] == [
        (official.id, official.answer, official.group)
    ]

    rows = rows_of("lvbench_video_info.meta.jsonl")[:1]
    for question in rows[0]["qa"]:
        question["uid"] = float(question["uid"])
    assert (
        read_questions(save(tmp_path / f"v.{suffix}", rows))[0].id
        == rows_of("lvbench_video_info.meta.jsonl")[0]["qa"][0]["uid"]
    )

    rows = [row | {"answer": float(row["answer"])} for row in rows_of("mlvu_4_count.json")]
    assert [one.answer for one in read_questions(save(tmp_path / f"m.{suffix}", rows))] == [
        one.answer for one in read_questions(DATA / "mlvu_4_count.json")
    ]


def test_through_pandas(tmp_path):
    rows = [{**TRAINING[0], "pass_rate_samples": 8, "pass_rate": 0.5}, TRAINING[1]]
    save(tmp_path / "x.parquet", rows)
    pd.read_parquet(tmp_path / "x.parquet").to_parquet(tmp_path / "y.parquet")
    assert read_questions(tmp_path / "y.parquet") == read_questions(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pass_rate_samples": 8.5}, "pass_rate_samples"),
        ({"pass_rate_samples": 0.0}, "pass_rate_samples"),
        ({"pass_rate_samples": True}, "pass_rate_samples"),
        ({"pass_rate_samples": 10**30}, "pass_rate_samples"),
        ({"pass_rate_samples": float("nan")}, "pass_rate_samples"),
        ({"pass_rate_samples": [8.0]}, "pass_rate_samples"),
        ({"subtitle_offset": 10**400}, "subtitle_offset"),
        ({"subtitle_offset": False}, "subtitle_offset"),
        ({"subtitle_offset": float("nan")}, "subtitle_offset"),
    ],
)
def test_numbers_that_are_none(change, field, tmp_path):
    with pytest.raises(UserError, match=f"row 1, field '{field}'"):
        read_questions(save(tmp_path / "x.jsonl", [TRAINING[0] | change]))
