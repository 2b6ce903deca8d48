"""One question over the steps of a run: its queries, their similarity rows, and the frames that the sampler takes.

`python -m benchmarks.evolution runs/toy-…` writes docs/evolution.svg, of the question that gained most.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cluster.config import load_config
from services.questions import read_questions
from services.questions.evidence import share_asked, share_seen
from services.schema import Question
from services.trajectories import VALIDATION, read_trajectories

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PANELS = 5


def main() -> None:
    """Read the run, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--question", help="its id, one of those whose similarity rows the run kept")
    parser.add_argument("--out", type=Path, default=Path("docs/evolution.svg"))
    options = parser.parse_args()
    config = load_config(options.run_dir / "config.yaml")
    assert config.data.validation is not None
    questions = {question.id: question for question in read_questions(config.data.validation)}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_trajectories(options.run_dir, VALIDATION):
        if row["similarity"] is not None:
            rows[row["question_id"]].append(row)

    def gain(id: str) -> float:
        first, last = (
            share_asked(questions[id], row["queries"]) + share_seen(questions[id], row["frames"])
            for row in (rows[id][0], rows[id][-1])
        )
        return last - first

    question = options.question or max(rows, key=gain)
    draw(rows[question], questions[question]).savefig(options.out, metadata={"Date": None})
    print(options.out, question)


def draw(rows: Sequence[dict[str, Any]], question: Question) -> Figure:
    """A panel for each of some steps, the first and the last among them; all on one scale."""
    shown = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, PANELS).astype(int))]
    figure = Figure(figsize=(8.4, 1.25 * len(shown) + 0.9), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, row in zip(panels, shown, strict=True):
        for spans in question.moments:
            for first, last in spans:
                axes.axvspan(first - 1, last + 1, color=GREEN, alpha=0.3, lw=0)
        for similarity in row["similarity"]:
            axes.plot(similarity, color=BLUE, lw=1, alpha=0.8)
        axes.vlines(row["frames"], 0, 0.2, transform=axes.get_xaxis_transform(), color=ORANGE, lw=1.6)
        asked = " · ".join(row["queries"])
        verdict = "right" if row["letter"] == row["answer"] else "wrong"
        axes.set_title(f"step {row['step']}: “{asked}”; answer {verdict}", loc="left", fontsize=8.5)
        axes.set_ylabel("cosine", fontsize=8)
        axes.tick_params(labelsize=7.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("second of the video")
    figure.suptitle(f"{shown[0]['question']}  (green: when it is seen, orange: frames taken)", fontsize=9.5)
    return figure


if __name__ == "__main__":
    main()
