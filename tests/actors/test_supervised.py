"""Actors that are killed, stopped or hang while a pool works: nothing is lost, and only the version wanted works."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.config import ActorConfig
from actors.pool import ATTEMPTS, Pool
from actors.supervised import Pooled
from services.errors import TrainingError
from services.probes import beside_work

GENEROUS = 300.0
"""Seconds after which a state that should have come is missed."""


class WorkerActor(Pooled):
    """Squares numbers. In `folder` it leaves `<method>-<its process>` when it begins, and waits for what `hold-…` says."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._rounds, self.version = folder, 0, 0

    def _begin(self, method: str) -> None:
        """Blocks the main loop until the test lets go of this method, turning its rounds unless this process is to hang."""
        with (self._folder / f"{method}-{os.getpid()}").open("a") as trace:
            trace.write(f"{self.version}\n")
        while (self._folder / f"hold-{method}").exists():
            self._rounds += not (self._folder / f"hang-{os.getpid()}").exists()
            time.sleep(0.01)

    async def ready(self) -> int:
        self._begin("ready")
        newest = self._folder / "newest"
        self.version = int(newest.read_text()) if newest.exists() else 0
        return self.version

    async def pull(self, version: int) -> int:
        self._begin("pull")
        self.version = version
        return version

    @beside_work
    def progress(self) -> int | None:
        return self._rounds if (self._folder / "has-progress").exists() else None

    async def square(self, number: int) -> tuple[int, int]:
        self._begin("square")
        return number**2, self.version

    async def die(self, video: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Scene:
    """A pool, what it says, and the folder in which its actors wait for the test."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    async def pool(self, replicas: int, **config: Any) -> Pool[WorkerActor]:
        settings = ActorConfig(num_cpus=0.1, deadline=GENEROUS, **({"silent_after": 60.0} | config))
        return await Pool.start(
            WorkerActor, (self.folder,), settings, {}, ["DEFAULT"] * replicas, self.lines.append, at_once=2
        )

    def hold(self, method: str) -> None:
        (self.folder / f"hold-{method}").touch()

    def let_go(self, method: str) -> None:
        (self.folder / f"hold-{method}").unlink()

    def processes(self, method: str) -> list[int]:
        """The actors that have begun the method, in their order."""
        traces = sorted(self.folder.glob(f"{method}-*"), key=lambda trace: trace.stat().st_mtime_ns)
        return [int(trace.name.rpartition("-")[2]) for trace in traces]

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(GENEROUS):
            while not condition():
                await asyncio.sleep(0.01)

    async def begun(self, method: str, count: int = 1) -> list[int]:
        await self.until(lambda: len(self.processes(method)) >= count)
        return self.processes(method)


@pytest.fixture
def scene(ray_cluster: None, tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_what_a_killed_actor_worked_on_is_done_again(scene: Scene) -> None:
    async def story() -> None:
        pool = await scene.pool(2)
        scene.hold("square")
        calls = [asyncio.create_task(pool.call(WorkerActor.square, number)) for number in range(10)]
        lost, other = await scene.begun("square", 2)
        os.kill(lost, signal.SIGKILL)
        await scene.until(lambda: len(scene.lines) == 2)
        scene.let_go("square")
        assert await asyncio.gather(*calls) == [(number**2, 0) for number in range(10)]
        died, back = scene.lines
        assert "the actor died: The actor is dead because its worker process has died" in died
        assert died.endswith("; a replacement starts in 0 s")
        assert "is back after" in back
        assert back.endswith("with version 0")
        losses = pool.supervision()
        assert (losses["restarts"], losses["redispatched"]) == (1, 2)
        assert losses["lost_seconds"] > 0
        assert len({*scene.processes("square")} - {lost, other}) == 1, "the replacement works too"

    play(story)


def test_a_replacement_works_once_it_reports_the_version_that_is_wanted_by_then(scene: Scene) -> None:
    async def story() -> None:
        pool = await scene.pool(2)
        first, _ = scene.processes("ready")
        (scene.folder / "newest").write_text("1")
        scene.hold("ready")
        os.kill(first, signal.SIGKILL)
        replacement = (await scene.begun("ready", 3))[2]
        await pool.pull(2)  # which the other one does
        calls = [asyncio.create_task(pool.call(WorkerActor.square, number)) for number in range(6)]
        assert await asyncio.gather(*calls) == [(number**2, 2) for number in range(6)]
        assert replacement not in scene.processes("square"), "it gets no work while it loads"
        scene.let_go("ready")
        await scene.until(lambda: len(scene.lines) == 2)
        assert (scene.folder / f"pull-{replacement}").read_text() == "1\n", "it had loaded 1, and was told to pull"
        assert scene.lines[1].endswith("with version 2")
        calls = [asyncio.create_task(pool.call(WorkerActor.square, number)) for number in range(6)]
        assert {version for _, version in await asyncio.gather(*calls)} == {2}
        assert replacement in scene.processes("square")

    play(story)


def test_actors_killed_while_they_are_constructed_and_while_they_have_nothing_to_do(scene: Scene) -> None:
    async def story() -> None:
        scene.hold("ready")
        starting = asyncio.create_task(scene.pool(1))
        (constructing,) = await scene.begun("ready")
        os.kill(constructing, signal.SIGKILL)
        await scene.begun("ready", 2)
        scene.let_go("ready")
        pool = await starting
        os.kill(scene.processes("ready")[-1], signal.SIGKILL)
        await scene.until(lambda: len(scene.lines) == 4)
        assert await pool.call(WorkerActor.square, 3) == (9, 0)

    play(story)


def test_an_actor_killed_while_it_pulls(scene: Scene) -> None:
    async def story() -> None:
        pool = await scene.pool(1)
        (scene.folder / "newest").write_text("7")
        scene.hold("pull")
        pulling = asyncio.create_task(pool.pull(7))
        (pid,) = await scene.begun("pull")
        os.kill(pid, signal.SIGKILL)
        await pulling
        assert await pool.call(WorkerActor.square, 3) == (9, 7)
        assert scene.processes("pull") == [pid], "its replacement loaded that version by itself"

    play(story)


def test_a_call_that_kills_every_actor_is_named_and_so_is_the_end_of_the_pool(scene: Scene) -> None:
    async def story() -> None:
        pool = await scene.pool(1, restarts=ATTEMPTS)
        named = rf"{ATTEMPTS} worker actors were lost, .* at die\('v\.mp4'\)\. The last: worker actor 0: die: the actor died"
        with pytest.raises(TrainingError, match=named):
            await pool.call(WorkerActor.die, "v.mp4")
        calls = [pool.call(WorkerActor.die, "v.mp4"), *[pool.call(WorkerActor.square, number) for number in range(5)]]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        left = r"no worker actor is left, and none is restarted again \(worker.restarts=3\): worker actor 0: .*; its log is "
        for call in (pool.call(WorkerActor.square, 1), pool.pull(1)):
            with pytest.raises(TrainingError) as caught:
                await call
            outcomes.append(caught.value)
        assert all(isinstance(outcome, TrainingError) and re.match(left, str(outcome)) for outcome in outcomes)

    play(story)


def test_actors_that_hang_or_are_stopped_are_replaced_and_one_with_a_blocked_loop_is_not(scene: Scene) -> None:
    async def story() -> None:
        (scene.folder / "has-progress").touch()
        pool = await scene.pool(2, silent_after=6.0, hang_after=3.0)
        scene.hold("square")
        calls = [asyncio.create_task(pool.call(WorkerActor.square, number)) for number in range(6)]
        hung, stopped = await scene.begun("square", 2)
        (scene.folder / f"hang-{hung}").touch()
        await scene.until(lambda: len(scene.lines) == 2)
        assert "it has work and did none in 3 s" in scene.lines[0]
        os.kill(stopped, signal.SIGSTOP)
        await scene.until(lambda: len(scene.lines) == 4)
        assert "no answer in 6 s" in scene.lines[2]
        scene.let_go("square")
        assert await asyncio.gather(*calls) == [(number**2, 0) for number in range(6)]
        assert pool.supervision()["restarts"] == 2

    play(story)
