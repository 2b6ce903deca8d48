"""What the toy world alone knows of a question: which queries find its moments, and when they are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services import jsonl


@dataclass(frozen=True)
class Truth:
    """Of one question."""

    queries: tuple[str, ...]
    """Those that find its moments."""
    evidence: tuple[tuple[tuple[int, int], ...], ...]
    """Of each moment the spans of seconds, first and last, in which it is seen."""

    def seen(self, frames: Sequence[int]) -> float:
        """Share of the moments that one of `frames` (seconds) shows."""
        shown = [any(first <= frame <= last for first, last in spans for frame in frames) for spans in self.evidence]
        return sum(shown) / len(shown)

    def asked(self, queries: Sequence[str]) -> float:
        """Share of the wanted queries all of whose words are in one of `queries`."""
        found = [any(set(wanted.split()) <= set(query.split()) for query in queries) for wanted in self.queries]
        return sum(found) / len(found)


def read_truth(questions: Path) -> dict[str, Truth]:
    """By question id, from a toy world's JSONL file; empty for any other file."""
    if questions.suffix != ".jsonl":
        return {}
    return {
        row["id"]: Truth(tuple(row["queries"]), tuple(tuple((a, b) for a, b in spans) for spans in row["evidence"]))
        for row in jsonl.read(questions)
        if "evidence" in row
    }
