"""What a questions file may know about where its answers lie: which queries find the moments, and when they are seen.

Two optional columns of the training format as JSON lines, which the toy world writes; validation then measures whether the
right queries were asked and the right moments seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services import jsonl


@dataclass(frozen=True)
class Evidence:
    """The evidence for one question's answer."""

    queries: tuple[str, ...]
    """Queries that find its moments."""
    moments: tuple[tuple[tuple[int, int], ...], ...]
    """For each moment the spans of seconds, first and last, in which it is seen."""

    def seen(self, frames: Sequence[int]) -> float:
        """Share of the moments that one of `frames` (seconds) shows."""
        shown = [any(first <= frame <= last for first, last in spans for frame in frames) for spans in self.moments]
        return sum(shown) / len(shown)

    def asked(self, queries: Sequence[str]) -> float:
        """Share of the wanted queries all of whose words are in one of `queries`."""
        found = [any(set(wanted.split()) <= set(query.split()) for query in queries) for wanted in self.queries]
        return sum(found) / len(found)


def read_evidence(questions: Path) -> dict[str, Evidence]:
    """The evidence by question id, from the columns `queries` and `evidence` of a JSON lines file; empty for any other file."""
    if questions.suffix != ".jsonl":
        return {}
    return {
        row["id"]: Evidence(tuple(row["queries"]), tuple(tuple((a, b) for a, b in spans) for spans in row["evidence"]))
        for row in jsonl.read(questions)
        if "evidence" in row
    }
