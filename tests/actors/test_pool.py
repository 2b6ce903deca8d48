"""Every call of a pool or a learner ends: in its result, the callee's error, or an error that names actor, call and cause."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from pathlib import Path

import pytest
import ray

from actors.config import ActorConfig, EmbedderConfig, RolloutConfig, SelectorConfig
from actors.embedder import EmbedderActor
from actors.pool import Pool
from actors.rollout import RolloutActor
from actors.selector import SelectorActor
from actors.supervised import Pooled
from learners import group
from learners.config import LearnerConfig, PolicyConfig, SamplerConfig
from learners.group import LearnerGroup
from learners.policy import PolicyLearner
from learners.sampler import SamplerLearner
from services.config import DataConfig, FramesConfig
from services.errors import TrainingError, UserError, VideoError
from services.shared import probe, seen_by


class EchoActor(Pooled):
    """Answers, waits, fails or dies on demand."""

    def ready(self) -> None:
        """Answers."""

    def hang(self) -> None:
        signal.pause()

    def refuse(self) -> None:
        raise VideoError("v.mp4: is empty")

    def wait_in_vain(self) -> None:
        raise TimeoutError("the store was silent")

    def fill_the_disk(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/features")

    def err(self) -> None:
        raise KeyError("ours")


class UnreadyActor(Pooled):
    """Finds in its model what the user can mend."""

    def ready(self) -> None:
        raise UserError("embedder.model: no weights")


class Rank:
    """Rank 1 dies in a step, which rank 0 sees as a broken connection."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def step(self) -> None:
        if self._rank == 1:
            os._exit(1)
        raise RuntimeError("Connection reset by peer")


class CrowdActor(Pooled):
    """Keeps every caller until `size` have come."""

    def __init__(self) -> None:
        self._inside = self._most = self._came = 0

    async def ready(self) -> None:
        """Answers."""

    async def join(self, size: int) -> None:
        self._came, self._inside = self._came + 1, self._inside + 1
        self._most = max(self._most, self._inside)
        while self._came < size:
            await asyncio.sleep(0.01)
        self._inside -= 1

    async def most(self) -> int:
        return self._most


async def pool(replicas: int, deadline: float = 60.0) -> Pool:
    config = ActorConfig(num_cpus=0.1, deadline=deadline, restarts=0)
    return await Pool.start(EchoActor, (), config, {}, ["DEFAULT"] * replicas, print)


def test_calls_go_to_the_least_loaded(ray_cluster: None) -> None:
    async def story() -> None:
        config = ActorConfig(num_cpus=0.1, deadline=60.0)
        crowds = await Pool.start(CrowdActor, (), config, {}, ["DEFAULT"] * 2, print, at_once=2)
        assert crowds.name == "crowd"
        await asyncio.gather(*[crowds.call(CrowdActor.join, 2) for _ in range(4)])
        assert await crowds.broadcast(CrowdActor.most) == [2, 2]

    asyncio.run(story())


def test_an_error_of_ours_comes_as_it_is(ray_cluster: None) -> None:
    async def story() -> None:
        with pytest.raises(VideoError) as caught:
            await (await pool(1)).call(EchoActor.refuse)
        assert str(caught.value) == "v.mp4: is empty"

    asyncio.run(story())


def test_a_deadline_is_named(ray_cluster: None) -> None:
    async def story() -> None:
        echoes = await pool(1, deadline=0.5)
        with pytest.raises(TrainingError, match="echo actor 0: hang was not done within 0.5 s"):
            await echoes.call(EchoActor.hang)

    asyncio.run(story())


def test_errors_that_are_not_ours_come_as_what_they_are(ray_cluster: None) -> None:
    async def story() -> None:
        with pytest.raises(UserError, match=r"^embedder.model: no weights$"):
            await Pool.start(UnreadyActor, (), ActorConfig(num_cpus=0.1), {}, ["DEFAULT"], print)
        echoes = await pool(1)
        with pytest.raises(OSError, match="No space left on device") as full:
            await echoes.call(EchoActor.fill_the_disk)
        assert full.value.filename == "/data/features"
        with pytest.raises(
            TrainingError, match="echo actor 0: wait_in_vain: TimeoutError: the store was silent"
        ) as late:
            await echoes.call(EchoActor.wait_in_vain)
        log = re.search(r"its log is (\S+)/(\S+) on ", str(late.value))
        assert log
        assert list(Path(log[1]).glob(log[2]))

    asyncio.run(story())


def test_no_actor_gets_more_calls_than_it_works_on_whoever_asks(ray_cluster: None) -> None:
    async def story() -> None:
        config = ActorConfig(num_cpus=0.1, deadline=60.0)
        crowd = await Pool.start(CrowdActor, (), config, {}, ["DEFAULT"], print, at_once=3)
        await asyncio.gather(*[crowd.call(CrowdActor.join, 3) for _ in range(10)])
        assert await crowd.broadcast(CrowdActor.most) == [3]

    asyncio.run(story())


def test_a_fault_of_ours_keeps_its_traceback_and_says_where(ray_cluster: None) -> None:
    async def story() -> None:
        with pytest.raises(KeyError) as caught:
            await (await pool(1)).call(EchoActor.err)
        assert 'raise KeyError("ours")' in str(caught.value)
        assert re.match(r"echo actor 0: err; its log is ", caught.value.__notes__[0])

    asyncio.run(story())


def test_a_rank_that_died_is_named_and_not_the_connection_it_broke(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "BEHIND_A_FAULT", 60.0)
    ranks = [ray.remote(num_cpus=0.1)(Rank).remote(number) for number in (0, 1)]
    with pytest.raises(TrainingError, match="policy learner, rank 1: step: the actor died"):
        asyncio.run(LearnerGroup("policy", lambda: ranks, LearnerConfig(deadline=60)).call(Rank.step))


def test_an_actor_that_does_not_see_the_cache_is_said_with_its_node(ray_cluster: None, tmp_path: Path) -> None:
    async def story() -> None:
        echoes = await pool(1)
        with probe(DataConfig(cache=tmp_path / "cache")) as file:
            await echoes.run(seen_by, file)
        assert not [left for left in tmp_path.rglob("*") if left.is_file()]
        node = ray.util.get_node_ip_address()
        with pytest.raises(UserError, match=f"data.cache: {tmp_path / 'cache'} on node {node} is not the folder"):
            await echoes.run(seen_by, file)  # which is gone, as on a node of another file system

    asyncio.run(story())


def test_constructors_load_nothing(tmp_path: Path) -> None:
    """What they raised would arrive as the actor's death; a call's error arrives whole."""
    data, frames, store = DataConfig(cache=tmp_path), FramesConfig(), None
    EmbedderActor("nowhere", EmbedderConfig(), data, frames)
    SelectorActor(SelectorConfig(), SamplerConfig(checkpoint=tmp_path / "nowhere"), 0, store, data)  # type: ignore[arg-type]
    RolloutActor("nowhere", "float32", RolloutConfig(), data, frames, store, "store")
    PolicyLearner(PolicyConfig(), "nowhere", 1.0, data, frames, 0)
    SamplerLearner(SamplerConfig(checkpoint=tmp_path / "nowhere"), "unet", 0, data, 1, 0)


def test_waiting_for_an_actor_is_not_on_the_deadline_and_may_be_given_up(ray_cluster: None) -> None:
    async def story() -> None:
        crowd = await Pool.start(CrowdActor, (), ActorConfig(num_cpus=0.1, deadline=60.0), {}, ["DEFAULT"], print)

        async def busy() -> None:
            await crowd.call(CrowdActor.join, 2)
            given_up.cancel()  # in the very moment in which its turn has come

        first = asyncio.create_task(busy())
        given_up = asyncio.create_task(crowd.call(CrowdActor.most))
        second = asyncio.create_task(crowd.within(5.0).call(CrowdActor.most))
        await asyncio.sleep(6.0)
        assert not second.done()
        await crowd.broadcast(CrowdActor.join, 2)
        await first
        assert await second == 2
        assert given_up.cancelled()

    asyncio.run(story())
