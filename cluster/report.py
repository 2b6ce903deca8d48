"""The report of a run: one self-contained HTML page of curves and looked-at questions.

Invariants: the page refers to nothing outside itself; everything a model wrote is escaped; it can be made from whatever the
run left (one step, missing metrics, no trajectories). Pixels are read here from the frame cache: run this where the cache
is, as a Ray task, not in the driver.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from services.config import DataConfig, FramesConfig
from services.errors import VideoError
from services.frames import FrameCache
from services.metrics import read_metrics
from services.schema import LETTERS
from services.trajectories import FILE, VALIDATION, read_trajectories
from services.writing import writing

QUESTIONS = 4
"""Questions the page looks at."""

THUMBNAIL_WIDTH = 160
"""Pixels of a chosen frame on the page, about twice what it is shown at."""

Rows = list[dict[str, Any]]

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A8F98"
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Validation",
        "Held-out questions, without sampling: right answers; of the toy world also wanted queries asked and moments seen.",
        (
            ("validation/accuracy", "accuracy", BLUE),
            ("validation/queries_right", "queries right", ORANGE),
            ("validation/moments_seen", "moments seen", GREEN),
        ),
    ),
    (
        "Reward",
        "Mean over the step's trajectories; the parts add up to the total.",
        (
            ("reward/total", "total", BLUE),
            ("reward/accuracy", "accuracy", ORANGE),
            ("reward/format", "format", GREEN),
            ("reward/info", "info", PURPLE),
        ),
    ),
    ("Policy loss", "GRPO objective of the MLLM, per token.", (("policy/loss", "loss", BLUE),)),
    (
        "Policy learning rate",
        "The step size of AdamW, set by policy.schedule.",
        (("policy/learning_rate", "rate", BLUE),),
    ),
    ("Policy gradient norm", "Global L2 norm before clipping.", (("policy/grad_norm", "norm", BLUE),)),
    (
        "Mismatch KL",
        "Between the engine's and the learner's log-probabilities of the same tokens, nats per token.",
        (("policy/mismatch_kl", "KL", BLUE),),
    ),
    (
        "Sampler learning rate",
        "The step size of AdamW, set by sampler.schedule.",
        (("sampler/learning_rate", "rate", BLUE),),
    ),
    ("Sampler loss", "REINFORCE objective of the frame sampler.", (("sampler/loss", "loss", BLUE),)),
    (
        "Sampler entropy",
        "Of its probabilities over the candidate frames, nats; uniform over T frames is log T.",
        (("sampler/entropy", "entropy", BLUE),),
    ),
    (
        "Policy entropy",
        "Of the MLLM's next-token distribution, nats per token.",
        (("policy/entropy", "entropy", BLUE),),
    ),
    (
        "Clip share",
        "Tokens whose ratio was clipped, so that they pulled nowhere.",
        (("policy/clip_share", "share", BLUE),),
    ),
    (
        "Lost signal",
        "Shares: groups whose rewards are all equal; replies of either turn that could not be parsed.",
        (
            ("rollout/groups_without_signal", "groups without signal", BLUE),
            ("rollout/queries_unparsed", "query replies unparsed", ORANGE),
            ("rollout/answers_unparsed", "answers unparsed", GREEN),
        ),
    ),
)
"""Title, caption, and metric, label, colour of each curve."""

PHASES = (
    ("timing/rollout", "rollout", BLUE),
    ("timing/policy_update", "policy", ORANGE),
    ("timing/sampler_update", "sampler", GREEN),
    ("timing/publish", "publish", PURPLE),
)

TABLE = (
    ("validation/accuracy", "validation accuracy"),
    ("validation/queries_right", "validation: wanted queries asked, share"),
    ("validation/moments_seen", "validation: moments seen, share"),
    ("reward/total", "reward"),
    ("reward/accuracy", "accuracy reward"),
    ("reward/format", "format reward"),
    ("reward/info", "info reward"),
    ("policy/loss", "policy loss"),
    ("policy/grad_norm", "policy gradient norm"),
    ("policy/learning_rate", "policy learning rate"),
    ("policy/mismatch_kl", "mismatch KL, nats per token"),
    ("sampler/loss", "sampler loss"),
    ("sampler/grad_norm", "sampler gradient norm"),
    ("sampler/learning_rate", "sampler learning rate"),
    ("sampler/entropy", "sampler entropy, nats"),
    ("policy/entropy", "policy entropy, nats per token"),
    ("policy/clip_share", "clip share"),
    ("rollout/group_size", "trajectories per group"),
    ("rollout/groups_without_signal", "groups without signal, share"),
    ("rollout/queries_unparsed", "query replies unparsed, share"),
    ("rollout/answers_unparsed", "answers unparsed, share"),
    ("timing/step", "step time, s"),
)
"""Metric and name of each line of the table."""

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
    config = run_dir / "config.yaml"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with matplotlib.rc_context(STYLE):
        page = environment.get_template("report.html.j2").render(
            name=run_dir.resolve().name,
            config=config.read_text() if config.exists() else None,
            steps=[row["step"] for row in rows],
            table=_table(rows),
            charts=_charts(rows),
            questions=[_question(first, last, frame_cache) for first, last in _first_and_last(run_dir)],
            letters=LETTERS,
        )
    path = run_dir / "report.html"
    with writing(path):
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _table(rows: Rows) -> list[dict[str, str]]:
    """First and last value of every metric of TABLE that the run logged, of the user's own reward terms, and of the shares of
    parameters without gradient."""
    table = []
    zeros = sorted({metric for row in rows for metric in row if "/zero_gradients/" in metric})
    names = [
        (metric, metric.replace("/zero_gradients/", " ") + ": weights without gradient, share") for metric in zeros
    ]
    own = [(metric, metric.replace("reward/", "reward: ")) for metric in _own_rewards(rows)]
    for metric, name in (*TABLE, *own, *names):
        if values := [row[metric] for row in rows if row.get(metric) is not None]:
            table.append({"name": name, "first": f"{values[0]:.3g}", "last": f"{values[-1]:.3g}"})
    return table


def _charts(rows: Rows) -> list[dict[str, str]]:
    """Title, caption and picture of every chart that has something to show."""
    charts = []
    colors = itertools.cycle((SKY, GREY))
    own = [(metric, metric.removeprefix("reward/"), next(colors)) for metric in _own_rewards(rows)]
    for title, caption, curves in CURVES:
        shown = (*curves, *own) if title == "Reward" else curves
        if present := [curve for curve in shown if _logged(rows, curve[0])]:
            charts.append({"title": title, "caption": caption, "image": _curves(rows, present)})
    if phases := [phase for phase in PHASES if _logged(rows, phase[0])]:
        caption = "Seconds of rollout, policy and sampler update, and weight publication, stacked; they may overlap."
        timed = [row for row in rows if any(metric in row for metric, _, _ in phases)]
        charts.append({"title": "Step time", "caption": caption, "image": _step_time(timed, phases)})
    return charts


def _own_rewards(rows: Rows) -> list[str]:
    """Metrics of the reward terms that `rewards.extra` added, in the order they were logged."""
    known = dict(TABLE)
    return list(
        dict.fromkeys(metric for row in rows for metric in row if metric.startswith("reward/") and metric not in known)
    )


def _logged(rows: Rows, metric: str) -> bool:
    return any(row.get(metric) is not None for row in rows)


def _values(rows: Rows, metric: str) -> np.ndarray:
    """float [steps]; NaN where the metric was not finite."""
    return np.array([row.get(metric) for row in rows], dtype=float)


def _curves(rows: Rows, curves: Sequence[tuple[str, str, str]]) -> str:
    """Lines over the steps that logged them; the first one stands out."""
    figure, axes = _step_figure()
    for place, (metric, label, color) in enumerate(curves):
        logged = [row for row in rows if metric in row]
        steps = [row["step"] for row in logged]
        marker = "o" if len(steps) <= 40 else ""
        values = _values(logged, metric)
        width = 1.9 if place == 0 else 1.3
        axes.plot(steps, values, marker, ls="-", ms=3, lw=width, color=color, label=label)
    if all(np.all(np.nan_to_num(_values(rows, metric)) % 1 == 0) for metric, _, _ in curves):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _legend(axes)
    return _svg(figure)


def _step_time(rows: Rows, phases: Iterable[tuple[str, str, str]]) -> str:
    """Seconds of each phase, stacked, with the seconds of the whole step as a line."""
    figure, axes = _step_figure()
    steps = np.array([row["step"] for row in rows], dtype=float)
    edges = np.concatenate(([steps[0] - 0.5], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 0.5]))
    below = np.zeros(len(steps))
    for metric, label, color in phases:
        above = below + np.nan_to_num(_values(rows, metric))
        axes.stairs(above, edges, baseline=below, fill=True, color=color, alpha=0.85, label=label)
        below = above
    if _logged(rows, "timing/step"):
        axes.stairs(_values(rows, "timing/step"), edges, baseline=None, color="#1D2129", lw=1, label="whole step")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    _legend(axes)
    return _svg(figure)


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
    plot = _similarity(moment["similarity"], moment["frames"])
    if moment["video_key"] is None:
        return {"plot": plot, "thumbnails": [], "no_frames": "the answer turn showed none"}
    try:
        pixels = frame_cache.read(moment["video_key"], moment["frames"])
    except (OSError, VideoError) as error:
        return {"plot": plot, "thumbnails": [], "no_frames": str(error)}
    images = [_jpeg(frame) for frame in pixels]
    return {"plot": plot, "thumbnails": list(zip(moment["frames"], images, strict=True)), "no_frames": None}


def _similarity(similarity: np.ndarray, frames: Sequence[int]) -> str:
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


def _jpeg(frame: np.ndarray) -> str:
    """One uint8 [H, W, 3] frame as a small data URI."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
