"""The report of a run: one self-contained HTML page of curves and looked-at questions.

Invariants: the page refers to nothing outside itself; everything a model wrote is escaped; it can be made from whatever the
run left (one step, missing metrics, no trajectories). Pixels are read here from the frame cache: run this where the cache
is, as a Ray task, not in the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np

from cluster.figures import STYLE, Rows, curves, similarity_plot, stacked, thumbnail
from cluster.pages import render
from services.config import DataConfig, FramesConfig
from services.errors import VideoError
from services.frames import FrameCache
from services.metrics import read_metrics
from services.metrics.names import METRICS, Metric, named
from services.schema import LETTERS
from services.trajectories import FILE, VALIDATION, read_trajectories
from services.writing import writing

QUESTIONS = 4
"""Questions the page looks at."""

CHARTS = {
    "Validation": "Held-out questions, without sampling: right answers; of the toy world also wanted queries asked and moments "
    "seen.",
    "Reward": "Mean over the step's trajectories; the parts add up to the total.",
    "Policy loss": "GRPO objective of the MLLM, per token.",
    "Policy learning rate": "The step size of AdamW, set by policy.schedule.",
    "Policy gradient norm": "Global L2 norm before clipping.",
    "Mismatch KL": "Between the engine's and the learner's log-probabilities of the same tokens, nats per token.",
    "Sampler learning rate": "The step size of AdamW, set by sampler.schedule.",
    "Sampler loss": "REINFORCE objective of the frame sampler.",
    "Sampler entropy": "Of its probabilities over the candidate frames, nats; uniform over T frames is log T.",
    "Policy entropy": "Of the MLLM's next-token distribution, nats per token.",
    "Clip share": "Tokens whose ratio was clipped, so that they pulled nowhere.",
    "Lost signal": "Shares: groups whose rewards are all equal; replies of either turn that could not be parsed.",
    "Step time": "Seconds of rollout, policy and sampler update, and weight publication, stacked; they may overlap.",
}
"""Title and caption of each chart, in the page's order; `services/metrics/names.py` says what it draws."""
STACKED = {"Step time"}
"""Charts whose first metric is a whole, of which the others are parts."""


class FrameReader(Protocol):
    """What the report asks of a frame cache."""

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        """uint8 [k, H, W, 3]; VideoError or OSError when the cache does not have them."""


def report_run(run_dir: Path, data: DataConfig, frames: FramesConfig) -> Path:
    """`write_report` with the frame cache of the run's config."""
    return write_report(run_dir, FrameCache.of(data, frames))


def write_report(run_dir: Path, frame_cache: FrameReader) -> Path:
    """Make `run_dir/report.html` from the run's config, metrics and trajectories; returns its path."""
    rows = read_metrics(run_dir)
    metrics = named(name for row in rows for name, value in row.items() if value is not None)
    config = run_dir / "config.yaml"
    with matplotlib.rc_context(STYLE):
        page = render(
            "report.html.j2",
            name=run_dir.resolve().name,
            config=config.read_text() if config.exists() else None,
            steps=[row["step"] for row in rows],
            table=_table(rows, metrics),
            charts=_charts(rows, metrics),
            questions=[_question(first, last, frame_cache) for first, last in _first_and_last(run_dir)],
            letters=LETTERS,
        )
    path = run_dir / "report.html"
    with writing(path):
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _table(rows: Rows, metrics: Sequence[Metric]) -> list[dict[str, str]]:
    """First and last value of every metric that belongs in the table."""
    table = []
    for metric in metrics:
        if metric.table:
            values = [row[metric.name] for row in rows if row.get(metric.name) is not None]
            table.append({"name": metric.description, "first": f"{values[0]:.3g}", "last": f"{values[-1]:.3g}"})
    return table


def _charts(rows: Rows, metrics: Sequence[Metric]) -> list[dict[str, str]]:
    """Title, caption and picture of every chart that has something to show."""
    charts = []
    for title, caption in CHARTS.items():
        drawn = [metric for metric in METRICS if metric.chart == title]
        shown = [metric for metric in metrics if metric.chart == title]
        if title in STACKED:
            shown = [metric for metric in shown if metric != drawn[0]]
        if shown:
            image = stacked(rows, drawn[0], shown) if title in STACKED else curves(rows, shown)
            charts.append({"title": title, "caption": caption, "image": image})
    return charts


def _first_and_last(run_dir: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """First and last detailed trajectory of QUESTIONS questions, those met at two steps before those met once.

    Held-out questions where there are any: nobody learnt from them.
    """
    first: dict[str, dict[str, Any]] = {}
    last: dict[str, dict[str, Any]] = {}
    held_out = (run_dir / VALIDATION).exists()
    for row in read_trajectories(run_dir, VALIDATION if held_out else FILE):
        if row["similarity"] is not None:
            row["similarity"] = np.array(row["similarity"], dtype=np.float32)
            first.setdefault(row["question_id"], row)
            last[row["question_id"]] = row
    pairs = [(row, last[question]) for question, row in first.items()]
    return sorted(pairs, key=lambda pair: pair[0]["step"] == pair[1]["step"])[:QUESTIONS]


def _question(first: dict[str, Any], last: dict[str, Any], frame_cache: FrameReader) -> dict[str, Any]:
    """What the template shows of one question: its text, and the trajectories of one or two steps."""
    moments = [first] if first["step"] == last["step"] else [first, last]
    return {**last, "moments": [{**moment, **_pictures(moment, frame_cache)} for moment in moments]}


def _pictures(moment: dict[str, Any], frame_cache: FrameReader) -> dict[str, Any]:
    """The similarity plot and the chosen frames, or the reason why there are no frames."""
    plot = similarity_plot(moment["similarity"], moment["frames"])
    if moment["video_key"] is None:
        return {"plot": plot, "thumbnails": [], "no_frames": "the answer turn showed none"}
    try:
        pixels = frame_cache.read(moment["video_key"], moment["frames"])
    except (OSError, VideoError) as error:
        return {"plot": plot, "thumbnails": [], "no_frames": str(error)}
    images = [thumbnail(frame) for frame in pixels]
    return {"plot": plot, "thumbnails": list(zip(moment["frames"], images, strict=True)), "no_frames": None}
