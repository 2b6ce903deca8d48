"""The commands `msjoe score`, `msjoe evaluate` and `msjoe frames`: their options, and what they call."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.evaluation.setting import Setting
    from services.scoring import Prediction
    from services.scoring.evidence import Choice


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

    evaluate = commands.add_parser("evaluate", help="answer a benchmark from the frames of selectors, and score it")
    evaluate.add_argument("--benchmark", required=True, metavar="NAME", help="videomme, longvideobench, …")
    evaluate.add_argument(
        "--annotations", required=True, nargs="+", type=path, metavar="FILE", help="its official files of questions"
    )
    evaluate.add_argument("--videos", required=True, type=path, metavar="DIR", help="the folder of its videos")
    evaluate.add_argument(
        "--selector",
        required=True,
        metavar="S[,S…]",
        help="values of selector.kind, each perhaps with @queries or @question; or file:PATH, a file of chosen frames",
    )
    evaluate.add_argument("--frames", required=True, metavar="K[,K…]", help="frame budgets")
    networks = evaluate.add_mutually_exclusive_group()
    networks.add_argument(
        "--checkpoint", type=path, metavar="RUN", help="a run's folder, or one of its checkpoints/step-N"
    )
    networks.add_argument("--model", help="the MLLM, in place of the recipe's; without both the toy world's small ones")
    evaluate.add_argument("--recipe", type=path, help="decides frame size, CLIP, actors; fields as in train")
    evaluate.add_argument("--prompt", default="ours", metavar="NAME", help="ours (default), official or lmms")
    evaluate.add_argument("--visual-tokens", type=int, metavar="N", help="of every answer turn, whatever its budget")
    evaluate.add_argument(
        "--out", type=path, metavar="DIR", help="folder of the results; runs/evaluation-NAME, runs/evidence-NAME"
    )
    evaluate.add_argument(
        "--evidence", action="store_true", help="only measure what the selectors' frames show of the evidence; no MLLM"
    )
    evaluate.add_argument("--skip-missing", action="store_true", help="leave out questions whose video is not there")
    evaluate.add_argument("--dry-run", action="store_true", help="say what would be done; start nothing")
    evaluate.set_defaults(command=_evaluate)

    frames = commands.add_parser("frames", help="the frames of a file of predictions, for other programs")
    frames.add_argument("predictions", type=path, help="predictions.jsonl, as `msjoe evaluate` writes it")
    frames.add_argument("--out", required=True, type=path, metavar="FILE", help="the file to write")
    frames.add_argument("--form", default="jsonl", metavar="NAME", help="jsonl (seconds; default), aks or bolt")
    frames.add_argument("--selector", metavar="S", help="whose frames, when the predictions are of several")
    frames.add_argument("--frames", metavar="K[,K…]", help="frame budgets; all of the predictions")
    frames.add_argument(
        "--annotations", nargs="+", type=path, default=[], metavar="FILE", help="the questions, for aks and bolt"
    )
    frames.add_argument("--videos", type=path, metavar="DIR", help="the folder of the videos, for aks")
    frames.set_defaults(command=_frames)


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


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.evaluation.dry_run import describe, describe_evidence
    from cluster.evaluation.evaluate import evaluate
    from cluster.evaluation.evidence import chosen, measure
    from cluster.evaluation.report import write_report
    from cluster.evaluation.samples import Keys, Samples, samples_in
    from services.frames import FrameCache
    from services.scoring import check_questions, read_predictions

    setting, console = _setting(options, rest), Console()
    out = options.out or Path("runs") / f"{'evidence' if options.evidence else 'evaluation'}-{options.benchmark}"
    if options.evidence:
        if options.dry_run:
            describe_evidence(setting, console)
        else:
            choices = measure(setting, setting.without_missing(options.skip_missing), console)
            publish_evidence(choices, out, setting, console)
        return
    keys = Keys(setting)
    if options.dry_run:
        describe(setting, keys, Samples(out), console)
        return
    questions = setting.without_missing(options.skip_missing)
    with samples_in(out) as samples:
        if samples.predictions.exists():
            old, names = read_predictions(samples.predictions), ", ".join(map(str, options.annotations))
            check_questions(samples.predictions, old, names, setting.questions)
        try:
            rows = evaluate(setting, keys, questions, samples, console)
        except KeyboardInterrupt:
            console.print(
                f"{samples.count} samples are in {out}; the same command goes on", soft_wrap=True, markup=False
            )
            raise
        samples.write(rows)
        console.print(f"predictions: {samples.predictions}", "", soft_wrap=True, markup=False)
        scores, asked = publish(rows, out / "scores.json", console), {one.id: one for one in questions}
        cache = FrameCache.of(setting.config.data, setting.config.frames)
        publish_evidence(chosen(rows, questions, cache, console), out, setting, console)
        console.print(f"report: {write_report(out, scores, rows, asked, cache)}", soft_wrap=True, markup=False)


def _setting(options: argparse.Namespace, rest: list[str]) -> Setting:
    """What the options ask for. Raises UserError for whatever cannot be."""
    from cluster.evaluation.setting import budgets, loader, selectors, settle
    from services.errors import UserError
    from services.scoring import BENCHMARKS, PROMPTS

    for option, value, valid in (("benchmark", options.benchmark, BENCHMARKS), ("prompt", options.prompt, PROMPTS)):
        if value not in valid:
            raise UserError(f"--{option}={value}: valid: {', '.join(valid)}")
    if options.evidence and (options.model or options.visual_tokens):
        raise UserError("--evidence answers nothing: leave --model and --visual-tokens out")
    return settle(
        options.benchmark,
        options.annotations,
        options.videos,
        options.prompt,
        selectors(options.selector, writes_queries=not options.evidence),
        budgets(options.frames),
        options.visual_tokens,
        loader(options.recipe, options.checkpoint, options.model, rest),
    )


def _frames(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.evaluation.export import Export, export
    from cluster.evaluation.setting import budgets
    from services.errors import UserError

    if rest:
        raise UserError(f"frames takes a file of predictions and its own options, not {' '.join(rest)}")
    frames = budgets(options.frames) if options.frames else []
    given = options.form, options.selector, frames, options.annotations, options.videos, options.out
    export(Export(options.predictions, *given), Console())


def publish(rows: list[Prediction], out: Path, console: Console) -> dict[str, Any]:
    """Print the scores of `rows`, and write them to `out`; returns them."""
    from cluster.evaluation.page import show
    from services.scoring import score

    scores = score(rows)
    show(scores, console)
    _write_json(out, scores)
    console.print(f"scores: {out}", soft_wrap=True, markup=False)
    return scores


def publish_evidence(choices: list[Choice], out: Path, setting: Setting, console: Console) -> None:
    """Print what `choices` show of the evidence, and write it to the folder `out`; nothing when there are none."""
    from cluster.evaluation.evidence import write_choices
    from cluster.evaluation.page import show_evidence
    from cluster.evaluation.report import write_evidence
    from services.scoring import BENCHMARKS
    from services.scoring.evidence import score_evidence

    if not choices:
        return
    evidence = score_evidence(choices)
    show_evidence(evidence, console)
    write_choices(out / "evidence.jsonl", choices, setting)
    _write_json(out / "evidence.json", evidence)
    page = write_evidence(out, BENCHMARKS[setting.benchmark].title, evidence, choices)
    console.print(f"evidence: {page}", soft_wrap=True, markup=False)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    from services.storage import written_whole

    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
