"""The sampler network: padding, shifts, missing queries, its start, and its checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from learners.config import SamplerConfig
from learners.networks import architecture, make_network
from learners.rl_module import rl_module
from learners.unet import LOGIT_SCALE, UNetSampler, collate, features
from services.checkpoints import save_sampler
from services.errors import UserError

CHANNELS = (8, 16, 24)


def make_sampler(channels: tuple[int, ...], seed: int, checkpoint: Path | None = None) -> UNetSampler:
    network = make_network("unet", SamplerConfig(channels=channels), seed, checkpoint)
    assert isinstance(network, UNetSampler)
    return network


def shape(channels: tuple[int, ...]) -> dict:
    return architecture("unet", SamplerConfig(channels=channels))


def rows(queries: int, frames: int, seed: int = 0) -> np.ndarray:
    return (0.25 + 0.02 * np.random.default_rng(seed).standard_normal((queries, frames))).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> UNetSampler:
    """A small network whose weights are all far from zero: what it maps depends on every input."""
    module = make_sampler(CHANNELS, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def logits(module: UNetSampler, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return module(batch)


def test_size_and_uniform_start() -> None:
    module = make_sampler((64, 128, 256), seed=0)
    assert 1.8e6 < sum(p.numel() for p in module.parameters()) < 2.3e6
    assert logits(module, collate([rows(3, 50)])).unique().numel() == 1


def test_first_gradient_reaches_the_head() -> None:
    module = make_sampler(CHANNELS, seed=0)
    module(collate([rows(3, 50)]))[0, 7].backward()
    assert module.head.weight.grad.abs().sum() > 0


def test_seed_decides_the_weights_and_nothing_else() -> None:
    before = torch.get_rng_state()
    one, two, other = (make_sampler(CHANNELS, seed).stem.weight for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 37, 64])
def test_padding_never_changes_a_valid_logit(trained: UNetSampler, frames: int) -> None:
    matrix = rows(2, frames)
    alone = logits(trained, collate([matrix]))
    padded = logits(trained, collate([rows(4, 101, seed=9), matrix]))
    assert alone.shape == (1, frames)
    assert alone.isfinite().all()
    torch.testing.assert_close(padded[1, :frames], alone[0], atol=1e-5 * LOGIT_SCALE, rtol=0)
    assert (padded[1, frames:] == -torch.inf).all()
    assert frames == 1 or alone.std() > 1e-3


def test_masked_entries_are_never_read(trained: UNetSampler) -> None:
    batch = collate([rows(2, 20), rows(4, 33)])
    expected = logits(trained, batch)
    batch["similarity"][0, 2:] = torch.nan
    batch["similarity"][0, :, 20:] = torch.nan
    assert torch.equal(logits(trained, batch), expected)


def test_shift_by_the_stride_shifts_the_logits(trained: UNetSampler) -> None:
    content = rows(3, 40)
    first, second = np.zeros((3, 600), np.float32), np.zeros((3, 600), np.float32)
    shift = 2 ** len(CHANNELS)
    first[:, 280:320], second[:, 280 + shift : 320 + shift] = content, content
    out = logits(trained, collate([first, second]))
    torch.testing.assert_close(out[1, 150 + shift : 450 + shift], out[0, 150:450], atol=1e-5 * LOGIT_SCALE, rtol=0)
    assert (out[1, 280:320] - out[0, 280:320]).abs().max() > 1e-2


def test_features_against_numpy() -> None:
    matrix = rows(2, 30)
    batch = collate([matrix, rows(4, 45)])
    out = features(*batch.values())[0].numpy()
    scored = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)
    np.testing.assert_allclose(out[:2, :30], scored, atol=1e-4)
    np.testing.assert_array_equal(out[4:6, :30], matrix)
    np.testing.assert_array_equal(out[8:, 0], [1, 1, 0, 0])
    assert not out[:, 30:].any()
    assert not out[[2, 3, 6, 7]].any()


def test_a_flat_row_stays_flat() -> None:
    matrix = 0.3 + 1e-4 * (rows(1, 100) - 0.25)
    assert 0 < features(*collate([matrix]).values())[0, 0].abs().max() < 0.01


def test_missing_query_is_told_from_a_zero_row(trained: UNetSampler) -> None:
    matrix = rows(2, 16)
    zero = np.concatenate([matrix, np.zeros((1, 16), np.float32)])
    out = logits(trained, collate([matrix, zero]))
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_checkpoint_round_trip(trained: UNetSampler, tmp_path: Path) -> None:
    save_sampler(tmp_path, shape(CHANNELS), trained.state_dict())
    batch = collate([rows(4, 23)])
    assert torch.equal(logits(make_sampler(CHANNELS, 5, tmp_path), batch), logits(trained, batch))
    with pytest.raises(UserError, match=r"holds another network; set sampler.channels=\[8, 16, 24\]$"):
        make_sampler((8,), 0, tmp_path)
    with pytest.raises(UserError, match=r"set selector.kind=unet sampler.channels=\[8, 16, 24\]$"):
        make_network("tspo", SamplerConfig(), 0, tmp_path)
    save_sampler(tmp_path, shape(CHANNELS), make_sampler((8,), 0).state_dict())
    with pytest.raises(UserError, match=r"holds another network's weights"):
        make_sampler(CHANNELS, 0, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        make_sampler(CHANNELS, 0, tmp_path)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_a_foreign_checkpoint_runs_no_code(trained: UNetSampler, tmp_path: Path) -> None:
    rl_module(shape(CHANNELS), trained.state_dict()).save_to_path(tmp_path / "foreign")
    for pickled in (tmp_path / "foreign").glob("*.pkl"):
        pickled.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(UserError, match="has no config.json and no model.safetensors.*pickles are not read"):
        make_sampler(CHANNELS, 0, tmp_path / "foreign")
    save_sampler(tmp_path / "foreign", shape(CHANNELS), trained.state_dict())
    make_sampler(CHANNELS, 0, tmp_path / "foreign")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "foreign" / "module_state.pkl").read_bytes())
    assert (tmp_path / "ran").exists(), "a trap that does not spring proves nothing"


def test_one_level_network_runs() -> None:
    assert logits(make_sampler((8,), seed=0), collate([rows(1, 5)])).shape == (1, 5)


@pytest.mark.parametrize("bad", [[], [rows(5, 3)], [rows(1, 1)[:0]], [rows(1, 1)[:, :0]], [rows(1, 4)[0]]])
def test_collate_refuses_what_does_not_fit(bad: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="similarities"):
        collate(bad)


def test_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="channels"):
        make_sampler((), seed=0)
