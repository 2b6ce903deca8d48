"""The method against its parts and rivals on the toy world's test split: `make reproduce`.

Every cell of the table is a run of `msjoe train` in a folder of its own, for each of some seeds; each seed is another world.
Cells that are done are kept: a comparison that was stopped goes on where it was. A trained cell is measured once more at half
the frames.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from cluster.cli import TOY
from cluster.config import load_config
from cluster.toyworld import make_world
from cluster.validation import SUMMARY
from services.checkpoints import latest_checkpoint
from services.toyworld import ToyWorld

STEPS = 60
FROZEN = "--policy.train=false"
HALVES = (False, True)
"""K and K / 2 frames."""


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    title: str
    overrides: tuple[str, ...] = ()
    steps: int = STEPS
    after: str = ""
    """The cell whose networks it starts from."""


CELLS = {
    "uniform": Cell("uniform frames", ("--selector.kind=uniform", FROZEN), 0),
    "topk-question": Cell("top-k by the question", ("--selector.kind=topk", "--prompts.ask_clip=question", FROZEN), 0),
    "topk-queries": Cell("top-k by the queries", ("--selector.kind=topk", FROZEN), 0),
    "sampler": Cell("sampler only (stage 1)", ("--sampler.objective=difficulty", FROZEN)),
    "mllm": Cell("MLLM only (top-k by its queries)", ("--selector.kind=topk",)),
    "joint": Cell("joint (stage 1, then 2)", after="sampler"),
    "joint-random": Cell("joint from a random sampler", steps=2 * STEPS),
    "sampler-plain": Cell("stage 1 without difficulty", (FROZEN,)),
    "plain": Cell("joint after stage 1 without difficulty", after="sampler-plain"),
    "no-info": Cell("joint without r_info", ("--rewards.info=0",), after="sampler"),
    "no-previews": Cell("joint without previews", ("--frames.previews=false",), after="sampler"),
    "question": Cell("joint, question as the only query", ("--prompts.ask_clip=question",), after="sampler"),
    "nested": Cell("joint, nested groups (4 x 2)", ("--train.group_size=4", "--train.draws=2"), after="sampler"),
    "no-baseline": Cell("joint without the sampler's baseline", ("--sampler.baseline=false",), after="sampler"),
    "independent": Cell("joint with independent log-probs", ("--sampler.log_prob=independent",), after="sampler"),
}


def main() -> None:
    """Run what is missing, then write table, figure and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for reproduction.md, .json and .svg")
    options = parser.parse_args()
    for seed in options.seeds:
        world = make_world(load_config(TOY, [f"--toyworld.seed={seed}"]))
        for name in options.cells:
            for half in HALVES:
                measure(name, half, seed, world, options.runs)
            write(options.out, results(options.runs))


def measure(name: str, half: bool, seed: int, world: ToyWorld, runs: Path) -> None:
    """Run a cell and what it starts from, unless that was done before."""
    cell, folder = CELLS[name], run_folder(runs, name, half, seed)
    if (folder / SUMMARY).exists():
        return
    trained = half and cell.steps > 0  # then only measured
    start = name if trained else cell.after
    if start:
        measure(start, False, seed, world, runs)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    command = [sys.executable, "-m", "cluster.cli", *arguments(cell, half, seed, world, folder)]
    if start:
        command += starts_from(run_folder(runs, start, False, seed))
    print(shlex.join(command[2:]), flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def arguments(cell: Cell, half: bool, seed: int, world: ToyWorld, folder: Path) -> list[str]:
    """Of `msjoe`, for that cell."""
    steps = 0 if half else cell.steps
    budget = load_config(TOY).frames.budget
    return [
        "train",
        f"--run_dir={folder}",
        f"--toyworld.seed={seed}",
        f"--train.seed={seed}",
        f"--train.steps={steps}",
        f"--train.validate_every={max(steps, 1)}",
        f"--data.questions={world.questions}",
        f"--data.validation={world.split('test')}",
        f"--frames.budget={budget // 2 if half else budget}",
        *cell.overrides,
    ]


def starts_from(run: Path) -> list[str]:
    """Overrides for the networks that a run ended with."""
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None, run
    parts = {"--policy.model": checkpoint / "policy", "--sampler.checkpoint": checkpoint / "sampler"}
    return [f"{option}={folder}" for option, folder in parts.items() if folder.is_dir()]


def run_folder(runs: Path, name: str, half: bool, seed: int) -> Path:
    """Where a cell's run is kept."""
    return runs / f"seed-{seed}" / (f"{name}-half" if half else name)


def results(runs: Path) -> dict[str, Any]:
    """Of every cell that is done for some seed: accuracy by number of frames and seed, and minutes."""
    table: dict[str, Any] = {}
    for name, cell in CELLS.items():
        row: dict[str, Any] = {
            "title": cell.title,
            "overrides": cell.overrides,
            "steps": cell.steps,
            "after": cell.after,
        }
        for half in HALVES:
            found = dict(_summaries(runs, name, half))
            row["K/2" if half else "K"] = {seed: summary["accuracy/after"] for seed, summary in found.items()}
            if not half:
                row["minutes"] = {seed: summary["minutes"] for seed, summary in found.items()}
        if row["K"]:
            table[name] = row
    return table


def _summaries(runs: Path, name: str, half: bool) -> Iterator[tuple[int, Mapping[str, float]]]:
    for folder in sorted(runs.glob("seed-*")):
        seed = int(folder.name.removeprefix("seed-"))
        summary = run_folder(runs, name, half, seed) / SUMMARY
        if summary.exists():
            yield seed, json.loads(summary.read_text())


def write(out: Path, table: Mapping[str, Any]) -> None:
    """`reproduction.json`, the figure, and the table between the marks of `reproduction.md`."""
    (out / "reproduction.json").write_text(json.dumps(table, indent=1) + "\n")
    draw(table).savefig(out / "reproduction.svg", metadata={"Date": None})
    page = out / "reproduction.md"
    before, begin, rest = page.read_text().partition("<!-- table -->\n")
    _, end, behind = rest.partition("<!-- end of table -->")
    page.write_text(before + begin + "\n".join(_lines(table)) + "\n" + end + behind)


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    yield "| | K = 8 | K = 4 | seeds | steps | minutes |"
    yield "|---|---|---|---|---|---|"
    for row in table.values():
        minutes = mean(row["minutes"].values())
        full, half = (_points(list(row[frames].values())) for frames in ("K", "K/2"))
        yield f"| {row['title']} | {full} | {half} | {len(row['K'])} | {row['steps']} | {minutes:.1f} |"
    yield "\n![Right answers of every cell, a dot for each seed](reproduction.svg)"


def _points(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    if not values:
        return ""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def draw(table: Mapping[str, Any]) -> Figure:
    """Accuracy of every cell: a dot for each seed, a bar for their mean."""
    figure = Figure(figsize=(7, 0.6 + 0.32 * len(table)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(table.values()):
        for frames, shift, color in (("K", -0.17, "#0072B2"), ("K/2", 0.17, "#E69F00")):
            values = [100 * value for value in row[frames].values()]
            if values:
                axes.barh(place + shift, mean(values), 0.3, color=color, alpha=0.5, label=None if place else frames)
                axes.plot(values, [place + shift] * len(values), "o", ms=3, color=color)
    axes.set_yticks(range(len(table)), [row["title"] for row in table.values()])
    axes.invert_yaxis()
    axes.set_xlabel("right answers, percent")
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
