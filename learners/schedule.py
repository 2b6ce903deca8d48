"""The learning rate of each step, as transformers schedules it.

Invariant: a rate is a function of the step's number alone, so a step without signal counts, and nothing need be kept of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from learners.config import LearnerConfig


def learning_rates(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """From the number of a step, 1…`steps`, to its learning rate.

    It rises evenly to `config.learning_rate` at step `config.warmup_steps`; then it stays there, or falls, in a line or in half
    a cosine, towards 0 one step after the last.
    """
    from transformers import get_scheduler  # seconds, and loaded by others already

    kind = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    (share,) = get_scheduler(kind, optimizer, config.warmup_steps, steps + 1).lr_lambdas
    return lambda step: config.learning_rate * share(step)
