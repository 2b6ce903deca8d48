"""Every call of a pool ends: in its result, the callee's error, or an error that names pool, actor and call."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import ray

from actors.config import ActorConfig
from actors.pool import Pool
from services.errors import TrainingError, VideoError


class EchoActor:
    """Answers, waits, fails or dies on demand."""

    def ready(self) -> None:
        """Answers."""

    def pid(self) -> int:
        return os.getpid()

    def hang(self) -> None:
        signal.pause()

    def refuse(self) -> None:
        raise VideoError("v.mp4: is empty")

    def die(self) -> None:
        os._exit(1)


async def pool(replicas: int, deadline: float = 60.0) -> Pool:
    config = ActorConfig(num_cpus=0.1, deadline=deadline)
    return await Pool.start(EchoActor, (), config, {}, ["DEFAULT"] * replicas)


def test_calls_go_to_the_least_loaded(ray_cluster: None) -> None:
    async def story() -> None:
        echoes = await pool(2)
        assert echoes.name == "echo"
        pids = await asyncio.gather(*[echoes.call("pid") for _ in range(4)])
        assert sorted(map(pids.count, set(pids))) == [2, 2]
        assert set(await echoes.broadcast("pid")) == set(pids)

    asyncio.run(story())


def test_an_error_of_ours_comes_as_it_is(ray_cluster: None) -> None:
    async def story() -> None:
        with pytest.raises(VideoError) as caught:
            await (await pool(1)).call("refuse")
        assert str(caught.value) == "v.mp4: is empty"

    asyncio.run(story())


def test_a_deadline_and_a_death_are_named(ray_cluster: None) -> None:
    async def story() -> None:
        echoes = await pool(1, deadline=0.5)
        with pytest.raises(TrainingError, match="echo actor 0: hang was not done within 0.5 s"):
            await echoes.call("hang")
        ray.kill(echoes.actors[0])
        dying = await pool(1)
        with pytest.raises(TrainingError, match="echo actor 0: die: the actor died"):
            await dying.call("die")

    asyncio.run(story())
