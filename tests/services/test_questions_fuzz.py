"""Question files with odd cells give questions or a reason: some of those that `benchmarks.fuzz` makes."""

from __future__ import annotations

import numpy as np

from benchmarks.odd_cells import fuzz_questions


def test_odd_cells(tmp_path):
    play = fuzz_questions(tmp_path)
    outcomes = [play(np.random.default_rng([0, index])) for index in range(150)]
    assert [outcome for outcome in outcomes if outcome.startswith("FAULT")] == []
    assert sum(outcome.endswith("questions") for outcome in outcomes) > 20
