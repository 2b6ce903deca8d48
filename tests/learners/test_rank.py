"""The plan of micro-batches: every sample once, equal counts on all ranks, the budget kept."""

from __future__ import annotations

import random

from learners.rank import plan_micro_batches


def test_every_sample_once_and_equal_counts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        lengths = [rng.randrange(1, 100) for _ in range(rng.randrange(1, 40))]
        world_size, budget = rng.randrange(1, 6), rng.randrange(1, 400)
        padded = rng.random() < 0.5
        plan = plan_micro_batches(lengths, budget, world_size, padded)
        assert len(plan) == world_size
        assert len({len(rank) for rank in plan}) == 1
        batches = [batch for rank in plan for batch in rank]
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            tokens = [lengths[index] for index in batch]
            assert len(batch) <= 1 or (len(batch) * max(tokens) if padded else sum(tokens)) <= budget


def test_no_rank_idles_while_another_has_two_samples() -> None:
    plan = plan_micro_batches([5, 5, 5], budget=1000, world_size=3)
    assert [len(rank) for rank in plan] == [1, 1, 1]
    assert all(batch for rank in plan for batch in rank)


def test_too_few_samples_leave_empty_batches() -> None:
    assert sorted(plan_micro_batches([5], budget=10, world_size=2)) == [[[]], [[0]]]
