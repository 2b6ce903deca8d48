"""The terms of a reward: those of the table, and a user's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learners.config import RewardConfig
from learners.rewards import Attempt, informative, own_terms, score
from services.errors import TrainingError, UserError
from services.schema import Question, Selection, Turn

FLAT, PEAKED, EXTREME = np.full(20, 0.2), np.full(20, 0.2), np.full(20, -1.0)
PEAKED[7] += 0.024
EXTREME[3] = 1.0
EDGE = np.log(10) / 100

QUESTION = Question("q7", "/v.mp4", "Which?", ("x", "y", "z"), "B")
OWN = """
from __future__ import annotations
import math
from dataclasses import dataclass

@dataclass
class Bounds:
    low: float = -1.0

def brevity(question, attempt):
    return max(Bounds().low, -len(attempt.answer_turn.text) / 100)

def early(question, attempt, last=3.0):
    return sum(frame <= last for frame in attempt.selection.frames) * (attempt.letter == question.answer)

def broken(question, attempt):
    return {}[question.id]

def endless(question, attempt):
    return math.inf

def forgot(question, attempt):
    pass

def lonely(question):
    return 1.0

def info(question, attempt):
    return 1.0
"""


def attempt(letter: str | None = "B", formatted: bool = True, rows: tuple[np.ndarray, ...] = (PEAKED,)) -> Attempt:
    turn = Turn(*[np.zeros(1)] * 3, text="it is <answer>B</answer>", truncated=False, version=0, visual=None)
    selection = Selection((2, 5), (5, 2), -1.0, 2.0, np.stack(rows), version=0)
    return Attempt(turn, ("a ball",), selection, turn, letter, formatted)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of reward functions in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = f"rewards_{tmp_path.name}.py"
    Path(file).write_text(OWN)
    return file


def test_a_question_without_an_answer_has_no_accuracy() -> None:
    with pytest.raises(UserError, match="question q7: its answer is not known"):
        score(replace(QUESTION, answer=None), attempt(letter=None), RewardConfig())


def test_informative_rows() -> None:
    rows = np.stack([FLAT, PEAKED, EXTREME]).astype(np.float32)
    assert informative(rows, RewardConfig()).tolist() == [False, True, True]


@pytest.mark.parametrize(("spread", "expected"), [(EDGE - 1e-6, False), (EDGE + 1e-6, True)])
def test_threshold_is_the_ratio_of_the_softmax(spread: float, expected: bool) -> None:
    row = np.array([[0.0, spread, spread / 2]])
    s = np.exp(100 * row) / np.exp(100 * row).sum()
    assert (s.max() > 10 * s.min()) == expected
    assert informative(row, RewardConfig())[0] == expected


def test_underflow_counts_and_one_frame_does_not() -> None:
    config = RewardConfig(logit_scale=1e4)
    assert np.exp(1e4 * (EXTREME.min() - EXTREME.max())) == 0
    assert informative(EXTREME[None], config).tolist() == [True]
    assert informative(np.array([[0.3], [-0.9]]), config).tolist() == [False, False]


def test_ratio_and_scale_come_from_the_config() -> None:
    assert not informative(PEAKED[None], RewardConfig(info_ratio=12.0))[0]
    assert not informative(PEAKED[None], RewardConfig(logit_scale=50.0))[0]


@pytest.mark.parametrize(
    ("letter", "formatted", "rows", "expected"),
    [
        ("B", True, (PEAKED, PEAKED), (0.8, 0.1, 0.1)),
        ("B", False, (FLAT, PEAKED), (0.8, 0.0, 0.05)),
        ("A", True, (PEAKED, FLAT, FLAT, FLAT), (0.0, 0.1, 0.025)),
        (None, False, (FLAT,), (0.0, 0.0, 0.0)),
    ],
)
def test_score(letter: str | None, formatted: bool, rows: tuple[np.ndarray, ...], expected: tuple[float, ...]) -> None:
    reward = score(QUESTION, attempt(letter, formatted, rows), RewardConfig())
    assert reward.terms == pytest.approx(dict(zip(("accuracy", "format", "info"), expected, strict=True)))
    assert reward.total == pytest.approx(sum(expected))


def test_score_uses_the_configured_weights() -> None:
    reward = score(QUESTION, attempt(), RewardConfig(accuracy=1.0, format=0.2, info=0.3))
    assert reward.terms == {"accuracy": 1.0, "format": 0.2, "info": 0.3}


def test_functions_of_ones_own_are_added(own: str) -> None:
    config = RewardConfig(accuracy=0, format=0, info=0, extra=(f"{own}:brevity", f"{own}:early"))
    reward = score(QUESTION, attempt(), config)
    assert reward.terms == pytest.approx({"accuracy": 0, "format": 0, "info": 0, "brevity": -0.24, "early": 1})
    assert reward.total == pytest.approx(0.76)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"reward broken failed on question q7: KeyError: 'q7' \(.*rewards_.*\.py, line 17\)"),
        ("endless", "reward endless is inf on question q7"),
        ("forgot", "reward forgot failed on question q7: TypeError: float"),
    ],
)
def test_a_function_that_fails_is_named_with_the_question(function: str, message: str, own: str) -> None:
    with pytest.raises(TrainingError, match=message):
        score(QUESTION, attempt(), RewardConfig(extra=(f"{own}:{function}",)))


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (["missing.py:f"], "rewards.extra: missing.py: no such file, from "),
        (["{}:brevty"], "rewards.extra: {} has no function brevty; what it has: Bounds, brevity, early, broken"),
        (["{}:lonely"], "rewards.extra: {}:lonely must take question, attempt: "),
        (["{}:info"], "rewards.extra: {}:info: there is a reward info already"),
        (["{}:early", "{}:early"], "rewards.extra: {}:early: there is a reward early already"),
        (["wrong.py:f"], "rewards.extra: wrong.py cannot be loaded: ZeroDivisionError: division by zero"),
        (["typo.py:f"], "rewards.extra: typo.py cannot be loaded: SyntaxError: "),
    ],
)
def test_a_function_that_is_not_there_is_said(references: list[str], message: str, own: str) -> None:
    Path("wrong.py").write_text("x = 1 / 0\n")
    Path("typo.py").write_text("def f(question, attempt) return 1\n")
    with pytest.raises(UserError, match=re.escape(message.format(own))):
        own_terms(tuple(reference.format(own) for reference in references))
