"""Both forms of the training format say the same, and a wrong row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import UserError
from services.questions import read_questions, write_questions
from services.schema import Question

ROW = {"id": "a", "video": "v/1.mp4", "question": "What?", "options": ["red", "blue", "none"], "answer": "B"}


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=["parquet", "jsonl"])
def file(request, tmp_path):
    return tmp_path / f"questions.{request.param}"


def test_read(file, tmp_path):
    rows = [
        {**ROW, "pass_rate": 0.25, "data_source": "web", "extra": [1, 2]},
        {**ROW, "id": "b", "video": "/abs/2.mp4", "pass_rate": None, "data_source": None, "extra": None},
        {
            **ROW,
            "id": "c",
            "video": "../3.mp4",
            "options": ["ja", "näh"],
            "pass_rate": 1.0,
            "data_source": "",
            "extra": [],
        },
    ]
    options = ("red", "blue", "none")
    assert read_questions(write(file, rows)) == [
        Question("a", str(tmp_path / "v/1.mp4"), "What?", options, "B", 0.25, "web"),
        Question("b", "/abs/2.mp4", "What?", options, "B", None, ""),
        Question("c", str(tmp_path.parent / "3.mp4"), "What?", ("ja", "näh"), "B", 1.0, ""),
    ]


def test_optional_fields_and_video_root(file):
    (question,) = read_questions(write(file, [ROW]), Path("/videos"))
    assert question == Question("a", "/videos/v/1.mp4", "What?", ("red", "blue", "none"), "B", None, "")


def test_groups_and_subtitles(file):
    row = {**ROW, "group": ["long", "count"], "subtitles": "s/1.srt", "subtitle_offset": 2}
    (question,) = read_questions(write(file, [row]), Path("/videos"))
    assert (question.group, question.subtitles, question.subtitle_offset) == (("long", "count"), "/videos/s/1.srt", 2.0)


@pytest.mark.parametrize("moments", [[[1, 2.5], [7, 7]], [[[1, 2.5]], [[7, 7]]]])
def test_evidence(moments, file):
    (question,) = read_questions(write(file, [{**ROW, "moments": moments, "wanted_queries": ["a red star"]}]))
    assert question.moments == (((1.0, 2.5),), ((7.0, 7.0),))
    assert question.wanted_queries == ("a red star",)


def test_evidence_by_frame_numbers(file):
    (question,) = read_questions(write(file, [{**ROW, "moment_frames": [0, 50]}]))
    assert question.moment_frames == (0, 50)


def test_written_is_read_back(file):
    questions = [
        Question("a", "/v/1.mp4", 'Quote " and\nline', ("x", "ÿ"), "A", 0.125, "web"),
        Question("b", "/v/2.mp4", "Why?", tuple("pqrst"), "E"),
        Question("c", "/v/3.mp4", "Who?", ("x", "y"), "B", group=("a", "b"), subtitles="/s.srt", subtitle_offset=1.5),
        Question("d", "/v/4.mp4", "?", ("x", "y"), "A", moments=(((0.0, 1.5), (3.0, 4.0)), ((2.0, 2.0),))),
        Question("e", "/v/5.mp4", "?", ("x", "y"), "A", wanted_queries=("a cat", "a dog")),
        Question("f", "/v/6.mp4", "?", ("x", "y"), "A", moment_frames=(25, 7)),
    ]
    write_questions(questions, file)
    assert read_questions(file) == questions


@pytest.mark.parametrize(
    ("change", "field", "valid"),
    [
        ({"id": ""}, "id", "non-empty"),
        ({"id": 7}, "id", "non-empty string"),
        ({"video": None}, "video", "non-empty"),
        ({"question": "  "}, "question", "non-empty"),
        ({"options": ["only"]}, "options", "2 to 26"),
        ({"options": ["x", ""]}, "options", "2 to 26"),
        ({"options": [str(n) for n in range(27)]}, "options", "2 to 26"),
        ({"options": "red, blue"}, "options", "2 to 26"),
        ({"answer": "D"}, "answer", "A, B, C"),
        ({"answer": "b"}, "answer", "A, B, C"),
        ({"answer": "AB"}, "answer", "A, B, C"),
        ({"answer": 1}, "answer", "A, B, C"),
        ({"pass_rate": 1.5}, "pass_rate", "0 to 1"),
        ({"pass_rate": "0.5"}, "pass_rate", "0 to 1"),
        ({"pass_rate": float("nan")}, "pass_rate", "0 to 1"),
        ({"pass_rate": True}, "pass_rate", "0 to 1"),
        ({"data_source": 3}, "data_source", "string"),
        ({"group": "long"}, "group", "list of strings"),
        ({"group": [1]}, "group", "list of strings"),
        ({"subtitles": 3}, "subtitles", "string"),
        ({"subtitle_offset": "3"}, "subtitle_offset", "number"),
        ({"subtitle_offset": float("inf")}, "subtitle_offset", "number"),
        ({"moments": "1-2"}, "moments", "[start, end] in seconds"),
        ({"moments": [1, 2]}, "moments", "[start, end] in seconds"),
        ({"moments": [[2, 1]]}, "moments", "0 <= start <= end"),
        ({"moments": [[-1.0, 1.0]]}, "moments", "0 <= start <= end"),
        ({"moments": [[1.0, float("nan")]]}, "moments", "0 <= start <= end"),
        ({"moments": [[1, 2, 3]]}, "moments", "[start, end] in seconds"),
        ({"moments": [[[1, 2]], []]}, "moments", "a list of such spans"),
        ({"moments": [["00:01", "00:02"]]}, "moments", "[start, end] in seconds"),
        ({"moment_frames": 7}, "moment_frames", "a list of frame numbers from 0"),
        ({"moment_frames": [1.5]}, "moment_frames", "a list of frame numbers from 0"),
        ({"moment_frames": [-1]}, "moment_frames", "a list of frame numbers from 0"),
        ({"wanted_queries": "a cat"}, "wanted_queries", "list of non-empty strings"),
        ({"wanted_queries": ["a cat", " "]}, "wanted_queries", "list of non-empty strings"),
    ],
)
def test_a_wrong_field_is_named_with_its_row(change, field, valid, tmp_path):
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"one.{suffix}"
        with pytest.raises(UserError) as error:
            read_questions(write(path, [{**ROW, **change}]))
        assert f"{path}, row 1, field '{field}'" in str(error.value) and valid in str(error.value)
    path = write(tmp_path / "q.jsonl", [ROW, {**ROW, "id": "b", **change}])
    path.write_text("\n" + path.read_text())
    with pytest.raises(UserError, match=f"row 3, field '{field}'"):
        read_questions(path)


@pytest.mark.parametrize("field", ["id", "video", "question", "options", "answer"])
def test_a_missing_field_is_named(field, file):
    with pytest.raises(UserError, match=f"row 1, field '{field}': missing"):
        read_questions(write(file, [{key: value for key, value in ROW.items() if key != field}]))


def test_an_id_twice(file):
    with pytest.raises(UserError, match="row 3, field 'id': 'a' is already the id of row 1"):
        read_questions(write(file, [ROW, {**ROW, "id": "b"}, ROW]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "no such"),
        ("q.csv", b"id", "valid: .parquet, .jsonl"),
        ("q.jsonl", b"", "holds no questions"),
        ("q.jsonl", b"\n{]\n", "row 2: not JSON"),
        ("q.jsonl", b"\xff\n", "row 1: not JSON"),
        ("q.jsonl", b"[1]\n", "row 1: list instead of an object"),
        ("q.parquet", b"no parquet", "not a readable parquet"),
        ("q.parquet", b"", "not a readable parquet"),
    ],
)
def test_a_file_that_is_none(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_questions(path)
    assert str(path) in str(error.value)


def test_no_rows(tmp_path):
    write_questions([], tmp_path / "q.parquet")
    with pytest.raises(UserError, match="holds no questions"):
        read_questions(tmp_path / "q.parquet")
    with pytest.raises(UserError, match="valid: .parquet, .jsonl"):
        write_questions([], tmp_path / "q.csv")


def test_a_question_without_an_answer_is_not_written(file):
    question = Question("q8", "/v.mp4", "What?", ("red", "blue"))
    with pytest.raises(UserError, match="question q8: its answer is not known"):
        write_questions([question], file)
    assert not file.exists()
