"""A learner one of whose ranks is killed or stopped: all calls say so, and the rebuilt one goes on from a checkpoint."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import ray
import torch
from ray.actor import ActorHandle

from learners.config import SamplerConfig
from learners.group import LearnerGroup
from learners.sampler import SamplerLearner
from services.config import DataConfig
from services.errors import ActorLost, TrainingError
from services.weights import create_store, newest_version, read_version
from tests.learners.test_learners import sampler_batch
from tests.learners.turns import ENV


class HeldLearner(SamplerLearner):
    """Leaves its process's number, and takes no step while `hold` is there, in a folder."""

    def __init__(self, folder: Path, config: SamplerConfig, seed: int, rank: int) -> None:
        super().__init__(config, "unet", seed, DataConfig(), 9, rank)
        self._folder = folder

    def connect(self, address: str, port: int) -> None:
        (self._folder / f"rank-{self.rank}").write_text(str(os.getpid()))
        if self.rank == 1 and (self._folder / "die").exists():
            (self._folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        super().connect(address, port)

    def take_step(self, step: int) -> dict[str, float]:
        while self.rank == 1 and (self._folder / "hold").exists():
            (self._folder / "held").touch()
        return super().take_step(step)


def kill(store: ActorHandle) -> None:
    """The store's process is gone, which Ray notices a moment later."""
    os.kill(ray.get(store.__ray_call__.remote(lambda store: os.getpid())), signal.SIGKILL)


def test_a_learner_whose_rank_is_lost(ray_cluster: None, tmp_path: Path) -> None:
    lines: list[str] = []
    config = SamplerConfig(channels=(8,), num_cpus=0.3, world_size=2, silent_after=10.0, restarts=1)

    def strike(number: signal.Signals) -> None:
        os.kill(int((tmp_path / "rank-1").read_text()), number)

    async def held(learner: LearnerGroup, step: int) -> asyncio.Task:
        (tmp_path / "hold").touch()
        updating = asyncio.create_task(learner.update(sampler_batch(), step))
        while not (tmp_path / "held").exists():
            await asyncio.sleep(0.01)
        return updating

    def let_go() -> None:
        (tmp_path / "hold").unlink()
        (tmp_path / "held").unlink()

    async def story() -> None:
        store = create_store("store-lost-rank")

        async def published() -> dict[str, torch.Tensor]:
            await learner.publish(store)
            return {name: tensor.clone() for name, tensor in read_version(store, "sampler")[1]}

        (tmp_path / "die").touch()
        learner = await LearnerGroup.start(
            HeldLearner, (tmp_path, config, 0), config, ENV, ["SPREAD"] * 2, report=lines.append
        )
        assert "sampler learner, rank 1: connect: the actor died" in lines.pop(), "and both were started again"
        await learner.update(sampler_batch(), 1)
        await learner.publish(store)
        await learner.snapshot()
        await learner.write(str(tmp_path))
        expected = await learner.update(sampler_batch(), 2)
        weights = await published()

        updating = await held(learner, 3)
        strike(signal.SIGKILL)
        with pytest.raises(ActorLost, match="sampler learner, rank 1: .*the actor died"):
            await updating
        with pytest.raises(ActorLost, match="rank 1"):
            await learner.lost()
        with pytest.raises(ActorLost, match="rank 1"):
            await learner.snapshot()
        assert len(lines) == 1, "once"
        let_go()
        await learner.rebuild()
        assert not learner.is_lost
        assert learner.is_ahead
        await learner.restore(str(tmp_path), 1)
        metrics = await learner.update(sampler_batch(), 2)
        versions = {name: metrics.pop(name) for name in [*metrics] if name.endswith("version")}
        assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-4)
        again = await published()
        assert newest_version(store, "sampler") == versions["sampler/version"] == 4, "3 may have been half written"
        for name, tensor in weights.items():
            torch.testing.assert_close(again[name], tensor, atol=1e-7, rtol=0)

        strike(signal.SIGSTOP)
        with pytest.raises(ActorLost, match="rank 1: no answer in 10 s"):
            await learner.update(sampler_batch(), 3)
        await learner.rebuild()
        strike(signal.SIGKILL)
        with pytest.raises(ActorLost):
            await learner.lost()
        with pytest.raises(TrainingError, match=r"the sampler learner is not started again \(sampler.restarts=1\)"):
            await learner.rebuild()
        learner.close()

    asyncio.run(story())


def test_a_version_that_the_store_lost_is_published_again_unless_the_network_has_learnt(ray_cluster: None) -> None:
    async def story() -> None:
        config = SamplerConfig(channels=(8,), num_cpus=0.3)
        learner = await LearnerGroup.start(
            SamplerLearner, (config, "unet", 0, DataConfig(), 9), config, ENV, ["DEFAULT"]
        )
        store = create_store("store-again")
        await learner.update(sampler_batch(), 1)
        await learner.publish(store)
        before = {name: tensor.clone() for name, tensor in read_version(store, "sampler", 1)[1]}
        kill(store)
        assert newest_version(store, "sampler") == 0
        await learner.publish_again(store)
        assert learner.version == 1
        after = dict(read_version(store, "sampler", 1)[1])
        assert all(torch.equal(after[name], before[name]) for name in before)
        await learner.update(sampler_batch(), 2)
        kill(store)
        assert newest_version(store, "sampler") == 0
        await learner.publish_again(store)
        assert newest_version(store, "sampler") == 0, "its weights are no more those of version 1"
        learner.close()

    asyncio.run(story())
