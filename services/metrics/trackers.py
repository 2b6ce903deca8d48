"""Trackers: where else a run's metrics go. One is a class in a file of this folder and a row of `TRACKERS`; its name is then a
value of `train.trackers`.

Invariant: a tracker's package is imported in its own methods only, so a run needs no package but those it asks for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from services.errors import UserError
from services.metrics.apart import Apart
from services.metrics.mlflow import MLflow
from services.metrics.tensorboard import TensorBoard
from services.metrics.wandb import WandB


class Tracker(Protocol):
    """What a tracker is. Its methods may raise anything: the sink warns once and leaves it alone."""

    package: ClassVar[str]
    """What it imports; `setup.cfg` has an extra of the tracker's name with it."""
    apart: ClassVar[bool]
    """Whether it runs in a process of its own, as one that talks to a server should: it may hang there."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """`run_dir`: the run's folder, whose name is the run's. `config`: the resolved config, as in `config.yaml`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the metrics of a step, by the names of `names.METRICS`; a value may be infinite or NaN."""

    def close(self) -> None:
        """Finish: no step comes after this."""


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError naming a tracker whose package is not installed."""
    for name in names:
        package = TRACKERS[name].package
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # without an origin it is a folder that happens to have the name
            raise UserError(
                f"train.trackers: {name} needs the Python package {package}, which is not installed here; install it "
                f"(pip install 'msjoe[{name}]'), or leave {name} out"
            )


def start_tracker(name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker | Apart:
    """The tracker of that name, in this process or in one of its own."""
    tracker = TRACKERS[name]
    return Apart(tracker, run_dir / f"{name}.log", run_dir, config) if tracker.apart else tracker(run_dir, config)
