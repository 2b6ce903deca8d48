"""The reward of a trajectory: the terms of the table TERMS, each times its weight, and the user's own functions.

Invariants: a term depends on the question and on what was answered, and on nothing else; every term is finite, or the run
stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from learners.config import RewardConfig
from services.errors import TrainingError, UserError
from services.own_functions import describe, own_function
from services.schema import Question, Reward, Selection, Turn, label


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
    """The letter of the answer; None when the reply could not be parsed."""
    formatted: bool
    """Whether both turns kept the format."""


OwnTerm = Callable[[Question, Attempt], float]


def informative(similarity: np.ndarray, config: RewardConfig) -> np.ndarray:
    """True for each query that tells frames apart: bool [Q], from cosines [Q, T].

    A row counts when `max_t s > info_ratio * min_t s` for `s = softmax_t(logit_scale * cosine)`, computed as
    `logit_scale * (max_t - min_t) > log(info_ratio)`: an `s` that would underflow to 0 counts, a single frame never.
    """
    spread_Q = np.ptp(similarity.astype(np.float64), axis=1)
    return config.logit_scale * spread_Q > math.log(config.info_ratio)


def _accuracy(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(attempt.letter == label(question))


def _format(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(attempt.formatted)


def _info(question: Question, attempt: Attempt, config: RewardConfig) -> float:
    return float(informative(attempt.selection.similarity, config).mean())


TERMS: dict[str, Callable[[Question, Attempt, RewardConfig], float]] = {
    "accuracy": _accuracy,
    "format": _format,
    "info": _info,
}
"""For each term a function that returns a number in 0…1; the config field of the same name is its weight."""


def score(question: Question, attempt: Attempt, config: RewardConfig) -> Reward:
    """The reward of an attempt, with all its terms.

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
    for reference in references:
        name = reference.rpartition(":")[2]
        function = own_function("rewards.extra", reference, ("question", "attempt"))
        if name in terms or name in TERMS or name == "total":
            raise UserError(
                f"rewards.extra: {reference}: there is a reward {name} already; give the function another name"
            )
        terms[name] = function
    return terms


def _ask(name: str, term: OwnTerm, question: Question, attempt: Attempt) -> float:
    try:
        value = float(term(question, attempt))
    except Exception as error:
        raise TrainingError(f"reward {name} failed on question {question.id}: {describe(error)}") from error
    if not math.isfinite(value):
        raise TrainingError(f"reward {name} is {value} on question {question.id}; it must be finite")
    return value
