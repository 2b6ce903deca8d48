"""The scoring of multiple-choice benchmarks from replies alone: prompts, letters out of replies, accuracies, intervals.

Each benchmark is a row of `benchmarks.BENCHMARKS`. Nothing here needs a model, an engine or a cluster, so a file of predictions
is scored again anywhere.
"""

from services.scoring.benchmarks import BENCHMARKS, PROMPTS, Benchmark, request
from services.scoring.predictions import Prediction, check_questions, question_hash, read_predictions
from services.scoring.score import RULES, score

__all__ = [
    "BENCHMARKS",
    "PROMPTS",
    "RULES",
    "Benchmark",
    "Prediction",
    "check_questions",
    "question_hash",
    "read_predictions",
    "request",
    "score",
]
