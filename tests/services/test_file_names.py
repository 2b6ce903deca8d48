"""File names that are not UTF-8 work everywhere a path goes: caches, questions, subtitles, JSON lines, the console."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services import jsonl
from services.embeddings import FeatureCache
from services.errors import VideoError
from services.frames import FrameCache
from services.questions import read_questions, scan_questions, write_questions
from services.questions.subtitles import read_subtitles
from services.schema import Question
from tests.services.odd_videos import GBK_NAME
from tests.services.question_files import rows_of, save

ROWS = [
    {"id": name, "video": f"{name}.mp4", "question": "What?", "options": ["red", "blue"], "answer": "A",
     "subtitles": f"{name}.srt"}
    for name in "ab"
]  # fmt: skip


def command(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "cluster.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run(line, capture_output=True, timeout=500, check=False, env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with such a name."""
    folder = tmp_path / GBK_NAME
    folder.mkdir()
    return folder


def test_caches(folder, video, tmp_path):
    path = copied(video, folder / GBK_NAME)
    cache = FrameCache(folder / "cache", 8, 60)
    known = cache.add(path)
    assert known.path == str(path) and cache.find(path) == known == cache.video(known.key)
    plain = FrameCache(tmp_path / "plain", 8, 60)
    assert plain.add(video).key == known.key  # the content decides, not the name
    np.testing.assert_array_equal(cache.read(known.key, [3]), plain.read(known.key, [3]))
    features = np.ones((12, 4), np.float16)
    FeatureCache(folder / "cache", "clip").put(known.key, features)
    np.testing.assert_array_equal(FeatureCache(folder / "cache", "clip").get(known.key), features)
    path.write_bytes(b"no video" * 99)
    for _ in range(2):
        with pytest.raises(VideoError, match="not a readable video"):
            cache.add(path)
    cache.close()
    plain.close()


def copied(source: Path, to: Path) -> Path:
    to.write_bytes(source.read_bytes())
    return to


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_questions_in_such_a_folder(suffix, folder, tmp_path):
    path = save(tmp_path / f"q.{suffix}", ROWS).rename(folder / f"q.{suffix}")
    read = read_questions(path)
    assert [one.video for one in read] == [str(folder / "a.mp4"), str(folder / "b.mp4")]
    assert read == list(scan_questions(path).questions)
    (folder / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n")
    assert read_subtitles(read[0].subtitles)[0].text == "Hello"
    for name in ("again.parquet", "again.jsonl"):
        for place in (folder, tmp_path):
            write_questions(read, place / name)
            assert read_questions(place / name) == read


def test_a_question_file_of_such_a_name(folder):
    path = save(folder / f"{GBK_NAME}.jsonl", rows_of("easyr1.jsonl"))
    ids = [one.id for one in read_questions(path)]
    assert len(ids) == 2 and all(one.encode() for one in ids)


def test_a_question_file_names_such_a_video(tmp_path):
    address = "file://videos/%CA%D3%C6%B5%20100%2541.mkv"
    (tmp_path / "videos").mkdir()
    rows = [ROWS[0] | {"video": address}, ROWS[1] | {"video": "file:///a/100%25.mp4"}]
    read = read_questions(save(tmp_path / "q.parquet", rows))
    assert [one.video for one in read] == [str(tmp_path / "videos" / GBK_NAME), "/a/100%.mp4"]
    (tmp_path / "100%25.mp4").touch()  # as it stands, where that is there
    rows = [ROWS[0] | {"video": f"file://{tmp_path}/100%25.mp4"}]
    assert read_questions(save(tmp_path / "p.parquet", rows))[0].video == str(tmp_path / "100%25.mp4")


def test_json_lines(tmp_path):
    row = {"video": f"/v/{GBK_NAME}", "text": "视频 \\udcca"}
    jsonl.append(tmp_path / "x.jsonl", [row])
    assert list(jsonl.read(tmp_path / "x.jsonl")) == [row]


def test_the_console(folder):
    path = save(folder / f"{GBK_NAME}.jsonl", ROWS)
    page = command("questions", path)
    assert page.returncode == 0 and b"\\udcca" in page.stdout, page.stderr
    done = command("questions", path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == str(path) and said["first"][0]["video"] == str(folder / "a.mp4")


def test_peek(folder, video):
    path = copied(video, folder / GBK_NAME)
    done = command("peek", path, "--at", 3, "--cache", folder / "cache", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (folder / "out").iterdir()] == [f"{path.stem}-00003.png"]
    none = command("peek", folder / f"no{GBK_NAME}", "--at", 3, "--cache", folder / "cache")
    assert none.returncode == 2 and b"msjoe: " in none.stderr and b"Traceback" not in none.stderr


def test_a_question_keeps_such_paths_when_it_is_changed(folder, tmp_path):
    question = Question("a", str(folder / "a.mp4"), "What?", ("x", "y"), "A", subtitles=str(folder / "ä 50%.srt"))
    write_questions([question, replace(question, id="b", video="/v/ä 50%.mp4")], tmp_path / "x.parquet")
    assert [one.video for one in read_questions(tmp_path / "x.parquet")] == [question.video, "/v/ä 50%.mp4"]
    assert read_questions(tmp_path / "x.parquet")[0] == question
