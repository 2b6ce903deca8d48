"""Packing: turns side by side in one row, without padding, and one copy of a prompt for all the turns that share it.

Layout: a *family* is a prompt and the responses sampled from it. A row holds families side by side; in each the responses
follow the prompt. A token sees the tokens before it in its own turn, in the prompt and in its response, and no others.
Positions are passed explicitly, so those of a response continue those of its prompt wherever the response stands in the row.

Shape letters: `H` heads, `L` tokens of the row, `D` width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.credit import PolicySample

ATTENTION = "packed"
"""Name under which transformers finds `packed_attention`."""


@dataclass(frozen=True)
class Family:
    """Turns that share a prompt."""

    members: tuple[int, ...]
    """Indices of the samples."""
    prompt: int
    """Number of tokens of the prompt."""
    responses: tuple[int, ...]
    """Number of tokens of each member's response, positive."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the family takes in the row."""
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of the row whose attention is computed in one call. They see each other causally. A span is a prompt
    with its first response, or one of the further responses, which sees the prompt too."""

    length: int
    prefix: int = 0
    """Number of tokens of the prompt that the span sees in front of itself; 0 where the span holds the prompt."""
    mask: Tensor | None = None
    """Bool [length, prefix + length]: which tokens each token sees. None without a prefix."""


def plan_families(samples: Sequence[PolicySample], budget: int, share: bool) -> list[Family]:
    """Put every sample in one family. Families of several members have at most `budget` tokens; with `share=False` every sample
    is a family of its own."""
    open_families: dict[Any, list[int]] = {}
    members: list[list[int]] = []
    for index, sample in enumerate(samples):
        turn = sample.turn
        key = (turn.prompt_ids.tobytes(), turn.visual) if share else index
        family = open_families.get(key)
        if family is None or _tokens(samples, [*family, index]) > budget:
            family = open_families[key] = []
            members.append(family)
        family.append(index)
    return [
        Family(
            tuple(family),
            len(samples[family[0]].turn.prompt_ids),
            tuple(len(samples[index].turn.response_ids) for index in family),
        )
        for family in members
    ]


def _tokens(samples: Sequence[PolicySample], family: Sequence[int]) -> int:
    return len(samples[family[0]].turn.prompt_ids) + sum(len(samples[index].turn.response_ids) for index in family)


def spans(families: Sequence[Family], device: torch.device | str = "cpu") -> list[Span]:
    """The spans of a row of `families`, in its order."""
    found = []
    for family in families:
        found.append(Span(family.prompt + family.responses[0]))
        for length in family.responses[1:]:
            mask = torch.ones(length, family.prompt + length, dtype=torch.bool, device=device).tril(family.prompt)
            found.append(Span(length, family.prompt, mask))
    return found


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Sequence[Span],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each turn of a packed row: transformers' attention interface over [1, H, L, D], output [1, L, H, D].

    PyTorch's fused attention is called once per span: nothing of size [L, L] exists, and nothing is computed between two turns.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Split, not sliced: the gradient of a slice is as large as the whole row.
    lengths = [span.length for span in spans]
    parts = []
    prompt_keys = prompt_values = key
    for span, q, k, v in zip(spans, *(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        mask = None
        if span.mask is None:
            prompt_keys, prompt_values = k, v
        else:
            k = torch.cat([prompt_keys[:, :, : span.prefix], k], dim=2)
            v = torch.cat([prompt_values[:, :, : span.prefix], v], dim=2)
            mask = span.mask[None, None]
        parts.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0])
    return torch.cat(parts, dim=1), None
