"""What a trajectory earns in the joint stage: the terms of TERMS, each times its weight, and the user's own functions.

Invariants: terms are functions of a question and what was answered alone; every term is finite, or the run stops.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from learners.config import RewardConfig
from services.errors import TrainingError, UserError
from services.schema import Question, Reward, Selection, Turn


@dataclass(frozen=True)
class Attempt:
    """What was answered to a question, as reward functions see it."""

    query_turn: Turn
    """`.text` is the reply, `.response_ids` its tokens, `.truncated` whether it hit the token limit."""
    queries: tuple[str, ...]
    """Queries that CLIP was asked: the parsed ones, or the question itself when none parsed."""
    selection: Selection
    """`.frames` are the seconds shown, in time order; `.similarity` [Q, T] the cosines of queries and candidate frames."""
    answer_turn: Turn
    letter: str | None
    """The letter answered; None when the reply could not be parsed."""
    formatted: bool
    """Both turns kept the format."""


OwnTerm = Callable[[Question, Attempt], float]


def informative(similarity: np.ndarray, config: RewardConfig) -> np.ndarray:
    """The queries that tell frames apart: bool [Q], from cosines [Q, T].

    A row counts when `max_t s > info_ratio * min_t s` for `s = softmax_t(logit_scale * cosine)`, computed as
    `logit_scale * (max_t - min_t) > log(info_ratio)`: an `s` that would underflow to 0 counts, a single frame never.
    """
    spread_Q = np.ptp(similarity.astype(np.float64), axis=1)
    return config.logit_scale * spread_Q > math.log(config.info_ratio)


def _accuracy(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(attempt.letter == question.answer)


def _format(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(attempt.formatted)


def _info(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(informative(attempt.selection.similarity, config).mean())


TERMS: dict[str, Callable[[Question, Attempt, RewardConfig], float]] = {
    "accuracy": _accuracy,
    "format": _format,
    "info": _info,
}
"""A number in 0…1 for each term; the config field of the same name is its weight."""


def score(question: Question, attempt: Attempt, config: RewardConfig) -> Reward:
    """The reward of an attempt, term by term.

    Raises TrainingError naming function and question when a function of `rewards.extra` raises or returns no finite number.
    """
    terms = {name: getattr(config, name) * term(question, attempt, config) for name, term in TERMS.items()}
    own = {name: _ask(name, term, question, attempt) for name, term in own_terms(config.extra).items()}
    return Reward(terms | own)


@cache
def own_terms(references: tuple[str, ...]) -> dict[str, OwnTerm]:
    """The functions that `rewards.extra` names, by the names they are logged under; their files run once.

    Raises UserError for a file that is not there or fails, and a function that is missing, takes something else than a
    question and an attempt, or bears the name of another term.
    """
    terms: dict[str, OwnTerm] = {}
    modules: dict[str, ModuleType] = {}
    for reference in references:
        file, _, name = reference.rpartition(":")
        if file not in modules:
            modules[file] = _load(file)
        function = vars(modules[file]).get(name)
        if not callable(function):
            its = [key for key, value in vars(modules[file]).items() if getattr(value, "__module__", "") == file]
            raise UserError(f"rewards.extra: {file} has no function {name}; what it has: {', '.join(its)}")
        if name in terms or name in TERMS or name == "total":
            raise UserError(
                f"rewards.extra: {reference}: there is a reward {name} already; give the function another name"
            )
        try:
            inspect.signature(function).bind("question", "attempt")
        except TypeError as error:
            raise UserError(f"rewards.extra: {reference} must take a question and an attempt: {error}") from None
        terms[name] = function
    return terms


def _load(file: str) -> ModuleType:
    """The module in a file, under the file's name: dataclasses look their module up."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"rewards.extra: {file}: no such file, from {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(file, path)
    assert spec is not None and spec.loader is not None, "the config asks for .py"
    sys.modules[file] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"rewards.extra: {file} cannot be loaded: {_describe(error)}") from error
    return module


def _ask(name: str, term: OwnTerm, question: Question, attempt: Attempt) -> float:
    try:
        value = float(term(question, attempt))
    except Exception as error:
        raise TrainingError(f"reward {name} failed on question {question.id}: {_describe(error)}") from error
    if not math.isfinite(value):
        raise TrainingError(f"reward {name} is {value} on question {question.id}; it must be finite")
    return value


def _describe(error: Exception) -> str:
    """Kind and message of an error, and the line that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
