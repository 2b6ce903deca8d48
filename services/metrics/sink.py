"""The sink: one call a step reaches every back end.

Invariants: `log` is called once a step; when it returns, the step is on disk, on the console and on its way to every tracker.
A tracker can neither stop nor block training: one that fails is warned of once and left alone. A metric that `names.py` does
not name is a fault of ours, warned of once and logged all the same: no run ends for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.metrics.apart import Apart
from services.metrics.console import StepConsole
from services.metrics.jsonl import FILE, write_metrics
from services.metrics.names import row_of
from services.metrics.trackers import Tracker, start_tracker


class MetricsSink:
    """Writes one step's metrics everywhere. Use as a context manager: leaving it closes files and the progress bar."""

    def __init__(
        self, run_dir: Path, total_steps: int, trackers: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        """`run_dir` is made when missing; `total_steps` is the last step of the run, for the progress bar; `trackers` are
        told `config`, the resolved one."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._console = StepConsole(total_steps)
        self._unnamed: set[str] = set()
        self._trackers: dict[str, Tracker | Apart] = {}
        for name in dict.fromkeys(trackers):
            self._guard(name, lambda name: self._trackers.update({name: start_tracker(name, run_dir, config or {})}))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log `metrics`, by the names of `names.METRICS`, of a step; 0 is before the first."""
        values = {name: float(value) for name, value in metrics.items()}
        write_metrics(self._run_dir, step, values)
        for name in list(self._trackers):
            self._guard(name, lambda name: self._trackers[name].log(step, values))
        self._console.log(step, values)
        for name in values.keys() - self._unnamed:
            if row_of(name) is None:
                self._unnamed.add(name)
                self._console.say(f"the metric {name} has no row in services/metrics/names.py, so no page shows it")

    def close(self) -> None:
        """Close the files and take the progress bar off the terminal."""
        self._console.close()
        for name in list(self._trackers):
            self._guard(name, lambda name: self._trackers[name].close())

    def _guard(self, name: str, tell: Callable[[str], None]) -> None:
        """Tell a tracker something; whatever ails it is its own affair."""
        try:
            tell(name)
        except Exception as error:  # any: training does not depend on a tracker
            self._trackers.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            self._console.say(f"{name} gets no more of this run ({reason}); {FILE} has every step")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
