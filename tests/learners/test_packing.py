"""Packed rows give every token what it has alone; budgets hold; families are turns with one prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.credit import PolicySample
from learners.packing import Family, packed_attention, plan_families, spans
from services.schema import Turn, VisualInput

VISUAL = VisualInput("v", (0, 4), 9, 28, 28)


def sample(prompt: list[int], response: int, visual: VisualInput | None = None) -> PolicySample:
    ids = np.zeros(response, np.int32)
    turn = Turn(np.array(prompt, np.int32), ids, np.zeros(response, np.float32), "", False, 0, visual)
    return PolicySample("a turn", turn, 1.0, 1.0)


def test_turns_with_one_prompt_and_one_set_of_frames_are_a_family() -> None:
    other_frames = replace(VISUAL, frames=(1, 4))
    samples = [
        sample([1, 2, 3], 2, VISUAL),
        sample([1, 2, 3], 2, other_frames),
        sample([1, 2, 3], 5, VISUAL),
        sample([1, 2], 4),
    ]
    assert plan_families(samples, 100, share=True) == [
        Family((0, 2), 3, (2, 5)),
        Family((1,), 3, (2,)),
        Family((3,), 2, (4,)),
    ]
    assert [family.members for family in plan_families(samples, 100, share=False)] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("budget", [1, 12, 15, 40])
def test_families_stay_within_the_budget_and_hold_every_sample_once(budget: int) -> None:
    samples = [sample([1, 2, 3, 4], 1 + index % 5) for index in range(11)]
    families = plan_families(samples, budget, share=True)
    assert sorted(index for family in families for index in family.members) == list(range(11))
    assert all(family.tokens <= budget or len(family.members) == 1 for family in families)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["multi-head", "grouped-query"])
def test_packed_attention_is_each_turns_own_attention(heads: tuple[int, int]) -> None:
    families = [Family((0, 1, 2), 7, (3, 1, 4)), Family((3,), 5, (2,)), Family((4, 5), 1, (1, 6))]
    length = sum(family.tokens for family in families)
    module = torch.nn.Module()
    module.num_key_value_groups = heads[0] // heads[1]  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, count, length, 8, generator=generator) for count in (heads[0], heads[1], heads[1]))
    packed, _ = packed_attention(module, q, k, v, None, spans=spans(families))
    assert packed.shape == (1, length, heads[0], 8)
    start = 0
    for family in families:
        after = start + family.prompt
        for response in family.responses:
            own = [*range(start, start + family.prompt), *range(after, after + response)]
            alone = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, own], k[:, :, own], v[:, :, own], is_causal=True, enable_gqa=True
            )
            torch.testing.assert_close(packed[:, own], alone.transpose(1, 2), atol=1e-6, rtol=0)
            after += response
        start = after
