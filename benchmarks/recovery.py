"""How long a run of the toy recipe does without an actor that is killed or stopped, by role and by what it does then.

    python -m benchmarks.recovery --rounds 3 --out recovery.json

One training gets all blows, each once the one before it is behind it. Seconds count from the signal: until the run says that
it lost the actor (noticed), until it says that a new one is ready (replaced), and until that one is at its work (at work). The
last two columns are what was done again: calls that went to another actor, and whole steps since the newest checkpoint, of
which this training writes one in every two steps. The weight store, which Ray restarts, is replaced when its new process is
there: the run waits for it only when it publishes next.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from services import jsonl
from tests.chaos.runs import Training, calls

Line = tuple[float, str]
"""When the run said it, on the clock of `time.monotonic`, and what."""
ROLLS_OUT, LEARNS = calls("RolloutActor.generate"), calls("PolicyLearner.update")
PULLS = calls("RolloutActor.pull")
CASES = {
    "rollout, at work": (ROLLS_OUT, "RolloutActor", signal.SIGKILL, ROLLS_OUT),
    "rollout, idle": (LEARNS, "RolloutActor", signal.SIGKILL, ROLLS_OUT),
    "rollout, takes weights in": (PULLS, "RolloutActor", signal.SIGKILL, ROLLS_OUT),
    "rollout, stopped": (ROLLS_OUT, "RolloutActor", signal.SIGSTOP, ROLLS_OUT),
    "embedder, idle": (LEARNS, "EmbedderActor", signal.SIGKILL, None),
    "embedder, stopped": (LEARNS, "EmbedderActor", signal.SIGSTOP, None),
    "selector, idle": (LEARNS, "SelectorActor", signal.SIGKILL, None),
    "policy learner, at work": (LEARNS, "PolicyLearner", signal.SIGKILL, LEARNS),
    "policy learner, idle": (ROLLS_OUT, "PolicyLearner", signal.SIGKILL, LEARNS),
    "policy learner, stopped": (ROLLS_OUT, "PolicyLearner", signal.SIGSTOP, LEARNS),
    "sampler learner, at work": (calls("SamplerLearner.update"), "SamplerLearner", signal.SIGKILL, LEARNS),
    "weight store, idle": (ROLLS_OUT, "WeightStore", signal.SIGKILL, None),
}
"""By name: what the run does, who gets which signal then, and what the new actor does when it is at work again; None where
its calls are too short to be seen."""
LOST = re.compile(r"a replacement starts|all ranks start anew")
BACK = re.compile(r"is back after|the learners are back after")
COLUMNS = ("noticed", "replaced", "at work", "calls again", "steps again")


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder) / "run", options.rounds)
    table = Table("actor", *(f"{name}, s" if name in COLUMNS[:3] else name for name in COLUMNS))
    for case, rows in figures.items():
        table.add_row(case, *(describe([row[name] for row in rows if name in row]) for name in COLUMNS))
    Console(width=120).print(table)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def describe(values: list[float]) -> str:
    """Median, and the range when there is one."""
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f}" if low == high else f"{middle:.1f} ({low:.1f} to {high:.1f})"


def measure(run_dir: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The figures of every blow, by case."""
    restarts = [f"--{part}.restarts=99" for part in ("policy", "sampler", "rollout", "selector", "embedder")]
    running = Training(
        run_dir, "--train.steps=9999", "--train.validate_every=9999", "--train.checkpoint_every=2", *restarts
    )
    lines: list[Line] = []
    threading.Thread(target=lambda: lines.extend(heard(running.process)), daemon=True).start()
    running.reach(2, ROLLS_OUT)
    figures: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    try:
        for _ in range(rounds):
            for case in CASES:
                figures[case].append(blow(running, lines, case))
                Console().print(case, figures[case][-1])
    finally:
        running.kill()
    return figures


def blow(running: Training, lines: list[Line], case: str) -> dict[str, float]:
    """Strike once, and wait until the run is past it; the figures, by column."""
    phase, actor, number, works = CASES[case]
    before = counts(running)
    running.reach(int(before["step"]) + 1, phase)
    start, lost = time.monotonic(), running.processes(actor)
    running.strike(actor, number)
    if actor == "WeightStore":
        row = {"replaced": renewed(running, actor, lost) - start}
    else:
        row = {"noticed": when(lines, LOST, start) - start, "replaced": when(lines, BACK, start) - start}
    if works:
        running.reach(0, works)
        row["at work"] = time.monotonic() - start
    running.reach(int(before["step"]) + 3, lambda run_dir, driver: True)
    after = counts(running)
    names = {"calls again": "supervision/redispatched", "steps again": "supervision/steps_again"}
    return row | {name: after[metric] - before[metric] for name, metric in names.items()}


def renewed(running: Training, actor: str, lost: set[psutil.Process]) -> float:
    """The time when there are actors of that class that were not among `lost`."""
    while not running.processes(actor) - lost:
        time.sleep(0.01)
    return time.monotonic()


def counts(running: Training) -> dict[str, float]:
    """The newest row of the run's metrics."""
    *_, last = jsonl.read(running.run_dir / "metrics.jsonl")
    return last


def when(lines: list[Line], said: re.Pattern[str], start: float) -> float:
    """The time of the first such line since `start`, once there is one."""
    while True:
        for moment, line in list(lines):
            if moment >= start and said.search(line):
                return moment
        time.sleep(0.01)


def heard(process: subprocess.Popen[str]) -> Iterator[Line]:
    """The lines of the run's console as they come."""
    assert process.stdout
    for line in process.stdout:
        yield time.monotonic(), line


if __name__ == "__main__":
    main()
