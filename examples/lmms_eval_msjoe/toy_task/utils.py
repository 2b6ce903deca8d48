"""Questions of the toy world as a task of lmms-eval; paths of videos start where the harness is started."""

from __future__ import annotations

import re
from typing import Any


def videos(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def text(doc: dict[str, Any], settings: Any = None) -> str:
    """What MSJoE's answer turn asks."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGH", doc["options"], strict=False))
    return f"{doc['question']}\n{options}\nAnswer with the letter of the right option as <answer>X</answer>."


def messages(doc: dict[str, Any], settings: Any = None) -> list[dict[str, Any]]:
    parts = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": text(doc)}]
    return [{"role": "user", "content": parts}]


def is_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    found = re.findall(r"<answer>\s*([A-Z])\s*</answer>", results[0])
    return {"accuracy": float(found[-1:] == [doc["answer"]])}
