"""Runs: elements that stand side by side and belong together, as the tokens of a turn or the draws of a question.

Shape letters: `N` elements, `R` runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Runs:
    """Consecutive runs of `counts` elements each."""

    def __init__(self, counts: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.counts_R = torch.tensor(counts, dtype=torch.int64, device=device)
        """Elements of each run."""
        self._owners_N = torch.arange(len(counts), device=device).repeat_interleave(self.counts_R)

    def sums(self, values_N: Tensor) -> Tensor:
        """The sum [R] of each run's values."""
        return values_N.new_zeros(len(self.counts_R)).index_add(0, self._owners_N, values_N)

    def spread(self, values_R: Tensor) -> Tensor:
        """The value of its run for each element, [N]."""
        return values_R[self._owners_N]

    def firsts(self) -> Tensor:
        """1 for the first element of each run, 0 for the others, [N] int64; no run may be empty."""
        return self._owners_N.diff(prepend=self._owners_N.new_tensor([-1]))
