"""Scores of made predictions by hand counts: breakdowns, groups of four, intervals, comparisons; files that are refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.errors import UserError
from services.schema import Question
from services.scoring import BENCHMARKS, PROMPTS, check_questions, question_hash, read_predictions, request, score
from services.scoring.groups import group_score
from services.scoring.statistics import Bootstrap, compare
from tests.services.predictions import ROW, prediction, write

QUESTION = Question("q", "a.mp4", "What is it?", ("a cup", "a dog", "a cat"), "B")


def result(rows: list[Any]) -> dict[str, Any]:
    return score(rows)["results"][0]


def test_prompts_are_those_of_the_scripts() -> None:
    assert request("videomme", "official", QUESTION) == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
        "(A, B, or C) of the correct option.\nWhat is it?\nA. a cup\nB. a dog\nC. a cat\nThe best answer is:"
    )
    assert request("mlvu-dev", "lmms", QUESTION) == (
        "What is it?\n(A) a cup\n(B) a dog\n(C) a cat\nOnly give the best option.\nBest option: ("
    )
    asked = {(name, prompt): request(name, prompt, QUESTION) for name, prompt in product(BENCHMARKS, PROMPTS)}
    assert all(asked[name, "ours"] is None for name in BENCHMARKS) and asked["training", "official"] is None
    others = [text for (name, prompt), text in asked.items() if name != "training" and prompt != "ours"]
    assert all(text and "a cat" in text and "What is it?" in text for text in others)


def test_lost_replies_are_wrong_and_counted() -> None:
    replies = ["A", "A. yes", "no idea", None]
    rows = [
        prediction(question_id=str(i), reply=reply, reason="" if reply else "too long")
        for i, reply in enumerate(replies)
    ]
    found = result(rows)
    assert found["not_asked"] == 1
    assert {name: rule["micro"]["accuracy"] for name, rule in found["rules"].items()} == {
        "strict": 0.25, "lenient": 0.5, "official": 0.5, "lmms": 0.5,
    }  # fmt: skip
    assert (found["rules"]["strict"]["unparsable"], found["rules"]["lenient"]["unparsable"]) == (2, 1)


def test_a_question_counts_in_each_of_its_types() -> None:
    types = [["reasoning", "summarization"], ["reasoning"], ["reasoning"]]
    rows = [
        prediction(benchmark="lvbench", question_id=str(i), types=names, reply=reply)
        for i, (names, reply) in enumerate(zip(types, "ABA", strict=True))
    ]
    of_type = result(rows)["breakdown"]["question type"]
    assert {name: (part["questions"], part["strict"]["accuracy"]) for name, part in of_type.items()} == {
        "reasoning": (3, pytest.approx(2 / 3)),
        "summarization": (1, 1.0),
    }


def test_mlvu_leads_with_the_mean_over_tasks() -> None:
    tasks, replies = ["plotQA", "plotQA", "plotQA", "count"], "AAAB"
    rows = [
        prediction(benchmark="mlvu-dev", question_id=str(i), types=[task], reply=reply)
        for i, (task, reply) in enumerate(zip(tasks, replies, strict=True))
    ]
    scores = score(rows)
    lenient = scores["results"][0]["rules"]["lenient"]
    assert scores["headline"] == "macro"
    assert (lenient["macro"]["accuracy"], lenient["micro"]["accuracy"]) == (0.5, 0.75)


def test_dimensions_beside_the_benchmarks_own() -> None:
    types = ["600", "category: TOS", "level: L2-Relation"]
    breakdown = result(
        [prediction(benchmark="longvideobench", types=types), prediction(question_id="q2", types=["15"])]
    )
    assert list(breakdown["breakdown"]) == ["duration", "category", "level"]
    assert list(breakdown["breakdown"]["duration"]) == ["15", "600"]


@pytest.mark.parametrize(
    ("kind", "right", "expected"),
    [
        ("relevance", "1010", 4 / 16),
        ("relevance", "0111", 9 / 16),
        ("logic [1, 2, 3, 4]", "1101", 4 / 16),
        ("logic [1, 2, 3, 4]", "0111", 0),
        ("logic [1, [2, 3], 4]", "1010", 4 / 12),
        ("logic [1, [2, 3], 4]", "1110", 7 / 12),
        ("logic [1, [2, 3], 4]", "0010", 0),
        ("logic [[1, 2], 3, 4]", "0100", 1 / 10),
        ("logic [[1, 2], 3, 4]", "0111", 1 / 10),
        ("logic [[1, 2], 3, 4]", "1110", 5 / 10),
        ("logic [[1,2],3,4]", "1111", 1),
    ],
)
def test_scores_of_groups_of_four(kind: str, right: str, expected: float) -> None:
    assert group_score(kind, [answer == "1" for answer in right]) == expected


def four(video: str, kind: str, replies: str) -> list[Any]:
    return [
        prediction(
            benchmark="videomme-v2", question_id=f"{video}-{number}", video=f"{video}.mp4", num_options=8, reply=reply,
            types=[f"group type: {kind}", *(["level: 2"] if number == 4 else [])],
        )
        for number, reply in enumerate(replies, start=1)
    ]  # fmt: skip


def test_video_mme_v2_leads_with_its_groups() -> None:
    rows = [*four("002", "logic [1, 2, 3, 4]", "AABA"), *reversed(four("001", "relevance", "AAAA"))]
    scores = score(rows)
    found = scores["results"][0]["rules"]["strict"]["groups"]
    assert scores["headline"] == "groups" and found["accuracy"] == (1 + 4 / 16) / 2
    assert found["labels"]["level: 2"] == found["accuracy"] and found["labels"]["group type: relevance"] == 1
    with pytest.raises(UserError, match="001-2, 001-3, 001-4.*groups of 4"):
        score(four("001", "relevance", "AAAA")[1:])


def test_intervals_draw_whole_videos() -> None:
    """Ten questions that share their fate say no more than one."""
    outcomes = np.repeat(np.arange(20) % 2, 10).astype(float)
    clustered = Bootstrap([str(i) for i in np.repeat(np.arange(20), 10)]).interval(outcomes)
    single = Bootstrap([str(i) for i in range(200)]).interval(outcomes)
    assert clustered and single
    assert clustered[0] < 0.35 and clustered[1] > 0.65  # 1.96 · sqrt(0.25 / 20) = 0.22
    assert single == pytest.approx((0.43, 0.57), abs=0.015)  # 1.96 · sqrt(0.25 / 200) = 0.07
    assert Bootstrap(["a", "a"]).interval(np.array([1.0, 0.0])) is None


def test_comparisons_are_paired() -> None:
    first, second = np.array([1] * 9 + [0] * 11), np.array([0] * 8 + [1] * 2 + [0] * 10)
    found = compare(first.astype(float), second.astype(float), Bootstrap([str(i) for i in range(20)]))
    assert (found.only_first, found.only_second, found.difference) == (8, 1, pytest.approx(7 / 20))
    assert found.p == 2 * (1 + 9) / 2**9
    assert found.interval and 0 < found.interval[0] < found.difference < found.interval[1]
    same = compare(first.astype(float), first.astype(float), Bootstrap([str(i) for i in range(20)]))
    assert (same.p, same.interval) == (1.0, (0.0, 0.0))


def test_selectors_are_compared_at_one_budget() -> None:
    rows = [
        prediction(question_id=name, selector=selector, budget=budget)
        for selector, budget, name in product(("uniform", "topk"), (4, 8), ("q1", "q2"))
    ]
    pairs = {(one["budget"], one["selector"], one["other"]) for one in score(rows)["comparisons"]}
    assert pairs == {(4, "uniform", "topk"), (8, "uniform", "topk")}


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{}, {"question_id": "q2", "reply": None, "reason": "too long"}])
    assert read_predictions(path) == [prediction(), prediction(question_id="q2", reply=None, reason="too long")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{}, {}], "line 2: question q1 with uniform at 8 frames stands in line 1 already"),
        ([{"label": "E"}], "label 'E' of 4 options"),
        ([{"label": None}], "line 1: label"),
        ([{"seconds": 3}], "line 1: seconds"),
        ([{"benchmark": "other"}], "benchmark 'other'; valid: videomme"),
        ([{}, {"question_id": "q2", "benchmark": "lvbench"}], "line 2: benchmark 'lvbench', but line 1 has 'videomme'"),
        ([{}, {"question_id": "q2", "model_hash": "n"}], "line 2: model_hash 'n', but line 1 has 'm'"),
        ([{}, {"question_id": "q2", "selector_hash": "t"}], "line 2: uniform t, but s before"),
        ([{}, {"selector": "topk", "question_hash": "h2"}], "line 2: question q1 is not that of line 1"),
        ([{}, {"selector": "topk", "question_id": "q2"}], "answer different questions: q1, q2"),
    ],
)
def test_what_is_no_whole_file_is_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_predictions(write(tmp_path / "p.jsonl", rows))


def test_torn_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{}, {"question_id": "q2"}])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="line 2: is torn"):
        read_predictions(path)
    path.write_text('{"benchmark": \n' + json.dumps(ROW) + "\n")
    with pytest.raises(UserError, match="line 1: is not JSON"):
        read_predictions(path)
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "none.jsonl")


def test_predictions_of_other_questions_are_refused(tmp_path: Path) -> None:
    rows = [prediction(question_id="q", question_hash=question_hash(QUESTION))]
    other = Question("q", "a.mp4", "What was it?", QUESTION.options, "B")
    assert check_questions(tmp_path, rows, "x", [QUESTION, Question("r", "b.mp4", "?", ("a", "b"), "A")]) == ["r"]
    with pytest.raises(UserError, match="replies to other questions than x, q"):
        check_questions(tmp_path, rows, "x", [other])
