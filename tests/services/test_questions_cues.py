"""Subtitle files as people have them: what is text and what is markup, encodings, WebVTT, and times that are none."""

from __future__ import annotations

import json
import math

import pytest

from services.errors import UserError
from services.questions.subtitles import Subtitle, read_subtitles


def texts(path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [subtitle.text for subtitle in read_subtitles(path)]


def srt(*said: str) -> str:
    return "\n".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{text}\n" for n, text in enumerate(said, start=1))


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("a MyValue<String> or vector<int>", "a MyValue<String> or vector<int>"),
        ("Map<K, V>, f<a.b>, <int> and x <- y", "Map<K, V>, f<a.b>, <int> and x <- y"),
        ("<今から 70年ほど前>", "<今から 70年ほど前>"),
        ("if a < b and c > d", "if a < b and c > d"),
        ("a <b and c> d", "a <b and c> d"),
        ("<video> and <|im_end|> {x} {\\x", "<video> and <|im_end|> {x} {\\x"),
        ("<i>red</i>, <B>blue</B> <u>x</u> <s>y</s>", "red, blue x y"),
        ('<font color="#fff" size=".7c">red</font> <FONT>x</FONT>', "red x"),
        ("<font\ncolor='red'>two\nlines</font><br>three<br/>four", "two lines three four"),
        ("<c.yellow.bg_blue>red</c><c> x</c><b.loud>!</b>", "red x!"),
        ("<v Mary Ann>Hello</v> <v.loud Bob>Hi", "Hello Hi"),
        ("<lang en>so</lang> <ruby>a<rt>b</rt></ruby>", "so ab"),
        ("<00:00:01.000>one<00:01.500> two", "one two"),
        ("{\\an8}{\\i1}up{\\i0}", "up"),
        ("&quot;stop&quot; &amp; &lt;i&gt;go&lt;/i&gt; &#39;x&#x27;&nbsp;y", "\"stop\" & <i>go</i> 'x' y"),
        ("AT&T; &copy, &unknown; R&D", "AT&T; &copy, &unknown; R&D"),
        ("THAT LIGHT -->> THEY WILL\nCONTINUE", "THAT LIGHT -->> THEY WILL CONTINUE"),
        ("A --> B\n3 --> 4\n-->\n10:30 --> 11:00", "A --> B 3 --> 4 --> 10:30 --> 11:00"),
        ("Room 10:30 --> hall", "Room 10:30 --> hall"),
        ("line one\n\n1984\nline two", "line one 1984 line two"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["srt", "json"])
def test_markup_and_text(written, text, suffix, tmp_path):
    spoken = json.dumps([{"timestamp": [1, 2], "text": written}, {"timestamp": [2, 3], "text": "next"}])
    content = srt(written, "next") if suffix == "srt" else spoken
    assert texts(tmp_path / f"a.{suffix}", content) == [text, "next"]


FRENCH = srt("Voilà l'été, dit-il — «déjà»…", "Où est le café ?", "Élan, œuvre, garçon")
CHINESE = srt("你好，这是一个红色的球。", "再见", "<i>我们</i>走吧 OK？")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [(FRENCH, name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")]
    + [(CHINESE, name) for name in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "gbk", "gb18030")]
    + [(FRENCH[:40].replace("à", "ÿ"), "cp1252"), (srt("élan"), "cp1252"), (srt("红"), "gbk"), (srt("Año"), "cp1252")],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings(content, encoding, newline, tmp_path):
    read = texts(tmp_path / "a.srt", content.replace("\n", newline).encode(encoding))
    assert read and read == texts(tmp_path / "b.srt", content)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_with_its_mark(mark, tmp_path):
    encoded = CHINESE.encode("utf-16-le" if mark[0] == 0xFF else "utf-16-be")
    assert texts(tmp_path / "a.srt", mark + encoded) == texts(tmp_path / "b.srt", CHINESE)


KOREAN = srt("안녕하세요 여러분 오늘은 빨간 공을 보겠습니다", "그 사람은 어디로 갔습니까 나는 모르겠습니다 정말")


@pytest.mark.parametrize(
    "content",
    [
        srt("Где красный мяч? Я не знаю.").encode("cp1251"),
        srt("Где красный мяч? Я не знаю.").encode("koi8-r"),
        srt("これは赤いボールです。").encode("shift_jis"),
        srt("これは赤いボールです。").encode("euc-jp"),
        KOREAN.encode("euc-kr"),
        FRENCH.encode("utf-16") + b"x",
    ],
)
def test_an_encoding_that_is_not_known_is_refused(content, tmp_path):
    with pytest.raises(UserError, match=r"a\.srt: (its encoding is not known.*save it as UTF-8|.*utf-16)"):
        texts(tmp_path / "a.srt", content)


VTT = """WEBVTT - a title
Kind: captions
X-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000

NOTE it may hold
several lines, and an arrow --> too

STYLE
::cue(v[voice="Bob"]) { color: red }

intro
00:01.500 --> 00:03.000 position:10%,line-left align:start
<v Bob>Good <00:02.000><c>morning</c>

not a cue

7
01:00:05.040 --> 01:00:07.000
1984

01:00:09.000 --> 01:00:10.000
42
"""


@pytest.mark.parametrize("name", ["a.vtt", "a.srt", "A.VTT"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_webvtt(name, newline, tmp_path):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + VTT.replace("\n", newline).encode())
    assert read_subtitles(tmp_path / name) == (
        Subtitle(1.5, 3.0, "Good morning"),
        Subtitle(3605.04, 3607.0, "1984"),
        Subtitle(3609.0, 3610.0, "42"),
    )
    (tmp_path / name).write_text("WEBVTT\n")
    assert read_subtitles(tmp_path / name) == ()


def test_srt_with_a_title_and_a_negative_start(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("A film\nby A. Person, 2:30\n\n1\n-00:00:01,000 --> 00:00:02,000 X1:10 Y1:2\nHello\n\n2\n"
                    "00:00:03,000 --> 00:00:04,000\nBye\n\n3\n")  # fmt: skip
    assert read_subtitles(path) == (Subtitle(-1.0, 2.0, "Hello"), Subtitle(3.0, 4.0, "Bye"))
    path = tmp_path / "a.json"
    path.write_text('[{"start": "-00:00:01.000", "end": "00:00:02", "line": "Hello"}]')
    assert read_subtitles(path, offset=1) == (Subtitle(-2.0, 1.0, "Hello"),)


GOOD = srt("Hello") + "\n"


@pytest.mark.parametrize(
    "times",
    [
        "NaN:NaN:NaN,NaN --> NaN:NaN:NaN,NaN",
        "00:00:02,000 --> NaN",
        "nan --> nan",
        "00:00:02,000 -->",
        "--> 00:00:02,000",
        "00:00:02,000 --> 00:",
        "00:00:02,000 --> 0",
        "00:00:0x,000 --> 00:00:03,000",
        "00:00:02,000 --> you",
        "00:00:02,000 -> 00:00:03,000",
        "00:00:02,000 – 00:00:03,000",
        "00:00:02,000 --",
        "00:00:02,0",
        "00:0",
        "0",
        "2 --> 3",
        "99999999999:00:00,000 --> 99999999999:00:01,000",
    ],
)
def test_times_that_are_none_are_refused_with_their_line(times, tmp_path):
    (tmp_path / "a.srt").write_text(f"{GOOD}2\n{times}")
    with pytest.raises(UserError, match=r"a\.srt: .*line 6") as error:
        read_subtitles(tmp_path / "a.srt")
    assert "valid: 00:00:01,500 --> 00:00:03,000" in str(error.value)


@pytest.mark.parametrize("broken", ["NaN:NaN.000 --> 00:02.000", "00:02.000 --> ", "00:02.000 --> 00"])
def test_webvtt_times_that_are_none(broken, tmp_path):
    (tmp_path / "a.vtt").write_text(f"WEBVTT\n\n{broken}\nHello\n")
    with pytest.raises(UserError, match=r"a\.vtt: line 3"):
        read_subtitles(tmp_path / "a.vtt")


@pytest.mark.parametrize(
    "entry",
    [
        '{"timestamp": [NaN, 2], "text": "x"}',
        '{"timestamp": [1, NaN], "text": "x"}',
        '{"timestamp": [1, Infinity], "text": "x"}',
        '{"timestamp": [1, 1e999], "text": "x"}',
        '{"timestamp": [true, 2], "text": "x"}',
        '{"timestamp": [1, 1%s], "text": "x"}' % ("0" * 400),
        '{"start": "NaN", "end": "00:00:02", "line": "x"}',
        '{"timestamp": [1, 2], "text": "\\ud83d"}',
        '{"timestamp": [1, 2], "text": "\\u0000"}',
    ],
)
def test_json_that_is_no_subtitle(entry, tmp_path):
    (tmp_path / "a.json").write_text(f"[{entry}]")
    with pytest.raises(UserError, match=r"a\.json: subtitle .*valid"):
        read_subtitles(tmp_path / "a.json")


def test_json_that_python_cannot_hold(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_subtitles(tmp_path / "a.json")


def test_an_end_that_is_not_said(tmp_path):
    (tmp_path / "a.json").write_text('[{"timestamp": [1, null], "text": "x"}]')
    assert read_subtitles(tmp_path / "a.json") == (Subtitle(1, math.inf, "x"),)
