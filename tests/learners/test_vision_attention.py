"""The vision tower with grouped windows against transformers' own."""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from learners.vision_attention import GroupedVisionAttention, _grouped


def test_equals_transformers() -> None:
    """Features and gradients, of two videos whose windows have several lengths."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        hidden_size=32, depth=3, num_heads=2, intermediate_size=48, out_hidden_size=16, fullatt_block_indexes=[1]
    )
    theirs = Qwen2_5_VisionTransformerPretrainedModel(config)
    ours = deepcopy(theirs)
    for block in ours.blocks:
        block.attn.__class__ = GroupedVisionAttention
    grids = torch.tensor([[3, 12, 22], [2, 8, 10]])
    patches = torch.randn(int(grids.prod(1).sum()), 1176)
    expected, found = theirs(patches, grids).pooler_output, ours(patches, grids).pooler_output
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_groups() -> None:
    """Windows of 2, 1, 2 patches: two calls, and every patch finds its own place."""
    groups, places = _grouped(torch.tensor([0, 2, 3, 5]))
    assert [rows.tolist() for rows in groups] == [[[2]], [[0, 1], [3, 4]]]
    assert places.tolist() == [1, 2, 0, 3, 4]
