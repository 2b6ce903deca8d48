"""`msjoe score`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from cluster.cli import run
from services.questions import read_questions
from services.scoring import question_hash
from tests.services.predictions import write

DATA = Path(__file__).parents[1] / "data" / "questions"
NEEDLE = DATA / "mlvu_2_needle.json"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Replies to eight questions of MLVU, all right with `topk`, the first two of `uniform` wrong."""
    rows = []
    for selector, budget in product(("uniform", "topk"), (4, 8)):
        for place, question in enumerate(read_questions(NEEDLE)):
            reply = "I do not know" if selector == "uniform" and place < 2 else f"The answer is ({question.answer})"
            rows.append(
                {
                    "benchmark": "mlvu-dev", "question_id": question.id, "question_hash": question_hash(question),
                    "video": Path(question.video).name, "types": list(question.group), "label": question.answer,
                    "selector": selector, "budget": budget, "visual_tokens": 2 * budget, "reply": reply,
                }
            )  # fmt: skip
    return write(tmp_path / "predictions.jsonl", rows)


def test_tables_and_json(
    predictions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert run(["score", str(predictions), "--annotations", str(NEEDLE)]) == 0
    page = capsys.readouterr().out
    for part in ("MLVU dev", "8 about 8 videos", "mean over labels", "75.0 [", "4 (8)", "uniform – topk"):
        assert part in page
    scores = json.loads((predictions.parent / "scores.json").read_text())
    results = {(one["selector"], one["budget"]): one["rules"] for one in scores["results"]}
    assert results["uniform", 8]["lenient"]["micro"]["accuracy"] == 0.75
    assert results["uniform", 8]["lenient"]["unparsable"] == 2
    assert results["topk", 4]["strict"]["micro"]["accuracy"] == 0
    assert [one["p"] for one in scores["comparisons"] if one["rule"] == "lenient"] == [0.5, 0.5]


def test_predictions_of_other_questions(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", str(predictions), "--annotations", str(DATA / "mlvu_4_count.json")]) == 2
    assert "holds replies to other questions than" in capsys.readouterr().err
    assert run(["score", str(predictions), "--annotations", str(DATA / "videomme.json")]) == 2
    assert "is VideoMME, not MLVU dev; use --benchmark=videomme" in capsys.readouterr().err
    assert not (predictions.parent / "scores.json").exists()


def test_a_torn_file(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions.write_bytes(predictions.read_bytes()[:-5])
    assert run(["score", str(predictions)]) == 2
    assert "line 32: is torn" in capsys.readouterr().err
