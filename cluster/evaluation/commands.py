"""The commands `msjoe score` and `msjoe evaluate`: their options, and what they call."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from services.scoring import Prediction


def add_commands(commands: Any, path: Callable[[str], Path]) -> None:
    """`commands`: argparse's own, whose type has no public name; `path` makes a path of an option."""
    score = commands.add_parser("score", help="score a file of predictions, again and without a model")
    score.add_argument("predictions", type=path, help="predictions.jsonl, as `msjoe evaluate` writes it")
    score.add_argument(
        "--out", type=path, metavar="FILE", help="the scores as JSON; scores.json beside the predictions"
    )
    score.add_argument(
        "--annotations", nargs="+", type=path, metavar="FILE", help="check that the predictions are of these questions"
    )
    score.set_defaults(command=_score)


def _score(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.evaluation.questions import read_annotations
    from services.errors import UserError
    from services.scoring import check_questions, read_predictions

    if rest:
        raise UserError(f"score takes a file of predictions, --annotations and --out, not {' '.join(rest)}")
    rows, console = read_predictions(options.predictions), Console()
    if options.annotations:
        questions = read_annotations(rows[0].benchmark, options.annotations, None)
        names = ", ".join(map(str, options.annotations))
        if missing := check_questions(options.predictions, rows, names, questions):
            console.print(f"{len(missing)} of {len(questions)} questions have no prediction, such as {missing[0]}")
    publish(rows, options.out or options.predictions.with_name("scores.json"), console)


def publish(rows: list[Prediction], out: Path, console: Console) -> None:
    """Print the scores of `rows`, and write them to `out`."""
    from cluster.evaluation.page import show
    from services.scoring import score
    from services.storage import written_whole

    scores = score(rows)
    show(scores, console)
    with written_whole(out) as temporary:
        temporary.write_text(json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    console.print(f"scores: {out}", soft_wrap=True, markup=False)
