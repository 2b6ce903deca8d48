"""TensorBoard: one event file in the run's folder, written by whoever calls.

tensorboardX's `SummaryWriter` hands events to a thread, through a queue that nobody empties once a full disk has ended the
thread: the next events then wait for ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from services.metrics.names import named

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class TensorBoard:
    """The event file in `run_dir/tensorboard`."""

    package: ClassVar[str] = "tensorboardX"
    apart: ClassVar[bool] = False

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._folder = run_dir / "tensorboard"
        self._writer: EventsWriter | None = None
        self._last = math.inf

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of a step; on disk when this returns. The first step, and one that is done again, hides what was
        written of it and of later steps before."""
        from tensorboardX.event_file_writer import EventsWriter  # torch: readers of metrics.jsonl are spared it
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

        now = time.time()
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        if step <= self._last:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=now, step=step, session_log=start))
        self._last = step
        about = {metric.name: SummaryMetadata(summary_description=metric.description) for metric in named(values)}
        scalars = [
            Summary.Value(tag=name, simple_value=value, metadata=about.get(name)) for name, value in values.items()
        ]
        self._writer.write_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()
