"""Letters out of replies: each rule on replies written by hand, by what the scripts that it follows say."""

from __future__ import annotations

import random

import pytest

from services.scoring import BENCHMARKS
from services.scoring.extraction import lenient, ranked, strict
from services.scoring.score import letter
from tests.services.predictions import prediction

REPLIES = {
    # reply: strict, lenient, official (VideoMME), lmms (VideoMME)
    "A": ("A", "A", "A", "A"),
    "A.": ("A", "A", "A", "A"),
    "(A)": ("A", "A", "A", "A"),
    "**A**": ("A", "A", "A", "A"),
    " **(B).**\n": ("B", "B", "B", "B"),
    "<answer>C</answer>": ("C", "C", "C", "C"),
    "I see a cup. <answer>C</answer>": ("C", "C", "C", "C"),
    "<answer>A</answer> <answer>B</answer>": (None, "B", "A", "B"),
    "<think>A or B?</think>B": ("B", "B", "A", "B"),
    "A. Apples.": (None, "A", "A", "A"),
    "(D) The kinds are of the same number.": (None, "D", "D", "D"),
    "A because the man holds it.": (None, "A", "A", "A"),
    "The answer is A because Bob holds it.": (None, "A", "A", "B"),  # lmms-eval prefers the last capital
    "The man holds a cup.\nB": (None, "B", "B", "B"),
    "From the frames, the answer is (C).": (None, "C", "C", "C"),
    "Best option: (C": (None, "C", "B", "C"),
    "\\boxed{\\text{D}}": (None, "D", "D", "D"),
    "Answer: B. Final answer: D": (None, "D", "A", "D"),
    "A or B": (None, None, "A", "A"),
    "A, B": (None, None, "A", "A"),
    "It may be (A) or (C).": (None, None, "A", "C"),
    "(A) apples\n(B) candles": (None, None, "A", "B"),
    "Both": (None, None, "B", "B"),
    "A dog runs.": (None, None, "A", "A"),
    "no letter here": (None, None, None, None),
    "": (None, None, None, None),
    "E": (None, None, None, None),  # of four options
    "b": (None, "B", None, None),
}


@pytest.mark.parametrize("reply", REPLIES, ids=repr)
def test_four_rules_on_one_reply(reply: str) -> None:
    row, benchmark = prediction(reply=reply), BENCHMARKS["videomme"]
    rules = (strict, lenient, benchmark.official.extract, benchmark.lmms.extract)
    assert tuple(letter(rule, row) for rule in rules) == REPLIES[reply]


def test_a_strict_letter_is_a_lenient_one() -> None:
    rng, parts = (
        random.Random(0),
        ["A", "B", "(", ")", "*", "`", ".", ":", " ", "\n", "<answer>", "</answer>", "</think>"],
    )
    replies = ["".join(rng.choice(parts) for _ in range(rng.randint(1, 6))) for _ in range(20000)]
    letters = [(strict(reply), lenient(reply)) for reply in replies]
    assert sum(one is not None for one, _ in letters) > 1000
    assert all(one in (None, other) for one, other in letters)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("A) red", "A"),
        ("(A) red", "A"),
        ("A", "A"),
        ("F)", "F"),
        ("A. red", None),
        ("red", None),
        ("", None),
    ],
)
def test_mlvu_reads_what_stands_before_the_bracket(reply: str, said: str | None) -> None:
    assert BENCHMARKS["mlvu-test"].official.extract(reply) == said


def test_six_options() -> None:
    row = prediction(num_options=6, label="F")
    for reply in ("F", "(F)", "The answer is F because of E."):
        assert letter(lenient, row.model_copy(update={"reply": reply})) == "F"
    asked = row.model_copy(update={"reply": "F"})
    assert letter(strict, asked) == "F" and letter(BENCHMARKS["mlvu-test"].official.extract, asked) == "F"
    assert letter(BENCHMARKS["mlvu-test"].lmms.extract, asked) is None  # lmms-eval knows four letters
    assert letter(lenient, prediction(num_options=5, reply="F")) is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [("(A) 1636", "A"), ("A", "A"), ("The year (B)", "B"), ("A 1636", "A"), ("D. 1633", "D"), ("It", "I"), ("", None)],
)
def test_lvbench_reads_the_first_character(reply: str, said: str | None) -> None:
    assert BENCHMARKS["lvbench"].official.extract(reply) == said


@pytest.mark.parametrize(
    ("reply", "said"), [("Final Answer: H.", "H"), ("The best option is G", "G"), ("Best answer: C", "C"), ("x", None)]
)
def test_video_mme_v2_takes_prefixes_out(reply: str, said: str | None) -> None:
    assert BENCHMARKS["videomme-v2"].official.extract(reply) == said


def test_longvideobench_draws_no_letter() -> None:
    """As lmms-eval does where it finds none."""
    assert BENCHMARKS["longvideobench"].lmms.extract("nobody knows") is None
    assert BENCHMARKS["longvideobench"].lmms.extract("The best option is E") == "E"


def test_lmms_prefers_the_start_to_a_declaration() -> None:
    rule = ranked("ABCD")
    assert rule("A is shown, but the answer is B or so") == "A"
    assert rule("the red one: the answer is B for sure") == "B"
    assert rule("red, as in (C) here. Done") == "C"
