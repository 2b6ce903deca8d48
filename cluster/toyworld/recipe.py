"""How the shipped models were made, and how to make others: a CLIP and an MLLM from one seed.

`losses.json` beside them keeps the loss of every step. `shortened.json` keeps those of two steps of every part, from a run with
`stop=2`, so that whoever repeats it can tell whether the recipe still makes the same models.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from cluster.toyworld import Progress
from cluster.toyworld.clip import captions, train_clip
from cluster.toyworld.cold_start import corpus, train_mllm
from cluster.toyworld.gallery import Gallery

STEPS = {"clip": 1200, "sight": 1200, "talk": 2600}
"""Training steps of the CLIP, and of the MLLM's two parts."""
THREADS = 2
PICTURES = 24
"""Pictures of every thing there is."""


def train_models(folder: Path, seed: int, progress: Progress, stop: int | None = None) -> dict[str, list[float]]:
    """Write `clip/`, `mllm/` and `losses.json`; returns the losses by part.

    `stop`: take no more than so many steps of each part's schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    losses: dict[str, list[float]] = defaultdict(list)
    taken = {part: min(steps, stop or steps) for part, steps in STEPS.items()}

    def report(part: str, loss: float) -> None:
        losses[part].append(round(loss, 4))
        progress(part, len(losses[part]), taken[part])

    texts = [*corpus(seed), *captions()]
    gallery = Gallery(PICTURES, seed)
    with _threads(THREADS):
        train_clip(folder / "clip", gallery, texts, seed, STEPS["clip"], taken["clip"], partial(report, "clip"))
        train_mllm(folder / "mllm", gallery, seed, STEPS, taken, report)
    (folder / "losses.json").write_text(json.dumps(losses))
    return losses


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run torch on that many threads, whatever the machine has: other numbers sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
