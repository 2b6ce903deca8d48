"""Weights & Biases. Its own variables say where the run goes: `WANDB_PROJECT` (`msjoe` when empty), `WANDB_ENTITY`,
`WANDB_API_KEY`, `WANDB_BASE_URL`; with `WANDB_MODE=offline` all stays in `wandb/` in the run's folder, for `wandb sync`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class WandB:
    """One W&B run, named after the run's folder."""

    package: ClassVar[str] = "wandb"
    apart: ClassVar[bool] = True

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "msjoe",
            name=run_dir.name,
            dir=run_dir,
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step under its own number."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()
