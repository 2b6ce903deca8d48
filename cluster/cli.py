"""The command `msjoe`. Exit codes: 0 done, 1 the run failed, 2 something the user can mend in what was given,
130 interrupted. None of these shows a traceback; a fault of ours does."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

TOY = Path(__file__).parent / "recipes" / "toy.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit."""
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster; others say what they use
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    from services.errors import TrainingError, UserError

    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        options.command(options, rest)
    except UserError as error:
        print(f"msjoe: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"msjoe: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"msjoe: {error.filename}: {error.strerror}; mend that and run again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("msjoe: interrupted", file=sys.stderr)
        return 130
    return 0


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
              msjoe report runs/mine                         make report.html anew
        """),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train by a recipe", add_help=False)
    train.add_argument("recipe", nargs="?", type=Path, default=TOY)
    train.add_argument("--run_dir", "--run-dir", type=Path)
    train.add_argument("--dry-run", "--dry_run", action="store_true")
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(command=_train)

    toyworld = commands.add_parser("toyworld", help="make the toy world: videos, questions, a small CLIP and MLLM")
    toyworld.add_argument("recipe", nargs="?", type=Path, default=TOY)
    toyworld.set_defaults(command=_toyworld)

    report = commands.add_parser("report", help="make a run's report.html anew")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(command=_report)
    return parser


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

    from cluster.checks import check_inputs, check_run_dir, load_questions, resolve
    from cluster.toyworld import make_world
    from cluster.train import train

    run_dir = options.run_dir or Path("runs") / f"{options.recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_run_dir(run_dir)
    check_inputs(config)  # what the recipe names, before anything is made
    config = resolve(config, make_world(config) if config.toyworld else None)
    check_inputs(config)
    questions = load_questions(config)
    asyncio.run(train(config, questions, run_dir.absolute(), console))
    console.print(f"run folder: {run_dir}  (open {run_dir / 'report.html'})", soft_wrap=True)


def _toyworld(options: argparse.Namespace, rest: list[str]) -> None:
    from cluster.config import load_config
    from cluster.toyworld import make_world
    from services.errors import UserError

    config = load_config(options.recipe, rest)
    if config.toyworld is None:
        raise UserError(f"{options.recipe}: has no toyworld section; add one, or --toyworld.seed=0")
    world = make_world(config)
    print(f"questions  {world.questions}\nvideos     {world.videos}\nCLIP       {world.clip}\nMLLM       {world.mllm}")


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    import yaml

    from cluster.config import Config
    from cluster.report import report_run
    from services.errors import UserError

    if rest:
        raise UserError(f"report takes only the run's folder, not {' '.join(rest)}")
    written = options.run_dir / "config.yaml"
    if not written.is_file():
        raise UserError(f"{options.run_dir}: not a run's folder (it has no config.yaml)")
    config = Config(**yaml.safe_load(written.read_text()))
    print(report_run(options.run_dir, config.data, config.frames))


if __name__ == "__main__":
    main()
