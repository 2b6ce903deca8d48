"""Ordered draws without replacement against enumeration of all of them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from learners.plackett_luce import entropy, independent_log_prob, log_prob, sample

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0, -0.4, 1.1], dtype=torch.float64)


def draws(frames: int, k: int) -> torch.Tensor:
    """All ordered draws of k of the frames, [frames! / (frames - k)!, k]."""
    return torch.tensor(list(permutations(range(frames), k)))


def by_definition(logits: list[float], draw: list[int]) -> float:
    """The product of draw-and-remove probabilities, as a logarithm."""
    p, product = np.exp(logits), 1.0
    for i in draw:
        product *= p[i] / p.sum()
        p[i] = 0
    return float(np.log(product))


@pytest.mark.parametrize(("frames", "k"), [(1, 1), (3, 3), (4, 2), (5, 4), (6, 3), (6, 6)])
def test_probabilities_match_the_definition_and_sum_to_one(frames: int, k: int) -> None:
    logits, all_draws = LOGITS[:frames], draws(frames, k)
    found = log_prob(logits.expand(len(all_draws), -1), all_draws)
    expected = [by_definition(logits.tolist(), draw) for draw in all_draws.tolist()]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_sampling_frequencies() -> None:
    logits, all_draws, count = LOGITS[:4], draws(4, 2), 40_000
    found = sample(logits.expand(count, -1), 2, torch.Generator().manual_seed(0))
    seen = (found[:, None] == all_draws).all(-1).double().mean(0)
    expected = log_prob(logits.expand(len(all_draws), -1), all_draws).exp()
    assert seen.sum() == 1
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_sample_is_decided_by_the_generator_and_skips_masked_frames() -> None:
    logits = torch.zeros(50)
    logits[10:] = -torch.inf
    one, two = (sample(logits, 10, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert sorted(one.tolist()) == list(range(10))
    assert one.tolist() != list(range(10))
    with pytest.raises(ValueError, match="k = 11"):
        sample(logits, 11, torch.Generator())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sample_refuses_broken_logits(value: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        sample(torch.tensor([0.0, value, 0.0]), 1, torch.Generator())


@pytest.mark.parametrize("function", [log_prob, independent_log_prob])
def test_gradients_equal_finite_differences(function) -> None:
    batch = torch.stack([LOGITS, LOGITS.flip(0)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, torch.tensor([[2, 0, 5], [1, 4, -1]])), batch)


def test_entropy_gradient_equals_finite_differences() -> None:
    assert torch.autograd.gradcheck(entropy, LOGITS[None].clone().requires_grad_())


@pytest.mark.parametrize("function", [log_prob, independent_log_prob, lambda logits, draw: entropy(logits)])
def test_padding_changes_neither_values_nor_gradients(function) -> None:
    short, draw = LOGITS[None].clone().requires_grad_(), torch.tensor([[5, 2, 0, 1, 3, 4]])
    long = torch.cat([LOGITS, torch.full((3,), -torch.inf)])[None].requires_grad_()
    expected, found = function(short, draw), function(long, torch.cat([draw, torch.full((1, 2), -1)], 1))
    expected.sum().backward()
    found.sum().backward()
    assert torch.equal(found, expected)
    torch.testing.assert_close(long.grad[:, :6], short.grad)
    assert (long.grad[:, 6:] == 0).all()


def test_empty_draw_has_log_prob_zero_and_no_gradient() -> None:
    logits = LOGITS[None].clone().requires_grad_()
    found = log_prob(logits, torch.full((1, 3), -1))
    found.sum().backward()
    assert found.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("function", [log_prob, independent_log_prob, lambda logits, draw: entropy(logits)])
def test_a_row_of_padding_harms_nothing(function) -> None:
    logits = torch.stack([LOGITS, torch.full((6,), -torch.inf, dtype=torch.float64)]).requires_grad_()
    function(logits, torch.tensor([[1, 2], [-1, -1]]))[0].backward()
    assert logits.grad[0].abs().sum() > 0
    assert (logits.grad[1] == 0).all()


def test_a_draw_that_cannot_be_has_probability_zero() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert log_prob(logits, torch.tensor([[0, 2]])).exp().item() == 0


def test_independent_is_the_sum_of_log_p() -> None:
    found = independent_log_prob(LOGITS[None].float(), torch.tensor([[2, 0, -1]]))
    assert found.item() == pytest.approx(LOGITS.log_softmax(0)[[2, 0]].sum().item(), abs=1e-6)


def test_nothing_cancels_when_the_drawn_frames_hold_all_the_mass() -> None:
    logits = torch.tensor([[90.0, 60.0, 30.0, 0.0, 0.0]])
    exact = -np.log1p(np.exp(-30) + np.exp(-60) + 2 * np.exp(-90)) - np.log1p(np.exp(-30) + 2 * np.exp(-60))
    exact -= np.log1p(2 * np.exp(-30)) + np.log(2)
    assert log_prob(logits, torch.tensor([[0, 1, 2, 3]])).item() == pytest.approx(exact, abs=1e-12)
    reversed_draw = log_prob(logits, torch.tensor([[3, 2, 1, 0]])).item()
    assert reversed_draw == pytest.approx(-(90 + 60 + 30), abs=1e-9)


def test_full_size_matches_a_step_by_step_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 7200, generator=generator)).requires_grad_()
    draw = sample(logits, 64, generator)
    found = log_prob(logits, draw)
    rest, expected = logits.detach().double().clone(), torch.zeros(2, dtype=torch.float64)
    for i_B1 in draw.split(1, dim=1):
        expected += (rest.gather(1, i_B1) - rest.logsumexp(1, keepdim=True))[:, 0]
        rest.scatter_(1, i_B1, -torch.inf)
    torch.testing.assert_close(found.detach(), expected, atol=1e-9, rtol=0)
    found.sum().backward()
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(2), atol=1e-3, rtol=0)


def test_entropy_of_uniform_and_of_certain() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, -torch.inf], [0.0, -1e6, -1e6, -1e6]])
    torch.testing.assert_close(entropy(logits), torch.tensor([np.log(3), 0.0], dtype=torch.float64))
