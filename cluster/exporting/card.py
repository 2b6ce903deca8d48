"""The card of exported networks (`README.md`): what they are, toy or real, how they were trained and measured, how each is
loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from actors.prompts import answer_messages, query_messages
from cluster.config import Config
from cluster.pages import render
from cluster.resolve import toy_parts
from cluster.training.run_state import RunState
from learners.networks import NETWORKS
from services.metrics import read_metrics
from services.metrics.names import named
from services.schema import Question
from services.trajectories import VALIDATION, read_trajectories

EXAMPLE = Question("", "", "{question}", ("{option}", "{option}"))
"""Stands for any question where a prompt is shown."""


def card(folder: Path, name: str, run_dir: Path, state: RunState, config: Config) -> str:
    """The text of the card `name` of the networks in `folder`, which a run of `config` had at `state`. What was measured is
    read from `run_dir`, as far as it is there."""
    sampler = _parameters(folder / "sampler")
    row = {row["step"]: row for row in read_metrics(run_dir)}.get(state.step, {})
    return render(
        "model_card.md.j2",
        name=name,
        toy=toy_parts(config),
        state=state,
        config=config,
        base=_name(config.policy.model),
        clip=_name(config.embedder.model),
        questions=_name(str(config.data.questions)),
        mllm=_parameters(folder / "mllm"),
        sampler=sampler,
        sees_frames=bool(sampler) and NETWORKS[config.selector.kind].sees_frames,
        accuracies=_accuracies(state, run_dir, int(row.get("validation/not_asked") or 0)),
        metrics=[(metric.description, f"{row[metric.name]:.3g}") for metric in _shown(row)],
        query=_text(
            query_messages(
                EXAMPLE,
                show_options=config.prompts.options_in_query_turn,
                max_queries=config.prompts.max_queries,
            )
        ),
        answer=_text(answer_messages(EXAMPLE)),
    )


def _name(model: str) -> str:
    """The name on a hub as it is, and of a path the last part: where it lay on one machine says nothing to others."""
    return Path(model).name if Path(model).is_absolute() else model


def _text(messages: list[dict[str, Any]]) -> str:
    return messages[0]["content"][-1]["text"]


def _shown(row: Mapping[str, Any]) -> list[Any]:
    """The metrics of a step that stand in the report's table, the accuracy apart."""
    known = named(name for name, value in row.items() if value is not None)
    return [metric for metric in known if metric.table and metric.name != "validation/accuracy"]


def _accuracies(state: RunState, run_dir: Path, not_asked: int) -> list[tuple[str, str]]:
    """What was measured, and the accuracy in words."""
    asked = sum(row["step"] == state.step for row in read_trajectories(run_dir, VALIDATION))
    known = {
        f"these networks (step {state.step})": state.accuracy,
        "before training": state.accuracies.get("before"),
        "the MLLM alone, uniform frames, before training": state.accuracies.get("uniform"),
    }

    def said(accuracy: float) -> str:
        if not (count := asked + not_asked):
            return f"{accuracy:.3f}"
        low, high = wilson(accuracy, count)
        return f"{accuracy:.3f} [{low:.3f}, {high:.3f}] over {count} questions"

    return [(name, said(accuracy)) for name, accuracy in known.items() if accuracy is not None]


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` by Wilson's score (Journal of the American Statistical Association 22, 1927)."""
    z2 = 1.959964**2
    middle, half = share + z2 / (2 * count), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count)
    return (middle - half) / (1 + z2 / count), (middle + half) / (1 + z2 / count)


def _parameters(folder: Path) -> int:
    """Parameters in the files of weights of a folder; 0 when it is not there."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return count
