"""`EngineLoop`: the one thread that drives a vLLM engine.

Invariants: every future ends, in its result or in an error, or was cancelled by its caller; the engine holds no request that
nobody waits for, so a cancelled or a failed one gives its place back; an error ends the requests of the step it came from,
never the thread; a call runs alone, after all requests sent before it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """A prompt that the engine continues."""

    prompt: dict[str, Any]
    params: Any
    """vLLM's `SamplingParams`."""
    future: Future


@dataclass(frozen=True)
class Call:
    """A function that runs while the engine holds no request."""

    function: Callable[[], Any]
    future: Future

    def run(self) -> None:
        """Run it, unless it was cancelled; its result or its error is the future's."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except Exception as error:
                self.future.set_exception(error)


class EngineLoop:
    """Requests join the running batch as they come; calls run once the batch is empty."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._inbox: queue.SimpleQueue[Request | Call] = queue.SimpleQueue()
        self._running: dict[str, Future] = {}
        self._next_id = 0
        self.rounds = 0
        """Steps, and rounds without one, that are behind it. It stands still when the engine hangs, or has nothing to do."""
        self._step_failed = False
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def generate(self, prompt: dict[str, Any], params: Any) -> Future:
        """Future of the request's final `RequestOutput`; cancelling it ends the request in the engine."""
        request = Request(prompt, params, Future())
        self._inbox.put(request)
        return request.future

    def call(self, function: Callable[[], Any]) -> Future:
        """Future of `function()`, run between batches: after all earlier requests, before all later ones."""
        call = Call(function, Future())
        self._inbox.put(call)
        return call.future

    def _run(self) -> None:
        """Take messages in their order: requests join the batch, a call waits for it to end and holds back what comes later."""
        waiting: Call | None = None
        while True:
            while waiting is None and (not self._running or not self._inbox.empty()):
                message = self._inbox.get()
                if isinstance(message, Call):
                    waiting = message
                else:
                    self._add(message)
            self._drop_cancelled()
            if self._running:
                self._step()
            elif waiting is not None:
                waiting.run()
                waiting = None
            self.rounds += 1

    def _add(self, request: Request) -> None:
        request_id = str(self._next_id)
        self._next_id += 1
        try:
            self.engine.add_request(request_id, request.prompt, request.params)
        except Exception as error:
            self.engine.abort_request([request_id])  # its front end may have taken it in already
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)
        else:
            self._running[request_id] = request.future

    def _drop_cancelled(self) -> None:
        cancelled = [request_id for request_id, future in self._running.items() if future.cancelled()]
        if cancelled:
            self.engine.abort_request(cancelled)
            for request_id in cancelled:
                del self._running[request_id]

    def _step(self) -> None:
        try:
            if self._step_failed:
                self.engine.collective_rpc("forget_step")
                self._step_failed = False
            outputs = self.engine.step()
        except Exception as error:
            self._step_failed = True
            lost, self._running = self._running, {}
            self.engine.abort_request(list(lost))
            for future in lost.values():
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        else:
            for output in outputs:
                if output.finished:
                    future = self._running.pop(output.request_id)
                    if future.set_running_or_notify_cancel():
                        future.set_result(output)
