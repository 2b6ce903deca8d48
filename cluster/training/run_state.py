"""The state of a run beside its networks and optimizers: all that a resumed run needs to go on as if it had never stopped.

Invariants: this is the only place that reads and writes it; it is of the end of a step, so nothing in it is half done; no
random generator is in it, as every draw comes from (seed, step, question, index).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.config import Config, dotted_fields
from cluster.questions.stream import Ledger
from services.errors import UserError
from services.schema import Question

FILE = "state.json"
FIXED = {
    "train.seed": "it decides the order of the questions, of which the run has had its first part",
    "sampler.objective": "each objective is a stage of its own; start a new run with sampler.checkpoint",
    "toyworld.seed": "it decides the questions, of which the run has had its first part",
}
"""Fields that a resumed run cannot change, and why."""


@dataclass(frozen=True)
class RunState:
    """A run at the end of `step`."""

    step: int
    versions: Mapping[str, int]
    """Newest published version by network."""
    ledger: Ledger
    questions: Mapping[str, str]
    """Digest of the questions' ids, in the order of their file, by the field that names it."""
    accuracies: Mapping[str, float]
    """Validation accuracy so far, as the summary names it (`before`, `uniform`, `after`)."""
    accuracy: float | None
    """Validation accuracy of the networks of this very step; None when it was not measured."""
    seconds: float
    """Time that the run has taken so far."""
    config: Mapping[str, Any]

    @classmethod
    def start(cls, config: Config, questions: Mapping[str, Sequence[Question]]) -> RunState:
        """A run of `config` before its first step. `questions`: by the field that names them."""
        return cls(0, {}, Ledger(), _digests(questions), {}, None, 0.0, config.model_dump(mode="json"))

    def write(self, folder: Path) -> None:
        """Write `state.json` into a checkpoint's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """The state that lies in a checkpoint's folder.

    Raises UserError when it is not of this version of msjoe, or not a checkpoint.
    """
    try:
        saved = json.loads((folder / FILE).read_bytes())
        ledger = saved["ledger"]
        return RunState(
            **saved | {"ledger": Ledger(ledger["frontier"], *map(tuple, (ledger["settled"], ledger["left_out"])))}
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--resume: {folder} is no checkpoint that a run can go on from ({error}); name another"
        ) from error


def _digests(questions: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    """A hash of the questions' ids in their order, by field."""
    ids = {field: "\n".join(question.id for question in some) for field, some in questions.items()}
    return {
        field: hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16] for field, text in ids.items()
    }


def changes(saved: Mapping[str, Any], config: Config) -> Iterator[str]:
    """What `config` has otherwise than the `saved` one, a line per field."""
    now = config.model_dump(mode="json")
    for name in dotted_fields():
        if (before := _value(saved, name)) != (after := _value(now, name)):
            yield f"{name}: {before} before, {after} now"


def check_goes_on(state: RunState, config: Config, questions: Mapping[str, Sequence[Question]]) -> None:
    """Raises UserError naming what keeps a run of `config` on `questions`, by the field that names them, from going on from
    `state`."""
    now = config.model_dump(mode="json")
    problems = [
        f"{name}: {_value(state.config, name)} before, {_value(now, name)} now, but {why}"
        for name, why in FIXED.items()
        if _value(state.config, name) != _value(now, name)
    ]
    problems += [
        f"{field}: these are not the questions that the run began with, or not in their order"
        for field, digest in _digests(questions).items()
        if state.questions.get(field) != digest
    ]
    learning = {"policy": config.policy.train, "sampler": config.selector.learns}
    problems += [
        f"{network}: it {'learns now and did not before' if learns else 'learnt before and does not now'}"
        for network, learns in learning.items()
        if learns != (network in state.versions)
    ]
    if state.step > config.train.steps:
        problems.append(f"train.steps: {config.train.steps}, but the run has done {state.step}")
    if problems:
        raise UserError("--resume: the run cannot go on so; start a new one, or mend\n  " + "\n  ".join(problems))


def _value(values: Mapping[str, Any], name: str) -> Any:
    """The field of that dotted name; None where its section is not there."""
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
