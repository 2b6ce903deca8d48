"""The learning rate of each step, as transformers schedules it.

Invariant: a rate is a function of the step's number alone. So steps without signal count, and no state has to be saved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from learners.config import LearnerConfig


def learning_rates(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """The function from a step's number, 1…`steps`, to its learning rate.

    The rate rises evenly to `config.learning_rate` at step `config.warmup_steps`. Then it stays there, or it falls in a
    straight line or in half a cosine and reaches 0 one step after the last.
    """
    from transformers import get_scheduler  # takes seconds, and others load it anyway

    kind = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    (share,) = get_scheduler(kind, optimizer, config.warmup_steps, steps + 1).lr_lambdas
    return lambda step: config.learning_rate * share(step)
