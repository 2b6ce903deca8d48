"""The page of an evaluation: refers to nothing outside, escapes what was written, and looks where selectors part."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from cluster.evaluation.report import write_report
from services.frames import FrameCache
from services.schema import Question
from services.scoring import score
from tests.services.predictions import prediction

QUESTIONS = {
    f"q{place}": Question(f"q{place}", "none.mp4", f"What <i>{place}</i>?", ("x", "y"), "A") for place in range(6)
}


def test_the_page_of_an_evaluation(tmp_path: Path) -> None:
    replies = {("topk", "q3"): "<b>B</b> or so", ("topk", "q5"): "The answer is B."}
    rows = [
        prediction(
            question_id=name, selector=selector, budget=budget, num_options=2, video=f"{name}.mp4", types=[f"t{name}"],
            reply=replies.get((selector, name), "A"), queries=[f"<{selector}>"],
        )
        for selector, budget, name in product(("uniform", "topk"), (4, 8), QUESTIONS)
    ]  # fmt: skip
    rows[0] = rows[0].model_copy(update={"reply": None, "reason": "too & long", "frames": []})
    page = write_report(tmp_path, score(rows), rows, QUESTIONS, FrameCache(tmp_path, 4, 60)).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and page.count("data:image/svg+xml") == 1
    assert "<i>" not in page and "<b>B" not in page and "&lt;b&gt;B" in page and "&lt;topk&gt;" in page
    order = re.findall(r"What &lt;i&gt;(\d)", page)
    assert order == ["3", "5", "0", "1"]
    assert page.count("no letter in the reply") == 1 and page.count("answered B, wrong") == 1
    assert "none.mp4" in page  # why there are no frames
    for part in ("16.7", "66.7", "tq5", "uniform – topk"):
        assert part in page
