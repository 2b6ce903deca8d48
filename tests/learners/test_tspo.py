"""TSPO's agent: the published one's logits, padding, its window, and the objective that trains it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from learners.config import SamplerConfig
from learners.networks import NETWORKS, Seen, make_network
from learners.plackett_luce import LOG_PROBS
from learners.tspo import NORM, WINDOW, TspoAgent, collate

GOLDEN = Path(os.environ.get("MSJOE_GOLDEN", Path(__file__).parents[1] / "golden")) / "selectors.json"
AGENTS = json.loads(GOLDEN.read_text())["tspo_agent"]
NAMES = {
    "temporal.Self_q": "query",
    "temporal.Self_k": "key",
    "temporal.Self_v": "value",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}


def agent(width: int, heads: int = 8, temperature: float = 0.025) -> TspoAgent:
    torch.manual_seed(0)
    return TspoAgent(width, temperature, heads)


def seen(queries: int, frames: int, seed: int, width: int = 16) -> Seen:
    rng = np.random.default_rng(seed)
    similarity = (0.2 + 0.05 * rng.standard_normal((queries, frames))).astype(np.float32)
    return Seen(similarity, rng.normal(size=(queries, width)).astype(np.float32), rng.normal(size=(frames, width)))


def logits(network: TspoAgent, *items: Seen) -> torch.Tensor:
    with torch.no_grad():
        return network(NETWORKS["tspo"].collate(items))


@pytest.mark.parametrize("case", AGENTS)
def test_golden_logits(case: dict) -> None:
    network = agent(case["dim"], case["heads"], case["tau"])
    assert case["window"] == WINDOW
    state = {
        f"{ours}.{part}": case["state_dict"][f"{theirs}.{part}"]
        for theirs, ours in NAMES.items()
        for part in ("weight", "bias")
    }
    network.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    frames, texts = (np.array(case[name], np.float32) for name in ("frame_features", "text_features"))
    lengths = np.linalg.norm(texts, axis=1)[:, None] * np.linalg.norm(frames, axis=1)
    found = logits(network, Seen(texts @ frames.T / lengths, texts, frames / NORM))[0]
    np.testing.assert_allclose(found.numpy(), case["scores"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 12, 40])
def test_padding_never_changes_a_valid_logit(frames: int) -> None:
    network, item = agent(16), seen(2, frames, 1)
    alone, padded = logits(network, item), logits(network, seen(4, 70, 9), item)
    assert alone.shape == (1, frames) and alone.isfinite().all()
    torch.testing.assert_close(padded[1, :frames], alone[0], atol=1e-3, rtol=1e-5)
    assert (padded[1, frames:] == -torch.inf).all()


def test_a_frame_attends_to_six_before_and_five_after() -> None:
    network, item = agent(16), seen(1, 40, 2)
    assert item.frames is not None
    moved = item.frames.copy()
    moved[20] = -moved[20]
    changed = (logits(network, Seen(item.similarity, item.queries, moved)) - logits(network, item)).abs()[0]
    assert changed.nonzero().flatten().tolist() == list(range(15, 27)), "frames that have 20 in their window"


def test_gradients_reach_all_but_the_temperature_and_stay_finite_beside_padding() -> None:
    network = agent(16)
    out = network(NETWORKS["tspo"].collate([seen(1, 3, 0), seen(4, 30, 1)]))
    LOG_PROBS["mean"](out, torch.tensor([[0, 2, -1], [5, 1, 9]])).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert gradients.pop("temperature") is None
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_mean_log_prob_is_tspos() -> None:
    logits_BT = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    draws_BK = torch.tensor([[3, 0, 7], [8, 2, -1]])
    log_p = logits_BT.log_softmax(-1)
    expected = torch.stack([log_p[0, [3, 0, 7]].mean(), log_p[1, [8, 2]].mean()])
    torch.testing.assert_close(LOG_PROBS["mean"](logits_BT, draws_BK), expected)


def test_the_temperature_falls_over_the_run_and_seed_decides_the_weights() -> None:
    anneal = NETWORKS["tspo"].anneal
    assert anneal is not None
    assert [anneal(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.025, 0.0175, 0.01])
    one, two, other = (make_network("tspo", SamplerConfig(width=16), seed).state_dict() for seed in (5, 5, 6))
    assert float(one["temperature"]) == pytest.approx(0.025)
    assert torch.equal(one["query.weight"], two["query.weight"])
    assert not torch.equal(one["query.weight"], other["query.weight"])


@pytest.mark.parametrize(
    ("similarity", "queries", "frames"), [((1, 3), 1, 2), ((1, 3), 2, 3), ((5, 3), 5, 3), ((0, 3), 0, 3)]
)
def test_collate_refuses_what_does_not_fit(similarity: tuple[int, int], queries: int, frames: int) -> None:
    with pytest.raises(ValueError, match=r"similarities\[0\] has shape"):
        collate([np.zeros(similarity, np.float32)], [np.zeros((frames, 4))], [np.zeros((queries, 4))])
