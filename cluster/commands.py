"""The commands about a run that has trained, `report` and `export`, and about one video, `ask`: their options, and what they
call."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_run_commands(commands: Any, path: Callable[[str], Path]) -> None:
    """`commands`: argparse's own, whose type has no public name; `path` makes a path of an option."""
    report = commands.add_parser("report", help="make a run's report.html anew")
    report.add_argument("run_dir", type=path)
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="publish a run's networks as folders that others load")
    export.add_argument("run", type=path, metavar="RUN", help="a run's folder, or one of its checkpoints/step-N")
    export.add_argument(
        "folder", type=path, metavar="DIR", help="the new folder; README.md in it says how each is loaded"
    )
    export.set_defaults(command=_export)

    ask = commands.add_parser("ask", help="ask one question about one video, and see each stage")
    ask.add_argument("video", type=path, metavar="VIDEO")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--option", action="append", default=[], metavar="TEXT", help="repeat it; without, the answer is free"
    )
    networks = ask.add_mutually_exclusive_group()
    networks.add_argument(
        "--checkpoint", type=path, metavar="RUN", help="a run's folder, or one of its checkpoints/step-N"
    )
    networks.add_argument("--model", help="the MLLM, in place of the recipe's; without both the toy world's small ones")
    ask.add_argument("--recipe", type=path, help="decides frame size, CLIP, actors; fields as in train")
    ask.add_argument("--frames", metavar="K", help="key frames: short for --frames.budget")
    ask.add_argument("--selector", metavar="S", help="a value of selector.kind, perhaps with @queries or @question")
    ask.add_argument("--out", type=path, default=Path("runs/ask.html"), metavar="FILE", help="the page: runs/ask.html")
    ask.set_defaults(command=_ask)


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    from cluster.config import load_config
    from cluster.report import report_run
    from services.errors import UserError

    if rest:
        raise UserError(f"report takes only the run's folder, not {' '.join(rest)}")
    written = options.run_dir / "config.yaml"
    if not written.is_file():
        raise UserError(f"{options.run_dir}: not a run's folder (it has no config.yaml)")
    config = load_config(written)
    print(report_run(options.run_dir, config.data, config.frames))


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    from cluster.exporting.export import CARD, export
    from services.errors import UserError

    if rest:
        raise UserError(f"export takes a run and a new folder, not {' '.join(rest)}")
    print(f"{export(options.run, options.folder)} is in {options.folder}; name a licence in {options.folder / CARD}")


def _ask(options: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from cluster.asking.ask import ask, settle
    from cluster.asking.console import show
    from cluster.asking.page import write_page
    from cluster.evaluation.setting import loader

    load = loader(options.recipe, options.checkpoint, options.model, rest)
    asked = settle(options.video, options.question, options.option, options.selector, options.frames, load)
    console = Console()
    answered = ask(asked, console)
    show(asked, answered, console)
    console.print(f"page: {write_page(options.out, asked, answered)}", soft_wrap=True, markup=False)
