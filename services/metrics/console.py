"""The console: one readable line a step, above a progress bar where it is a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.metrics.names import named

HEADS = {"reward": "reward ", "policy": "policy ", "sampler": "sampler ", "validation": "validation ", "timing": ""}
"""What stands before the metrics of a family, in the line's order; other families follow, each behind its own name."""


class StepConsole:
    """Prints the steps of a run whose last step is `total_steps`."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        console = Console()
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=2,
            speed_estimate_period=3600,
        )
        self._task = self._progress.add_task("step", total=total_steps)
        self._progress.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Print the line of a step, and move the bar."""
        self.say(format_line(step, self._total_steps, values))
        self._progress.update(self._task, completed=step)

    def say(self, line: str) -> None:
        """Print a line as it is, above the bar."""
        self._progress.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Take the progress bar off the terminal."""
        self._progress.stop()


def format_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """One readable line of a step; a metric that is absent leaves no trace, nor does a family without metrics."""
    families: dict[str, list[str]] = {family: [] for family in HEADS}
    for metric in named(values):
        if metric.console:
            families.setdefault(metric.family, []).append(metric.console.format(values[metric.name]))
    if terms := families["reward"][1:]:
        families["reward"][1:] = [f"({' '.join(terms)})"]
    columns = [HEADS.get(family, f"{family} ") + " ".join(parts) for family, parts in families.items() if parts]
    return "  ".join([f"{step:>{len(str(total_steps))}}/{total_steps}", *columns])
