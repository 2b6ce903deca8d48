"""Predictions as tests make them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.scoring import Prediction

ROW: dict[str, Any] = {
    "benchmark": "videomme",
    "question_id": "q1",
    "question_hash": "h1",
    "video": "a.mp4",
    "types": ["short"],
    "num_options": 4,
    "label": "A",
    "selector": "uniform",
    "selector_hash": "s",
    "budget": 8,
    "frames": [0, 1],
    "visual_tokens": 4,
    "queries": ["a star"],
    "prompt": "official",
    "prompt_hash": "p",
    "model": "m",
    "model_hash": "m",
    "reply": "A",
    "reason": "",
    "key": "k",
}


def prediction(**changes: Any) -> Prediction:
    return Prediction(**{**ROW, **changes})


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A file of `ROW`s with changes."""
    path.write_text("".join(json.dumps({**ROW, **row}) + "\n" for row in rows))
    return path
