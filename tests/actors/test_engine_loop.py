"""The loop around the engine: neighbours of a cancelled or failed request get their results, and nothing is left behind."""

from __future__ import annotations

import queue
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine_loop import EngineLoop

PATIENCE = 60.0
"""Seconds until a result that does not come fails the test."""


class ScriptedEngine:
    """Serves one step each time the test allows one; a prompt is the number of steps it takes."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.aborted: list[str] = []
        self.forgotten = 0
        self.allowed: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.entered: queue.SimpleQueue[int] = queue.SimpleQueue()
        """How many requests each step that began has."""

    def add_request(self, request_id: str, steps: int, params: Any) -> None:
        self.left[request_id] = steps
        if steps == 0:
            raise ValueError("an empty prompt")

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.left.pop(request_id, None)

    def collective_rpc(self, method: str) -> None:
        assert method == "forget_step"
        self.forgotten += 1

    def step(self) -> list[Any]:
        self.entered.put(len(self.left))
        if error := self.allowed.get(timeout=PATIENCE):
            raise error
        self.left = {request_id: steps - 1 for request_id, steps in self.left.items()}
        done = [request_id for request_id, steps in self.left.items() if steps == 0]
        for request_id in done:
            del self.left[request_id]
        return [SimpleNamespace(request_id=request_id, finished=True) for request_id in done]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def loop(engine: ScriptedEngine) -> EngineLoop:
    return EngineLoop(engine)


def send(loop: EngineLoop, *steps: int) -> list[Future]:
    return [loop.generate(count, None) for count in steps]  # type: ignore[arg-type]


def in_flight(loop: EngineLoop, engine: ScriptedEngine, *steps: int) -> list[Future]:
    """Requests of which a step has begun: the first alone, since the engine may begin as soon as it has one."""
    (first,) = send(loop, steps[0])
    assert engine.entered.get(timeout=PATIENCE) == 1
    rest = send(loop, *steps[1:])
    engine.allowed.put(None)
    assert engine.entered.get(timeout=PATIENCE) == len(steps)
    return [first, *rest]


def test_a_cancelled_request_leaves_the_engine_and_its_neighbour_is_served(
    loop: EngineLoop, engine: ScriptedEngine
) -> None:
    cancelled, neighbour = in_flight(loop, engine, 9, 2)
    assert cancelled.cancel()
    engine.allowed.put(None)
    assert engine.entered.get(timeout=PATIENCE) == 1, "it is gone before the next step"
    engine.allowed.put(None)
    assert neighbour.result(PATIENCE).request_id == "1"
    assert engine.aborted == ["0"]


def test_a_request_cancelled_in_the_very_step_that_ends_it_harms_nobody(
    loop: EngineLoop, engine: ScriptedEngine
) -> None:
    cancelled, neighbour = in_flight(loop, engine, 2, 2)
    assert cancelled.cancel()
    engine.allowed.put(None)
    assert engine.entered.get(timeout=PATIENCE) == 1
    engine.allowed.put(None)
    assert neighbour.result(PATIENCE).request_id == "1"
    assert not engine.left


def test_a_failed_step_ends_its_own_requests_and_no_later_one(loop: EngineLoop, engine: ScriptedEngine) -> None:
    lost = in_flight(loop, engine, 9, 9, 9)
    assert lost[2].cancel()
    engine.allowed.put(RuntimeError("out of memory"))
    for future in lost[:2]:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(PATIENCE)
    (later,) = send(loop, 1)
    assert engine.entered.get(timeout=PATIENCE) == 1
    engine.allowed.put(None)
    assert later.result(PATIENCE).request_id == "3"
    assert sorted(engine.aborted) == ["0", "1", "2"]
    assert engine.forgotten == 1
    assert not engine.left


def test_a_refused_request_leaves_nothing_behind(loop: EngineLoop, engine: ScriptedEngine) -> None:
    refused, served = send(loop, 0, 1)
    engine.allowed.put(None)
    with pytest.raises(ValueError, match="an empty prompt"):
        refused.result(PATIENCE)
    assert served.result(PATIENCE).request_id == "1"
    assert not engine.left


def test_calls_run_alone_and_a_cancelled_or_failing_one_harms_nobody(loop: EngineLoop, engine: ScriptedEngine) -> None:
    (earlier,) = in_flight(loop, engine, 2)
    seen: list[int] = []
    cancelled, failing, fine = (
        loop.call(lambda: seen.append(-1)),
        loop.call(lambda: 1 / 0),
        loop.call(lambda: seen.append(len(engine.left))),
    )
    assert cancelled.cancel()
    (later,) = send(loop, 1)
    for _ in range(2):
        engine.allowed.put(None)
    assert earlier.result(PATIENCE).request_id == "0"
    assert later.result(PATIENCE).request_id == "1"
    with pytest.raises(ZeroDivisionError):
        failing.result(PATIENCE)
    fine.result(PATIENCE)
    with pytest.raises(CancelledError):
        cancelled.result(PATIENCE)
    assert seen == [0], "after the earlier request, before the later one"
