"""The learning rate of each step, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from learners.config import SamplerConfig
from learners.schedule import learning_rates


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [8, 8, 8, 8, 8]),
        ({"warmup_steps": 4}, [2, 4, 6, 8, 8]),
        ({"schedule": "linear"}, [8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 / 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [4, 8, 6, 4, 2]),
        ({"schedule": "cosine", "warmup_steps": 2}, [4, 8, 4 + 8**0.5, 4, 4 - 8**0.5]),
        ({"schedule": "cosine", "warmup_steps": 8}, [1, 2, 3, 4, 5]),
    ],
)
def test_rates_of_five_steps(fields: dict[str, Any], expected: list[float]) -> None:
    rates = learning_rates(SamplerConfig(learning_rate=8e-3, **fields), steps=5)
    assert [1000 * rates(step) for step in range(1, 6)] == pytest.approx(expected)
    assert 1000 * rates(3) == pytest.approx(expected[2]), "a step's number decides alone"
