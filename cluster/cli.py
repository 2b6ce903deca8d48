"""The command `msjoe`. Exit codes: 0 done, 1 the run failed, 2 something the user can mend in what was given,
130 interrupted, 143 terminated. None of these shows a traceback; a fault of ours does."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import io
import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cluster.commands import add_run_commands
from cluster.evaluation.commands import add_commands

if TYPE_CHECKING:
    from cluster.config import Config
    from services.schema import Question

MIN_SAMPLES = 8
"""Answers that a pass rate is measured over, at least."""
TOY = Path(__file__).parent / "recipes" / "toy.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    from services.errors import Stopped, TrainingError, UserError

    # argparse would take an unknown option with a blank in its value for a positional argument.
    fields = [argument for argument in arguments if re.match(r"--\w+\.\w+=", argument)]
    # It would also take the recipe behind a bare --resume for its value.
    others = ["--resume=" if argument == "--resume" else argument for argument in arguments if argument not in fields]
    options, rest = _parser().parse_known_args(others)
    is_terminated = False

    def terminate(_: int, frame: FrameType | None) -> None:
        """SIGTERM ends the command as SIGINT does: asyncio cancels what runs, and whatever was started is stopped."""
        nonlocal is_terminated
        if not is_terminated:
            is_terminated = True
            interrupt = signal.getsignal(signal.SIGINT)  # nothing to call in a background job, which ignores SIGINT
            (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        options.command(options, [*rest, *fields])
    except UserError as error:
        print(f"msjoe: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"msjoe: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"msjoe: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except OSError as error:
        if error.filename is None:
            raise
        print(f"msjoe: {error.filename}: {error.strerror}; mend that and run again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"msjoe: {'terminated' if is_terminated else 'interrupted'}", file=sys.stderr)
        return 143 if is_terminated else 130
    return 0


def _path(text: str) -> Path:
    """A path as an option gives it; shells leave the `~` of `--option=~/folder` as it is."""
    return Path(os.path.expanduser(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="msjoe",
        description="Reinforcement learning of a multimodal LLM together with the sampler that chooses its key frames.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              msjoe train                                    the toy world on two CPU cores
              msjoe train cluster/recipes/toy.yaml --policy.learning_rate=1e-5 --run_dir=runs/mine
              msjoe train cluster/recipes/qwen2_5_vl_7b.yaml --dry-run
              msjoe train cluster/recipes/toy.yaml --run_dir=runs/mine --resume
              msjoe report runs/mine                         make report.html anew
              msjoe export runs/mine published/              its networks, as others load them
              msjoe ask video.mp4 "What is red?" --checkpoint runs/mine
              msjoe questions videomme.parquet               what a file of questions holds
              msjoe prepare videos/ --cache /data/cache      decode and embed ahead of training
              msjoe prepare q.jsonl --pass-rate q-c.jsonl    how hard each question is, for stage 1
              msjoe evaluate --help                          selectors on a benchmark, in one command
              msjoe evaluate --evidence …                    what selectors show of the answers' moments; no MLLM
              msjoe score predictions.jsonl                  accuracies, intervals, comparisons
              msjoe frames predictions.jsonl --out F.jsonl   the chosen frames, for other programs
              msjoe peek video.mp4 --at 3 61 --out frames/   cached frames as PNG files
        """),
    )
    parser.add_argument("--version", action="version", version=f"msjoe {importlib.metadata.version('msjoe')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train by a recipe", add_help=False)
    train.add_argument("recipe", nargs="?", type=_path, default=TOY)
    train.add_argument("--run_dir", "--run-dir", type=_path)
    train.add_argument("--resume", metavar="CHECKPOINT")
    train.add_argument("--dry-run", "--dry_run", action="store_true")
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(command=_train)

    toyworld = commands.add_parser("toyworld", help="make the toy world: videos and questions about them")
    toyworld.add_argument("recipe", nargs="?", type=_path, default=TOY)
    toyworld.add_argument("--seed", type=int, help="which world: short for --toyworld.seed")
    toyworld.add_argument("--hours", type=float, help="four long videos of that length, eight questions each")
    toyworld.add_argument(
        "--train",
        nargs="?",
        const=Path("models"),
        type=_path,
        metavar="FOLDER",
        help="train a small CLIP and MLLM there (models/), as the shipped ones were made",
    )
    toyworld.set_defaults(command=_toyworld)

    _add_data_commands(commands)
    add_commands(commands, _path)
    add_run_commands(commands, _path)
    return parser


def _add_data_commands(commands: Any) -> None:
    """The commands about questions and videos. `commands`: argparse's own, whose type has no public name."""
    prepare = commands.add_parser("prepare", help="decode and embed videos ahead of training, only what is missing")
    prepare.add_argument("inputs", nargs="+", type=_path, help="questions files, folders of videos, videos")
    prepare.add_argument("--recipe", type=_path, default=TOY, help="decides frame size and CLIP; fields as in train")
    prepare.add_argument("--cache", type=_path, help="folder of the caches: short for --data.cache")
    prepare.add_argument("--summary", type=_path, help="write every video's fate to this JSON file")
    prepare.add_argument("--verify", action="store_true", help="read what is cached, and make anew what is damaged")
    prepare.add_argument("--retry", action="store_true", help="try videos again that could not be decoded before")
    prepare.add_argument(
        "--pass-rate",
        "--pass_rate",
        type=_path,
        metavar="FILE",
        help="then answer each question --samples times with uniform frames, and write the questions with the share of right "
        "answers to this file (.parquet, .jsonl)",
    )
    prepare.add_argument("--samples", type=int, default=8, help="answers a question for --pass-rate; 8 or more")
    prepare.set_defaults(command=_prepare)

    peek = commands.add_parser("peek", help="cached frames of a video as PNG files")
    peek.add_argument("video", type=_path)
    peek.add_argument("--at", nargs="+", type=float, required=True, metavar="SECOND")
    peek.add_argument("--out", type=_path, default=Path("."), help="folder for the files")
    peek.add_argument("--recipe", type=_path, default=TOY, help="decides the frame size; fields as in train")
    peek.add_argument("--cache", type=_path, help="folder of the caches: short for --data.cache")
    peek.set_defaults(command=_peek)

    questions = commands.add_parser("questions", help="what a file of questions holds, and what of it cannot be taken")
    questions.add_argument("file", type=_path, help="parquet, JSON or JSON lines, of any known form")
    questions.add_argument(
        "--video_root", "--video-root", type=_path, help="folder that relative video paths start from"
    )
    questions.add_argument("--json", action="store_true", help="one JSON object instead of the page")
    questions.set_defaults(command=_questions)


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.config import fields_help, load_config

    if options.help:
        print(fields_help())
        return
    config = load_config(options.recipe, rest)
    console = Console()
    if options.dry_run:
        from cluster.dry_run import describe

        describe(config, console)
        return

    from cluster.checks import check_inputs
    from cluster.questions.stream import load_questions, read_held_out
    from cluster.resolve import resolve
    from cluster.toyworld.make import make_world
    from cluster.training.run_folder import folder_of, go_on_from, run_folder
    from cluster.training.run_state import check_goes_on
    from cluster.training.train import train

    check_inputs(config)  # what the recipe names, before anything is made
    resumes = options.resume is not None
    asked = _path(options.resume) if options.resume else None
    wanted = folder_of(options.run_dir, asked) if resumes else options.run_dir
    with run_folder(wanted, options.recipe.stem, resume=resumes) as run_dir:
        config = resolve(config, make_world(config) if config.toyworld else None)
        check_inputs(config)
        questions, held_out = load_questions(config), read_held_out(config)
        given = {"data.questions": questions, "data.validation": held_out}
        check = partial(check_goes_on, config=config, questions=given)
        bucket = config.train.checkpoint_bucket
        report = partial(console.print, soft_wrap=True, markup=False)  # a path is said as it is, in one line
        checkpoint = go_on_from(run_dir, asked, bucket, check, report) if resumes else None
        asyncio.run(train(config, questions, held_out, run_dir.absolute(), console, checkpoint))
    console.print(f"run folder: {run_dir}  (open {run_dir / 'report.html'})", soft_wrap=True)


def _toyworld(options: argparse.Namespace, rest: list[str]) -> None:
    from cluster.config import load_config
    from cluster.toyworld.make import make_world, train_models
    from services.errors import UserError

    seed = [] if options.seed is None else [f"--toyworld.seed={options.seed}"]
    config = load_config(options.recipe, [*seed, *_long_videos(options.hours), *rest])
    if config.toyworld is None:
        raise UserError(f"{options.recipe}: has no toyworld section; add one, or --toyworld.seed=0")
    if options.train:
        if options.train.exists():
            raise UserError(f"--train={options.train}: is there already; name a new folder")
        train_models(config, options.train)
        print(f"--embedder.model={options.train / 'clip'} --policy.model={options.train / 'mllm'}")
        return
    world = make_world(config)
    print(f"questions   {world.questions}\nvalidation  {world.validation}\ntest        {world.split('test')}")


def _long_videos(hours: float | None) -> list[str]:
    """What `--hours` stands for: as many questions as the shipped recipe asks, about fewer and longer videos."""
    if hours is None:
        return []
    values = {
        "videos": 4,
        "held_out_videos": 0,
        "questions_per_video": 8,
        "min_seconds": round(hours * 3600),
        "max_seconds": round(hours * 3600),
    }
    return [f"--toyworld.{name}={value}" for name, value in values.items()]


def _prepare(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.checks import check_inputs
    from cluster.config import load_config
    from cluster.preparing.prepare import find_videos, prepare, write_summary
    from cluster.resolve import resolve
    from services.errors import UserError
    from services.questions import write_questions

    config = load_config(options.recipe, [*_cache(options), *rest])
    check_inputs(config)
    questions = _questions_to_measure(options, config)
    videos = find_videos(options.inputs, config.data.video_root)
    if not videos:
        raise UserError(f"{', '.join(map(str, options.inputs))}: no video in there")
    config = resolve(config, None)
    check_inputs(config)
    prepared = prepare(config, videos, Console(), options.verify, options.retry)
    if options.summary:
        write_summary(options.summary, prepared)
    if all(video.status == "quarantined" for video in prepared):
        raise UserError("none of the videos can be read")
    if options.pass_rate:
        from cluster.preparing.pass_rates import measure

        measured = asyncio.run(measure(config, questions, options.samples, Console()))
        write_questions(measured, options.pass_rate)
        print(f"questions with pass rates: {options.pass_rate}")


def _questions_to_measure(options: argparse.Namespace, config: Config) -> list[Question]:
    """The questions of the file that `--pass-rate` is about; none without it."""
    from services.errors import UserError
    from services.questions import check_suffix, read_questions

    if options.pass_rate is None:
        return []
    if len(options.inputs) != 1 or not options.inputs[0].is_file():
        raise UserError(f"--pass-rate={options.pass_rate}: measures one file of questions; name that alone")
    if options.samples < MIN_SAMPLES:
        raise UserError(f"--samples={options.samples}: at least {MIN_SAMPLES}, or a pass rate says little")
    check_suffix(options.pass_rate)
    return read_questions(options.inputs[0], config.data.video_root)


def _peek(options: argparse.Namespace, rest: list[str]) -> None:
    from cluster.config import load_config
    from cluster.preparing.peek import peek
    from services.errors import UserError, VideoError

    config = load_config(options.recipe, [*_cache(options), *rest])
    try:
        for path in peek(config, options.video, options.at, options.out):
            print(path)
    except VideoError as error:
        raise UserError(str(error)) from None


def _cache(options: argparse.Namespace) -> list[str]:
    return [f"--data.cache={options.cache}"] if options.cache else []


def _questions(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.questions.page import as_json, show
    from services.errors import UserError
    from services.questions import scan_questions

    if rest:
        raise UserError(f"questions takes a file, --video_root and --json, not {' '.join(rest)}")
    found = scan_questions(options.file, options.video_root)
    if options.json:
        print(as_json(options.file, found))
    else:
        show(options.file, found, Console())
    if not found.questions:
        raise UserError(f"{options.file}: no row gave a question")


if __name__ == "__main__":
    main()
