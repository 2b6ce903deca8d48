"""Sampled trajectories on disk: `trajectories.jsonl` in the run's folder, for people and for the report.

Invariants: one line a trajectory, every trajectory of a step; frame indices, never pixels. Similarity rows are large, so
only few trajectories of a step carry theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services import jsonl
from services.schema import Group, Question, Trajectory

FILE, VALIDATION = "trajectories.jsonl", "validation.jsonl"
"""The files of training and of the held-out questions."""


def write_trajectories(
    run_dir: Path, step: int, groups: Sequence[Group], similarity_questions: int = 4, file: str = FILE
) -> None:
    """Append the trajectories of one step.

    The first trajectory of `similarity_questions` questions keeps its similarity rows: of those whose ids sort first, so
    that the same questions come back epoch after epoch and can be compared. An hour of video takes about 100 kB there.
    """
    detailed = set(sorted(group.question.id for group in groups)[:similarity_questions])
    rows = [
        _row(step, group.question, trajectory, similarity=place == 0 and group.question.id in detailed)
        for group in groups
        for place, trajectory in enumerate(group.trajectories)
    ]
    jsonl.append(run_dir / file, rows)


def read_trajectories(run_dir: Path, file: str = FILE) -> Iterator[dict[str, Any]]:
    """The rows in the order they were written, one at a time; none when the run wrote none."""
    return jsonl.read(run_dir / file)


def _row(step: int, question: Question, trajectory: Trajectory, similarity: bool) -> dict[str, Any]:
    """One trajectory as JSON; `similarity` is null unless asked for, else [Q][T] cosines to four decimals."""
    selection, reward, visual = trajectory.selection, trajectory.reward, trajectory.answer_turn.visual
    return {
        "step": step,
        "question_id": question.id,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "index": trajectory.index,
        "query_index": trajectory.query_index,
        "video": question.video,
        "video_key": visual.video if visual else None,
        "num_frames": selection.similarity.shape[1],
        "query_reply": trajectory.query_turn.text,
        "queries": list(trajectory.queries),
        "frames": [int(frame) for frame in selection.frames],
        "answer_reply": trajectory.answer_turn.text,
        "letter": trajectory.letter,
        "reward": {"total": reward.total, **reward.terms},
        "versions": {
            "query": trajectory.query_turn.version,
            "sampler": selection.version,
            "answer": trajectory.answer_turn.version,
        },
        "similarity": np.round(selection.similarity.astype(np.float64), 4).tolist() if similarity else None,
    }
