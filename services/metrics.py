"""Metrics: one sink that fans out to `metrics.jsonl`, TensorBoard and the console.

Invariants: `log` is called once a step and every back end has the step when it returns. A tracker can neither stop nor block
training: one that fails is warned of once and left alone. `metrics.jsonl` is valid JSON: a value that is not finite stands
there as `null` (TensorBoard and the console keep which one it was).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services import jsonl

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FILE = "metrics.jsonl"


class MetricsSink:
    """Writes one step's metrics everywhere. Use as a context manager: leaving it closes files and the progress bar."""

    def __init__(self, run_dir: Path, total_steps: int) -> None:
        """`run_dir` is made when missing; `total_steps` is the last step of the run, for the progress bar."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._total_steps = total_steps
        self._tensorboard: TensorBoard | None = TensorBoard(run_dir / "tensorboard")
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

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` (names like `reward/total`, values in the unit the name implies) of a step; 0 is before the first."""
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        jsonl.append(self._run_dir / FILE, [{"step": step, **finite}])
        self._track(lambda tensorboard: tensorboard.log(step, values))
        line = format_line(step, self._total_steps, values)
        self._progress.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Close the files and take the progress bar off the terminal."""
        self._progress.stop()
        self._track(TensorBoard.close)

    def _track(self, tell: Callable[[TensorBoard], None]) -> None:
        """Tell TensorBoard; whatever ails it is its own affair."""
        if self._tensorboard is None:
            return
        try:
            tell(self._tensorboard)
        except Exception as error:  # any: training does not depend on a tracker
            self._tensorboard = None
            self._progress.console.print(
                f"TensorBoard gets no more of this run ({error!r}); {FILE} has every step",
                soft_wrap=True, markup=False, highlight=False,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard:
    """One event file, written by whoever calls.

    tensorboardX's `SummaryWriter` hands events to a thread, through a queue that nobody empties once a full disk has ended the
    thread: the next events then wait for ever.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventsWriter | None = None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step; on disk when this returns. The first step hides those of an earlier run from it on."""
        from tensorboardX.event_file_writer import EventsWriter  # torch: readers of metrics.jsonl are spared it
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        now = time.time()
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=now, step=step, session_log=start))
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()


def format_line(step: int, total_steps: int, metrics: dict[str, float]) -> str:
    """One readable line of a step; a metric that is absent leaves no trace, nor does a part without metrics."""

    def part(*fields: tuple[str, str]) -> str:
        return " ".join(template.format(metrics[name]) for name, template in fields if name in metrics)

    reward = part(("reward/total", "reward {:.3f}"))
    short = {"accuracy": "acc", "format": "fmt"}
    names = [name.removeprefix("reward/") for name in metrics if name.startswith("reward/") and name != "reward/total"]
    terms = part(*((f"reward/{name}", short.get(name, name) + " {:.2f}") for name in names))
    policy = part(
        ("policy/loss", "loss {:.2g}"),
        ("policy/grad_norm", "grad {:.2g}"),
        ("policy/mismatch_kl", "kl {:.2g}"),
        ("policy/version", "v{:.0f}"),
    )
    sampler = part(
        ("sampler/loss", "loss {:.2g}"),
        ("sampler/grad_norm", "grad {:.2g}"),
        ("sampler/entropy", "H {:.2f}"),
        ("sampler/version", "v{:.0f}"),
    )
    columns = [
        f"{step:>{len(str(total_steps))}}/{total_steps}",
        f"{reward} ({terms})" if reward and terms else reward,
        policy and f"policy {policy}",
        sampler and f"sampler {sampler}",
        part(("validation/accuracy", "validation acc {:.2f}")),
        part(("timing/step", "{:.1f} s")),
    ]
    return "  ".join(column for column in columns if column)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, steps ascending. A row replaces those of its own and later steps that were
    written before it."""
    rows: list[dict[str, Any]] = []
    for row in jsonl.read(run_dir / FILE):
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows
