"""Rules that choose key frames without learning: from a similarity matrix to K frames.

A rule is a function in a file of this folder and a row in `RULES`; its name is then a value of `selector.kind`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from services.selection.topk import topk
from services.selection.uniform import uniform

Rule = Callable[[np.ndarray, int], tuple[int, ...]]
"""`rule(similarity, budget)`: cosines [Q, T] and K to at most K frame indices in time order."""

RULES: dict[str, Rule] = {"uniform": uniform, "topk": topk}
