"""Subtitle files of the benchmarks, and where their lines stand among frames."""

from __future__ import annotations

import json
import math

import pytest

from services.errors import UserError
from services.questions.subtitles import Subtitle, interleave, overlapping, read_subtitles

SRT = """\ufeff1
00:00:01,500 --> 00:00:03,000
<font color="white" size=".72c">Good morning,</font>
everyone.

2
00:01:00,000 --> 00:01:02,250 align:start

3
01:00:05,040 --> 01:00:07,000
{\\an8}1984

and after.
4
01:00:09,000 --> 01:00:10,000
42
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_srt(newline, tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(SRT.replace("\n", newline).encode())
    expected = (
        Subtitle(1.5, 3.0, "Good morning, everyone."),
        Subtitle(3605.04, 3607.0, "1984 and after."),
        Subtitle(3609.0, 3610.0, "42"),
    )
    assert read_subtitles(path) == expected
    assert read_subtitles(str(path), offset=1.5)[0] == Subtitle(0.0, 1.5, "Good morning, everyone.")


def test_both_json_shapes(tmp_path):
    written = [
        {"start": "00:00:12.500", "end": "00:00:14.000", "line": "second"},
        {"start": "00:00:10.000", "end": "00:00:12.500", "line": " first \nof all "},
    ]
    spoken = [
        {"timestamp": [10.0, 12.5], "text": " first of all"},
        {"timestamp": [12.5, 14], "text": "second"},
        {"timestamp": [20.0, None], "text": "open"},
        {"timestamp": [21.0, 22.0], "text": " "},
    ]
    (tmp_path / "w.json").write_text(json.dumps(written))
    (tmp_path / "s.json").write_text(json.dumps(spoken))
    both = (Subtitle(0.0, 2.5, "first of all"), Subtitle(2.5, 4.0, "second"))
    assert read_subtitles(tmp_path / "w.json", 10.0) == both
    assert read_subtitles(tmp_path / "s.json", 10.0) == (*both, Subtitle(10.0, math.inf, "open"))
    assert read_subtitles(tmp_path / "s.json", 10.0, duration=13.0)[2] == Subtitle(10.0, 13.0, "open")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.srt", "1\n00:00:01,500 -> 00:00:03,000\nHi", "before the first line of times"),
        ("a.srt", "1\n00:00:01,500 --> 3\nHi", r"line 2: '00:00:01,500 --> 3'; valid: 00:00:01,500 -->"),
        ("a.srt", "Hello", "'Hello' before the first line of times"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"start": 1}', "dict instead of a list"),
        ("a.json", '[{"timestamp": [1, 2], "text": "x"}, {"timestamp": [1], "text": "x"}]', "subtitle 2: .*; valid"),
        ("a.json", '[{"timestamp": [null, 2], "text": "x"}]', "subtitle 1"),
        ("a.json", '[{"start": "1", "end": "00:00:02", "line": "x"}]', "subtitle 1"),
        ("a.json", '[{"start": "00:00:01", "end": "00:00:02", "text": "x"}]', "subtitle 1"),
        ("a.json", '["x"]', "subtitle 1"),
        ("a.ass", "[Events]", r"unknown kind of subtitles '.ass'; valid: .srt, .vtt, .json"),
        ("b.srt", None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_subtitles(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_no_subtitles_in_a_file(tmp_path):
    (tmp_path / "a.srt").write_text("\n")
    (tmp_path / "a.json").write_text("[]")
    assert read_subtitles(tmp_path / "a.srt") == read_subtitles(tmp_path / "a.json") == ()


LINES = (
    Subtitle(0.0, 4.0, "long"),
    Subtitle(5.0, 7.0, "five to seven"),
    Subtitle(9.7, 9.9, "short"),
    Subtitle(20.0, math.inf, "open"),
)


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        ([1, 2, 3], ["long"]),
        ([0], ["long"]),
        ([4], []),
        ([5, 6], ["five to seven"]),
        ([7], []),
        ([10], ["short"]),
        ([9.3], ["short"]),
        ([9.2, 10.4], []),
        ([30, 6, 1], ["long", "five to seven", "open"]),
        ([], []),
    ],
)
def test_overlapping(seconds, texts):
    assert [subtitle.text for subtitle in overlapping(LINES, seconds)] == texts


def test_interleave():
    assert interleave([1, 2, 6, 10, 25], LINES) == [
        ("frame", 0),
        ("frame", 1),
        ("subtitle", "long"),
        ("frame", 2),
        ("subtitle", "five to seven"),
        ("subtitle", "short"),
        ("frame", 3),
        ("frame", 4),
        ("subtitle", "open"),
    ]
    assert interleave([3, 4], ()) == [("frame", 0), ("frame", 1)]
    assert interleave([], LINES[:1]) == [("subtitle", "long")]


def test_subtitles_keep_their_order_where_they_overlap():
    lines = (Subtitle(0.0, 20.0, "first"), Subtitle(1.0, 3.0, "second"))
    assert [part for part in interleave([0, 5, 15], lines) if part[0] == "subtitle"] == [
        ("subtitle", "first"),
        ("subtitle", "second"),
    ]
