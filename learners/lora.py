"""LoRA (arXiv 2106.09685) whose layers multiply by the merged weight W + scale * B A.

Invariant: learner and engine compute with the same numbers. The merged weight is added up in float32 and rounded once to the
dtype of W; the learner's forward pass uses just that, and so does the engine, which gets it. The usual sum of two
products, x W and scale * (x A) B, would in bfloat16 already show updates that are too small to change the engine's rounded
weights.

Shape letters: `L` tokens, `I` and `O` in- and output features, `R` rank.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""The linear layers that `policy.lora_rank` adapts."""


def merge(w_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    """W + scale * B A [O, I] in the dtype of W."""
    return (w_OI.float() + scale * (b_OR.float() @ a_RI.float())).to(w_OI.dtype)


class MergedProduct(torch.autograd.Function):
    """The product of x and the merged weight. The backward pass merges again instead of keeping a second weight for each layer.
    It ignores the rounding: A and B get the gradients of the sum before it was rounded."""

    @staticmethod
    def forward(ctx: Any, x: Any, w_OI: Any, bias_O: Any, a_RI: Any, b_OR: Any, scale: float) -> torch.Tensor:
        ctx.save_for_backward(x, w_OI, a_RI, b_OR)
        ctx.scale = scale
        # Looked up at the call, as plain layers do: under ZeRO-3 DeepSpeed replaces it by its own, which rounds otherwise.
        return functional.linear(x, merge(w_OI, a_RI, b_OR, scale), bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w_OI, a_RI, b_OR = ctx.saved_tensors
        (gradient,) = gradients
        down = gradient @ merge(w_OI, a_RI, b_OR, ctx.scale) if ctx.needs_input_grad[0] else None
        x_LI, g_LO = x.flatten(0, -2), ctx.scale * gradient.flatten(0, -2)
        return down, None, None, (g_LO @ b_OR).T @ x_LI, g_LO.T @ (x_LI @ a_RI.T), None


class LoraLinear(torch.nn.Linear):
    """A linear layer whose own weight is frozen and whose adapter is trained. `adapt` makes it from a plain one."""

    lora_A: torch.nn.Parameter
    lora_B: torch.nn.Parameter
    scale: float
    is_adapted: bool

    def merged(self) -> torch.Tensor:
        """The weight [O, I] that this layer multiplies by."""
        return merge(self.weight.data, self.lora_A.data, self.lora_B.data, self.scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.is_adapted:
            return functional.linear(input, self.weight, self.bias)
        return MergedProduct.apply(input, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)


def adapt(network: torch.nn.Module, rank: int, alpha: float) -> None:
    """Freeze `network` and give the layers of LORA_TARGETS adapters. A is uniform, as Linear's own weight, and B is zero, so at
    first nothing changes."""
    network.requires_grad_(False)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and re.fullmatch(LORA_TARGETS, name):
            layer.__class__ = LoraLinear
            assert isinstance(layer, LoraLinear)
            layer.scale, layer.is_adapted = alpha / rank, True
            layer.lora_A = torch.nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
            layer.lora_B = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
            torch.nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))


@contextlib.contextmanager
def without_adapters(network: torch.nn.Module) -> Iterator[None]:
    """Inside the block, the network computes as it did before it was adapted."""
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        layer.is_adapted = False
    yield
    for layer in layers:
        layer.is_adapted = True
