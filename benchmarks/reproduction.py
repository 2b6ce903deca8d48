"""The method against its parts and rivals on the toy world's test split: `make reproduce`.

Every cell of the table is a run of `msjoe train` in a folder of its own, for each of some seeds; each seed is another world.
Cells that are done are kept: a comparison that was stopped goes on where it was. Those of other machines, or of other folders,
stay in `reproduction.json` unless the same cell of the same seed is run here. A change of the recipe starts all over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure

from cluster.cli import TOY
from cluster.config import load_config
from cluster.toyworld import ToyWorld
from cluster.toyworld.make import make_world
from cluster.training.validation import SUMMARY
from services.checkpoints import latest_checkpoint
from services.metrics import read_metrics

FIRST, STEPS = 120, 40
"""Training steps: of stage 1, whose network most cells start from, and of what follows."""
GENTLE = 1e-4
"""Learning rate of the sampler in stage 2: its draws are sharp by then, and the recipe's rate throws them about."""
TEST_VIDEOS = 96
"""Videos of each test world, with four questions each."""
FROZEN = "--policy.train=false"
DRAWS = ("--train.group_size=2", "--train.draws=4")
"""Options of runs with a frozen MLLM: as many answers as in the recipe, to half as many query turns."""
TSPO = (
    "--selector.kind=tspo",
    "--sampler.width=64",
    "--sampler.objective=tspo",
    "--sampler.reward=accuracy",
    "--sampler.log_prob=mean",
    "--sampler.learning_rate=5e-4",
)
"""The rival TSPO as published, but by the MLLM's queries, as every other: the toy CLIP knows no word of a question."""
BUDGET = load_config(TOY).frames.budget
MACHINE = ("cluster", "num_cpus", "zero_stage")
"""What of a recipe says only where a run computes."""


def recipe_hash(text: str) -> str:
    """Hash of what decides the results of a recipe."""
    sections: dict[str, Any] = {name: fields for name, fields in yaml.safe_load(text).items() if name not in MACHINE}
    decides = {
        name: {field: value for field, value in fields.items() if field not in MACHINE}
        for name, fields in sections.items()
    }
    return hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=4).hexdigest()


RECIPE = recipe_hash(TOY.read_text())
"""Runs of one recipe do not count for another."""
COLUMNS = {
    "K": "accuracy/after",
    "K/2": f"accuracy/after/{BUDGET // 2}",
    "moments": "validation/moments_seen",
    "queries": "validation/queries_right",
    "minutes": "minutes",
}
"""What is kept of a run, and what it is called there: accuracies by how many frames were shown, and what they come from."""


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
    "bolt": Cell("BOLT by the queries", ("--selector.kind=bolt", FROZEN), 0),
    "aks": Cell("AKS by the queries", ("--selector.kind=aks", FROZEN), 0),
    "qframe": Cell("Q-Frame by the queries", ("--selector.kind=qframe", FROZEN), 0),
    "tcs": Cell("TCS by the queries", ("--selector.kind=tcs", FROZEN), 0),
    "bin-max": Cell("bin-max by the queries", ("--selector.kind=bin-max", FROZEN), 0),
    "tspo": Cell("TSPO's agent by the queries", (*TSPO, FROZEN, *DRAWS), FIRST),
    "stage-1": Cell("stage 1", ("--sampler.objective=difficulty", FROZEN, *DRAWS), FIRST),
    "sampler": Cell("sampler only (stage 1, then 2 without the MLLM)", (FROZEN, *DRAWS), after="stage-1"),
    "mllm": Cell("MLLM only (top-k by its queries)", ("--selector.kind=topk",)),
    "joint": Cell("joint (stage 1, then 2)", after="stage-1"),
    "random": Cell("joint from a random sampler", steps=2 * STEPS),
    "stage-1-plain": Cell("stage 1 without difficulty", (FROZEN, *DRAWS), FIRST),
    "plain": Cell("joint after stage 1 without difficulty", after="stage-1-plain"),
    "no-info": Cell("joint without r_info", ("--rewards.info=0",), after="stage-1"),
    "no-previews": Cell("joint without previews", ("--frames.previews=false",), after="stage-1"),
    "question": Cell("joint, question as the only query", ("--prompts.ask_clip=question",), after="stage-1"),
    "flat": Cell("joint without nested groups", ("--train.group_size=8", "--train.draws=1"), after="stage-1"),
    "no-baseline": Cell("joint without the sampler's baseline", ("--sampler.baseline=false",), after="stage-1"),
    "independent": Cell("joint with independent log-probs", ("--sampler.log_prob=independent",), after="stage-1"),
}


@dataclass(frozen=True)
class Expectation:
    """Joint training is better than the best of `others` at K frames, by some percent points on the mean of seeds."""

    text: str
    others: tuple[str, ...]
    points: float
    frames: str = "K"
    """How many joint training is shown."""


EXPECTED = (
    Expectation("joint ≥ uniform frames + 20", ("uniform",), 20),
    Expectation("joint ≥ the best untrained selector + 5", ("uniform", "topk-question", "topk-queries"), 5),
    Expectation("joint ≥ the best of BOLT, AKS, Q-Frame, TCS and TSPO", ("bolt", "aks", "qframe", "tcs", "tspo"), 0),
    Expectation("joint ≥ sampler only + 3", ("sampler",), 3),
    Expectation("joint ≥ MLLM only + 3", ("mllm",), 3),
    Expectation(f"joint at K = {BUDGET // 2} ≥ uniform frames at K = {BUDGET}", ("uniform",), 0, "K/2"),
)
"""The paper's shape in small."""


def main() -> None:
    """Run what is missing, then write table, figure and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each of about one CPU and 7 GiB")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of reproduction.md, .json and .svg")
    options = parser.parse_args()
    pool = ThreadPoolExecutor(options.jobs)
    done: dict[Path, Future[None]] = {}
    try:
        worlds = {seed: make_world(load_config(TOY, world_of(seed))) for seed in options.seeds}
        # What others start from comes first, of all seeds: a job that waits for its start would keep others waiting.
        for name, seed in sorted(product(CELLS, options.seeds), key=lambda cell: bool(CELLS[cell[0]].after)):
            if name in options.cells or any(CELLS[other].after == name for other in options.cells):
                folder = run_folder(options.runs, name, seed)
                start = run_folder(options.runs, CELLS[name].after, seed) if CELLS[name].after else None
                started = done[start] if start else None
                done[folder] = pool.submit(measure, CELLS[name], seed, worlds[seed], folder, start, started)
        for future in done.values():
            future.result()
            write(options.out, options.runs)
    finally:
        pool.shutdown(cancel_futures=True)


def world_of(seed: int) -> list[str]:
    """Overrides for the world of a seed: its test split is large, so that it tells cells apart."""
    return [f"--toyworld.seed={seed}", f"--toyworld.held_out_videos={TEST_VIDEOS}"]


def measure(
    cell: Cell, seed: int, world: ToyWorld, folder: Path, start: Path | None, started: Future[None] | None
) -> None:
    """Run a cell once its start is done, unless it was run before."""
    if started:
        started.result()
    if (folder / SUMMARY).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    command = [sys.executable, "-m", "cluster.cli", *arguments(cell, seed, world, folder)]
    if start:
        command += [*starts_from(start), f"--sampler.learning_rate={GENTLE}"]
    print(shlex.join(command[2:]), flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
            raise RuntimeError(f"{folder} failed, see {log}; once mended, the next call goes on from there")


def arguments(cell: Cell, seed: int, world: ToyWorld, folder: Path) -> list[str]:
    """The arguments of `msjoe` for that cell."""
    return [
        "train",
        f"--run_dir={folder}",
        *world_of(seed),
        f"--train.seed={seed}",
        f"--train.steps={cell.steps}",
        f"--train.validate_every={max(cell.steps, 1)}",
        f"--train.validate_budgets={BUDGET // 2}",
        f"--data.questions={world.questions}",
        f"--data.validation={world.split('test')}",
        *cell.overrides,
    ]


def starts_from(run: Path) -> list[str]:
    """Overrides for the networks that a run ended with."""
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None, run
    parts = {"--policy.model": checkpoint / "policy", "--sampler.checkpoint": checkpoint / "sampler"}
    return [f"{option}={folder}" for option, folder in parts.items() if folder.is_dir()]


def run_folder(runs: Path, name: str, seed: int) -> Path:
    """The folder of a cell's run."""
    return runs / RECIPE / f"seed-{seed}" / name


def results(runs: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The `COLUMNS` by seed of every cell that was run for some seed, here or where the `known` results come from."""
    table: dict[str, Any] = {}
    for name, cell in CELLS.items():
        row = {
            "title": cell.title,
            "recipe": RECIPE,
            "overrides": list(cell.overrides),
            "steps": cell.steps,
            "test_videos": TEST_VIDEOS,
            "after": cell.after,
        }
        same = known.get(name, {})
        same = same if row.items() <= same.items() else {}  # measured by other rules
        measured = dict(_measured(runs, name))
        for column, metric in COLUMNS.items():
            values = same.get(column, {}) | {seed: metrics[metric] for seed, metrics in measured.items()}
            row[column] = dict(sorted(values.items()))
        if row["K"]:
            table[name] = row
    return table


def _measured(runs: Path, name: str) -> Iterator[tuple[str, Mapping[str, float]]]:
    for summary in sorted((runs / RECIPE).glob(f"seed-*/{name}/{SUMMARY}")):
        folder = summary.parent
        yield folder.parent.name.removeprefix("seed-"), read_metrics(folder)[-1] | json.loads(summary.read_text())


def write(out: Path, runs: Path) -> None:
    """`reproduction.json`, the figure, and the table between the marks of `reproduction.md`."""
    record = out / "reproduction.json"
    table = results(runs, json.loads(record.read_text()) if record.exists() else {})
    record.write_text(json.dumps(table, indent=1) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": "reproduction"}):  # the same results make the same bytes
        draw(table).savefig(out / "reproduction.svg", metadata={"Date": None})
    page = out / "reproduction.md"
    before, begin, rest = page.read_text().partition("<!-- table -->\n")
    _, end, behind = rest.partition("<!-- end of table -->")
    page.write_text(before + begin + "\n".join(_lines(table)) + "\n" + end + behind)


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    yield f"| | K = {BUDGET} | joint's lead | K = {BUDGET // 2} | moments seen | queries right | seeds | steps | minutes |"
    yield "|---|---|---|---|---|---|---|---|---|"
    joint = table.get("joint", {"K": {}})["K"]
    for name, row in table.items():
        better = _points(_gains(joint, row["K"])) if name != "joint" else ""
        accuracy, *shares = (_points(list(row[column].values())) for column in COLUMNS if column != "minutes")
        minutes = f"{mean(row['minutes'].values()):.1f}"
        cells = [row["title"], accuracy, better, *shares, str(len(row["K"])), str(row["steps"]), minutes]
        yield f"| {' | '.join(cells)} |"
    yield "\n![Right answers of every cell, a dot for each seed](reproduction.svg)\n"
    yield "| expected, the paper's shape in small | difference found | |"
    yield "|---|---|---|"
    for expected in EXPECTED:
        if {"joint", *expected.others} <= table.keys():
            yield from _verdict(table, expected)
    if {"joint", "random"} <= table.keys():
        yield from _steadiness(table["joint"]["K"], table["random"]["K"])


def _verdict(table: Mapping[str, Any], expected: Expectation) -> Iterator[str]:
    best = max((table[name]["K"] for name in expected.others), key=lambda accuracy: mean(accuracy.values()))
    gains = _gains(table["joint"][expected.frames], best)
    if gains:
        holds = mean(gains) >= expected.points / 100
        yield f"| {expected.text} | {_points(gains)} | {'holds' if holds else '**does not hold**'} |"


def _gains(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """Differences in the worlds that both have run."""
    return [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]


def _steadiness(joint: Mapping[str, float], random: Mapping[str, float]) -> Iterator[str]:
    """Whether stage 1 makes worlds end alike, by their standard deviation."""
    seeds = joint.keys() & random.keys()
    if len(seeds) > 1:
        ours, theirs = (100 * stdev(accuracy[seed] for seed in seeds) for accuracy in (joint, random))
        verdict = "holds" if ours < theirs else "**does not hold**"
        yield f"| joint steadier than from a random sampler | ± {ours:.1f} against ± {theirs:.1f} | {verdict} |"


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
            label = None if place else f"{frames} = {BUDGET if frames == 'K' else BUDGET // 2} frames"
            if values:
                axes.barh(place + shift, mean(values), 0.3, color=color, alpha=0.5, label=label)
                axes.plot(values, [place + shift] * len(values), "o", ms=3, color=color)
    axes.set_yticks(range(len(table)), [row["title"] for row in table.values()])
    axes.invert_yaxis()
    axes.set_xlabel("right answers, percent")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
