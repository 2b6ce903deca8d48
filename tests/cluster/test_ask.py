"""`msjoe ask`: what cannot be asked is said at once; what was answered is shown on the console and as a page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from actors.prompts import answer_messages, parse_answer
from actors.turns import Answer, Queries
from cluster.asking.ask import Answered, Asked, Stage, settle
from cluster.asking.console import BLOCKS, clock, columns, show, sparkline
from cluster.asking.page import write_page
from cluster.cli import run
from cluster.evaluation.setting import loader
from services.frames import FrameCache
from services.schema import Turn
from tests.services.odd_videos import every, write_video

QUESTION = "What is <b>[red]</b>?"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds."""
    return write_video(tmp_path_factory.mktemp("videos") / "twelve.mp4", every(0.1, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--option=a star"], "--option: 1 given; valid: 2 to 26, or none for a free answer"),
        (["--option=a"] * 27, "--option: 27 given"),
        (["--selector=best"], "--selector=best: valid: unet, tspo, uniform"),
        (["--selector=topk,uniform"], "--selector=topk,uniform: name one value of selector.kind"),
        (["--frames=2,4"], "--frames=2,4: name one number"),
        (["--frames=none"], "--frames=none: valid"),
        (["--frames=1000"], "rollout.max_model_len: 512 cannot hold 2000 visual tokens"),
        (["--model=/nowhere/mllm"], "/nowhere/mllm: no such model folder"),
        (["--checkpoint=/nowhere"], "/nowhere: is neither a run's folder nor one of its checkpoints"),
        (["--prompts.maximum=2"], "prompts.maximum: no such field"),
    ],
)
def test_what_cannot_be_asked(
    options: list[str], message: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(video), QUESTION, *options, f"--data.cache={tmp_path}", f"--out={tmp_path / 'a.html'}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 99)
    for name, message in (("broken", "broken.mp4: not a readable video"), ("none", "none.mp4: no such video")):
        given = ["ask", str(tmp_path / f"{name}.mp4"), QUESTION, f"--data.cache={tmp_path / 'cache'}"]
        assert run(given) == 2
        printed = capsys.readouterr()
        assert message in printed.err and "placing actors" not in printed.out


def test_lines_over_time() -> None:
    assert [clock(second) for second in (0, 59, 3599, 3600, 36061)] == ["0:00", "0:59", "59:59", "1:00:00", "10:01:01"]
    assert columns(6, 100).tolist() == [0, 1, 2, 3, 4, 5]
    assert columns(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert sparkline(np.array([0.1, 0.3, 0.2, 0.1]), 2) == BLOCKS[7] + BLOCKS[4]
    assert sparkline(np.full(5, 0.2), 5) == BLOCKS[0] * 5
    assert len(sparkline(np.random.default_rng(0).random(9999), 80)) == 80


@pytest.fixture(params=[(), ("a star", "a [ring]")], ids=["free", "options"])
def known(request: pytest.FixtureRequest, video: Path, tmp_path: Path) -> tuple[Asked, Answered]:
    """A question and an answer to it, with the frames of a real video."""
    load = loader(None, None, None, [f"--data.cache={tmp_path / 'cache'}"])
    asked = settle(video, QUESTION, request.param, None, "3", load)
    cache = FrameCache.of(asked.cell.config.data, asked.cell.config.frames)
    found = cache.add(video)
    cache.close()
    similarity = (0.2 + 0.1 * np.eye(2, 12, 3)).astype(np.float32)
    ids = np.zeros(1, np.int32)
    query, answer = (
        Turn(ids, ids, np.zeros(1, np.float32), text, truncated=False, version=0, visual=None)
        for text in ("<query>a star</query>", "<script>[red]</script> <answer>B</answer>")
    )
    replied = Answer(answer, *parse_answer(answer.text, len(request.param)))
    stages = [Stage("video decoded", 1.25), Stage("answer written", 0.5)]
    queries = Queries(query, ("a star", "a [ring]"), fallback=False, formatted=True)
    return asked, Answered(found, stages, queries, queries.texts, similarity, (3, 4, 11), replied)


def test_the_console(known: tuple[Asked, Answered]) -> None:
    asked, answered = known
    console = Console(record=True, width=100, file=io.StringIO())
    show(asked, answered, console)
    lines = console.export_text().splitlines()
    assert QUESTION in lines
    place = lines.index("Q1  a star  cosine 0.20 to 0.30")
    low, high = BLOCKS[0], BLOCKS[7]
    expected = [low * 3 + high + low * 8, "", low * 4 + high + low * 7, "   ▲▲      ▲", "0:00    0:12"]
    found = [line[4:].rstrip() for line in lines[place + 1 : place + 6]]
    assert found[0] == expected[0] and found[2:] == expected[2:]
    assert lines[place + 2].startswith("Q2  a [ring]")
    assert "3 frames shown, at 0:03, 0:04, 0:11" in lines
    assert "    <script>[red]</script> <answer>B</answer>" in [line.rstrip() for line in lines]
    assert any(re.fullmatch(r"video decoded +1\.25 s *", line) for line in lines)
    assert any("unet, untrained; 3 of 12 frames" in line for line in lines)
    assert ("    B. a [ring]" in [line.rstrip() for line in lines]) == bool(asked.question.options)


def test_the_page(known: tuple[Asked, Answered], tmp_path: Path) -> None:
    asked, answered = known
    page = write_page(tmp_path / "pages" / "ask.html", asked, answered).read_text()
    assert "<script" not in page and "<h1>What is &lt;b&gt;[red]&lt;/b&gt;?</h1>" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "url(" not in page
    pictures = re.findall(r'src="data:image/(jpeg|svg\+xml);base64,([^"]+)"', page)
    assert [kind for kind, _ in pictures] == ["svg+xml", *["jpeg"] * 3]
    assert ElementTree.fromstring(base64.b64decode(pictures[0][1])).tag.endswith("svg")
    assert Image.open(io.BytesIO(base64.b64decode(pictures[1][1]))).size[0] > 20
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["0:03", "0:04", "0:11"]
    assert ('<li class="answer">B. a [ring]</li>' in page) == bool(asked.question.options)
    assert ("answered B. a [ring]" if asked.question.options else "answered freely") in page


def test_the_answer_turn_asks_for_words_without_options(known: tuple[Asked, Answered]) -> None:
    question = known[0].question
    text = answer_messages(question)[0]["content"][-1]["text"]
    assert text == (
        f"{QUESTION}\nA. a star\nB. a [ring]\nAnswer with the letter of the right option as <answer>X</answer>."
        if question.options
        else f"{QUESTION}\nAnswer in a few words."
    )
