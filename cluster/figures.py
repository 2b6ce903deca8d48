"""The pictures that pages show: curves over steps, stacked seconds, similarities with the chosen frames, thumbnails.

Invariants: every picture is a data URI, so that a page refers to nothing outside itself; the same numbers make the same bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from services.metrics.names import Metric
from services.schema import Span

THUMBNAIL_WIDTH = 160
"""Pixels of a chosen frame on the page, about twice what it is shown at."""

Rows = Sequence[Mapping[str, Any]]
"""Rows of `metrics.jsonl`."""

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#8A8F98")
"""Okabe and Ito's colours, which the colour-blind can tell apart, and a grey."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#B8BDC5",
    "axes.labelcolor": "#5B616B",
    "xtick.color": "#B8BDC5",
    "ytick.color": "#B8BDC5",
    "xtick.labelcolor": "#5B616B",
    "ytick.labelcolor": "#5B616B",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECEEF1",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def curves(rows: Rows, metrics: Sequence[Metric]) -> str:
    """Lines over the steps that logged them; the first one stands out."""
    figure, axes = _step_figure()
    for place, (metric, colour) in enumerate(zip(metrics, itertools.cycle(COLOURS), strict=False)):
        logged = [row for row in rows if metric.name in row]
        steps = [row["step"] for row in logged]
        marker = "o" if len(steps) <= 40 else ""
        width = 1.9 if place == 0 else 1.3
        axes.plot(steps, _values(logged, metric), marker=marker, ms=3, lw=width, color=colour, label=metric.curve)
    if all(np.all(np.nan_to_num(_values(rows, metric)) % 1 == 0) for metric in metrics):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _legend(axes)
    return _svg(figure)


def stacked(rows: Rows, whole: Metric, parts: Sequence[Metric]) -> str:
    """The parts of each step that logged any, stacked, with the whole as a line where it was logged."""
    figure, axes = _step_figure()
    rows = [row for row in rows if any(part.name in row for part in parts)]
    steps = np.array([row["step"] for row in rows], dtype=float)
    edges = np.concatenate(([steps[0] - 0.5], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 0.5]))
    below = np.zeros(len(steps))
    for metric, colour in zip(parts, itertools.cycle(COLOURS), strict=False):
        above = below + np.nan_to_num(_values(rows, metric))
        axes.stairs(above, edges, baseline=below, fill=True, color=colour, alpha=0.85, label=metric.curve)
        below = above
    if any(row.get(whole.name) is not None for row in rows):
        axes.stairs(_values(rows, whole), edges, baseline=None, color="#1D2129", lw=1, label=whole.curve)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(whole.unit)
    _legend(axes)
    return _svg(figure)


def _values(rows: Rows, metric: Metric) -> np.ndarray:
    """float [steps]; NaN where the metric was not finite."""
    return np.array([row.get(metric.name) for row in rows], dtype=float)


def _step_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlabel("step")
    return figure, axes


def _legend(axes: Axes) -> None:
    """Above the axes, in one line, when there is something to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        place: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (-0.02, 1),
            "ncols": len(labels),
            "borderaxespad": 0.2,
        }
        axes.legend(handles, labels, **place, fontsize=8, handlelength=1.2, columnspacing=1.2)


def intervals_plot(
    budgets: Sequence[int], of_selector: Mapping[str, Sequence[tuple[float, float, float] | None]]
) -> str:
    """Accuracy in % over frame budgets, a line per selector with its intervals: of each budget (value, low, high), or None."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.3 / max(1, len(of_selector))
    for place, (name, colour) in enumerate(zip(of_selector, itertools.cycle(COLOURS), strict=False)):
        known = [(x, point) for x, point in enumerate(of_selector[name]) if point]
        xs = [x + (place - (len(of_selector) - 1) / 2) * width for x, _ in known]
        values, lows, highs = (np.array([point[part] for _, point in known]) for part in range(3))
        errors = np.abs([values - lows, highs - values])
        marker = "osD^"[place // len(COLOURS) % 4]
        axes.errorbar(xs, values, errors, marker=marker, ms=4, lw=1.2, capsize=2, color=colour, label=name)
    axes.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axes.set_xlabel("frames")
    axes.set_ylabel("%")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handlelength=1.2)
    return _svg(figure)


def moments_plot(num_frames: int, moments: Sequence[Sequence[Span]], of_selector: Mapping[str, Sequence[int]]) -> str:
    """The seconds of a video, a row per selector: the moments as bands, the chosen frames as ticks, stronger in a moment."""
    figure = Figure(figsize=(10.6, 0.5 + 0.24 * len(of_selector)), layout="constrained")
    axes = figure.add_subplot()
    for colour, spans in zip(itertools.cycle(COLOURS[1:]), moments, strict=False):
        for start, end in spans:
            axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=0.22, lw=0)
    for row, frames in enumerate(of_selector.values()):
        seen = [any(start - 0.5 <= at <= end + 0.5 for spans in moments for start, end in spans) for at in frames]
        for place, is_seen in zip(frames, seen, strict=True):
            colour, width = (BLUE, 2.2) if is_seen else ("#8A8F98", 1.0)
            axes.vlines(place, row - 0.36, row + 0.36, color=colour, lw=width)
    axes.set_yticks(range(len(of_selector)), list(of_selector))
    axes.set_ylim(len(of_selector) - 0.5, -0.5)
    axes.set_xlim(-0.5, num_frames - 0.5)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor="#1D2129")
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_xlabel("second of the video", fontsize=8)
    return _svg(figure)


def similarity_plot(similarity: np.ndarray, frames: Sequence[int]) -> str:
    """One line a query over the video's seconds, on one scale; a tick for every chosen frame. `similarity` is [Q, T]."""
    count, seconds = similarity.shape
    figure = Figure(figsize=(10.6, 0.55 + 0.62 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    low, high = similarity.min(), similarity.max()
    margin = 0.08 * (high - low) + 1e-3
    for place, (axes, row) in enumerate(zip(panels, similarity, strict=True), start=1):
        axes.vlines(frames, 0, 1, transform=axes.get_xaxis_transform(), color=ORANGE, lw=0.9, alpha=0.55)
        axes.plot(np.arange(seconds), row, color=BLUE, lw=1.3)
        axes.set_ylabel(f"Q{place}", rotation=0, ha="right", va="center")
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=2))
        axes.tick_params(labelsize=7.5)
    panels[-1].set_xlim(-0.5, seconds - 0.5)
    panels[-1].set_xlabel("second of the video")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def thumbnail(frame: np.ndarray) -> str:
    """One uint8 [H, W, 3] frame as a small data URI."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
