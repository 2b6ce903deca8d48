"""The sink: one call a step, and every back end has the step.

Invariants: `log` is called once a step and every back end has the step when it returns. A tracker can neither stop nor block
training: one that fails is warned of once and left alone. A metric that `names.py` does not name is a fault of ours, warned of
once and logged all the same: no run ends for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from services.metrics.console import StepConsole
from services.metrics.jsonl import FILE, write_metrics
from services.metrics.names import row_of
from services.metrics.tensorboard import TensorBoard


class MetricsSink:
    """Writes one step's metrics everywhere. Use as a context manager: leaving it closes files and the progress bar."""

    def __init__(self, run_dir: Path, total_steps: int) -> None:
        """`run_dir` is made when missing; `total_steps` is the last step of the run, for the progress bar."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._tensorboard: TensorBoard | None = TensorBoard(run_dir)
        self._console = StepConsole(total_steps)
        self._unnamed: set[str] = set()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics`, by the names of `names.METRICS`, of a step; 0 is before the first."""
        values = {name: float(value) for name, value in metrics.items()}
        write_metrics(self._run_dir, step, values)
        self._track(lambda tensorboard: tensorboard.log(step, values))
        self._console.log(step, values)
        for name in values.keys() - self._unnamed:
            if row_of(name) is None:
                self._unnamed.add(name)
                self._console.say(f"the metric {name} has no row in services/metrics/names.py, so no page shows it")

    def close(self) -> None:
        """Close the files and take the progress bar off the terminal."""
        self._console.close()
        self._track(TensorBoard.close)

    def _track(self, tell: Callable[[TensorBoard], None]) -> None:
        """Tell TensorBoard; whatever ails it is its own affair."""
        if self._tensorboard is None:
            return
        try:
            tell(self._tensorboard)
        except Exception as error:  # any: training does not depend on a tracker
            self._tensorboard = None
            self._console.say(f"TensorBoard gets no more of this run ({error!r}); {FILE} has every step")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
