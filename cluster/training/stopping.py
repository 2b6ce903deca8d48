"""SIGTERM and SIGINT while a run trains: it comes to the end of its step, or leaves the step, and writes a checkpoint.

Invariants: a network is never left between two steps while there is time (`train.grace`); a second signal, or the end of that
time, stops the run where it is.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from services.errors import Stopped

Result = TypeVar("Result")
GO_ON = "the same command with --resume and --run_dir goes on"
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


class Stop:
    """Heeds the signals while its block lasts."""

    def __init__(self, grace: float) -> None:
        """`grace`: seconds from the signal until the task of the block is cancelled."""
        self._grace = grace
        self._signal: signal.Signals | None = None
        self._asked = asyncio.Event()

    @property
    def is_asked(self) -> bool:
        """The run was told to stop."""
        return self._asked.is_set()

    async def unless_asked(
        self, work: Coroutine[Any, Any, Result], trouble: Coroutine[Any, Any, NoReturn]
    ) -> Result | None:
        """The result of `work`; None when the run is told to stop meanwhile. Raises what `trouble` raises meanwhile. In both
        cases the work is left undone."""
        working, *others = map(asyncio.ensure_future, (work, trouble, self._asked.wait()))
        try:
            await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            working.cancel()
            await asyncio.wait({working})
            if others[0].done():
                others[0].result()
            return None
        finally:
            for task in (working, *others):
                task.cancel()

    def end(self, step: int) -> None:
        """Raises Stopped when the run was told to stop; `step` is the last one that is done and saved, 0 when none is."""
        if self._signal:
            where = f"after step {step}, which is saved; {GO_ON}" if step else "before its first step was done"
            raise Stopped(f"{WORDS[self._signal]} {where}", self._signal)

    def __enter__(self) -> Self:
        self._task, loop = asyncio.current_task(), asyncio.get_running_loop()
        self._handlers = {number: signal.getsignal(number) for number in WORDS}
        for number, handler in self._handlers.items():
            if handler is not signal.SIG_IGN:  # as in a background job
                loop.add_signal_handler(number, self._on_signal, number)
        return self

    def _on_signal(self, number: signal.Signals) -> None:
        assert self._task is not None
        if self._signal:
            self._task.cancel()
        else:
            self._signal = number
            self._asked.set()
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._task.cancel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            if handler is not signal.SIG_IGN:
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, handler)
        if self._signal:
            self._timer.cancel()
            if kind is asyncio.CancelledError:
                raise Stopped(
                    f"{WORDS[self._signal]} in the middle of a step; {GO_ON} from the newest checkpoint", self._signal
                ) from None
