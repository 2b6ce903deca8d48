"""MLflow. `MLFLOW_TRACKING_URI` names the server, `MLFLOW_EXPERIMENT_NAME` the experiment (`msjoe` when empty). Without a
server all goes to the folder `mlflow/` in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar


class MLflow:
    """One MLflow run, named after the run's folder; the config's fields are its parameters, by their dotted names."""

    package: ClassVar[str] = "mlflow"
    apart: ClassVar[bool] = True

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow 3 would rather have a database
            mlflow.set_tracking_uri((run_dir / "mlflow").as_uri())
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "msjoe")
        mlflow.start_run(run_name=run_dir.name)
        mlflow.log_params(dict(_dotted(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step under its own number."""
        import mlflow

        mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        import mlflow

        mlflow.end_run()


def _dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
