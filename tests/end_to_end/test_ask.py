"""`msjoe ask` as a person runs it."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.config import Config
from services.questions import read_questions
from tests.end_to_end.test_command import msjoe


def test_a_question_without_options(toy_config: Config, toy_overrides: list[str], tmp_path: Path) -> None:
    assert toy_config.data.questions is not None
    question = read_questions(toy_config.data.questions)[0]
    page = tmp_path / "page.html"
    done = msjoe("ask", question.video, question.question, "--frames=4", f"--out={page}", *toy_overrides)
    assert done.returncode == 0, done.stderr
    stages = re.findall(r"^(.*?) +(\d+\.\d\d) s$", done.stdout, re.MULTILINE)
    names = [name for name, _ in stages]
    assert names[0] in ("video decoded", "video found in the cache") and names[1] == "actors started"
    assert names[2] in ("frames embedded", "features found in the cache")
    assert names[3:] == ["queries written", "frames compared", "frames chosen", "answer written"]
    assert all(float(seconds) < 600 for _, seconds in stages)
    assert re.search(r"^Q1  \S.*cosine", done.stdout, re.MULTILINE)
    (shown,) = re.findall(r"^4 frames shown, at (.*)$", done.stdout, re.MULTILINE)
    text = page.read_text()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == shown.split(", ")
    (reply,) = re.findall(r"<h2>Answer</h2>.*?<pre>(.*?)</pre>", text, re.DOTALL)
    assert reply and f"page: {page}" in done.stdout
